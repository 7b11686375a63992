"""CategoryScorer: probabilities of the categories of a closed set.

The trie of the category names is part of the note's prefill, so a small closed set costs no extra forward. For a large
one, a second forward scores only the likeliest names. Names of more than PART_TOKENS are scored in parts, each in a
forward of its own (docs/decisions/0038-large-closed-sets.md).
For names that were not seen in training, the label prior, which is their score without the note, is subtracted
(docs/decisions/0008-unseen-categories.md).

Shapes: C categories, D dimension.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain

import numpy as np
import numpy.typing as npt

from model.category_head import CategoryHead
from model.generation import (
    CATEGORY_SHORTLIST,
    MAX_CATEGORY_TOKENS,
    MAX_WHOLE_SET,
    CategoriesTooLong,
    CategoryProbability,
)
from model.inference.kv_cache import BlockTable
from model.inference.runtime import Runtime, SpanOutput, TokenLogProbs
from model.inference.spans import NO_TASKS, SpanSteps, Tasks, task_span
from model.inference.trie import Trie, TrieTooLarge, path_log_probs
from model.note import Note
from model.platt_scaling import scale_top

PRIOR_TOKENS = 1024
"""Token budget for the mean of a label prior: each name that the mean is taken over costs one prefill of the trie."""
MIN_PRIOR_NAMES = 4
"""Minimum number of names that the mean of a label prior is taken over: it is nearly as good as over all (decision
8)."""
MAX_UNFINISHED = 8
"""Number of closed sets whose PartialPrior is kept."""
NAMES_AT_ONCE = 32
"""Names of a closed set that are tokenised at a time: of a set that is too long, no more than one batch is tokenised
beyond MAX_CATEGORY_TOKENS."""
PART_TOKENS = 256
"""Maximum tokens of a closed set's names that are read in one forward, except that a name is never split. All running
requests wait for each forward (decision 38)."""
MAX_CLOSED_SETS = 64
"""Number of closed sets whose tries and label prior are cached (LRU), besides those of `lasting_set`."""


@dataclass(frozen=True, slots=True)
class LabelPrior:
    """Scores of a closed set's names without a note (contextual calibration, Zhao et al. 2021).

    `log_probs` (C,): log probability of each name, averaged over notes whose only text is a name. For a name not seen
    in training it mostly reflects how common its words are; scoring subtracts it. `vectors` (C, D): embedding of each
    name. `read_tokens`: number of tokens read to compute both.
    """

    log_probs: npt.NDArray[np.float64]
    vectors: npt.NDArray[np.float32]
    read_tokens: int


@dataclass(frozen=True, slots=True)
class PartialPrior:
    """The computed part of a label prior whose request ended early. The next request for the closed set goes on from
    it: with many names, no request may live long enough to compute the whole.

    `log_probs`: for each name that the mean is taken over, by ascending name, an array for each trie of the closed set,
    with the log probabilities of the trie's names, as far as computed. `vectors`: those of the first names, (D,) each,
    in the order of the closed set.
    """

    log_probs: list[npt.NDArray[np.float64]] = field(default_factory=list)
    vectors: list[npt.NDArray[np.float32]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ClosedSet:
    """Names of C categories that are scored for a note.

    `tries`: their tokens, end tokens included, in one trie for each part of the names that is read in a forward of its
    own, in order. `prior`: None if all names were seen in training. `prior_tokens`: tokens
    that this request read to compute the prior, 0 if it was cached. `exponents`, `platt`: those of the category head's
    pool, and the weights of its scaling; None if the head does not cover the set.
    """

    names: tuple[str, ...]
    tries: tuple[Trie, ...]
    prior: LabelPrior | None = None
    prior_tokens: int = 0
    exponents: npt.NDArray[np.float64] | None = None
    platt: npt.NDArray[np.float64] | None = None

    def shortlist(self, places: npt.NDArray[np.intp]) -> ClosedSet:
        """Return the subset of the names at `places`, with this set's priors and exponents."""
        names = tuple(self.names[i] for i in places)
        sequences = [sequence for trie in self.tries for sequence in trie.sequences]
        tries = Trie.build([sequences[i] for i in places]).split(PART_TOKENS)
        prior = self.prior
        if prior is not None:
            prior = replace(prior, log_probs=prior.log_probs[places], vectors=prior.vectors[places])
        return replace(self, names=names, tries=tries, prior=prior)


class CategoryScorer:
    """Scores closed sets with one runtime. `tries` is thread-safe; all else must be called in the engine's thread.

    `temperature` divides log probabilities where `head` does not cover a closed set.
    """

    def __init__(self, runtime: Runtime, head: CategoryHead | None, temperature: float) -> None:
        self._runtime = runtime
        self._prompt = runtime.prompt
        self._head = head
        self._temperature = temperature
        self._trained_categories = runtime.config.trained_categories
        self._name_cosine_weight = runtime.config.name_cosine_weight
        self._cached_tries = lru_cache(maxsize=MAX_CLOSED_SETS)(self._build_tries)
        self._lasting_tries = lru_cache(maxsize=1)(self._build_tries)
        self._priors: OrderedDict[tuple[str, ...], LabelPrior] = OrderedDict()
        self._unfinished: OrderedDict[tuple[str, ...], PartialPrior] = OrderedDict()
        self.lasting_set: tuple[str, ...] = ()
        """Names of the closed set whose tries and prior are never evicted from the cache."""

    def tries(self, categories: tuple[str, ...]) -> tuple[Trie, ...]:
        """Return the tries of a closed set's parts, end tokens included. Raises CategoriesTooLong."""
        return self._lasting_tries(categories) if categories == self.lasting_set else self._cached_tries(categories)

    def closed_set(self, categories: tuple[str, ...], priors_in_progress: set[tuple[str, ...]]) -> SpanSteps[ClosedSet]:
        """Return the closed set of these names, with its prior where it needs one. `priors_in_progress`: closed sets
        whose prior some request is computing, shared by all requests that are stepped together."""
        prior, prior_tokens = yield from self._prior(categories, priors_in_progress)
        head = self._head
        if head is None or not head.covers(categories):
            return ClosedSet(categories, self.tries(categories), prior, prior_tokens)
        exponents, platt = head.exponents(categories), head.platt(categories)
        return ClosedSet(categories, self.tries(categories), prior, prior_tokens, exponents, platt)

    def needs_shortlist(self, closed_set: ClosedSet) -> bool:
        """Return whether only a shortlist is to be scored: the set is large, and the category head or the vectors of
        the names can rank it beforehand."""
        can_rank = closed_set.exponents is not None or (closed_set.prior is not None and self._name_cosine_weight > 0)
        return can_rank and len(closed_set.names) > MAX_WHOLE_SET

    def shortlist(self, closed_set: ClosedSet, note: Note, vector: npt.NDArray[np.float32]) -> ClosedSet:
        """Return the CATEGORY_SHORTLIST names that are likeliest for a note before the model scores any: by the
        category head, or by the cosine of the note's vector (D,) with the names' own vectors."""
        scores: npt.NDArray[np.floating]
        if self._head is not None and closed_set.exponents is not None:
            scores = self._head.pool_unwritten(closed_set.names, note, vector, closed_set.exponents)
        else:
            assert closed_set.prior is not None
            scores = closed_set.prior.vectors @ vector
        return closed_set.shortlist(np.argsort(-scores, kind="stable")[:CATEGORY_SHORTLIST])

    def tasks(self, trie: Trie | None) -> Tasks:
        """Return the category task with a trie of the closed set. Its queries come last in a `task_span`."""
        return Tasks(category_task=tuple(self._prompt.category_task()), categories=trie) if trie else NO_TASKS

    def log_probs(
        self, closed_set: ClosedSet, answers: Sequence[TokenLogProbs], table: BlockTable
    ) -> SpanSteps[npt.NDArray[np.float64]]:
        """Return the log probability of each category's tokens and end token, shape (C,).

        `answers`: those to the queries of a span with the first trie of the closed set. The other tries are read now,
        one in a forward. `table` holds the note alone, now and afterwards.
        """
        first, *others = closed_set.tries
        parts = [last_path_log_probs(first, answers)]
        note_tokens = table.length
        for trie in others:
            (output,) = yield [task_span(table, (), self.tasks(trie))]
            table.cut(note_tokens)
            parts.append(last_path_log_probs(trie, output.token_log_probs))
        return np.concatenate(parts)

    def probabilities(
        self,
        closed_set: ClosedSet,
        log_probs: npt.NDArray[np.float64],
        note: Note,
        vector: npt.NDArray[np.float32],
    ) -> tuple[CategoryProbability, ...]:
        """Return the names of the closed set with their probabilities, the most probable first; they sum to 1.

        The `log_probs` (C,) of the names are corrected by the prior, where there is one (decision 8), then pooled with
        the category head's for the `note` and its `vector` (D,) and scaled, where the head covers the set (decision
        14), else divided by the temperature.
        """
        categories, prior = closed_set.names, closed_set.prior
        if prior is not None:
            log_probs = log_probs - prior.log_probs + self._name_cosine_weight * (prior.vectors @ vector)
        if self._head is not None and closed_set.exponents is not None:
            logits = self._head.pool(categories, log_probs, note, vector, closed_set.exponents)
        else:
            logits = log_probs / self._temperature
        powers = np.exp(logits - logits.max())
        probabilities = powers / powers.sum()
        if closed_set.platt is not None:
            probabilities = scale_top(probabilities, closed_set.platt)
        scored = [CategoryProbability(name, p) for name, p in zip(categories, probabilities.tolist(), strict=True)]
        return tuple(sorted(scored, key=lambda category: (-category.probability, category.name)))

    def needs_prior(self, categories: tuple[str, ...]) -> bool:
        """Return whether a closed set has a name that was not seen in training. A checkpoint that lists no names counts
        as trained on all."""
        return not set(self._trained_categories or categories).issuperset(categories)

    def _prior(
        self, categories: tuple[str, ...], in_progress: set[tuple[str, ...]]
    ) -> SpanSteps[tuple[LabelPrior | None, int]]:
        """Return the label prior of a closed set, or None where it needs none, and the number of tokens read to compute
        it now. While one request computes it, others that share `in_progress` wait."""
        if not self.needs_prior(categories):
            return None, 0
        read_tokens = 0
        while (prior := self._priors.get(categories)) is None:
            if categories in in_progress:
                yield []
                continue
            in_progress.add(categories)
            try:
                self._priors[categories] = yield from self._compute_prior(categories)
            finally:
                in_progress.discard(categories)
            read_tokens = self._priors[categories].read_tokens
            evictable = [names for names in self._priors if names != self.lasting_set]
            if len(evictable) > MAX_CLOSED_SETS:
                del self._priors[evictable[0]]
        self._priors.move_to_end(categories)
        return prior, read_tokens

    def _compute_prior(self, categories: tuple[str, ...]) -> SpanSteps[LabelPrior]:
        """Compute a label prior, or the rest of it where an earlier request left a PartialPrior. Each name is read as
        the title of a note. To compute vectors, as many names share a forward as fit into the cache blocks reserved for
        the note."""
        notes = [self._prompt.note(Note(title=name)) for name in categories]
        tries = self.tries(categories)
        inner_nodes = [len(trie.inner) for trie in tries]
        # The order of a closed set must not change its prior.
        by_name = sorted(range(len(categories)), key=lambda i: categories[i])
        scored = by_name[: max(MIN_PRIOR_NAMES, PRIOR_TOKENS // max(1, sum(inner_nodes)))]
        partial = self._unfinished.pop(categories, PartialPrior())  # no other request goes on with it meanwhile
        left = [(notes[i], trie) for i in scored for trie in tries][len(partial.log_probs) :]
        tokens = sum(len(note) + self.tasks(trie).tokens for note, trie in left)
        tokens += sum(map(len, notes[len(partial.vectors) :]))
        try:
            for note, trie in left:
                (output,) = yield from self._prefill([note], trie)
                partial.log_probs.append(last_path_log_probs(trie, output.token_log_probs))
            while len(partial.vectors) < len(notes):
                batch = self._notes_that_fit(
                    notes[len(partial.vectors) :], self._prompt.max_note_tokens() + max(inner_nodes)
                )
                outputs = yield from self._prefill(batch, None)
                partial.vectors.extend(output.vector for output in outputs if output.vector is not None)
        except BaseException:  # GeneratorExit where the request ends early
            self._unfinished[categories] = partial
            if len(self._unfinished) > MAX_UNFINISHED:
                self._unfinished.popitem(last=False)
            raise
        log_probs = np.concatenate(partial.log_probs).reshape(len(scored), len(categories))
        return LabelPrior(log_probs.mean(axis=0), np.stack(partial.vectors), tokens)

    def _notes_that_fit(self, notes: Sequence[Sequence[int]], tokens: int) -> list[Sequence[int]]:
        """Return the first of `notes`, at least one, that fit into the cache blocks needed for `tokens`."""
        pool = self._runtime.pool
        free_blocks = pool.blocks_for(tokens)
        batch: list[Sequence[int]] = []
        for note in notes:
            free_blocks -= pool.blocks_for(len(note))
            if batch and free_blocks < 0:
                break
            batch.append(note)
        return batch

    def _prefill(self, notes: Sequence[Sequence[int]], trie: Trie | None) -> SpanSteps[list[SpanOutput]]:
        """Return the output of each note's prefill with a trie of a closed set, in one forward."""
        with ExitStack() as stack:
            tables = [stack.enter_context(closing(BlockTable(self._runtime.pool))) for _ in notes]
            tasks = self.tasks(trie)
            return (
                yield [task_span(table, ids, tasks, len(ids) - 1) for table, ids in zip(tables, notes, strict=True)]
            )

    def _build_tries(self, categories: tuple[str, ...]) -> tuple[Trie, ...]:
        parts = (categories[i : i + NAMES_AT_ONCE] for i in range(0, len(categories), NAMES_AT_ONCE))
        outputs = chain.from_iterable(map(self._prompt.category_outputs, parts))
        with suppress(TrieTooLarge):
            trie = Trie.build(outputs, MAX_CATEGORY_TOKENS + len(categories))  # each name has one leaf at most
            if len(trie.inner) <= MAX_CATEGORY_TOKENS:
                return trie.split(PART_TOKENS)
        raise CategoriesTooLong(
            f"the names of the {len(categories)} categories have more than {MAX_CATEGORY_TOKENS} tokens; shorten them"
        )


def last_path_log_probs(trie: Trie, answers: Sequence[TokenLogProbs]) -> npt.NDArray[np.float64]:
    """Return the log probability of each sequence of a trie, shape (C,), from the answers to all queries of a span,
    which end with those of the trie."""
    return path_log_probs(trie, answers[-len(trie.children) :])
