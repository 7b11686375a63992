"""The texts of a distillation with their teachers' vectors, as an endless stream of batches of similar length.

Random choices are a function of the seed and the batch's position in the stream, so a resumed run gets the batches that
the interrupted run would have had, as long as sources and shares are the same.

Shapes: N notes, B notes of a batch, T tokens, K dimension of all teachers together.
"""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.note import Note
from model.prompt import Prompt
from model.training.corpus_vectors import checked_digest, read_source
from model.training.recipe import RecipeError
from model.training.student import group_by_tokens, pad_right
from model.training.teacher import unit
from model.training.token_teacher import TokenTeacher

BATCHES_PER_DRAW = 32
"""Batches drawn together and sorted by length, so that none is mostly padding."""
BATCH_TOKENS_PER_NOTE = 32
"""Token budget of a batch, padded, for each note of its full size. Notes are not truncated: a batch of longer notes has
fewer of them. Without the budget, a batch of 48 long notes took 10 GB (docs/log/distillation.md)."""
SAMPLE_DRAW_SIZE = 256

Position = tuple[int, int]
"""Position in the stream: the number of the draw, and of the batch within it."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Notes of similar length.

    `ids`: (B, T) int64, padded on the right. `lengths`: (B,) tokens of each prompt, whose last token is the read-out.
    `teacher_vectors`: (B, K) float32 of unit length. `next_position`: where the stream continues after this batch.
    """

    ids: Tensor
    lengths: Tensor
    teacher_vectors: Tensor
    next_position: Position


class Mix:
    """An endless stream of rows from several sources, each shuffled anew in every epoch.

    `rows`: the rows of each source. `shares`: how often each source is drawn from, relative to the others.
    """

    def __init__(self, rows: Mapping[str, range], shares: Mapping[str, float], seed: int) -> None:
        self.seed = seed
        self.rows = rows
        total = sum(shares.values())
        self.shares = {source: share / total for source, share in shares.items() if share}
        self._orders: dict[tuple[str, int], npt.NDArray[np.int64]] = {}

    def check_batches(self, batch_size: int) -> None:
        """Raise RecipeError, naming the sources, where the share of some is so small that `groups` never draws them."""
        counts = self._counts(batch_size * BATCHES_PER_DRAW)
        if never := [source for source, count in counts.items() if not count]:
            raise RecipeError(f"shares: too small for any note in batches of {batch_size}: {', '.join(never)}")

    def draw(self, number: int, size: int) -> list[int]:
        """Return the rows of the `number`-th draw of `size` notes: each source's share, no repeats in an epoch."""
        counts = self._counts(size).items()
        return [self._nth_row(source, number * count + place) for source, count in counts for place in range(count)]

    def _counts(self, size: int) -> dict[str, int]:
        """Return the number of notes of each source in a draw of `size` notes; the last source gets the rest."""
        counts: dict[str, int] = {}
        *sources, last = self.shares
        for source in sources:
            counts[source] = min(size - sum(counts.values()), round(self.shares[source] * size))
        return {**counts, last: size - sum(counts.values())}

    def groups(
        self,
        batch_size: int,
        length: Callable[[int], int],
        max_tokens_per_note: int,
        start: Position = (0, 0),
    ) -> Iterator[tuple[list[int], Position]]:
        """Yield groups of rows of similar length without end, starting at a position of the stream, each with the
        position after it.

        A group has at most `batch_size` rows, and at most `max_tokens_per_note` times `batch_size` tokens when padded.
        `length`: token count of a row.
        """
        number, skipped = start
        while True:
            rows = self.draw(number, batch_size * BATCHES_PER_DRAW)
            lengths = {row: length(row) for row in rows}
            rows.sort(key=lambda row: lengths[row])
            ordered = [lengths[row] for row in rows]
            groups = group_by_tokens(rows, ordered, batch_size * max_tokens_per_note, batch_size)
            random.Random(f"{self.seed} {number}").shuffle(groups)
            for at, group in enumerate(groups[skipped:], skipped + 1):
                yield group, ((number, at) if at < len(groups) else (number + 1, 0))
            number, skipped = number + 1, 0

    def _nth_row(self, source: str, n: int) -> int:
        """Return the n-th row of a source's endless stream of shuffled epochs."""
        rows = self.rows[source]
        epoch, place = divmod(n, len(rows))
        if (source, epoch) not in self._orders:
            self._orders = {key: order for key, order in self._orders.items() if key[0] != source}
            order = np.random.default_rng([self.seed, epoch, len(rows)]).permutation(len(rows))
            self._orders[source, epoch] = order
        return rows[int(self._orders[source, epoch][place])]


class Texts:
    """The notes of several sources that have vectors, and `teacher_vectors` (N, K) float32 of unit length.

    `encoders`: the teachers that are encoders, each with weight 1; of a source, the notes that all of them have read
    are used. `shares`: how often each source is drawn from, relative to the others. `token_teacher`: a further teacher,
    of weight `token_weight`. Each teacher's vectors are centred on their mean over the mix, scaled to unit length and
    concatenated, so that a cosine is the weighted mean of the teachers' cosines. `digests`: everything that determines
    the stream besides the recipe and the token teacher, by name: digests of each source's notes and vectors, and the
    number of notes of each source in the order of `shares`. Raises FileNotFoundError for a source without vectors, and
    DatasetError for a source whose vectors belong to other notes.
    """

    def __init__(
        self,
        folder: Path,
        encoders: Sequence[str],
        shares: Mapping[str, float],
        seed: int = 0,
        token_teacher: TokenTeacher | None = None,
        token_weight: float = 0.0,
    ) -> None:
        self.notes: list[Note] = []
        self.digests: dict[str, str] = {}
        source_rows: dict[str, range] = {}
        vectors_of: dict[str, list[npt.NDArray[np.float32]]] = {encoder: [] for encoder in encoders}
        for source in (source for source, share in shares.items() if share):
            notes, vectors_by_encoder = read_source(folder, source, encoders)
            source_rows[source] = range(len(self.notes), len(self.notes) + len(notes))
            self.notes += notes
            for encoder, vectors in zip(encoders, vectors_by_encoder, strict=True):
                vectors_of[encoder].append(vectors.astype(np.float32))
                self.digests[source] = checked_digest(folder, encoder, source)
                self.digests[f"{encoder}'s vectors of {source}"] = hashlib.sha256(vectors.data).hexdigest()
        self.digests["numbers of notes"] = ", ".join(f"{name} {len(rows)}" for name, rows in source_rows.items())
        self.mix = Mix(source_rows, shares, seed)
        teachers = [self._centred(np.concatenate(vectors_of.pop(encoder))) for encoder in encoders]
        if token_teacher is not None:
            teachers.append(token_weight**0.5 * self._centred(token_teacher.vectors(self.notes)))
        self.teacher_vectors: npt.NDArray[np.float32] = unit(np.concatenate(teachers, axis=1))

    def _centred(self, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return unit vectors (N, D) less the mean of the mix; zero vectors, of notes without a vector, stay zero."""
        rows = self.mix.rows
        mean = sum(share * vectors[rows[source]].mean(0) for source, share in self.mix.shares.items())
        return unit(np.where(vectors.any(axis=1, keepdims=True), vectors - mean, 0))

    def sample(self, count: int) -> list[int]:
        """Return the rows of the stream's first `count` notes, in the shares of the mix."""
        rows: list[int] = []
        for number in range(1 + count // SAMPLE_DRAW_SIZE):
            rows += self.mix.draw(number, SAMPLE_DRAW_SIZE)
        return rows[:count]

    def batches(self, prompt: Prompt, batch_size: int, start: Position = (0, 0)) -> Iterator[Batch]:
        """Yield batches of at most `batch_size` notes without end, starting at a position of the stream."""

        @cache  # tokenizing is slower than a GPU step, and notes repeat every epoch
        def prompt_ids(row: int) -> array[int]:
            return array("i", prompt.note(self.notes[row]))

        def prompt_length(row: int) -> int:
            return len(prompt_ids(row))

        for rows, next_position in self.mix.groups(batch_size, prompt_length, BATCH_TOKENS_PER_NOTE, start):
            ids, lengths = pad_right([prompt_ids(row) for row in rows])
            yield Batch(ids, lengths, torch.from_numpy(self.teacher_vectors[rows]), next_position)
