"""Spans for block tables: appended tokens, a note with its tasks, and the next tokens of beams."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

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


@dataclass(frozen=True, slots=True)
class Tasks:
    """Tokens after a note that request hashtags or its category, and what is read from them.

    `hashtag_query` asks for the token after `hashtag_task`; `candidates`: the trie of the hashtags to score after that
    task. `categories`: the trie of the closed set after `category_task`. A note without a task has no queries.
    """

    hashtag_task: tuple[int, ...] = ()
    hashtag_query: LogitQuery | None = None
    candidates: Trie | None = None
    category_task: tuple[int, ...] = ()
    categories: Trie | None = None

    @property
    def tokens(self) -> int:
        """Number of tokens, without those of candidates."""
        return len(self.hashtag_task) + len(self.category_task) + (len(self.categories.inner) if self.categories else 0)

    def with_categories(self, other: Tasks) -> Tasks:
        """Return these tasks with the category task and closed set of `other`."""
        return replace(self, category_task=other.category_task, categories=other.categories)


NO_TASKS = Tasks()


def task_span(table: BlockTable, before: Sequence[int], tasks: Tasks, read_out: int | None = None) -> Span:
    """Return the span of the ids `before` and of `tasks`. Without `before` the tasks follow the tokens in `table`.

    The span is a tree: its stem is `before` and the hashtag task, after which the trie of candidates branches off. The
    category task with the inner nodes of the trie of the closed set branches off after `before`, so it does not attend
    to the hashtag task. The queries are, in order, the hashtag query, those of the candidates, and those of the closed
    set in the order of its `children`.
    """
    last = len(before) - 1
    ids = [*before, *tasks.hashtag_task]
    parents = list(range(-1, len(ids) - 1))
    queries = []
    if tasks.hashtag_query is not None:
        queries.append(replace(tasks.hashtag_query, index=len(ids) - 1))
    if tasks.candidates is not None:
        root, trie = len(ids) - 1, tasks.candidates
        parents += [root if parent == ROOT else root + 1 + parent for parent in trie.parents]
        queries += trie.queries(root + 1)
        ids += trie.tokens
    if tasks.categories is not None:
        begin, trie = len(ids), tasks.categories
        root = begin + len(tasks.category_task) - 1
        index = {ROOT: root} | {node: root + 1 + i for i, node in enumerate(trie.inner)}
        parents += [last, *range(begin, root), *(index[trie.parents[node]] for node in trie.inner)]
        queries += [LogitQuery(index[node], tokens=trie.child_tokens(node)) for node in trie.children]
        ids += [*tasks.category_task, *(trie.tokens[node] for node in trie.inner)]
    is_tree = tasks.candidates is not None or tasks.categories is not None
    return append_span(table, ids, parents if is_tree else None, read_out=read_out, queries=queries)


def side_by_side(*computations: SpanSteps[None]) -> SpanSteps[None]:
    """Run computations in the same forwards until all have ended. At each step they are resumed in their order."""
    with ExitStack() as stack:
        for steps in computations:
            stack.enter_context(closing(steps))
        received: dict[SpanSteps[None], Any] = dict.fromkeys(computations)
        while True:
            spans: dict[SpanSteps[None], list[Span]] = {}
            for steps, outputs in received.items():
                with suppress(StopIteration):
                    spans[steps] = steps.send(outputs)
            if not spans:
                return
            rest = iter((yield [span for part in spans.values() for span in part]))
            received = {steps: list(islice(rest, len(part))) for steps, part in spans.items()}


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
