"""HashtagBeamSearch: the hashtags that the model is most likely to write first after a note."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from model.generation import GenerationRequest, Hashtag
from model.hashtags.grounding import KNOWN_SHARE, HashtagFilter, dedup_key
from model.inference.kv_cache import BlockPool, BlockTable
from model.inference.runtime import LogitQuery, TokenLogProbs
from model.inference.spans import SpanSteps, append_span, continue_tables
from model.note import normalise_hashtag
from model.prompt import Prompt

TOKENS_PER_HASHTAG = 32
"""Bound on the tokens of a written hashtag. Two thirds of Chinese hashtags have more than 8, one in fifty more than
this."""
BEAMS_PER_HASHTAG = 2
"""Beams followed for each requested hashtag (docs/decisions/0010-hashtags.md): several may be spellings of one hashtag
or end as text that is none."""

GLUED_CAPITALS = re.compile("[a-z]{2}[A-Z]{3}")
"""A word that goes on in capitals, as in "runningHETATM": the second token is one that pretraining has hardly seen, so
its probability means nothing."""


def max_beam_blocks(hashtags: int, pool: BlockPool) -> int:
    """Most cache blocks that a search for `hashtags` takes beside the prompt's: for each beam a copy of the prompt's
    last block, and the blocks that it goes on in."""
    return hashtags * BEAMS_PER_HASHTAG * (1 + pool.blocks_for(TOKENS_PER_HASHTAG))


@dataclass(frozen=True, slots=True)
class Beam:
    """The beginning of a hashtag, its log probability, and the query for the token after it."""

    ids: list[int]
    log_prob: float
    query: LogitQuery


@dataclass(frozen=True, slots=True)
class Spelling:
    """A finished hashtag in one spelling, its `dedup_key`, and the log probability of these tokens."""

    text: str
    key: str
    log_prob: float


class HashtagBeamSearch:
    """Beam search for the first hashtag after the hashtag task. Its probabilities rank all hashtags of a note: training
    shows a note's hashtags in random order (paper section 4), so a greedy list of several says no more, takes longer,
    and repeats itself.

    `request.vocabulary` restricts the search to known hashtags, `allowed` drops hashtags that may not be returned, and
    the checkpoint's `min_hashtag_score` those that are too improbable.
    """

    def __init__(self, prompt: Prompt, request: GenerationRequest, allowed: HashtagFilter) -> None:
        self._prompt = prompt
        self._count = request.hashtags
        self._width = request.hashtags * BEAMS_PER_HASHTAG
        self._vocabulary = request.vocabulary
        self._allowed = allowed
        self._min_probability = prompt.config.min_hashtag_score
        if request.vocabulary is not None:
            self._min_probability *= KNOWN_SHARE
        self._beams = [Beam([], 0.0, self._query(()))]
        """Unfinished hashtags, the most probable first."""
        self._finished: list[Spelling] = []
        self.hashtags: tuple[Hashtag, ...] = ()
        """The requested number of hashtags, or fewer where fewer were found, the most probable first."""
        self._announced: set[str] = set()
        """`dedup_key` of each hashtag that `on_hashtag` was called with."""
        self.generated_tokens = 0
        """Tokens that all beams took."""

    @property
    def first_query(self) -> LogitQuery:
        """Query for the first token of a hashtag. Its index is for the caller to set."""
        return self._beams[0].query

    @property
    def reason_for_none(self) -> str:
        """Reason for an answer without hashtags."""
        if self._vocabulary is None and self._min_probability:
            return "no hashtag is likely enough"
        if self._vocabulary is None:
            return "the model wrote nothing that can be read as a hashtag"
        return "no known hashtag is likely enough" if len(self._vocabulary) else "no hashtag is known yet"

    @property
    def max_probability(self) -> float:
        """Most that the probability of any hashtag of the final answer can be: that of the best one until now, and all
        that unfinished ones may add to it or to another."""
        best = self.hashtags[0].score if self.hashtags else self._min_probability
        return min(1.0, best + sum(math.exp(beam.log_prob) for beam in self._beams))

    def run(
        self,
        table: BlockTable,
        first_token: TokenLogProbs,
        on_hashtag: Callable[[Hashtag], None] | None = None,
        is_settled: Callable[[float], bool] = lambda max_probability: False,
    ) -> SpanSteps[None]:
        """Search to the end. `table` holds the prompt and the task, `first_token` answers `first_query`.

        `on_hashtag` is called with each hashtag as soon as no better one can come. `is_settled` is called with
        `max_probability` before each step, and ends the search where it returns True.
        """
        tables = [table.fork()]
        answers = [first_token]
        try:
            while (parents := self._extend(answers, on_hashtag)) and not is_settled(self.max_probability):
                tables = continue_tables(tables, parents)
                self.generated_tokens += len(tables)
                outputs = yield [
                    append_span(table, beam.ids[-1:], queries=[beam.query])
                    for table, beam in zip(tables, self._beams, strict=True)
                ]
                answers = [output.token_log_probs[0] for output in outputs]
        finally:
            for table in tables:
                table.close()

    def _query(self, ids: Sequence[int]) -> LogitQuery:
        """Query for the token after `ids`, in a decode step."""
        if self._vocabulary is None:
            return LogitQuery(0, top_k=self._width)
        return LogitQuery(0, tokens=self._vocabulary.after(ids))

    def _extend(self, answers: Sequence[TokenLogProbs], on_hashtag: Callable[[Hashtag], None] | None) -> list[int]:
        """Extend all beams by the tokens that follow them, and keep the best. Returns for each new beam the index of
        the beam that it continues, or [] when the search is over."""
        for beam, answer in zip(self._beams, answers, strict=True):
            if beam.ids and self._is_whole(beam.ids):
                texts = filter(self._allowed, self._texts(beam.ids))
                log_prob = beam.log_prob + answer.end_log_prob
                self._finished += [Spelling(text, dedup_key(text), log_prob) for text in texts]
        self.hashtags = self._ranked()[: self._count]

        extensions = [
            (beam.log_prob + log_prob, parent, token)
            for parent, (beam, answer) in enumerate(zip(self._beams, answers, strict=True))
            for token, log_prob in next_tokens(beam.query, answer)
        ]
        best = sorted(extensions, key=lambda extension: -extension[0])[: self._width]
        beams = []
        for log_prob, parent, token in best:
            ids = [*self._beams[parent].ids, token]
            beams.append(Beam(ids, log_prob, self._query(ids)))
        self._beams = beams

        is_over = self._is_over()
        if on_hashtag is not None:
            self._announce(on_hashtag, best_open=0.0 if is_over else math.exp(self._beams[0].log_prob))
        return [] if is_over else [parent for _, parent, _ in best]

    def _announce(self, on_hashtag: Callable[[Hashtag], None], best_open: float) -> None:
        """Call `on_hashtag` with the new ones among the best hashtags that are at least as probable as `best_open`, the
        probability of the best unfinished one."""
        for hashtag in self.hashtags:
            key = dedup_key(hashtag.text)
            if hashtag.score >= best_open and key not in self._announced:
                self._announced.add(key)
                on_hashtag(hashtag)

    def _is_whole(self, ids: Sequence[int]) -> bool:
        """Whether a hashtag may end after `ids`."""
        return self._vocabulary is None or self._vocabulary.holds(ids)

    def _is_over(self) -> bool:
        """Whether no beam can lead to one of the best hashtags any more: each further token lowers its probability."""
        if not self._beams:
            return True
        best_open = self._beams[0]
        if len(best_open.ids) > TOKENS_PER_HASHTAG or best_open.log_prob == -math.inf:
            return True
        if math.exp(best_open.log_prob) < self._min_probability:
            return True
        return len(self.hashtags) == self._count and self.hashtags[-1].score >= math.exp(best_open.log_prob)

    def _ranked(self) -> tuple[Hashtag, ...]:
        """All finished hashtags, the most probable first. Two spellings count as one hashtag with the sum of their
        probabilities, spelled as the more probable one."""
        probabilities: dict[str, float] = defaultdict(float)
        spellings: dict[str, str] = {}
        for spelling in sorted(self._finished, key=lambda spelling: -spelling.log_prob):
            probabilities[spelling.key] += math.exp(spelling.log_prob)
            spellings.setdefault(spelling.key, spelling.text)
        best = sorted(probabilities.items(), key=lambda item: (-item[1], item[0]))
        likely = [(key, probability) for key, probability in best if probability > max(0.0, self._min_probability)]
        return tuple(Hashtag(spellings[key], min(1.0, probability)) for key, probability in likely)

    def _texts(self, ids: Sequence[int]) -> list[str]:
        """The hashtag that `ids` spell, or []. A known hashtag keeps its spelling, whatever it ends with."""
        if self._vocabulary is not None:
            return [normalise_hashtag(self._prompt.decode(ids))]
        return [text for text, _ in self._prompt.parse_hashtags(ids)[:1] if not GLUED_CAPITALS.search(text)]


def next_tokens(query: LogitQuery, answer: TokenLogProbs) -> Iterator[tuple[int, float]]:
    """Yield the tokens that `query` names, then the most probable ones, each with its log probability."""
    yield from zip(query.tokens, answer.log_probs, strict=True)
    yield from zip(answer.top_tokens, answer.top_log_probs, strict=True)
