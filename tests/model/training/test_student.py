"""Tests of the student: its states equal those of serving, and do not depend on the batch."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from model.inference.engine import Engine
from model.note import Note
from model.notellm import NoteLLM
from model.training import student as student_module
from model.training.initialise import turn_dropout_off
from model.training.student import Student, build_student, group_by_tokens, pad_right
from model.weights import BACKBONE_FOLDER

NOTES = [
    Note(title="Soup for five"),
    Note(title="A long hike in the rain", content="We left before dawn and came back after dark.", hashtags=("hike",)),
    Note(title="Lamp", hashtags=("light", "home")),
]


@pytest.fixture(autouse=True)
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(student_module, "bfloat16_pays", lambda device: False)


@pytest.fixture
def model(tiny_short: Engine) -> NoteLLM:
    shared: NoteLLM = tiny_short.runtime.model
    return shared


def test_vectors_by_the_models_projection_are_those_served(model: NoteLLM, tiny_short: Engine) -> None:
    student = Student(model, model.dimension)
    assert model.projection is not None
    student.head.weight.data.copy_(model.projection.weight)
    with ThreadPoolExecutor(2) as threads:
        assert student.embed(NOTES, threads) == pytest.approx(tiny_short.embed(NOTES), abs=1e-5)
        assert student.embed([], threads).shape == (0, model.dimension)


def test_states_do_not_depend_on_the_batch(model: NoteLLM) -> None:
    student = Student(model, 4, "both")
    prompts = [model.prompt.note(note) for note in NOTES]
    batch_states = student.states(*pad_right(prompts))
    assert batch_states.shape == (3, 128)
    for ids, states in zip(prompts, batch_states, strict=True):
        assert student.states(*pad_right([ids]))[0].detach() == pytest.approx(states.detach(), abs=1e-5)


def test_pooled_states_are_read_out_and_mean_of_note_tokens(model: NoteLLM) -> None:
    ids = model.prompt.note(NOTES[1])
    positions = torch.arange(len(ids))[None]
    with torch.inference_mode():
        hidden = model(torch.tensor([ids]), torch.ones_like(positions), positions)[0]
        states = Student(model, 4, "both").states(*pad_right([ids]))[0]
    end = len(ids) - len(model.prompt.compress_ids)
    assert states[:64] == pytest.approx(hidden[-1], abs=1e-5)
    assert states[64:] == pytest.approx(hidden[:end].mean(0), abs=1e-5)


@pytest.mark.parametrize(("rank", "matrices"), [(0, 1), (3, 2)])
def test_only_linear_layers_of_the_body_or_their_adapter_are_trained(
    tiny_checkpoint: Path, tmp_path: Path, rank: int, matrices: int
) -> None:
    backbone = str(tiny_checkpoint / BACKBONE_FOLDER)
    student = build_student(backbone, "note-first/2", 12, "read-out", tmp_path, rank=rank)
    trained = student.trained_weights()
    assert len(trained) == 2 * 7 * matrices
    assert not rank or {min(weight.shape) for weight in trained} == {rank}
    ids = {id(weight) for weight in trained}
    assert all(weight.requires_grad == (id(weight) in ids) for weight in student.parameters())


def test_dropout_of_a_backbone_is_off(tiny_checkpoint: Path, tmp_path: Path) -> None:
    backbone = Path(shutil.copytree(tiny_checkpoint / BACKBONE_FOLDER, tmp_path / "backbone"))
    config = json.loads((backbone / "config.json").read_text())
    (backbone / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.5}))
    student = build_student(str(backbone), "note-first/2", 12, "read-out", tmp_path)
    padded = pad_right([student.model.prompt.note(note) for note in NOTES])
    assert torch.equal(student.states(*padded), student.states(*padded))
    turn_dropout_off(layer := torch.nn.Dropout(0.5))
    assert torch.equal(layer(torch.ones(100)), torch.ones(100))


def test_unknown_pooling_is_refused(model: NoteLLM) -> None:
    with pytest.raises(ValueError, match="pooling"):
        Student(model, 4, "max")


def test_groups_are_bounded_by_tokens_and_by_rows() -> None:
    assert group_by_tokens([4, 5, 6, 7], [2, 3, 3, 9], 8) == [[4, 5], [6], [7]]
    assert group_by_tokens([4, 5, 6], [1, 1, 1], 100, max_rows=2) == [[4, 5], [6]]
    assert group_by_tokens([], [], 8) == []
