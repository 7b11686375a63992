"""The `notellm` command line: run the service, and use one over HTTP. Tables for people, --json for programs."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import structlog
import typer

from model.cli import main as offline
from service.cli import backup, collection, events, keys, notes, purge, reread, similar
from service.cli.address import AddressUnavailable, close_all, is_loopback, listen
from service.cli.certificate import CertificateUnusable, read_certificate
from service.cli.client import AdminUrl, AsJson, Key, Url, call, explain
from service.cli.ingest import Ingest
from service.cli.server import SWITCH_SECONDS, Server, end_by_sigterm_as_first_process, import_uncollected
from service.cli.terminal import FAILED, complain, err, exit_as_misuse_on, files_for_owner_alone, read_settings, show
from service.cli.transfer import show_report
from service.lifecycle import Lifecycle
from service.log_lines import configure_logging, is_for_people
from service.reader_processes import ReaderProcesses
from service.settings import Settings

app = typer.Typer(no_args_is_help=True)
app.add_typer(keys.app, name="keys")

START_FAILED = 3
"""Exit status of a service that could not start: the same as uvicorn's."""
REJECTED = 4
"""Exit status of an ingest that completed with some lines rejected; 1 is a failure, 2 a wrong option or setting."""
log = structlog.get_logger(__name__)
VERIFY_SECONDS = 3600.0
"""Bound on a comparison of index and store, which takes seconds for each 10,000 notes."""


def print_version(show_version: bool) -> None:
    if show_version:
        typer.echo(f"notellm {version('notellm')}")
        raise typer.Exit


@app.callback()
def notellm(
    show_version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Recommendation service: related notes, hashtags and categories."""


@app.command()
def serve() -> None:
    """Run the service. It is configured by environment variables (docs/configuration.md), such as NOTELLM_PORT=8080,
    NOTELLM_DATA_DIR=/srv/notellm, NOTELLM_REDIS_URL=redis://host:6379/0 or NOTELLM_CHECKPOINT=runs/first/best."""
    end_by_sigterm_as_first_process()
    settings = read_settings()
    with exit_as_misuse_on(AddressUnavailable, CertificateUnusable):
        certificate = read_certificate(settings)
        listeners = open_listeners(settings)  # before the model is loaded, so that probes are answered
    with import_uncollected():
        from service.api.http_server import allow_open_files, http_config
        from service.api.scenarios import ScenariosUnusable
        from service.wiring import build_app

    write_lines = configure_logging(settings.log_format)
    sys.setswitchinterval(SWITCH_SECONDS)
    start = StartForPeople() if is_for_people(settings.log_format) else StartForPrograms()
    lifecycle = Lifecycle(start.show_step)
    readers = ReaderProcesses(settings.readers, listeners[0].getsockname()[1])
    allow_open_files(settings.max_tenants, settings.readers)
    tls = certificate.context if certificate else None
    with exit_as_misuse_on(ScenariosUnusable):
        config = http_config(build_app(settings, lifecycle, readers=readers), settings.shutdown_seconds, tls)
    server = Server(config, lifecycle, settings.drain_seconds, certificate, start.show_address, write_lines, readers)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again after a clean shutdown
        server.run(listeners)
    if lifecycle.failure or not server.started:
        raise typer.Exit(START_FAILED)


class StartForPeople:
    """Shows the steps of a start, and then the address, on a terminal."""

    def show_step(self, step: str) -> None:
        err.print(step, style="dim", markup=False, highlight=False, soft_wrap=True)

    def show_address(self, url: str) -> None:
        message = f"NoteLLM is running on {url}  (API documentation: /docs; stop with Ctrl-C)"
        err.print(message, markup=False, highlight=False, soft_wrap=True)


class StartForPrograms:
    """Writes the steps of a start, and then the address, as log lines."""

    def show_step(self, step: str) -> None:
        log.info("starting", step=step)

    def show_address(self, url: str) -> None:
        log.info("serving", url=url)


def open_listeners(settings: Settings) -> list[socket.socket]:
    """Listen on all ports of the service. Raises AddressUnavailable; also if other machines can reach the address
    without a key, unless the settings allow that (`insecure`)."""
    with contextlib.ExitStack() as stack:
        listeners = listen(settings.host, settings.port, shared=settings.readers > 0)
        stack.callback(close_all, listeners)
        if settings.admin_port:
            listeners += listen(settings.host, settings.admin_port, "NOTELLM_ADMIN_PORT")
        # The addresses are checked, since a host name may stand for any.
        if settings.bootstrap is None and not settings.insecure and not all(map(is_loopback, listeners)):
            raise AddressUnavailable(
                f"NOTELLM_HOST is {settings.host!r}, which other machines can reach, but NOTELLM_BOOTSTRAP_KEY is not "
                "set: set it (openssl rand -hex 32), or set NOTELLM_INSECURE=1 if a proxy authenticates callers"
            )
        stack.pop_all()
    return listeners


@app.command()
def ingest(
    file: Annotated[
        Path, typer.Argument(help="JSONL file of notes, optionally compressed (.gz); - reads standard input.")
    ],
    *,
    url: Url,
    api_key: Key = None,
    generate: Annotated[
        str, typer.Option(help="Fields to generate for each note: hashtags, category or both, separated by a comma.")
    ] = "",
    min_score: Annotated[
        float | None, typer.Option(help="Minimum score of generated hashtags; the service's setting by default.")
    ] = None,
    rejects: Annotated[
        Path | None, typer.Option(help="File for rejected lines; by default NAME.rejects.jsonl in the current folder.")
    ] = None,
    restart: Annotated[bool, typer.Option(help="Start at the first line instead of resuming.")] = False,
    patience: Annotated[float, typer.Option(help="Seconds to keep retrying while the service is unavailable.")] = 90.0,
    as_json: AsJson = False,
) -> None:
    """Add the notes of a file. After an interruption, run the same command again to resume. Invalid lines are skipped
    and written to a file."""
    job = Ingest(file, url, api_key, read_settings().data_dir, generate, min_score, rejects, restart, patience)
    with files_for_owner_alone():  # rejected lines are texts of notes
        show_report(lambda: job.run(err), as_json, rejected=REJECTED)


@app.command()
def hashtags(
    title: Annotated[str, typer.Argument()],
    content: Annotated[str, typer.Argument()] = "",
    *,
    count: Annotated[int, typer.Option(help="Maximum number of hashtags.")] = 5,
    policy: Annotated[
        str | None, typer.Option(help="open, known or grounded; by default the service's NOTELLM_HASHTAG_POLICY.")
    ] = None,
    block: Annotated[list[str] | None, typer.Option(help="Hashtag to exclude; may be repeated.")] = None,
    min_score: Annotated[float, typer.Option(help="Minimum score of a hashtag, 0 to 1.")] = 0.0,
    url: Url,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Generate hashtags for a text, which is not stored."""
    body = {"title": title, "content": content, "count": count, "policy": policy, "blocked": block or []}
    body["min_score"] = min_score
    answer = call(url, "POST", "/generate/hashtags", key=api_key, body=body)
    rows = [
        (hashtag["text"], f"{hashtag['score']:.3f}", ", ".join(hashtag.get("notes", [])))
        for hashtag in answer["hashtags"]
    ]
    show(answer, as_json, ("hashtag", "score", "used by notes"), rows)
    if not rows and not as_json:
        err.print(f"none: {answer['reason']}", highlight=False, markup=False)


@app.command()
def category(
    title: Annotated[str, typer.Argument()],
    content: Annotated[str, typer.Argument()] = "",
    *,
    among: Annotated[
        list[str] | None,
        typer.Option(help="Category to choose from; may be repeated. Default: the service's categories."),
    ] = None,
    all_categories: Annotated[
        bool, typer.Option("--all-categories", help="Score every category of a large set, not only the likeliest.")
    ] = False,
    min_probability: Annotated[
        float, typer.Option(help="Minimum probability; if no category has it, the model abstains.")
    ] = 0.0,
    url: Url,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Choose the category of a text, which is not stored."""
    body = {
        "title": title,
        "content": content,
        "categories": among or [],
        "all_categories": all_categories,
        "min_probability": min_probability,
    }
    answer = call(url, "POST", "/generate/category", key=api_key, body=body)
    chosen = [] if answer["abstain"] else [{"name": answer["category"], "probability": answer["probability"]}]
    rows = [(one["name"], f"{one['probability']:.4f}") for one in [*chosen, *answer["alternatives"]]]
    show(answer, as_json, ("abstains; most probable" if answer["abstain"] else "category", "probability"), rows)


@app.command()
def status(*, url: Url, api_key: Key = None, as_json: AsJson = False) -> None:
    """Show whether the service is ready, and which check fails."""
    answer = call(url, "GET", "/readyz", key=api_key, accept=(200, 503))
    if (
        not isinstance(answer, dict) or "checks" not in answer
    ):  # refused before the probe could answer: draining, or too many connections
        complain(explain(answer, 503))
        raise typer.Exit(FAILED)
    rows = [(name, "ok" if check["ok"] else "NOT OK", check["detail"]) for name, check in answer["checks"].items()]
    rows += [(name, "", str(answer[name])) for name in ("durable", "model", "space", "log_position", "notes")]
    show(answer, as_json, ("what", "state", "detail"), rows)
    raise typer.Exit(0 if answer["ready"] else FAILED)


@app.command()
def verify(
    *,
    repair: Annotated[
        bool, typer.Option("--repair", help="Update differing entries of the index from the store.")
    ] = False,
    url: AdminUrl,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Compare the index of a running service with its store, note by note and vector by vector."""
    answer = call(url, "POST", "/verify", key=api_key, params={"repair": repair}, timeout=VERIFY_SECONDS)
    rows = [(name, str(answer[name]), "") for name in ("notes", "rows", "notes_of_another_model", "repaired")]
    rows += [(kind, str(notes["count"]), ", ".join(notes["ids"])) for kind, notes in answer["differing"].items()]
    show(answer, as_json, ("what", "count", "ids"), rows)
    raise typer.Exit(0 if answer["well"] else FAILED)


@app.command()
def openapi() -> None:
    """Print the OpenAPI description of the API, as in docs/openapi.json."""
    from service.api.scenarios import ScenariosUnusable
    from service.wiring import build_app

    with exit_as_misuse_on(ScenariosUnusable):
        description = build_app(read_settings()).openapi()
    typer.echo(json.dumps(description, indent=2, ensure_ascii=False))


app.command()(collection.list_notes)
app.command()(collection.delete_notes)
app.command()(collection.changes)
app.command()(notes.export_notes)
app.command()(notes.import_notes)
app.command()(reread.reread)
app.command()(similar.similar)
app.command()(backup.backup)
app.command()(backup.restore)
app.command()(purge.purge)
app.command()(events.export_events)
app.command()(events.report)
offline.add_to(app)


def main() -> None:
    app()
