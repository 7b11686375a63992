"""The `notellm` command line: run the service, and use one over HTTP. Tables for people, --json for programs."""

from __future__ import annotations

import contextlib
import gc
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import httpx2
import typer
import uvicorn
from rich.console import Console
from rich.table import Table

from model import cli as offline
from service.cli.ingest import Ingest, IngestFailed
from service.log_lines import configure_logging
from service.settings import Settings

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Related notes, hashtags and categories.")
offline.add_to(app)
out = Console()
err = Console(stderr=True)

Url = Annotated[str, typer.Option(envvar="NOTELLM_URL", help="The running service.")]
AsJson = Annotated[bool, typer.Option("--json", help="The service's answer, for programs.")]
LOCAL = "http://127.0.0.1:8000"
TIMEOUT_SECONDS = 120.0
SWITCH_SECONDS = 0.0005
"""How long a busy thread keeps the interpreter when others want it. With Python's 5 ms a request, which gives it up at
each of its system calls, took 47 ms beside a thread that computes, and takes 7 so (docs/experiments.md)."""
VERIFY_SECONDS = 3600.0


@app.command()
def serve() -> None:
    """Run the service; settings are the environment variables NOTELLM_*."""
    with uncollected():
        from service.wiring import build_app

    settings = Settings.from_environment()
    write_lines = configure_logging(settings.log_format)
    sys.setswitchinterval(SWITCH_SECONDS)
    config = uvicorn.Config(
        build_app(settings, lambda message: err.print(f"[dim]{message}[/dim]", highlight=False)),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )
    server = Server(config, write_lines)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again after a clean shutdown
        server.run()
    if not server.started:
        raise typer.Exit(1)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """For the import of torch and transformers, which only the commands that need them pay for. It makes a million
    objects that all stay: the collector's passes over them cost a tenth of the start, and later a pause each."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class Server(uvicorn.Server):
    """Says where it listens once it does; `at_end` is done last, since uvicorn then ends the process by its signal."""

    def __init__(self, config: uvicorn.Config, at_end: Callable[[], None]) -> None:
        super().__init__(config)
        self._at_end = at_end

    async def shutdown(self, sockets: Any = None) -> None:
        await super().shutdown(sockets)
        self._at_end()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            err.print(f"NoteLLM serves on http://{host}:{port}  (documentation: /docs, end: Ctrl-C)", highlight=False)


@app.command()
def ingest(
    file: Annotated[Path, typer.Argument(help="JSONL, plain or .gz; - for standard input.")],
    url: Url = LOCAL,
    generate: Annotated[str, typer.Option(help="hashtags,category: what to fill in from the same prefill.")] = "",
    rejects: Annotated[Path | None, typer.Option(help="Where bad lines go; FILE.rejects.jsonl by default.")] = None,
    restart: Annotated[bool, typer.Option(help="Begin at the first line, whatever was done before.")] = False,
    patience: Annotated[float, typer.Option(help="Seconds to wait for a service that does not answer.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Add a file of notes. Broken off, the same command goes on where it was; bad lines do not stop the rest."""
    job = Ingest(file, url, Settings.from_environment().data_dir, generate, rejects, restart, patience)
    try:
        report = job.run(err)
    except (IngestFailed, OSError) as error:
        err.print(f"[red]{error}[/red]")
        raise typer.Exit(1) from error
    if as_json:
        out.print_json(json.dumps(report))
    else:
        out.print("  ".join(f"{name.replace('_', ' ')} {value}" for name, value in report.items()), highlight=False)
    raise typer.Exit(2 if report["rejected"] else 0)


@app.command()
def similar(
    note_id: Annotated[str | None, typer.Argument(help="A stored note.")] = None,
    title: Annotated[str, typer.Option(help="Instead of a note: a text's title.")] = "",
    content: Annotated[str, typer.Option(help="Instead of a note: a text's content.")] = "",
    k: Annotated[int, typer.Option("-k", help="How many.")] = 10,
    category: str | None = None,
    hashtag: Annotated[list[str] | None, typer.Option(help="Notes with any of these.")] = None,
    author: str | None = None,
    min_score: float | None = None,
    url: Url = LOCAL,
    as_json: AsJson = False,
) -> None:
    """Notes related to a stored one, or to a text."""
    policy = {"k": k, "category": category, "hashtag": hashtag, "author": author, "min_score": min_score}
    policy = {name: value for name, value in policy.items() if value is not None}
    if note_id:
        answer = call(url, "GET", f"/notes/{note_id}/similar", params=policy)
    else:
        answer = call(url, "POST", "/similar", body={"title": title, "content": content, **policy})
    columns = ("score", "id", "title", "category", "hashtags")
    rows = [
        (f"{i['score']:.4f}", i["id"], i["title"], i["category"], " ".join(i["hashtags"] or []))
        for i in answer["items"]
    ]
    show(answer, as_json, columns, rows)


@app.command()
def hashtags(
    title: Annotated[str, typer.Argument()],
    content: Annotated[str, typer.Argument()] = "",
    count: int = 5,
    policy: Annotated[str | None, typer.Option(help="open, known or grounded; the service's own by default.")] = None,
    block: Annotated[list[str] | None, typer.Option(help="A hashtag that is never told.")] = None,
    url: Url = LOCAL,
    as_json: AsJson = False,
) -> None:
    """Hashtags for a text."""
    body = {"title": title, "content": content, "count": count, "policy": policy, "blocked": block or []}
    answer = call(url, "POST", "/generate/hashtags", body=body)
    rows = [(h["text"], f"{h['score']:.3f}", " ".join(h.get("notes", []))) for h in answer["hashtags"]]
    show(answer, as_json, ("hashtag", "score", "carried by"), rows)


@app.command()
def category(
    title: Annotated[str, typer.Argument()],
    content: Annotated[str, typer.Argument()] = "",
    among: Annotated[list[str] | None, typer.Option(help="The closed set; the model's own by default.")] = None,
    min_probability: Annotated[float, typer.Option(help="Below it the model abstains.")] = 0.0,
    url: Url = LOCAL,
    as_json: AsJson = False,
) -> None:
    """The category of a text."""
    body = {"title": title, "content": content, "categories": among or [], "min_probability": min_probability}
    answer = call(url, "POST", "/generate/category", body=body)
    chosen = [] if answer["abstain"] else [{"name": answer["category"], "probability": answer["probability"]}]
    rows = [(c["name"], f"{c['probability']:.4f}") for c in [*chosen, *answer["alternatives"]]]
    show(answer, as_json, ("abstains; likeliest" if answer["abstain"] else "category", "probability"), rows)


@app.command()
def status(url: Url = LOCAL, as_json: AsJson = False) -> None:
    """Whether the service is ready, and why not."""
    answer = call(url, "GET", "/readyz", accept=(200, 503))
    rows = [(name, "ok" if check["ok"] else "NOT OK", check["detail"]) for name, check in answer["checks"].items()]
    rows += [(name, "", str(answer[name])) for name in ("durable", "model", "space", "log_position", "notes")]
    show(answer, as_json, ("what", "state", "detail"), rows)
    raise typer.Exit(0 if answer["ready"] else 1)


@app.command()
def verify(
    repair: Annotated[bool, typer.Option("--repair", help="Give the index anew what differs.")] = False,
    url: Url = LOCAL,
    as_json: AsJson = False,
) -> None:
    """Compare the index of a running service with its store, note by note and vector by vector."""
    answer = call(url, "POST", "/verify", params={"repair": repair}, timeout=VERIFY_SECONDS)
    rows = [(name, str(answer[name]), "") for name in ("notes", "rows", "notes_of_another_model", "repaired")]
    rows += [(kind, str(of["count"]), " ".join(of["ids"])) for kind, of in answer["differing"].items()]
    show(answer, as_json, ("what", "count", "ids"), rows)
    raise typer.Exit(0 if answer["well"] else 1)


@app.command()
def openapi() -> None:
    """The API's description, as docs/openapi.json has it."""
    from service.wiring import build_app

    typer.echo(json.dumps(build_app(Settings()).openapi(), indent=2, ensure_ascii=False))


def call(
    url: str,
    method: str,
    path: str,
    *,
    params: Any = None,
    body: Any = None,
    accept: tuple[int, ...] = (200,),
    timeout: float = TIMEOUT_SECONDS,
) -> Any:
    """The answer's JSON; a problem, or no answer, ends the command with its detail."""
    try:
        response = httpx2.request(method, url + path, params=params, json=body, timeout=timeout)
        answer = response.json()
    except (httpx2.HTTPError, ValueError) as error:
        err.print(f"[red]{url} does not answer as a NoteLLM service: {error}[/red]")
        raise typer.Exit(1) from error
    if response.status_code not in accept:
        err.print(f"[red]{answer.get('detail', answer)}[/red]")
        for field in answer.get("errors", []):
            err.print(f"  {field['pointer']}: {field['detail']}")
        raise typer.Exit(1)
    return answer


def show(answer: Any, as_json: bool, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
    """A table, or the answer as it came."""
    if as_json:
        out.print_json(json.dumps(answer))
        return
    table = Table(*columns)
    for row in rows:
        table.add_row(*("" if cell is None else cell for cell in row))
    out.print(table)


def main() -> None:
    app()
