"""`notellm backup` and `notellm restore`: for the store that the settings name, in use by services or not."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from service.cli.store import describe_store, store_url
from service.cli.terminal import FAILED, clean_up_when_ended, complain, err, files_for_owner_alone, read_settings, show

AsJson = Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")]


def backup(
    destination: Annotated[
        str, typer.Argument(help="New folder for the backup: a path, or a URL such as s3://bucket/folder.")
    ],
    *,
    as_json: AsJson = False,
) -> None:
    """Back up the store with all tenants, as of one moment. Services can keep running."""
    from service.store.backup.backup import make_backup  # fsspec takes a while to import

    clean_up_when_ended()  # no copy of the store stays in the temporary folder
    settings = read_settings()
    err.print(f"Backing up {describe_store(settings)}", highlight=False, markup=False, soft_wrap=True)
    with files_for_owner_alone(), _steps() as progress, store_url(settings, existing=True) as url:
        manifest = make_backup(url, destination, progress)
    _show(manifest.model_dump(mode="json"), as_json)


def restore(
    source: Annotated[str, typer.Argument(help="Folder of a backup: a path or a URL.")],
    *,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the store's current data, which is lost.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Restore a backup into the store in one atomic step. Running services then rebuild their indexes."""
    from service.store.backup.restore import restore_backup
    from service.store.known_position import KnownPositions

    clean_up_when_ended()  # no copy of the store stays in the temporary folder
    settings = read_settings()
    err.print(f"Restoring into {describe_store(settings)}", highlight=False, markup=False, soft_wrap=True)
    with _steps() as progress, store_url(settings) as url, contextlib.ExitStack() as stack:
        if not settings.redis_url:
            known = stack.enter_context(contextlib.closing(KnownPositions(settings.data_dir)))
            stack.callback(lambda: known.invalidate_all(time.time()))  # even after a failure: some may be restored
        manifest = restore_backup(source, url, progress, replace=replace)
    _show(manifest.model_dump(mode="json"), as_json)


def _show(manifest: dict[str, Any], as_json: bool) -> None:
    rows = [
        (entry["prefix"], str(entry["notes"]), entry["position"], ", ".join(entry["spaces"]))
        for entry in manifest["notes"]
    ]
    show(manifest, as_json, ("prefix of keys", "notes", "log position", "vector spaces"), rows)


@contextlib.contextmanager
def _steps() -> Iterator[Any]:
    """Yield a callable that shows the progress of each step; an error ends the command with its message."""
    from service.store.backup.manifest import BackupError
    from service.store.embedded_redis import EmbeddedRedisError

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    try:
        with Progress(*columns, console=err, transient=True) as bars:

            def show_progress(step: str, done: int, total: int) -> None:
                if step not in tasks:
                    tasks[step] = bars.add_task(step)
                bars.update(tasks[step], completed=done, total=total or None)

            yield show_progress
    except (BackupError, EmbeddedRedisError, OSError) as error:
        complain(str(error))
        raise typer.Exit(FAILED) from error
