"""`notellm list-notes`, `delete-notes` and `changes`: many notes of a running service at once, over HTTP."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Column

from service.cli.client import AsJson, Key, Url, call
from service.cli.terminal import MISUSED, complain, out, show

Category = Annotated[str | None, typer.Option(help="Notes of this category.")]
Author = Annotated[str | None, typer.Option(help="Notes of this author.")]
Hashtags = Annotated[
    list[str] | None, typer.Option(help="Notes with this hashtag; if repeated, notes with any of them.")
]


def list_notes(
    *,
    category: Category = None,
    author: Author = None,
    hashtag: Hashtags = None,
    created_after: Annotated[
        str | None, typer.Option(help="Notes created after this time: ISO 8601 with a time zone.")
    ] = None,
    updated_after: Annotated[
        str | None, typer.Option(help="Notes last written after this time: ISO 8601 with a time zone.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Maximum number of notes in the page.")] = 100,
    cursor: Annotated[str | None, typer.Option(help="Cursor of the next page, printed by the previous one.")] = None,
    url: Url,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """List notes in the order of their last writes, one page at a time."""
    query = {"created_after": created_after, "updated_after": updated_after, "limit": limit, "cursor": cursor}
    answer = call(url, "GET", "/notes", key=api_key, params=_given(query | _conditions(category, author, hashtag)))
    columns = (Column("id", no_wrap=True), "title", "category", "author", "hashtags")
    rows = [
        (note["id"], note["title"], note["category"], note["author"], ", ".join(note["hashtags"] or []))
        for note in answer["notes"]
    ]
    show(answer, as_json, columns, rows)
    if answer["next_cursor"] and not as_json:
        out.print(f"next page: --cursor {answer['next_cursor']}", markup=False, highlight=False, soft_wrap=True)


def delete_notes(
    ids: Annotated[
        list[str] | None, typer.Argument(help="IDs of notes; if omitted, the options select the notes.")
    ] = None,
    *,
    category: Category = None,
    author: Author = None,
    hashtag: Hashtags = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be removed, without removing it.")
    ] = False,
    url: Url,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Remove notes by ID, or all notes of an author, a category or hashtags, and print a receipt."""
    conditions = _conditions(category, author, hashtag)
    if bool(ids) == bool(conditions):
        complain("Give either IDs of notes, or at least one of --author, --category and --hashtag.")
        raise typer.Exit(MISUSED)
    what = {"ids": ids} if ids else {"filter": conditions}
    answer = call(url, "POST", "/notes/delete", key=api_key, body={**what, "dry_run": dry_run})
    rows = [(name, "" if value is None else str(value)) for name, value in answer.items() if name != "ids"]
    show(answer, as_json, ("what", "value"), rows)


def changes(
    *,
    after: Annotated[str | None, typer.Option(help="Log position; by default the current end of the log.")] = None,
    limit: Annotated[int, typer.Option(help="Maximum number of changes.")] = 100,
    wait: Annotated[float, typer.Option(help="Maximum seconds to wait for a change.")] = 0.0,
    url: Url,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """List the notes written or removed after a log position."""
    answer = call(url, "GET", "/changes", key=api_key, params=_given({"after": after, "limit": limit, "wait": wait}))
    rows = [(change["log_position"], change["op"], change["id"], change["at"]) for change in answer["changes"]]
    show(answer, as_json, (Column("log position", no_wrap=True), "op", Column("id", no_wrap=True), "at"), rows)
    if not as_json:
        out.print(f"next: --after {answer['log_position']}", markup=False, highlight=False)


def _conditions(category: str | None, author: str | None, hashtag: list[str] | None) -> dict[str, Any]:
    return _given({"category": category, "author": author, "hashtag": hashtag or None})


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None}
