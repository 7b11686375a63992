"""GroundedRanking: the exact best hashtags of one note, although most candidates are never scored.

The score of a hashtag grows with the probability that the model writes it, so an upper bound on that probability bounds
the score. A candidate that cannot be among the best by its bound need not be scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from model.generation import Hashtag
from model.hashtags.grounding import Candidate, agreed_weight, grounded_score, is_likely_enough, rerank


class GroundedRanking:
    """Ranks the candidates of one note and the hashtags that the model writes for it, while the candidates'
    probabilities become known step by step.

    `candidates`: by `dedup_key`. `count`: hashtags to return. `written_weight`, `min_probability`: as in `rerank`.
    `agreed_written_weight`: `written_weight` of a note whose candidates the model would write, too.
    """

    def __init__(
        self,
        candidates: Mapping[str, Candidate],
        count: int,
        written_weight: float,
        min_probability: float,
        agreed_written_weight: float = 0.0,
    ) -> None:
        self.candidates = candidates
        self._count = count
        self._written_weight = written_weight
        self._min_probability = min_probability
        self._agreed_written_weight = agreed_written_weight
        self._bounds = dict.fromkeys(candidates, 1.0)
        """Upper bound on the probability of each candidate whose exact probability is unknown."""
        self._probabilities: dict[str, float] = {}
        self._max_unscored_weight = 0.0
        """Largest weight of the candidates that are never scored; only the search can find their probability."""

    def leave_to_search(self, keys: Iterable[str]) -> None:
        """Mark candidates as never scored: only the beam search can find them."""
        for key in keys:
            del self._bounds[key]
            self._max_unscored_weight = max(self._max_unscored_weight, self.candidates[key].weight)

    def bound(self, probabilities: Mapping[str, float]) -> None:
        """Record upper bounds of candidates' probabilities. A bound with the same score as probability 0 counts as
        exact."""
        bounds = {key: bound for key, bound in probabilities.items() if key in self._bounds}
        self._bounds |= bounds
        self.score({key: p for key, p in bounds.items() if self._score_bound(key) == self._least_score(key)})

    def score(self, probabilities: Mapping[str, float]) -> None:
        """Record the exact probabilities of candidates."""
        for key, probability in probabilities.items():
            self._probabilities[key] = probability
            self._bounds.pop(key, None)

    def score_heaviest(self, probabilities: Mapping[str, float]) -> None:
        """Record the exact probabilities of the heaviest candidates. Their total is the note's agreement, on which all
        scores depend: to be called once, before the ranking is asked for any."""
        agreement = sum(probabilities.values())
        self._written_weight = agreed_weight(self._written_weight, self._agreed_written_weight, agreement)
        self.score(probabilities)

    def open_candidates(self) -> list[str]:
        """Return the candidates without an exact probability that may be among the best, the heaviest first."""
        last_score = self._last_score()
        return [
            key
            for key, bound in self._bounds.items()
            if self._score_bound(key) >= last_score
            and is_likely_enough(self.candidates[key], bound, self._min_probability)
        ]

    def is_complete_without(self, max_written: float) -> bool:
        """Return whether the beam search can no longer change the answer: no hashtag that it may still find, with a
        probability of at most `max_written`, can reach the last score of the answer."""
        return self._written_bound(max_written) < self._last_score()

    def settled(self, max_written: float) -> tuple[Hashtag, ...]:
        """Return the best hashtags, up to the first one that another hashtag may still outrank; `max_written` as for
        `is_complete_without`."""
        rivals = [self._score_bound(key) for key in self.open_candidates()]
        bound = max([self._written_bound(max_written), *rivals])
        return tuple(hashtag for hashtag in self._best() if hashtag.score > bound)

    def ranked(self, written: Sequence[Hashtag]) -> tuple[Hashtag, ...]:
        """Return the answer, once the search is over and no candidate is open."""
        none_of_the_best = dict.fromkeys(self._bounds, 0.0)
        probabilities = none_of_the_best | self._probabilities
        return self._rerank(written, self.candidates, probabilities)

    def _best(self) -> tuple[Hashtag, ...]:
        """Return the best of the candidates with an exact probability."""
        scored = {key: self.candidates[key] for key in self._probabilities}
        return self._rerank((), scored, self._probabilities)

    def _rerank(
        self, written: Sequence[Hashtag], candidates: Mapping[str, Candidate], probabilities: Mapping[str, float]
    ) -> tuple[Hashtag, ...]:
        return rerank(written, candidates, probabilities, self._count, self._written_weight, self._min_probability)

    def _last_score(self) -> float:
        """Return a lower bound on the last score of the answer."""
        best = self._best()
        return best[-1].score if len(best) == self._count else 0.0

    def _score_bound(self, key: str) -> float:
        return grounded_score(self.candidates[key].weight, self._bounds[key], self._written_weight)

    def _least_score(self, key: str) -> float:
        return grounded_score(self.candidates[key].weight, 0.0, self._written_weight)

    def _written_bound(self, max_written: float) -> float:
        """Return an upper bound on the score of any hashtag that the search may still write. Weights of candidates with
        a known probability do not count: `rerank` combines them with that probability, and scores a written hashtag
        with the same key without weight."""
        return grounded_score(self._max_unscored_weight, max_written, self._written_weight)
