"""`notellm purge`: removes deleted notes from the files of the store and from the snapshots too."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.access.principal import DEFAULT_TENANT
from service.cli.store import describe_store, store_url
from service.cli.terminal import FAILED, MISUSED, clean_up_when_ended, complain, err, read_settings, show

if TYPE_CHECKING:
    from service.erasure.purge import PurgeReport

WAIT_SECONDS = 600.0
"""Seconds that running services have to rebuild their snapshots: a merge of a million rows takes minutes."""


def purge(
    *,
    note_id: Annotated[
        list[str] | None, typer.Option("--id", help="ID of a removed note to search for; may be repeated.")
    ] = None,
    tenant: Annotated[str, typer.Option(help="Tenant of the notes given by --id.")] = DEFAULT_TENANT,
    text: Annotated[
        list[Path] | None,
        typer.Option(exists=True, dir_okay=False, help="File with a removed text to search for; may be repeated."),
    ] = None,
    folder: Annotated[
        list[Path] | None,
        typer.Option(exists=True, file_okay=False, help="Data folder of your own Redis server; may be repeated."),
    ] = None,
    wait: Annotated[
        float, typer.Option(help="Maximum seconds to wait for running services to rewrite their snapshots.")
    ] = WAIT_SECONDS,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Rewrite the store's files and snapshots without removed data, then search them for the given IDs and texts.

    Run it on each machine that runs the service or Redis. Exits with status 1 if removed data was found, if a
    snapshot was not renewed in time, or if files could not be searched.
    """
    from service.erasure.purge import purge as purge_all
    from service.store.embedded_redis import EmbeddedRedisError
    from service.store.purge_claim import PurgeError

    clean_up_when_ended()  # so that a user's own Redis gets its compression setting back
    settings = read_settings()
    server_folders = list(folder or ()) if settings.redis_url else [settings.data_dir, *(folder or ())]
    try:
        texts = [(str(path), path.read_bytes().decode().strip()) for path in text or ()]
    except (OSError, UnicodeDecodeError) as error:
        complain(f"a text cannot be read: {error}")
        raise typer.Exit(MISUSED) from error
    if empty := [name for name, content in texts if not content]:
        complain(f"{empty[0]} is empty: there is no text to search for")
        raise typer.Exit(MISUSED)
    err.print(f"Purging {describe_store(settings)}", highlight=False, markup=False, soft_wrap=True)
    try:
        with store_url(settings, existing=True) as url:
            report = purge_all(
                url,
                settings.data_dir,
                server_folders,
                ids=note_id or (),
                texts=texts,
                wait_seconds=wait,
                tenant=tenant,
            )
    except (PurgeError, EmbeddedRedisError, OSError) as error:
        complain(str(error))
        raise typer.Exit(FAILED) from error
    show(asdict(report) | {"proved": report.proved}, as_json, ("what", "which", "where"), _rows(report))
    raise typer.Exit(0 if report.done else FAILED)


def _rows(report: PurgeReport) -> list[tuple[str, str, str]]:
    rows = [("change log", log.prefix, f"begins at {log.position}") for log in report.logs]
    rows += [("searched", f"{report.search.files} files", f"{report.search.bytes} bytes")]
    rows += [
        ("FOUND", finding.needle, f"{finding.file} at byte {finding.offset}") for finding in report.search.findings
    ]
    rows += [("NOT SEARCHED", "not readable", reason) for reason in report.search.unread]
    rows += [("LATE", "snapshot not rewritten yet", path) for path in report.late]
    if not report.looked_for:
        rows.append(("SEARCHED FOR", "nothing", "give removed notes with --id, texts with --text"))
    elif not report.store_searched:
        reason = "give its data folder with --folder, on its machine; its files must not be compressed (rdbcompression)"
        rows.append(("NOT SEARCHED", "files of Redis", reason))
    if report.looked_for:
        rows += [("NOT SEARCHED", "older than this purge, or compressed", path) for path in report.old_or_compressed]
    return rows
