"""The loss of related notes on one data set: GCL on its pairs, distillation, and a memory of past vectors.

This file decides which notes are compared; the formulas are in loss.py.

Shapes: B pairs of a batch and U unpaired notes, N notes of the data set, D embedding dimension, K the teacher's
dimension, M notes in the memory that are not in the batch.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from model.data.dataset import DatasetError, PairedNotes
from model.data.recombined_notes import ID_PREFIX
from model.note import Note
from model.training.loss import RelatedLoss, contrastive_loss, distillation_loss
from model.training.recipe import Recipe
from model.training.teacher import Teacher
from model.weights import Progress


def check_batches(paired: PairedNotes, name: str, recipe: Recipe, progress: Progress, *, new_run: bool = True) -> None:
    """Report the number of pairs of the first batch where it is below `batch_pairs`. `name`: name of the pairs' file.

    Raises DatasetError where the first batch of a new run has a single pair, so that there are no negatives, and
    neither memory nor unpaired notes add some. Later batches are not checked. A resumed run may go on, as CSFT may
    still train it.
    """
    pairs = len(next(paired.batches(recipe.batch_pairs, recipe.seed))) // 2
    if new_run and pairs == 1 and not (recipe.memory or recipe.unpaired_notes):
        raise DatasetError(
            f"{name}: a batch has only one pair, so it has no negatives: add pairs that share no note, raise "
            "batch_pairs, or set memory = true"
        )
    if pairs < recipe.batch_pairs:
        progress(f"{name}: a batch has {pairs} pairs that share no note, fewer than batch_pairs = {recipe.batch_pairs}")


class ContrastiveObjective:
    """The loss of related notes on one data set with pairs.

    `teacher_file`: another model's vectors of its notes (`notellm embed`). Raises DatasetError where it has none of
    them.

    With `memory` in the recipe, the latest training vector of each note is kept (cross-batch memory, Wang et al. 2020).
    A batch is then compared with all notes seen so far, almost as in a search, and not only with itself. Vectors in the
    memory get no gradient.
    """

    def __init__(
        self, paired: PairedNotes, recipe: Recipe, teacher_file: Path | None = None, device: torch.device | None = None
    ) -> None:
        self.paired = paired
        self.notes = list(paired.notes.values())
        self.memory: Tensor | None = None
        """Latest vectors (N, D), zero for a note that training has not seen; None before the first update."""
        self.teacher_vectors: Tensor | None = None
        """Vectors (N, K) of the teacher, zero for a note that it does not know; None without distillation."""
        if recipe.distillation:
            self.teacher_vectors = Teacher(paired, teacher_file).vectors(self.notes).to(device)
        self._recombined = torch.tensor([note.id.startswith(ID_PREFIX) for note in self.notes], device=device)
        """(N,) bool: texts made of parts of notes. As negatives they would push the notes that they are made of away,
        which the teacher says are near. So they only learn from the teacher."""
        self._recipe = recipe
        self._device = device
        self._row = {note.id: row for row, note in enumerate(self.notes)}
        self._reread_order, self._unpaired_order = (
            random.Random(f"{recipe.seed} {use}").sample(range(len(self.notes)), len(self.notes))
            for use in ("reread", "unpaired")
        )

    def loss(self, notes: Sequence[Note], vectors: Tensor, tau: Tensor, unpaired: int = 0) -> RelatedLoss:
        """Loss of one batch of 2B + U notes. vectors: (2B + U, D), unit length; rows 2i and 2i + 1 < 2B are a pair.
        tau: scalar. unpaired: U."""
        recipe = self._recipe
        pairs = len(notes) - unpaired
        batch_rows = self.rows(notes)
        memory_rows = self._memory_rows(batch_rows)
        others = None if self.memory is None else self.memory[memory_rows]
        false_negatives = None
        if recipe.mask_false_negatives:
            compared = [*notes, *(self.notes[row] for row in memory_rows.tolist())]
            false_negatives = self.paired.known_related(notes[:pairs], compared).to(self._device)
            false_negatives |= self._recombined[torch.cat([batch_rows, memory_rows])]
        beyond_pairs = vectors[pairs:] if others is None else torch.cat([vectors[pairs:], others])
        contrastive = contrastive_loss(vectors[:pairs], tau, false_negatives, beyond_pairs)
        if self.teacher_vectors is None:
            return RelatedLoss(contrastive, contrastive, torch.zeros_like(contrastive))
        distillation = distillation_loss(
            vectors,
            tau,
            self.teacher_vectors[batch_rows],
            recipe.distillation_temperature,
            others,
            self.teacher_vectors[memory_rows],
        )
        share = recipe.distillation
        return RelatedLoss((1 - share) * contrastive + share * distillation, contrastive, distillation)

    def update_memory(self, notes: Sequence[Note], vectors: Tensor) -> None:
        """Store the latest vectors (len(notes), D) of `notes`; does nothing for a recipe without memory."""
        if not self._recipe.memory:
            return
        if self.memory is None:
            self.memory = torch.zeros(len(self.notes), vectors.shape[1], device=self._device)
        self.memory[self.rows(notes)] = vectors.detach()

    def reread_at(self, step: int) -> list[Note]:
        """Return the `reread_notes` notes whose memory a step refreshes, cycling through one random order. `step`:
        number of previous steps on this data set."""
        return list(islice(self._from(self._reread_order, step * self._recipe.reread_notes), self._recipe.reread_notes))

    def unpaired_at(self, step: int, batch: Sequence[Note]) -> list[Note]:
        """Return the `unpaired_notes` notes that a step adds to the pairs of `batch`, cycling through a random order as
        `reread_at` does; notes of the batch are skipped."""
        ids, count = {note.id for note in batch}, self._recipe.unpaired_notes
        following = self._from(self._unpaired_order, step * count)
        return list(islice((note for note in following if note.id not in ids), count))

    def _from(self, order: Sequence[int], place: int) -> Iterator[Note]:
        """Yield every note once, in `order` from `place` on and then from its beginning."""
        return (self.notes[order[(place + i) % len(order)]] for i in range(len(order)))

    def rows(self, notes: Sequence[Note]) -> Tensor:
        """Return the rows (len(notes),) int64 of `notes` in `self.notes`, `memory` and `teacher_vectors`."""
        return torch.tensor([self._row[note.id] for note in notes], dtype=torch.int64, device=self._device)

    def _memory_rows(self, batch_rows: Tensor) -> Tensor:
        """Return the rows (M,) of the memory that hold a vector and are not in the batch."""
        if self.memory is None:
            return batch_rows[:0]
        filled = self.memory.any(1)
        filled[batch_rows] = False
        return filled.nonzero()[:, 0]
