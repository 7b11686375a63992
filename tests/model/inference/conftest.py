"""Engines that the tests of inference share."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from model.config import NoteLLMConfig
from model.inference.engine import Engine
from tests.conftest import in_torch
from tests.model.inference.models import random_writer


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


@pytest.fixture(params=["note_first", "short", "task_first"])
def writer(request: pytest.FixtureRequest) -> Engine:
    """A random writer with each prompt version."""
    engine: Engine = request.getfixturevalue(request.param)
    return engine


@pytest.fixture
def partly_trained(tiny_checkpoint: Path, tmp_path: Path) -> Engine:
    """The tiny checkpoint as if training had shown only Food and Travel."""
    folder = tmp_path / "trained"
    shutil.copytree(tiny_checkpoint, folder)
    replace(NoteLLMConfig.load(folder), trained_categories=("Food", "Travel")).save(folder)
    return in_torch(folder, tmp_path)
