"""`notellm similar`: related notes of a running service, over HTTP."""

from __future__ import annotations

import json
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.table import Column

from service.cli.client import AsJson, Key, Url, call
from service.cli.terminal import MISUSED, complain, out, printable, show

COLUMNS = ("no.", "score", Column("id", no_wrap=True), "title", "category", "author", "hashtags")
SHOWN = {"id", "score", "position", "title", "hashtags", "category", "author", "duplicates", "explanation"}
"""Fields of an item that have a column or a line of their own."""
NOT_FIELDS = frozenset(
    {"note_id", "title", "content", "positive", "negative", "skip_missing", "body", "url", "api_key", "as_json"}
)
"""Parameters of the command that are not sent under their name; the others are fields of a search."""


def similar(
    ctx: typer.Context,
    note_id: Annotated[str | None, typer.Argument(help="A stored note.")] = None,
    *,
    title: Annotated[str, typer.Option(help="A text's title, instead of a note or beside it.")] = "",
    content: Annotated[str, typer.Option(help="A text's content.")] = "",
    positive: Annotated[list[str] | None, typer.Option(help="A stored note to be like; several times.")] = None,
    negative: Annotated[list[str] | None, typer.Option(help="A stored note to be unlike; several times.")] = None,
    strategy: Annotated[str | None, typer.Option(help="average, best_score or sum_scores.")] = None,
    k: Annotated[int | None, typer.Option("-k", help="How many; 10, or what the scenario says.")] = None,
    cursor: Annotated[str | None, typer.Option(help="* for the first page of a list; then what it says.")] = None,
    category: str | None = None,
    hashtag: Annotated[list[str] | None, typer.Option(help="Notes with any of these.")] = None,
    all_hashtag: Annotated[list[str] | None, typer.Option(help="Notes with each of these.")] = None,
    author: str | None = None,
    attribute: Annotated[list[str] | None, typer.Option(help="name:value; several times.")] = None,
    created_after: Annotated[str | None, typer.Option(help="A time with its zone.")] = None,
    created_before: str | None = None,
    exclude: Annotated[list[str] | None, typer.Option(help="A note that must not come; several times.")] = None,
    min_score: float | None = None,
    diversity: Annotated[float | None, typer.Option(help="0 to 1: how much novelty decides the order.")] = None,
    max_per_author: int | None = None,
    max_per_category: int | None = None,
    collapse_above: Annotated[float | None, typer.Option(help="The cosine from which two notes are one.")] = None,
    sources: Annotated[str | None, typer.Option(help="content (default), or auto: words and behaviour too.")] = None,
    include: Annotated[
        list[str] | None, typer.Option(help="A field of each note to show as well: content, ...; several times.")
    ] = None,
    scenario: Annotated[str | None, typer.Option(help="Defaults that the service binds to this name.")] = None,
    user: Annotated[str | None, typer.Option(help="Whom it is for: chooses the variant of the scenario.")] = None,
    min_log_position: Annotated[str | None, typer.Option(help="That of a write which must be seen.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Compare with every note.")] = False,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out examples that cannot be searched with.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what made each note's place; takes a key with notes.read.")
    ] = False,
    body: Annotated[
        str, typer.Option(help="Further fields of POST /similar as JSON: filter, boost, examples with weights.")
    ] = "{}",
    url: Url,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Notes related to a stored one, to a text, or to several examples."""
    text = {name: value for name, value in (("title", title), ("content", content)) if value}
    examples = {"positive": positive or [], "negative": negative or []}
    on_missing = {"on_missing": "skip"} if skip_missing else {}
    fields = _search(note_id, text, examples, _object(body) | _search_options(ctx) | on_missing)
    path = f"/notes/{quote(note_id, safe='')}/similar" if note_id else "/similar"
    answer = call(url, "POST", path, key=api_key, body=fields)
    show(answer, as_json, COLUMNS, [_row(item) for item in answer["items"]])
    if not as_json:
        _show_rest(answer)


def _search_options(ctx: typer.Context) -> dict[str, Any]:
    """Return the search fields that the command's options give: those with a value. An option that was left out, an
    empty list and a switch that is off have none."""
    given = {name: value for name, value in ctx.params.items() if name not in NOT_FIELDS}
    return {name: value for name, value in given.items() if not (value is None or value is False or value in ((), []))}


def _search(
    note_id: str | None, text: dict[str, str], examples: dict[str, list[str]], fields: dict[str, Any]
) -> dict[str, Any]:
    """Return the body of a search: `fields` with the ids of `examples` and the `text`, which becomes an example if
    there are others. A search without any of these ends the command."""
    lists: dict[str, list[Any]] = {
        name: [*fields.pop(name, []), *({"note_id": one} for one in ids)] for name, ids in examples.items()
    }
    if not (note_id or text or any(lists.values()) or fields.keys() & {"title", "content"}):
        complain("Name a note, a --title or --content, or a --positive or --negative example.")
        raise typer.Exit(MISUSED)
    if not (note_id or any(lists.values())):
        return fields | text
    lists["positive"] += [text] if text else []
    return fields | lists


def _object(text: str) -> dict[str, Any]:
    """Parse a JSON object whose examples are lists; anything else ends the command."""
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict) or not all(
        isinstance(fields.get(name, []), list) for name in ("positive", "negative")
    ):
        complain("--body must be a JSON object; its positive and negative, where it has them, are lists.")
        raise typer.Exit(MISUSED)
    return fields


def _row(item: dict[str, Any]) -> tuple[Any, ...]:
    tags = ", ".join(item["hashtags"] or [])
    return (
        str(item["position"]),
        f"{item['score']:.4f}",
        item["id"],
        item["title"],
        item["category"],
        item["author"],
        tags,
    )


def _show_rest(answer: dict[str, Any]) -> None:
    """Write what has no column: explanations, included fields, duplicates, and what is missing or incomplete in the
    answer."""
    lines = []
    for item in answer["items"]:
        if explanation := item.get("explanation"):
            parts = [f"{name} {_numbers(explanation[name])}" for name in ("positive", "negative", "boosts")]
            parts += _evidence(explanation)
            lines.append(f"{item['position']}. relevance {explanation['relevance']:.4f}: {'; '.join(parts)}")
        included = [name for name in item if name not in SHOWN]
        lines += [f"{item['position']}. {name}: {json.dumps(item[name], ensure_ascii=False)}" for name in included]
        if duplicates := item.get("duplicates"):
            lines.append(f"{item['position']}. stands for {', '.join(duplicates)} too")
    if unread := answer.get("unread"):
        lines.append(f"more than one answer holds; read with POST /notes/get: {', '.join(unread)}")
    if missing := answer.get("missing"):
        lines.append(f"examples left out (no such note, unreadable, or of another model): {', '.join(missing)}")
    if removed := answer.get("removed"):
        lines.append("passed over: " + ", ".join(f"{name} {count}" for name, count in removed.items()))
    if answer["degraded"]:
        lines.append("degraded: the store is away, so that the notes were not checked")
    if answer.get("next_cursor"):
        lines.append(f"next page: --cursor {answer['next_cursor']}")
    if not answer["complete"]:
        lines.append("not complete: there may be more notes")
    for line in lines:
        out.print(printable(line), markup=False, highlight=False)


def _evidence(explanation: dict[str, Any]) -> list[str]:
    """Return texts about the hashtags that a note shares, and about what words and behaviour added to its score, if
    requested."""
    parts = [f"hashtags {', '.join(tags)}"] if (tags := explanation["shared_hashtags"]) else []
    if explanation.get("words") is not None:
        shared = ", ".join(explanation["shared_words"]) or "-"
        parts.append(f"words {explanation['words']:.4f} ({shared})")
    if explanation.get("behaviour") is not None:
        parts.append(f"behaviour {explanation['behaviour']:.4f} ({explanation['co_readers']:g} readers)")
    return parts


def _numbers(values: list[float | None]) -> str:
    return " ".join("-" if value is None else f"{value:.4f}" for value in values) or "-"
