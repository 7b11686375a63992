"""Exact probabilities of the candidates that may be among the best. Candidates are hashtags that neighbours of a note
carry, or that the note names.

The candidates with the largest weights are scored in the forward of the hashtag task, as a trie after it. For the
others, the probability of the first token is an upper bound; those that may still be among the best by this bound are
scored in one more forward. GroundedRanking decides which.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from model.hashtags.grounded_ranking import GroundedRanking
from model.inference.kv_cache import BlockPool, BlockTable
from model.inference.runtime import TokenLogProbs
from model.inference.spans import SpanSteps, append_span
from model.inference.trie import ROOT, Trie, node_log_probs
from model.prompt import Prompt

CANDIDATE_TOKENS = 320
"""Maximum tokens of the candidates scored for one note, counting common prefixes once; candidates with larger weights
take precedence."""
FIRST_CANDIDATE_TOKENS = 24
"""Maximum tokens of the candidates scored in the forward of the hashtag task: most often they are the answer."""


def max_candidate_blocks(pool: BlockPool) -> int:
    """Return the maximum number of cache blocks that `score_open` needs: a copy of the prompt's last block, and those
    of the trie."""
    return 1 + pool.blocks_for(CANDIDATE_TOKENS)


@dataclass(frozen=True, slots=True)
class CandidateBatch:
    """Candidates that are scored in one forward: their keys, and the trie of their tokens."""

    keys: tuple[str, ...]
    trie: Trie


class CandidateScorer:
    """Scores the candidates of a `ranking`. `tokens`: number of tokens scored so far."""

    def __init__(self, prompt: Prompt, ranking: GroundedRanking) -> None:
        self._ranking = ranking
        texts = [candidate.text for candidate in ranking.candidates.values()]
        token_ids = dict(zip(ranking.candidates, prompt.hashtag_tokens(texts), strict=True))
        self._token_ids = _within_budget(token_ids, CANDIDATE_TOKENS)
        ranking.leave_to_search(token_ids.keys() - self._token_ids.keys())
        self._first_log_probs: dict[int, float] = {}
        """Log probability of each of `first_tokens` after the hashtag task."""
        self.first_tokens = tuple(dict.fromkeys(ids[0] for ids in self._token_ids.values()))
        self.first_batch = self._batch(_within_budget(self._token_ids, FIRST_CANDIDATE_TOKENS))
        self.tokens = 0

    def read_first(self, first_log_probs: Sequence[float], answers: Sequence[TokenLogProbs]) -> None:
        """Record the log probabilities of `first_tokens`, and the answers to the queries of `first_batch`."""
        self._first_log_probs = dict(zip(self.first_tokens, first_log_probs, strict=True))
        self._ranking.score_heaviest(self._probabilities(self.first_batch, answers))
        self._ranking.bound({key: math.exp(self._first_log_probs[ids[0]]) for key, ids in self._token_ids.items()})

    def score_open(self, table: BlockTable) -> SpanSteps[None]:
        """Score all candidates that may still be among the best. `table` holds the prompt and the hashtag task."""
        batch = self._batch(self._ranking.open_candidates())
        if not batch.keys:
            return
        with closing(table.fork()) as fork:
            trie = batch.trie
            (output,) = yield [append_span(fork, trie.tokens, trie.parents, queries=trie.queries(0))]
        self._ranking.score(self._probabilities(batch, output.token_log_probs))

    def _batch(self, keys: Iterable[str]) -> CandidateBatch:
        chosen = tuple(keys)
        return CandidateBatch(chosen, Trie.build([self._token_ids[key] for key in chosen]))

    def _probabilities(self, batch: CandidateBatch, answers: Sequence[TokenLogProbs]) -> dict[str, float]:
        """Return the exact probability of each candidate of a batch, and count its tokens."""
        trie = batch.trie
        log_probs = node_log_probs(trie, range(len(trie.tokens)), answers)
        for node in trie.children.get(ROOT, ()):
            log_probs[node] = self._first_log_probs[trie.tokens[node]]
        totals = [log_probs[list(path)].sum() + answers[path[-1]].end_log_prob for path in trie.paths]
        self.tokens += len(trie.tokens)
        return dict(zip(batch.keys, np.exp(totals).tolist(), strict=True))


def _within_budget(token_ids: Mapping[str, Sequence[int]], budget: int) -> dict[str, Sequence[int]]:
    """Return the sequences, in order, that fit into a `budget` of distinct prefixes; one that would exceed it is
    skipped."""
    chosen: dict[str, Sequence[int]] = {}
    prefixes: set[tuple[int, ...]] = set()
    for key, ids in token_ids.items():
        extended = prefixes | {tuple(ids[:end]) for end in range(1, len(ids) + 1)}
        if len(extended) <= budget:
            chosen[key] = ids
            prefixes = extended
    return chosen
