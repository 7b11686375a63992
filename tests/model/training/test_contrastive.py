"""What a batch is compared with: its own notes, and those that a memory holds beyond it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.data.dataset import PairedNotes
from model.data.pairs import PairOptions, related_pairs, split_of
from model.note import Note
from model.training.contrastive import ContrastiveObjective
from model.training.loss import contrastive_loss, distillation_loss
from model.training.recipe import Data, Recipe
from model.training.teacher import Teacher, write_vectors

TRAIN = [str(i) for i in range(100) if split_of(str(i)) == "train"]
READ = [TRAIN[at : at + 2] for at in range(0, 8, 2)]
"""Four pairs, of which a batch takes two; then a note of the batch is read with one beyond it."""
ACROSS = [TRAIN[0], TRAIN[6]]
NOTES = TRAIN[:12]
TAU = torch.tensor(1.5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Twelve notes, four of which nobody read."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "notes.jsonl").write_text("".join(json.dumps({"id": i, "title": f"note {i}"}) + "\n" for i in NOTES))
    clicks = [{"user": u, "note": i} for u, notes in enumerate([*READ, ACROSS]) for i in notes]
    (folder / "clicks.jsonl").write_text("".join(json.dumps(click) + "\n" for click in clicks))
    related_pairs(folder / "clicks.jsonl", folder / "pairs.parquet", PairOptions(top=100))
    return Data(notes=folder / "notes.jsonl", pairs=folder / "pairs.parquet")


@pytest.fixture(scope="module")
def paired(data: Data) -> PairedNotes:
    return PairedNotes(data.notes, data.pairs)


@pytest.fixture(scope="module")
def batch(paired: PairedNotes) -> list[Note]:
    return [paired.notes[i] for pair in READ[:2] for i in pair]


@pytest.fixture(scope="module")
def plain(data: Data) -> Recipe:
    """With a memory and nothing else."""
    return Recipe(name="r", data=(data,), memory=True, mask_false_negatives=False)


def unit(count: int, seed: int) -> Tensor:
    """`count` vectors in all directions."""
    return torch.nn.functional.normalize(torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)), dim=-1)


def beyond(related: ContrastiveObjective, batch: list[Note]) -> list[int]:
    """Rows of the notes that are not in the batch."""
    return [row for row, note in enumerate(related.notes) if note not in batch]


def test_a_batch_is_compared_with_what_is_remembered_of_all_notes_beyond_it(
    paired: PairedNotes, plain: Recipe, batch: list[Note]
):
    related, vectors, remembered = ContrastiveObjective(paired, plain), unit(4, 0), unit(12, 1)
    related.update_memory(related.notes, remembered)
    loss = related.loss(batch, vectors, TAU)
    others = remembered[beyond(related, batch)]
    assert others.shape == (8, 5)
    torch.testing.assert_close(loss.contrastive, contrastive_loss(vectors, TAU, None, others))
    assert loss.contrastive > contrastive_loss(vectors, TAU)
    assert (loss.total, loss.distillation) == (loss.contrastive, 0)


def test_what_is_remembered_of_the_batch_itself_does_not_count(paired: PairedNotes, plain: Recipe, batch: list[Note]):
    found = []
    for seed in (1, 2):
        related = ContrastiveObjective(paired, plain)
        related.update_memory(related.notes, unit(12, 3))
        related.update_memory(batch, unit(4, seed))
        found.append(related.loss(batch, unit(4, 0), TAU).total)
    assert found[0] == found[1]
    related = ContrastiveObjective(paired, plain)
    related.update_memory(batch, unit(4, 1))
    assert related.loss(batch, unit(4, 0), TAU).total == contrastive_loss(unit(4, 0), TAU)


def test_a_related_note_that_is_remembered_is_no_negative_where_false_ones_are_masked(
    paired: PairedNotes, plain: Recipe, batch: list[Note]
):
    vectors, remembered = unit(4, 0), unit(12, 1)
    by_masking = {}
    for mask in (False, True):
        related = ContrastiveObjective(paired, replace(plain, mask_false_negatives=mask))
        related.update_memory(related.notes, remembered)
        by_masking[mask] = related.loss(batch, vectors, TAU).contrastive
    rows = beyond(related, batch)
    known = torch.zeros(4, 4 + len(rows), dtype=torch.bool)
    known[0, 4 + [related.notes[row].id for row in rows].index(ACROSS[1])] = True  # the only pair beyond the batch
    torch.testing.assert_close(by_masking[True], contrastive_loss(vectors, TAU, known, remembered[rows]))
    torch.testing.assert_close(by_masking[False], contrastive_loss(vectors, TAU, None, remembered[rows]))
    assert by_masking[True] < by_masking[False]


def test_a_batch_whose_notes_are_related_beyond_their_pairs_is_masked_without_a_memory_too(
    paired: PairedNotes, plain: Recipe
):
    notes = [paired.notes[i] for i in (*READ[0], *READ[3])]
    assert [notes[0].id, notes[2].id] == ACROSS
    known = torch.zeros(4, 4, dtype=torch.bool)
    known[0, 2] = known[2, 0] = True
    related = ContrastiveObjective(paired, replace(plain, memory=False, mask_false_negatives=True))
    torch.testing.assert_close(
        related.loss(notes, unit(4, 0), TAU).contrastive, contrastive_loss(unit(4, 0), TAU, known)
    )


def test_without_a_memory_nothing_is_remembered(paired: PairedNotes, plain: Recipe, batch: list[Note]):
    related = ContrastiveObjective(paired, replace(plain, memory=False))
    related.update_memory(related.notes, unit(12, 1))
    assert related.memory is None
    assert related.loss(batch, unit(4, 0), TAU).total == contrastive_loss(unit(4, 0), TAU)


def test_notes_that_were_not_seen_yet_do_not_count(paired: PairedNotes, plain: Recipe, batch: list[Note]):
    related, vectors = ContrastiveObjective(paired, plain), unit(4, 0)
    assert related.loss(batch, vectors, TAU).total == contrastive_loss(vectors, TAU)  # the first batch of all
    seen = [paired.notes[i] for i in (NOTES[9], NOTES[5])]
    related.update_memory(seen, unit(2, 1))
    assert related.memory is not None
    assert related.memory.any(1).nonzero()[:, 0].tolist() == sorted(related.rows(seen).tolist())
    torch.testing.assert_close(
        related.loss(batch, vectors, TAU).total, contrastive_loss(vectors, TAU, None, unit(2, 1))
    )


def test_a_note_is_remembered_as_it_was_seen_last(paired: PairedNotes, plain: Recipe, batch: list[Note]):
    related = ContrastiveObjective(paired, plain)
    related.update_memory(related.notes, unit(12, 1))
    related.update_memory(batch[::-1], unit(4, 2))
    assert related.memory is not None
    torch.testing.assert_close(related.memory[related.rows(batch)], unit(4, 2).flip(0), rtol=0, atol=0)
    rest = beyond(related, batch)
    torch.testing.assert_close(related.memory[rest], unit(12, 1)[rest], rtol=0, atol=0)


def test_what_is_remembered_gets_no_gradient_and_the_batch_does(paired: PairedNotes, plain: Recipe, batch: list[Note]):
    related, vectors = ContrastiveObjective(paired, replace(plain, distillation=0.5)), unit(4, 0).requires_grad_()
    tau = TAU.clone().requires_grad_()
    earlier = unit(12, 1).requires_grad_()
    related.update_memory(related.notes, earlier)
    loss = related.loss(batch, vectors, tau).total
    related.update_memory(batch, vectors)  # as training does, before it goes back
    loss.backward()
    assert related.memory is not None
    assert not related.memory.requires_grad
    assert earlier.grad is None
    assert vectors.grad is not None
    assert vectors.grad.any(1).all()
    assert tau.grad is not None
    assert tau.grad != 0


@pytest.mark.parametrize("share", [0.25, 1.0])
@pytest.mark.parametrize("memory", [False, True])
def test_distillation_takes_its_share_and_is_over_the_same_notes(
    paired: PairedNotes, plain: Recipe, batch: list[Note], share: float, memory: bool
):
    recipe = replace(plain, memory=memory, distillation=share, distillation_temperature=0.3)
    related, vectors, remembered = ContrastiveObjective(paired, recipe), unit(4, 0), unit(12, 1)
    related.update_memory(related.notes, remembered)
    loss = related.loss(batch, vectors, TAU)
    rest = [paired.notes[i] for i in NOTES if paired.notes[i] not in batch] if memory else []
    others = remembered[[related.notes.index(note) for note in rest]]
    taught, others_taught = Teacher(paired).vectors([*batch, *rest]).tensor_split([4])
    torch.testing.assert_close(loss.contrastive, contrastive_loss(vectors, TAU, None, others))
    torch.testing.assert_close(loss.distillation, distillation_loss(vectors, TAU, taught, 0.3, others, others_taught))
    assert loss.distillation > 0
    torch.testing.assert_close(loss.total, (1 - share) * loss.contrastive + share * loss.distillation)


def test_the_teacher_has_read_what_it_is_given(paired: PairedNotes, plain: Recipe, tmp_path: Path):
    """A note that behaviour does not know, and one that nobody does."""
    write_vectors(tmp_path / "read.npz", [NOTES[10], NOTES[0]], unit(2, 1).numpy())
    related = ContrastiveObjective(paired, replace(plain, distillation=0.5), tmp_path / "read.npz")
    assert related.teacher_vectors is not None
    known = related.teacher_vectors.any(1)[related.rows([paired.notes[i] for i in NOTES])]
    assert known.tolist() == [True] * 8 + [False, False, True, False]
    assert (
        ContrastiveObjective(paired, plain, tmp_path / "read.npz").teacher_vectors is None
    )  # without a share it is not asked
