"""Spans for block tables: appended tokens, a note's prefill, and the next tokens of beams."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import TypeVar

from model.inference.kv_cache import BlockTable
from model.inference.runtime import LogitQuery, Span, SpanOutput
from model.inference.trie import ROOT, Trie

T = TypeVar("T")
SpanSteps = Generator[list[Span], list[SpanOutput], T]
"""A computation in steps: it yields the spans of its next forward, receives their outputs, and returns a T."""


def append_span(
    table: BlockTable,
    ids: Sequence[int],
    parents: Sequence[int] | None = None,
    *,
    read_out: int | None = None,
    queries: Sequence[LogitQuery] = (),
) -> Span:
    """Grow `table` by `ids` and return their Span. Raises CacheFull."""
    table.grow(len(ids))
    return Span(table, tuple(ids), None if parents is None else tuple(parents), read_out, tuple(queries))


def note_span(
    table: BlockTable,
    note: Sequence[int],
    *,
    hashtag_task: Sequence[int] = (),
    hashtag_query: LogitQuery | None = None,
    category_task: Sequence[int] = (),
    categories: Trie | None = None,
) -> Span:
    """Return the one prefill of a note, whose last token is the read-out position.

    The stem is the note and `hashtag_task`; `hashtag_query` asks for the token after the stem. Beside it, a branch
    that attends to the note alone has `category_task` and the inner nodes of the trie of the closed set. The queries
    are that of the hashtags, where there is a task, and then those of the trie in the order of `categories.children`.
    """
    read_out = len(note) - 1
    stem = [*note, *hashtag_task]
    queries = []
    if hashtag_task and hashtag_query is not None:
        queries.append(replace(hashtag_query, index=len(stem) - 1))
    if categories is None:
        return append_span(table, stem, read_out=read_out, queries=queries)

    root = len(stem) + len(category_task) - 1
    index = {ROOT: root} | {node: root + 1 + i for i, node in enumerate(categories.inner)}
    ids = [*stem, *category_task, *(categories.tokens[node] for node in categories.inner)]
    parents = [
        *range(-1, len(stem) - 1),
        read_out,
        *range(len(stem), root),
        *(index[categories.parents[node]] for node in categories.inner),
    ]
    queries += [LogitQuery(index[node], tokens=categories.child_tokens(node)) for node in categories.children]
    return append_span(table, ids, parents, read_out=read_out, queries=queries)


def continue_tables(tables: Sequence[BlockTable], parents: Sequence[int]) -> list[BlockTable]:
    """Return a table for each of `parents`, which are indices into `tables`, that holds the parent's tokens.

    A parent's last child takes over its table, the others get forks, and tables without a child are closed.
    """
    for childless in set(range(len(tables))).difference(parents):
        tables[childless].close()
    last_child = {parent: child for child, parent in enumerate(parents)}
    continued = []
    for child, parent in enumerate(parents):
        table = tables[parent]
        continued.append(table if last_child[parent] == child else table.fork())
    return continued
