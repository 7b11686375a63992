"""`notellm similar`: related notes of a running service, over HTTP."""

from __future__ import annotations

import json
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.table import Column

from service.cli.client import AsJson, Key, Url, call
from service.cli.collection import Author, Category, Hashtags
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
    note_id: Annotated[str | None, typer.Argument(help="ID of a stored note.")] = None,
    *,
    title: Annotated[str, typer.Option(help="Title of a text, in place of a note or as a further example.")] = "",
    content: Annotated[str, typer.Option(help="Content of the text.")] = "",
    positive: Annotated[
        list[str] | None, typer.Option(help="ID of a stored note that results should be similar to; may be repeated.")
    ] = None,
    negative: Annotated[
        list[str] | None, typer.Option(help="ID of a stored note that results should differ from; may be repeated.")
    ] = None,
    strategy: Annotated[
        str | None, typer.Option(help="How several examples are combined: average, best_score or sum_scores.")
    ] = None,
    k: Annotated[
        int | None, typer.Option("-k", help="Number of results; 10 by default, or as set by the scenario.")
    ] = None,
    cursor: Annotated[
        str | None, typer.Option(help="* for the first page of a list, then the cursor printed with each page.")
    ] = None,
    category: Category = None,
    hashtag: Hashtags = None,
    all_hashtag: Annotated[
        list[str] | None, typer.Option(help="Notes with this hashtag; if repeated, notes with all of them.")
    ] = None,
    author: Author = None,
    attribute: Annotated[
        list[str] | None, typer.Option(help="Notes with this attribute, as name:value; may be repeated.")
    ] = None,
    created_after: Annotated[
        str | None, typer.Option(help="Notes created after this time: ISO 8601 with a time zone.")
    ] = None,
    created_before: Annotated[
        str | None, typer.Option(help="Notes created before this time: ISO 8601 with a time zone.")
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="ID of a note to exclude; may be repeated.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Minimum score of a result.")] = None,
    diversity: Annotated[
        float | None, typer.Option(help="Weight of diversity against relevance in the order of results, 0 to 1.")
    ] = None,
    max_per_author: Annotated[int | None, typer.Option(help="Maximum number of results of one author.")] = None,
    max_per_category: Annotated[int | None, typer.Option(help="Maximum number of results of one category.")] = None,
    collapse_above: Annotated[
        float | None, typer.Option(help="Minimum cosine at which notes are near-duplicates and shown as one result.")
    ] = None,
    sources: Annotated[
        str | None, typer.Option(help="content: vectors only (default); auto: also words and behaviour.")
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option(help="Further field of each note to print, such as content; may be repeated.")
    ] = None,
    scenario: Annotated[
        str | None, typer.Option(help="Name of a scenario of the service, which sets defaults for the options.")
    ] = None,
    user: Annotated[str | None, typer.Option(help="User ID; selects the variant of the scenario.")] = None,
    min_log_position: Annotated[
        str | None, typer.Option(help="Log position of a write that the search must include.")
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Search exactly: compare with every note.")] = False,
    skip_missing: Annotated[
        bool,
        typer.Option(
            "--skip-missing", help="Ignore examples that do not exist or have no usable vector, instead of failing."
        ),
    ] = False,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain", help="Print how the score of each result was computed. Requires a key with notes.read."
        ),
    ] = False,
    body: Annotated[
        str,
        typer.Option(
            help="JSON object with further fields of POST /similar, such as filter, boost or weighted examples."
        ),
    ] = "{}",
    url: Url,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Find notes related to a stored note, to a text, or to several examples."""
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
        complain("Give a note ID, a --title or --content, or a --positive or --negative example.")
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
        complain("--body must be a JSON object, in which positive and negative, if given, are lists.")
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
            lines.append(f"{item['position']}. near-duplicates: {', '.join(duplicates)}")
    if unread := answer.get("unread"):
        lines.append(
            "included fields not read (too large together, or changed meanwhile); get them with POST /notes/get: "
            + ", ".join(unread)
        )
    if missing := answer.get("missing"):
        lines.append(f"ignored examples (not found, unreadable, or embedded by another model): {', '.join(missing)}")
    if removed := answer.get("removed"):
        lines.append("left out: " + ", ".join(f"{name} {count}" for name, count in removed.items()))
    if answer["degraded"]:
        lines.append("degraded: the store is unavailable, so removed or changed notes may be among the results")
    if answer.get("next_cursor"):
        lines.append(f"next page: --cursor {answer['next_cursor']}")
    if not answer["complete"]:
        lines.append("incomplete: there may be more matching notes")
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
