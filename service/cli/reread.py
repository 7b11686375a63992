"""`notellm reread`: has the model that serves read all notes of a tenant again, over HTTP."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any
from urllib.parse import quote

import httpx2
import typer

from service.cli.client import AsJson, Key, Url, bearer, explain_body, open_client
from service.cli.terminal import complain
from service.cli.transfer import TIMEOUT_SECONDS, Patience, progress_bars, show_report
from service.records import position_key

PAGE_SIZE = 1000
"""Notes of one page of the list."""
NOT_FOUND = 404
"""Status of a note that was removed after it was listed."""
CHANGED = 412
"""Status of a note that was changed since it was read."""
INVALID = (413, 422)
"""Statuses for a stored note that the service would no longer accept, since its bounds have changed."""
HASHTAGS = "hashtags"
"""Field that is generated from neighbouring notes, and so only once all notes are read."""
FIELDS = (HASHTAGS, "category")
"""Fields that can be generated again."""
Listed = dict[str, Any]
"""A note as GET /notes and GET /notes/{id} answer it."""


def fields_of(values: list[str] | None) -> list[str]:
    """Return the fields that an option names, separated by commas or repeated. Raises BadParameter for any other."""
    fields = [field.strip() for value in values or () for field in value.split(",")]
    if unknown := sorted(set(fields) - set(FIELDS)):
        raise typer.BadParameter(f"{', '.join(unknown)!r}: name {' or '.join(FIELDS)}, or both with a comma")
    return fields


def reread(
    *,
    generate: Annotated[
        list[str] | None,
        typer.Option(
            callback=fields_of,
            help="Fields to generate again: hashtags, category or both, separated by a comma. category: for each note "
            "that is read. hashtags: after all notes are read, for all notes without hashtags by their author.",
        ),
    ] = None,
    together: Annotated[int, typer.Option(help="Number of notes read concurrently.", min=1, max=64)] = 8,
    patience: Annotated[float, typer.Option(help="Seconds to keep retrying while the service is unavailable.")] = 90.0,
    url: Url,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Compute new vectors for all notes read by another model. After a change of the checkpoint, searches do not find
    these notes until then. Texts, fields and generated values are not changed, except those given by --generate. After
    an interruption, run the same command again; only hashtags start from the beginning. Requires an API key with the
    scopes notes.read and notes.write."""
    show_report(lambda: Reread(url, api_key, generate or [], together, patience).run(), as_json)


@dataclass(slots=True)
class Reread:
    """One run of `notellm reread`. Each note gets a PATCH that changes nothing, for which the model must read the note
    if its vector is of another space. A concurrent edit or removal by another client is never undone by that."""

    url: str
    api_key: str | None
    generate: list[str]
    together: int
    patience: float

    def run(self) -> dict[str, Any]:
        """Reread all notes. Return the counts of outcomes, and the seconds taken. Raises TransferFailed."""
        started = time.monotonic()
        counts = Counter(read=0, unchanged=0, removed=0, rejected=0)
        headers = bearer(self.api_key) | {"X-Request-Priority": "bulk"}
        with (
            open_client(self.url, headers, TIMEOUT_SECONDS) as client,
            ThreadPoolExecutor(self.together) as pool,
            progress_bars() as bars,
        ):
            steps: list[tuple[str, Callable[[httpx2.Client, Listed], str]]] = [("reading", self._read)]
            if HASHTAGS in self.generate:
                steps.append(("hashtags", self._write_hashtags))
            for name, step in steps:
                task = bars.add_task(name, total=None)
                for notes in self._pages(client):
                    for outcome in pool.map(partial(step, client), notes):
                        counts[outcome] += 1
                        bars.advance(task)
        return {**counts, "seconds": round(time.monotonic() - started, 1)}

    def _pages(self, client: httpx2.Client) -> Iterator[list[Listed]]:
        """Yield pages of the notes that were last written before this call: notes that the run writes move to the end
        of the list, and are left out."""
        end = position_key(self._send(client, "GET", "/changes", {}, (200,)).json()["log_position"])
        cursor = None
        while True:
            query = {"limit": PAGE_SIZE} | ({"cursor": cursor} if cursor else {})
            page = self._send(client, "GET", "/notes", query, (200,)).json()
            notes = [note for note in page["notes"] if position_key(note["log_position"]) <= end]
            yield notes
            cursor = page["next_cursor"]
            if cursor is None or len(notes) < len(page["notes"]):
                return

    def _read(self, client: httpx2.Client, note: Listed) -> str:
        """Have one note read; return the outcome."""
        fields = [field for field in self.generate if field != HASHTAGS]
        query = {"generate": ",".join(fields)} if fields else {}
        answer = self._send(client, "PATCH", _path(note), query, (200, NOT_FOUND, *INVALID), {})
        if answer.status_code == NOT_FOUND:
            return "removed"
        if answer.status_code in INVALID:
            complain(f"{note['id']}: {explain_body(answer.content, answer.status_code)}")
            return "rejected"
        return "read" if answer.json()["usage"]["prompt_tokens"] else "unchanged"

    def _write_hashtags(self, client: httpx2.Client, note: Listed) -> str:
        """Have the hashtags of one note generated anew, unless they are its author's; return the outcome. Hashtags that
        the author adds meanwhile stay, since the change is conditional on the listed version of the note."""
        query, accepted = {"generate": HASHTAGS}, (200, NOT_FOUND, CHANGED, *INVALID)
        while not _has_author_hashtags(note):
            condition = {"If-Match": f'"{note["log_position"]}"'}
            answer = self._send(client, "PATCH", _path(note), query, accepted, {"hashtags": []}, condition)
            if answer.status_code == 200:
                return "hashtags_written"
            if answer.status_code == CHANGED:
                answer = self._send(client, "GET", _path(note), {}, (200, NOT_FOUND))
            if answer.status_code == NOT_FOUND:
                return "removed"
            if answer.status_code in INVALID:  # `_read` has reported why
                return "hashtags_rejected"
            note = answer.json()
        return "hashtags_of_authors"

    def _send(
        self,
        client: httpx2.Client,
        method: str,
        path: str,
        query: dict[str, Any],
        accepted: tuple[int, ...],
        body: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> httpx2.Response:
        """Return the answer to a request, which is sent again while the service is overloaded or unavailable. Raises
        TransferFailed."""
        patience = Patience(self.patience)
        while True:
            try:
                answer = client.request(method, path, params=query, json=body, headers=headers)
                if answer.status_code in accepted:
                    answer.json()  # fails for the page of a proxy
                    return answer
                patience.after(answer.status_code, answer.content, answer.headers)
            except (httpx2.TransportError, ValueError) as error:
                patience.pause(f"{self.url} does not respond like a NoteLLM service: {error}.")


def _path(note: Listed) -> str:
    return f"/notes/{quote(note['id'], safe='')}"


def _has_author_hashtags(note: Listed) -> bool:
    """Return whether the hashtags of a note are its author's, and not the generated ones."""
    generated = (note["generated"] or {}).get("hashtags") or []
    return bool(note["hashtags"] != [hashtag["text"] for hashtag in generated])
