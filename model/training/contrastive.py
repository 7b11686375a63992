"""The loss of related notes on one data set: GCL on its pairs, a teacher's word, and notes beyond the batch.

Shapes: B pairs of a batch, N notes of the data set, D dimension, K of the teacher, M notes that are remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from model.data.dataset import PairedNotes
from model.note import Note
from model.training.loss import RelatedLoss, contrastive_loss, distillation_loss
from model.training.recipe import Recipe
from model.training.teacher import Teacher


class ContrastiveObjective:
    """Of one data set with pairs. `read`: vectors that another model gave its notes (`notellm embed`).

    The memory holds each note's vector as training last saw it (cross-batch memory, Wang et al. 2020): with it a note
    is compared with all notes of the data set, as when it is searched for, and not only with a batch of those that
    have pairs. Remembered vectors get no gradient.
    """

    def __init__(
        self, paired: PairedNotes, recipe: Recipe, read: Path | None = None, device: torch.device | None = None
    ) -> None:
        self.paired = paired
        self.notes = list(paired.notes.values())
        self.memory: Tensor | None = None
        """(N, D), zero where nothing is remembered."""
        self.teacher_vectors = Teacher(paired, read).vectors(self.notes).to(device) if recipe.distillation else None
        """(N, K), zero where the teacher does not know the note."""
        self._recipe = recipe
        self._device = device
        self._row = {note.id: row for row, note in enumerate(self.notes)}

    def loss(self, notes: Sequence[Note], vectors: Tensor, tau: Tensor) -> RelatedLoss:
        """Of one batch. vectors: (2B, D), unit length, rows 2i and 2i + 1 a pair. tau: scalar."""
        recipe = self._recipe
        batch = self.rows(notes)
        beyond = self._remembered(batch)
        others = None if self.memory is None else self.memory[beyond]
        known = None
        if recipe.mask_false_negatives:
            among = [*notes, *(self.notes[row] for row in beyond.tolist())]
            known = self.paired.known_related(notes, among).to(self._device)
        contrastive = contrastive_loss(vectors, tau, known, others)
        if self.teacher_vectors is None:
            return RelatedLoss(contrastive, contrastive, torch.zeros_like(contrastive))
        distillation = distillation_loss(
            vectors,
            tau,
            self.teacher_vectors[batch],
            recipe.distillation_temperature,
            others,
            self.teacher_vectors[beyond],
        )
        share = recipe.distillation
        return RelatedLoss((1 - share) * contrastive + share * distillation, contrastive, distillation)

    def update_memory(self, notes: Sequence[Note], vectors: Tensor) -> None:
        """Keep (len(notes), D) vectors, where the recipe has a memory."""
        if not self._recipe.memory:
            return
        if self.memory is None:
            self.memory = torch.zeros(len(self.notes), vectors.shape[1], device=self._device)
        self.memory[self.rows(notes)] = vectors.detach()

    def rows(self, notes: Sequence[Note]) -> Tensor:
        """(len(notes),) int64: where they stand in `notes`, `memory` and `taught`."""
        return torch.tensor([self._row[note.id] for note in notes], dtype=torch.int64, device=self._device)

    def _remembered(self, batch: Tensor) -> Tensor:
        """(M,) rows of the memory that hold a note which is not in the batch."""
        if self.memory is None:
            return batch[:0]
        kept = self.memory.any(1)
        kept[batch] = False
        return kept.nonzero()[:, 0]
