"""Probabilities of the hashtags that neighbours of a note carry, in one forward over their trie.

They are combined and ranked in model/hashtags/grounding.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from model.hashtags.grounding import Candidate
from model.inference.kv_cache import BlockPool, BlockTable
from model.inference.runtime import LogitQuery
from model.inference.spans import SpanSteps, append_span
from model.inference.trie import ROOT, Trie, node_log_probs
from model.prompt import Prompt

CANDIDATE_TOKENS = 320
"""Bound on the tokens of the neighbours' hashtags that are scored for one note, common prefixes counted once; the
candidates with the largest weights come first."""


def max_candidate_blocks(pool: BlockPool) -> int:
    """Most cache blocks that `score_candidates` takes: a copy of the prompt's last block, and those of the trie."""
    return 1 + pool.blocks_for(CANDIDATE_TOKENS)


@dataclass(frozen=True, slots=True)
class ScoredCandidates:
    """Hashtags of a note's neighbours by their key, the probability that the model writes each of them first, as far as
    they were scored, and the number of tokens that the scoring took."""

    candidates: Mapping[str, Candidate]
    probabilities: Mapping[str, float]
    tokens: int


NO_CANDIDATES = ScoredCandidates({}, {}, 0)


def score_candidates(
    prompt: Prompt, table: BlockTable, last_task_token: int, candidates: Mapping[str, Candidate]
) -> SpanSteps[ScoredCandidates]:
    """Score `candidates`, at least one, after the hashtag task.

    `table` holds the prompt and the hashtag task, which ends with `last_task_token`. That token is computed once more,
    as the root of the trie. Candidates beyond CANDIDATE_TOKENS are left out.
    """
    chosen = _within_budget(prompt, candidates)
    trie = Trie.build(list(chosen.values()))
    nodes = range(ROOT, len(trie.tokens))
    # In the span the root has index 0 and each node the next index.
    ids = [last_task_token, *trie.tokens]
    parents = [-1, *(parent + 1 for parent in trie.parents)]
    queries = [LogitQuery(node + 1, tokens=trie.child_tokens(node)) for node in nodes]
    with closing(table.fork()) as fork:
        fork.cut(table.length - 1)
        (output,) = yield [append_span(fork, ids, parents, queries=queries)]
    answers = output.token_log_probs
    log_probs = node_log_probs(trie, nodes, answers)
    totals = [log_probs[list(path)].sum() + answers[path[-1] + 1].end_log_prob for path in trie.paths]
    probabilities = dict(zip(chosen, np.exp(totals).tolist(), strict=True))
    return ScoredCandidates(candidates, probabilities, len(ids))


def _within_budget(prompt: Prompt, candidates: Mapping[str, Candidate]) -> dict[str, list[int]]:
    """Token ids by key of the candidates, in order, whose distinct prefixes are at most CANDIDATE_TOKENS."""
    token_ids = prompt.hashtag_tokens([candidate.text for candidate in candidates.values()])
    chosen: dict[str, list[int]] = {}
    prefixes: set[tuple[int, ...]] = set()
    for key, ids in zip(candidates, token_ids, strict=True):
        extended = prefixes | {tuple(ids[:end]) for end in range(1, len(ids) + 1)}
        if len(extended) <= CANDIDATE_TOKENS:
            chosen[key] = ids
            prefixes = extended
    return chosen
