"""`notellm list-notes`, `delete-notes` and `changes`: many notes of a running service at once, over HTTP."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Column

from service.cli.client import AsJson, Key, Url, call
from service.cli.terminal import MISUSED, complain, out, show

Hashtags = Annotated[list[str] | None, typer.Option(help="Notes with any of these.")]


def list_notes(
    *,
    category: str | None = None,
    author: str | None = None,
    hashtag: Hashtags = None,
    created_after: Annotated[str | None, typer.Option(help="A time with its zone.")] = None,
    updated_after: Annotated[str | None, typer.Option(help="Time of the last write, with its zone.")] = None,
    limit: int = 100,
    cursor: Annotated[str | None, typer.Option(help="What the page before says.")] = None,
    url: Url,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """List notes in the order of their last writes, a page at a time."""
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
    ids: Annotated[list[str] | None, typer.Argument(help="Ids; without them, all notes that the options name.")] = None,
    *,
    category: str | None = None,
    author: str | None = None,
    hashtag: Hashtags = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    url: Url,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Remove notes by their ids, or all of an author, a category or hashtags, and write the receipt."""
    conditions = _conditions(category, author, hashtag)
    if bool(ids) == bool(conditions):
        complain("Name either ids, or an --author, a --category or a --hashtag.")
        raise typer.Exit(MISUSED)
    what = {"ids": ids} if ids else {"filter": conditions}
    answer = call(url, "POST", "/notes/delete", key=api_key, body={**what, "dry_run": dry_run})
    rows = [(name, "" if value is None else str(value)) for name, value in answer.items() if name != "ids"]
    show(answer, as_json, ("what", "value"), rows)


def changes(
    *,
    after: Annotated[str | None, typer.Option(help="A log position; by default the end of the log.")] = None,
    limit: int = 100,
    wait: Annotated[float, typer.Option(help="Seconds to wait for a change.")] = 0.0,
    url: Url,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """List what was written and removed after a log position."""
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
