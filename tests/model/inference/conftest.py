"""Engines that the tests of inference share."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from model.config import NoteLLMConfig
from model.inference.engine import Engine
from tests.model.inference.models import add_random_generation_adapter, random_writer, with_random_decoder
from tests.models import in_torch


@pytest.fixture(scope="session")
def tokenizer(backbone_folder: Path) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(backbone_folder)
    return loaded


@pytest.fixture(scope="session")
def note_first(tokenizer: PreTrainedTokenizerBase) -> Engine:
    return random_writer(tokenizer, "note-first/1")


@pytest.fixture(scope="session")
def short(tokenizer: PreTrainedTokenizerBase) -> Engine:
    return random_writer(tokenizer, "note-first/2")


@pytest.fixture(scope="session")
def task_first(tokenizer: PreTrainedTokenizerBase) -> Engine:
    return random_writer(tokenizer, "task-first/1")


@pytest.fixture(scope="session")
def activated_writer(tokenizer: PreTrainedTokenizerBase) -> Engine:
    return with_random_decoder(random_writer(tokenizer, "note-first/2"))


@pytest.fixture(params=["note_first", "task_first", "activated_writer"])
def writer(request: pytest.FixtureRequest) -> Engine:
    """Three random writers in turn: one that reads the note first, one that reads the task first, and one with the
    short prompt and a decoder whose weights differ from the trunk's."""
    engine: Engine = request.getfixturevalue(request.param)
    return engine


@pytest.fixture(scope="session")
def activated_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with a random generation adapter."""
    folder = tmp_path_factory.mktemp("activated") / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    add_random_generation_adapter(folder)
    return folder


@pytest.fixture(scope="session")
def activated(activated_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """An Engine on the checkpoint with a random generation adapter, in PyTorch, float32."""
    return in_torch(activated_checkpoint, tmp_path_factory.mktemp("cache"))


@pytest.fixture
def partly_trained_activated(activated_checkpoint: Path, tmp_path: Path) -> Engine:
    """The checkpoint with a random generation adapter, as if training had shown only Food and Travel."""
    return _trained_on_two_names(activated_checkpoint, tmp_path)


@pytest.fixture
def partly_trained(tiny_checkpoint: Path, tmp_path: Path) -> Engine:
    """The tiny checkpoint as if training had shown only Food and Travel."""
    return _trained_on_two_names(tiny_checkpoint, tmp_path)


def _trained_on_two_names(checkpoint: Path, tmp_path: Path) -> Engine:
    folder = tmp_path / "trained"
    shutil.copytree(checkpoint, folder)
    replace(NoteLLMConfig.load(folder), trained_categories=("Food", "Travel")).save(folder)
    return in_torch(folder, tmp_path)
