"""Tests of the contrastive objective: a batch is compared with its own notes and with the other notes in memory."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.data.dataset import PairedNotes
from model.data.pairs import PairOptions, related_pairs, split_of
from model.data.recombined_notes import ID_PREFIX
from model.note import Note
from model.training.contrastive import ContrastiveObjective
from model.training.loss import contrastive_loss, distillation_loss
from model.training.recipe import Data, Recipe
from model.training.teacher import Teacher, write_vectors

TRAIN = [str(i) for i in range(100) if split_of(str(i)) == "train"]
READ = [TRAIN[start : start + 2] for start in range(0, 8, 2)]
"""Four pairs, the first two of which are the batch of these tests."""
ACROSS = [TRAIN[0], TRAIN[6]]
"""One more pair: a note of the batch and one outside it."""
NOTES = TRAIN[:12]
TAU = torch.tensor(1.5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Twelve notes, four of which have no clicks."""
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
    """A recipe with a memory and no other option."""
    return Recipe(name="r", data=(data,), memory=True, mask_false_negatives=False)


def unit(count: int, seed: int) -> Tensor:
    """Unit vectors (count, 5) in random directions."""
    return torch.nn.functional.normalize(torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)), dim=-1)


def beyond(objective: ContrastiveObjective, batch: list[Note]) -> list[int]:
    """Rows of the notes that are not in the batch."""
    return [row for row, note in enumerate(objective.notes) if note not in batch]


def test_batch_with_memory_is_compared_with_all_other_notes(paired: PairedNotes, plain: Recipe, batch: list[Note]):
    objective, vectors, memory = ContrastiveObjective(paired, plain), unit(4, 0), unit(12, 1)
    objective.update_memory(objective.notes, memory)
    loss = objective.loss(batch, vectors, TAU)
    others = memory[beyond(objective, batch)]
    assert others.shape == (8, 5)
    torch.testing.assert_close(loss.contrastive, contrastive_loss(vectors, TAU, None, others))
    assert loss.contrastive > contrastive_loss(vectors, TAU)
    assert (loss.total, loss.distillation) == (loss.contrastive, 0)


def test_memory_of_the_batch_itself_does_not_count(paired: PairedNotes, plain: Recipe, batch: list[Note]):
    losses = []
    for seed in (1, 2):
        objective = ContrastiveObjective(paired, plain)
        objective.update_memory(objective.notes, unit(12, 3))
        objective.update_memory(batch, unit(4, seed))
        losses.append(objective.loss(batch, unit(4, 0), TAU).total)
    assert losses[0] == losses[1]
    objective = ContrastiveObjective(paired, plain)
    objective.update_memory(batch, unit(4, 1))
    assert objective.loss(batch, unit(4, 0), TAU).total == contrastive_loss(unit(4, 0), TAU)


def test_related_note_in_memory_is_masked_if_the_recipe_says_so(paired: PairedNotes, plain: Recipe, batch: list[Note]):
    vectors, memory = unit(4, 0), unit(12, 1)
    by_masking = {}
    for mask in (False, True):
        objective = ContrastiveObjective(paired, replace(plain, mask_false_negatives=mask))
        objective.update_memory(objective.notes, memory)
        by_masking[mask] = objective.loss(batch, vectors, TAU).contrastive
    rows = beyond(objective, batch)
    known = torch.zeros(4, 4 + len(rows), dtype=torch.bool)
    known[0, 4 + [objective.notes[row].id for row in rows].index(ACROSS[1])] = (
        True  # the only pair with a note outside the batch
    )
    torch.testing.assert_close(by_masking[True], contrastive_loss(vectors, TAU, known, memory[rows]))
    torch.testing.assert_close(by_masking[False], contrastive_loss(vectors, TAU, None, memory[rows]))
    assert by_masking[True] < by_masking[False]


def test_related_notes_across_pairs_of_a_batch_are_masked(paired: PairedNotes, plain: Recipe):
    notes = [paired.notes[i] for i in (*READ[0], *READ[3])]
    assert [notes[0].id, notes[2].id] == ACROSS
    known = torch.zeros(4, 4, dtype=torch.bool)
    known[0, 2] = known[2, 0] = True
    objective = ContrastiveObjective(paired, replace(plain, memory=False, mask_false_negatives=True))
    torch.testing.assert_close(
        objective.loss(notes, unit(4, 0), TAU).contrastive, contrastive_loss(unit(4, 0), TAU, known)
    )


def test_recipe_without_memory_keeps_nothing(paired: PairedNotes, plain: Recipe, batch: list[Note]):
    objective = ContrastiveObjective(paired, replace(plain, memory=False))
    objective.update_memory(objective.notes, unit(12, 1))
    assert objective.memory is None
    assert objective.loss(batch, unit(4, 0), TAU).total == contrastive_loss(unit(4, 0), TAU)


def test_unseen_notes_of_the_memory_do_not_count(paired: PairedNotes, plain: Recipe, batch: list[Note]):
    objective, vectors = ContrastiveObjective(paired, plain), unit(4, 0)
    assert objective.loss(batch, vectors, TAU).total == contrastive_loss(
        vectors, TAU
    )  # the first batch, with an empty memory
    seen = [paired.notes[i] for i in (NOTES[9], NOTES[5])]
    objective.update_memory(seen, unit(2, 1))
    assert objective.memory is not None
    assert objective.memory.any(1).nonzero()[:, 0].tolist() == sorted(objective.rows(seen).tolist())
    torch.testing.assert_close(
        objective.loss(batch, vectors, TAU).total, contrastive_loss(vectors, TAU, None, unit(2, 1))
    )


def test_memory_of_a_note_seen_again_is_the_latest_vector(paired: PairedNotes, plain: Recipe, batch: list[Note]):
    objective = ContrastiveObjective(paired, plain)
    objective.update_memory(objective.notes, unit(12, 1))
    objective.update_memory(batch[::-1], unit(4, 2))
    assert objective.memory is not None
    torch.testing.assert_close(objective.memory[objective.rows(batch)], unit(4, 2).flip(0), rtol=0, atol=0)
    rest = beyond(objective, batch)
    torch.testing.assert_close(objective.memory[rest], unit(12, 1)[rest], rtol=0, atol=0)


def test_reread_notes_are_all_notes_in_turn(paired: PairedNotes, plain: Recipe):
    objective = ContrastiveObjective(paired, replace(plain, reread_notes=5))
    turns = [objective.reread_at(step) for step in range(12)]
    assert [len(notes) for notes in turns] == [5] * 12
    assert Counter(note.id for notes in turns for note in notes) == dict.fromkeys(paired.notes, 5)
    assert ContrastiveObjective(paired, plain).reread_at(3) == []


def test_unpaired_notes_are_as_many_in_each_step_and_none_of_the_batch(
    paired: PairedNotes, plain: Recipe, batch: list[Note]
):
    objective = ContrastiveObjective(paired, replace(plain, distillation=0.5, unpaired_notes=5))
    turns = [[note.id for note in objective.unpaired_at(step, batch)] for step in range(12)]
    assert {len(set(turn)) for turn in turns} == {5}
    assert {note_id for turn in turns for note_id in turn} == paired.notes.keys() - {note.id for note in batch}
    assert turns[0] != turns[1]
    assert ContrastiveObjective(paired, plain).unpaired_at(3, batch) == []


def test_unpaired_notes_are_negatives_of_the_pairs_and_learn_from_the_teacher(
    paired: PairedNotes, plain: Recipe, batch: list[Note]
):
    objective = ContrastiveObjective(paired, replace(plain, distillation=0.5, mask_false_negatives=True))
    unpaired = [paired.notes[i] for i in READ[3]]
    notes, vectors = [*batch, *unpaired], unit(6, 0).requires_grad_()
    loss = objective.loss(notes, vectors, TAU, unpaired=2)
    known = torch.zeros(4, 6, dtype=torch.bool)
    known[0, 4 + READ[3].index(ACROSS[1])] = True
    torch.testing.assert_close(loss.contrastive, contrastive_loss(vectors[:4], TAU, known, vectors[4:]))
    teacher = Teacher(paired).vectors(notes)
    torch.testing.assert_close(loss.distillation, distillation_loss(vectors, TAU, teacher, 0.1))
    loss.total.backward()
    assert vectors.grad is not None
    assert vectors.grad.any(1).all()


def test_texts_made_of_parts_of_notes_are_no_negatives_and_learn_from_the_teacher(
    data: Data, plain: Recipe, batch: list[Note], tmp_path: Path
):
    made = [i for n in range(9) if split_of(i := f"{ID_PREFIX}{n}") == "train"][:3]
    lines = "".join(json.dumps({"id": i, "title": f"part of {i}"}) + "\n" for i in made)
    (tmp_path / "notes.jsonl").write_text(data.notes.read_text() + lines)
    assert data.pairs is not None
    paired = PairedNotes(tmp_path / "notes.jsonl", data.pairs)
    write_vectors(tmp_path / "teacher.npz", [*NOTES, *made], unit(15, 2).numpy())
    recipe = replace(plain, distillation=0.5, mask_false_negatives=True)
    objective = ContrastiveObjective(paired, recipe, tmp_path / "teacher.npz")
    in_batch, in_memory = paired.notes[made[0]], [paired.notes[i] for i in made[1:]]
    objective.update_memory(in_memory, unit(2, 1))
    vectors = unit(5, 0).requires_grad_()
    loss = objective.loss([*batch, in_batch], vectors, TAU, unpaired=1)
    torch.testing.assert_close(loss.contrastive, contrastive_loss(vectors[:4], TAU))
    loss.distillation.backward()
    assert vectors.grad is not None
    assert vectors.grad.any(1).all()


def test_memory_gets_no_gradient_and_the_batch_does(paired: PairedNotes, plain: Recipe, batch: list[Note]):
    objective, vectors = ContrastiveObjective(paired, replace(plain, distillation=0.5)), unit(4, 0).requires_grad_()
    tau = TAU.clone().requires_grad_()
    earlier = unit(12, 1).requires_grad_()
    objective.update_memory(objective.notes, earlier)
    loss = objective.loss(batch, vectors, tau).total
    objective.update_memory(batch, vectors)  # before the backward pass, as in training
    loss.backward()
    assert objective.memory is not None
    assert not objective.memory.requires_grad
    assert earlier.grad is None
    assert vectors.grad is not None
    assert vectors.grad.any(1).all()
    assert tau.grad is not None
    assert tau.grad != 0


@pytest.mark.parametrize("share", [0.25, 1.0])
@pytest.mark.parametrize("memory", [False, True])
def test_distillation_takes_its_share_over_the_same_notes(
    paired: PairedNotes, plain: Recipe, batch: list[Note], share: float, memory: bool
):
    recipe = replace(plain, memory=memory, distillation=share, distillation_temperature=0.3)
    objective, vectors, remembered = ContrastiveObjective(paired, recipe), unit(4, 0), unit(12, 1)
    objective.update_memory(objective.notes, remembered)
    loss = objective.loss(batch, vectors, TAU)
    rest = [paired.notes[i] for i in NOTES if paired.notes[i] not in batch] if memory else []
    others = remembered[[objective.notes.index(note) for note in rest]]
    teacher, others_teacher = Teacher(paired).vectors([*batch, *rest]).tensor_split([4])
    torch.testing.assert_close(loss.contrastive, contrastive_loss(vectors, TAU, None, others))
    torch.testing.assert_close(loss.distillation, distillation_loss(vectors, TAU, teacher, 0.3, others, others_teacher))
    assert loss.distillation > 0
    torch.testing.assert_close(loss.total, (1 - share) * loss.contrastive + share * loss.distillation)


def test_teacher_knows_the_notes_of_pairs_and_of_its_file(paired: PairedNotes, plain: Recipe, tmp_path: Path):
    """One note is known to the file alone, one to both sources, and one to none."""
    write_vectors(tmp_path / "read.npz", [NOTES[10], NOTES[0]], unit(2, 1).numpy())
    objective = ContrastiveObjective(paired, replace(plain, distillation=0.5), tmp_path / "read.npz")
    assert objective.teacher_vectors is not None
    known = objective.teacher_vectors.any(1)[objective.rows([paired.notes[i] for i in NOTES])]
    assert known.tolist() == [True] * 8 + [False, False, True, False]
    without_distillation = ContrastiveObjective(paired, plain, tmp_path / "read.npz")
    assert without_distillation.teacher_vectors is None
