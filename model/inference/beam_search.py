"""HashtagBeamSearch: the hashtags that the model is most likely to write first after a note."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from model.dedup_key import dedup_key
from model.generation import GenerationRequest, Hashtag
from model.hashtags.grounding import KNOWN_MIN_SCORE_FACTOR, HashtagFilter
from model.hashtags.word_forms import without_further_forms
from model.inference.kv_cache import BlockPool, BlockTable
from model.inference.runtime import LogitQuery, TokenLogProbs
from model.inference.spans import SpanSteps, append_span, continue_tables
from model.note import normalise_hashtag
from model.prompt import Prompt

TOKENS_PER_HASHTAG = 32
"""Maximum tokens of a generated hashtag. Two thirds of Chinese hashtags have more than 8, one in fifty more than
this."""
BEAMS_PER_HASHTAG = 2
"""Beam width per requested hashtag (docs/decisions/0010-hashtags.md): several beams may spell the same hashtag or end
as text that is none."""
MAX_BLOCKED_BEAMS = 4
"""Maximum beams added for blocked hashtags: of a deployment's long list, few are likely for one note."""
MAX_WIDTH = 20
"""Maximum beam width, that of ten requested hashtags."""

GLUED_CAPITALS = re.compile("[a-z]{2}[A-Z]{4}")
"""Matches a word that continues in capitals, as in "runningHETATM": pretraining has hardly seen the second token, so
its probability means nothing. Three capitals are names: ChatGPT, PostgreSQL, AutoCAD."""
EDGES = re.compile(r"^[\W_]+|[\W_]+$")
"""Characters at either end of a text that are neither letters nor digits."""


def beam_width(hashtags: int, allowed: HashtagFilter) -> int:
    """Return the beam width of a search for `hashtags`. Beams that lead to a hashtag which may not be returned displace
    others, so the search is wider by one for each of the note's own, and for MAX_BLOCKED_BEAMS of the blocked ones, up
    to MAX_WIDTH."""
    width = hashtags * BEAMS_PER_HASHTAG
    further = len(allowed.own) + min(len(allowed.blocked), MAX_BLOCKED_BEAMS)
    return max(width, min(width + further, MAX_WIDTH)) if hashtags else 0


def max_beam_blocks(width: int, pool: BlockPool) -> int:
    """Return the maximum number of cache blocks that a search with `width` beams needs besides the prompt's: for each
    beam, a copy of the prompt's last block and the blocks of its own tokens."""
    return width * (1 + pool.blocks_for(TOKENS_PER_HASHTAG))


@dataclass(frozen=True, slots=True)
class Beam:
    """The beginning of a hashtag, its log probability, and the query for the token after it."""

    ids: list[int]
    log_prob: float
    query: LogitQuery


@dataclass(frozen=True, slots=True)
class Spelling:
    """A finished hashtag in one spelling, its `dedup_key`, and the log probability of its tokens."""

    text: str
    key: str
    log_prob: float


class HashtagBeamSearch:
    """Beam search for the first hashtag after the hashtag task. The probabilities of being first rank all hashtags of a
    note, since training shows them in random order (paper section 4). Greedily decoding a list of several adds no
    information, takes longer, and repeats itself.

    `request.vocabulary` restricts the search to known hashtags, `allowed` drops hashtags that may not be returned, and
    the checkpoint's `min_hashtag_score` drops those that are too improbable.
    """

    def __init__(self, prompt: Prompt, request: GenerationRequest, allowed: HashtagFilter) -> None:
        self._prompt = prompt
        self._count = request.hashtags
        self._width = beam_width(request.hashtags, allowed)
        self._vocabulary = request.vocabulary
        self._allowed = allowed
        self._min_probability = prompt.config.min_hashtag_score
        if request.vocabulary is not None:
            self._min_probability *= KNOWN_MIN_SCORE_FACTOR
        self._beams = [Beam([], 0.0, self._query(()))]
        """Unfinished hashtags, the most probable first."""
        self._finished: list[Spelling] = []
        self._ranked: list[tuple[Spelling, float]] = []
        """Finished hashtags, the most probable first: each in its most probable spelling, with the sum of the
        probabilities of all its spellings. Improbable ones are included."""
        self._is_likely_refused = False
        """Whether `allowed` dropped a hashtag that is probable enough."""
        self.generated_tokens = 0
        """Number of tokens decoded in all beams."""

    @property
    def first_query(self) -> LogitQuery:
        """Query for the first token of a hashtag; the caller sets its index."""
        return self._beams[0].query

    @property
    def reason_for_none(self) -> str:
        """Reason for an answer without hashtags."""
        if self._is_likely_refused:
            return "all likely hashtags are blocked, already given, or in a script that the text does not use"
        if self._vocabulary is None and self._min_probability:
            return "no hashtag is likely enough"
        if self._vocabulary is None:
            return "the model wrote nothing that can be read as a hashtag"
        return "no known hashtag is likely enough" if len(self._vocabulary) else "no hashtag is known yet"

    @property
    def hashtags(self) -> tuple[Hashtag, ...]:
        """At most the requested number of hashtags, the most probable first."""
        return self._best_of(self._ranked)

    @property
    def settled(self) -> tuple[Hashtag, ...]:
        """Longest beginning of `hashtags` whose members, order and spellings no beam can change any more. Their scores
        may still grow by further spellings."""
        # A token such as "/#" ends a hashtag, although it does not begin with the #.
        texts = (self._prompt.decode(beam.ids).partition("#")[0] for beam in self._beams)
        beams = [(stem(text), math.exp(beam.log_prob)) for text, beam in zip(texts, self._beams, strict=True)]

        def addition(key: str) -> float:
            """Return the most that all beams together may add to the probability of the hashtag with `key`."""
            return sum(probability for beginning, probability in beams if key.startswith(beginning))

        most_of_new = max((addition(beginning) for beginning, _ in beams), default=0.0)
        keys = [key_without_edges(spelling.text) for spelling, _ in self._ranked]
        for place, (spelling, score) in enumerate(self._ranked):
            rivals = [self._ranked[i][1] + addition(keys[i]) for i in range(place + 1, len(keys))]
            if score <= max([most_of_new, *rivals]) or math.exp(spelling.log_prob) <= addition(keys[place]):
                return self._best_of(self._ranked[:place])
        return self.hashtags

    @property
    def max_probability(self) -> float:
        """Upper bound on the probability of any hashtag of the final answer: that of the best hashtag so far (or the
        minimum probability, if there is none) plus the probabilities of all unfinished beams."""
        best = self.hashtags[0].score if self.hashtags else self._min_probability
        return min(1.0, best + sum(math.exp(beam.log_prob) for beam in self._beams))

    def run(self, table: BlockTable, first_token: TokenLogProbs, is_settled: Callable[[], bool]) -> SpanSteps[None]:
        """Run the search to its end. `table` holds the prompt and the task; `first_token` is the answer to
        `first_query`. `is_settled` is called before each step; the search ends when it returns True."""
        tables = [table.fork()]
        answers = [first_token]
        try:
            while (parents := self._extend(answers)) and not is_settled():
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
        """Return the query for the token after `ids`, in a decode step."""
        if self._vocabulary is None:
            return LogitQuery(0, top_k=self._width)
        return LogitQuery(0, tokens=self._vocabulary.after(ids))

    def _best_of(self, ranked: Sequence[tuple[Spelling, float]]) -> tuple[Hashtag, ...]:
        """Return at most the requested number of hashtags from the beginning of a ranking, without improbable ones.
        Further forms of a word are left out, except of a given vocabulary: its authors use them."""
        likely = (Hashtag(spelling.text, min(1.0, score)) for spelling, score in ranked if self._is_likely(score))
        distinct = without_further_forms(likely) if self._vocabulary is None else likely
        return tuple(islice(distinct, self._count))

    def _is_likely(self, probability: float) -> bool:
        """Return whether a hashtag with `probability` may be in the answer."""
        return probability > max(0.0, self._min_probability)

    def _extend(self, answers: Sequence[TokenLogProbs]) -> list[int]:
        """Extend all beams by the tokens that follow them, and keep the best. Returns for each new beam the index of
        the beam that it continues, or [] when the search is over."""
        for beam, answer in zip(self._beams, answers, strict=True):
            if beam.ids and self._is_whole(beam.ids):
                self._finish(beam.ids, beam.log_prob + answer.end_log_prob)
        self._ranked = self._rank()

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

        return [] if self._is_over() else [parent for _, parent, _ in best]

    def _finish(self, ids: Sequence[int], log_prob: float) -> None:
        """Record the hashtag that `ids` spell, if there is one and it is allowed, with its log probability."""
        if (text := self._text(ids)) is None:
            return
        if self._allowed(text):
            self._finished.append(Spelling(text, dedup_key(text), log_prob))
        else:
            self._is_likely_refused |= self._is_likely(math.exp(log_prob))

    def _is_whole(self, ids: Sequence[int]) -> bool:
        """Return whether a hashtag may end after `ids`."""
        return self._vocabulary is None or self._vocabulary.holds(ids)

    def _is_over(self) -> bool:
        """Return whether the search ends: no single beam can lead to a hashtag that ranks among the best, since each
        further token lowers its probability. The sum over several beams that lead to one hashtag, or that add to a
        finished one, is neglected."""
        if not self._beams:
            return True
        best_open = self._beams[0]
        if len(best_open.ids) > TOKENS_PER_HASHTAG or best_open.log_prob == -math.inf:
            return True
        if math.exp(best_open.log_prob) < self._min_probability:
            return True
        hashtags = self.hashtags
        return len(hashtags) == self._count and hashtags[-1].score >= math.exp(best_open.log_prob)

    def _rank(self) -> list[tuple[Spelling, float]]:
        """Return the value of `_ranked` for all finished spellings."""
        probabilities: dict[str, float] = defaultdict(float)
        spellings: dict[str, Spelling] = {}
        for spelling in sorted(self._finished, key=lambda spelling: -spelling.log_prob):
            probabilities[spelling.key] += math.exp(spelling.log_prob)
            spellings.setdefault(spelling.key, spelling)
        best = sorted(probabilities.items(), key=lambda item: (-item[1], item[0]))
        return [(spellings[key], probability) for key, probability in best]

    def _text(self, ids: Sequence[int]) -> str | None:
        """Return the hashtag that `ids` spell; None for none. A hashtag of the vocabulary keeps its spelling, also
        punctuation at its ends."""
        if self._vocabulary is not None:
            return normalise_hashtag(self._prompt.spelled_hashtag(ids))
        parsed = self._prompt.parse_hashtags(ids)
        return parsed[0][0] if parsed and not GLUED_CAPITALS.search(parsed[0][0]) else None


def key_without_edges(text: str) -> str:
    """Return the `dedup_key` of a text from its first letter or digit to its last."""
    return dedup_key(EDGES.sub("", normalise_hashtag(text)))


def stem(text: str) -> str:
    """Return a prefix shared by the `key_without_edges` of all hashtags that begin with `text`. It lacks the last two
    characters of the key of `text`, which further text may change: by an accent, or the end of a plural."""
    return key_without_edges(text)[:-2]


def next_tokens(query: LogitQuery, answer: TokenLogProbs) -> Iterator[tuple[int, float]]:
    """Yield the tokens that `query` names, then the most probable ones, each with its log probability."""
    yield from zip(query.tokens, answer.log_probs, strict=True)
    yield from zip(answer.top_tokens, answer.top_log_probs, strict=True)
