"""Trie: token sequences as a tree of their prefixes, so that one forward over its nodes scores all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from model.inference.runtime import LogitQuery, TokenLogProbs

ROOT = -1
"""Parent of the first token of every sequence."""


class TrieTooLarge(ValueError):
    """Raised for token sequences with more distinct prefixes than a trie may have."""


@dataclass(frozen=True)
class Trie:
    """The distinct prefixes of token sequences, in topological order.

    Node i holds `tokens[i]` and follows node `parents[i]`, or ROOT. `paths[c]` are the nodes of sequence c. Scoring all
    sequences costs one forward over the nodes, not over all tokens of the list.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    paths: tuple[tuple[int, ...], ...]

    @classmethod
    def build(cls, sequences: Iterable[Sequence[int]], max_nodes: int | None = None) -> Trie:
        """Merge the common prefixes of `sequences`. Raises TrieTooLarge at the first one with which the trie has more
        than `max_nodes` nodes; those after it are not read."""
        nodes: dict[tuple[int, int], int] = {}
        tokens: list[int] = []
        parents: list[int] = []
        paths = []
        for sequence in sequences:
            path = [ROOT]
            for token in sequence:
                node = nodes.setdefault((path[-1], token), len(tokens))
                if node == len(tokens):
                    tokens.append(token)
                    parents.append(path[-1])
                path.append(node)
            paths.append(tuple(path[1:]))
            if max_nodes is not None and len(tokens) > max_nodes:
                raise TrieTooLarge
        return cls(tuple(tokens), tuple(parents), tuple(paths))

    @cached_property
    def sequences(self) -> tuple[tuple[int, ...], ...]:
        """Tokens of the sequences, in the order of `paths`."""
        return tuple(tuple(self.tokens[node] for node in path) for path in self.paths)

    def split(self, max_inner: int) -> tuple[Trie, ...]:
        """Return the tries of consecutive parts of the sequences: as many sequences as have at most `max_inner` inner
        nodes together, or one. The last token of a sequence must begin no other one."""
        tries = []
        begin, inner = 0, set[int]()
        for i, path in enumerate(self.paths):
            if i > begin and len(inner.union(path[:-1])) > max_inner:
                tries.append(Trie.build(self.sequences[begin:i]))
                begin, inner = i, set()
            inner.update(path[:-1])
        return (*tries, Trie.build(self.sequences[begin:]))

    @cached_property
    def children(self) -> dict[int, tuple[int, ...]]:
        """Children of ROOT and of each inner node."""
        children: dict[int, list[int]] = defaultdict(list)
        for node, parent in enumerate(self.parents):
            children[parent].append(node)
        return {parent: tuple(nodes) for parent, nodes in children.items()}

    @cached_property
    def inner(self) -> tuple[int, ...]:
        """Nodes with children, in order. In the trie of a closed set the other nodes are end tokens, which the model
        never has to read."""
        return tuple(sorted(self.children.keys() - {ROOT}))

    def child_tokens(self, node: int) -> tuple[int, ...]:
        """Return the tokens of the children of `node`, which may be ROOT; () where it has none."""
        return tuple(self.tokens[child] for child in self.children.get(node, ()))

    def queries(self, begin: int) -> list[LogitQuery]:
        """Return a query for the children of each node, in a span that has all nodes, the first at index `begin`."""
        return [LogitQuery(begin + node, tokens=self.child_tokens(node)) for node in range(len(self.tokens))]


def node_log_probs(trie: Trie, nodes: Iterable[int], answers: Sequence[TokenLogProbs]) -> npt.NDArray[np.float64]:
    """Return the log probability of each node after its parent, shape (N,). `answers`: those for the `child_tokens` of
    each of `nodes`, in order."""
    log_probs = np.zeros(len(trie.tokens))
    for node, answer in zip(nodes, answers, strict=True):
        log_probs[list(trie.children.get(node, ()))] = answer.log_probs
    return log_probs


def path_log_probs(trie: Trie, answers: Sequence[TokenLogProbs]) -> npt.NDArray[np.float64]:
    """Return the log probability of each whole sequence, shape (C,). `answers`: those for the children of ROOT and of
    each inner node, in the order of `trie.children`."""
    log_probs = node_log_probs(trie, trie.children, answers)
    return np.array([log_probs[list(path)].sum() for path in trie.paths])
