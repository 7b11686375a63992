"""HashtagGeneration: the hashtags of one note, by a beam search and, under "grounded", from candidates: hashtags that
its neighbours carry or that it names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from model.generation import GenerationRequest, Hashtag
from model.hashtags.grounded_ranking import GroundedRanking
from model.hashtags.grounding import NEIGHBOURS, HashtagFilter, candidates_from, written_weight
from model.inference.beam_search import HashtagBeamSearch
from model.inference.candidate_scoring import CandidateScorer
from model.inference.kv_cache import BlockTable
from model.inference.runtime import TokenLogProbs
from model.inference.spans import NO_TASKS, SpanSteps, Tasks, side_by_side
from model.note import Note
from model.prompt import Prompt

BELOW_MIN_SCORE = "no hashtag has a score of min_score or more"


class HashtagGeneration:
    """Generates the hashtags of one note. `allowed` drops those that may not be returned.

    If `needs_vector`, `find_candidates` must be called once the vector is known; `tasks` then includes the candidates.
    """

    def __init__(self, prompt: Prompt, request: GenerationRequest, allowed: HashtagFilter) -> None:
        self._prompt = prompt
        self._request = request
        self._allowed = allowed
        self._search = HashtagBeamSearch(prompt, request, allowed)
        self._ranking: GroundedRanking | None = None
        self._scorer: CandidateScorer | None = None
        self._ranked: tuple[Hashtag, ...] = ()
        """Ranked hashtags of the finished generation, the best first, whatever their scores."""
        self._announced = 0
        """Number of hashtags that `on_hashtag` was called with."""

    @property
    def needs_vector(self) -> bool:
        """Whether neighbours are looked up before the hashtag task is read."""
        return bool(self._request.hashtags) and self._request.find_neighbours is not None

    def find_candidates(self, note: Note, vector: npt.NDArray[np.float32]) -> None:
        """Look up the hashtags that neighbours of `note` carry or that it names; `vector` (D,) is its embedding."""
        assert self._request.find_neighbours is not None
        neighbours = self._request.find_neighbours(note, vector, NEIGHBOURS)
        candidates = candidates_from(neighbours, self._allowed)
        if candidates:
            config = self._prompt.config
            pairs = config.written_weights, config.agreed_written_weights
            weight, agreed = (written_weight(weights, neighbours.stored_notes) for weights in pairs)
            self._ranking = GroundedRanking(
                candidates, self._request.hashtags, weight, config.min_hashtag_score, agreed
            )
            self._scorer = CandidateScorer(self._prompt, self._ranking)

    def tasks(self) -> Tasks:
        """Return the hashtag task, followed by the candidates with the largest weights; nothing where no hashtags are
        requested."""
        if not self._request.hashtags:
            return NO_TASKS
        task = tuple(self._prompt.hashtag_task(self._request.hashtags))
        query = self._search.first_query
        if self._scorer is None:
            return Tasks(task, query)
        query = replace(query, tokens=(*query.tokens, *self._scorer.first_tokens))
        return Tasks(task, query, self._scorer.first_batch.trie)

    def run(self, table: BlockTable, answers: Sequence[TokenLogProbs]) -> SpanSteps[None]:
        """Run the generation to its end. `table` holds the prompt and the hashtag task; `answers` begin with those to
        the queries of `tasks`."""
        searched = len(self._search.first_query.tokens)
        first, candidate_log_probs = answers[0], answers[0].log_probs[searched:]
        search = self._search.run(table, replace(first, log_probs=first.log_probs[:searched]), self._is_settled)
        if self._scorer is None:
            yield from search
        else:
            nodes = len(self._scorer.first_batch.trie.tokens)
            self._scorer.read_first(candidate_log_probs, answers[1 : 1 + nodes])
            yield from side_by_side(self._scorer.score_open(table), search)
        self._ranked = self._ranking.ranked(self._search.hashtags) if self._ranking else self._search.hashtags
        self._announce(self._ranked)

    @property
    def hashtags(self) -> tuple[Hashtag, ...]:
        """The answer, at most as many as requested, the best first; it is empty before the end of `run`."""
        return tuple(hashtag for hashtag in self._ranked if hashtag.score >= self._request.min_hashtag_score)

    @property
    def below_min(self) -> tuple[Hashtag, ...]:
        """Hashtags left out of the answer only because of `min_hashtag_score`, the best first."""
        return tuple(hashtag for hashtag in self._ranked if hashtag.score < self._request.min_hashtag_score)

    @property
    def reason_for_none(self) -> str:
        """Reason for an answer without hashtags."""
        return BELOW_MIN_SCORE if self._ranked else self._search.reason_for_none

    @property
    def candidate_tokens(self) -> int:
        """Number of candidate tokens that were scored after the tasks."""
        return self._scorer.tokens - len(self._scorer.first_batch.trie.tokens) if self._scorer else 0

    @property
    def generated_tokens(self) -> int:
        """Number of tokens decoded in all beams."""
        return self._search.generated_tokens

    def _is_settled(self) -> bool:
        """Announce the hashtags that are settled, and return whether the candidates are the answer, whatever else the
        search may find."""
        if self._ranking is None:
            if self._request.on_hashtag:
                self._announce(self._search.settled)
            return False
        max_written = self._search.max_probability
        self._announce(self._ranking.settled(max_written))
        return self._ranking.is_complete_without(max_written)

    def _announce(self, best: Sequence[Hashtag]) -> None:
        """Call `on_hashtag` with those of the `best` hashtags that were not announced yet. Stops at the first score
        below `min_hashtag_score`, which further spellings may still raise."""
        if on_hashtag := self._request.on_hashtag:
            for hashtag in best[self._announced :]:
                if hashtag.score < self._request.min_hashtag_score:
                    return
                on_hashtag(hashtag)
                self._announced += 1
