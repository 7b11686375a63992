"""Tests of NoteLLMConfig: it reads back what it wrote, and refuses everything else."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from model.config import CONFIG_FILE, CheckpointError, NoteLLMConfig


def test_config_saved_reads_back_the_same(tmp_path: Path) -> None:
    config = NoteLLMConfig(
        name="naïve 笔记",
        dimension=32,
        max_title_tokens=7,
        categories=("旅行", "Food"),
        min_hashtag_score=0.02,
        category_temperature=1.7,
        mean_share=0.5,
        title_mean_share=0.75,
        written_weights=(0.2, 0.05),
        agreed_written_weights=(0.3, 0.0),
        trained_categories=("Food", "ein Name"),
    )
    config.save(tmp_path)
    assert NoteLLMConfig.load(tmp_path) == config


def test_config_of_defaults_reads_back_the_same(tmp_path: Path) -> None:
    NoteLLMConfig().save(tmp_path)
    assert NoteLLMConfig.load(tmp_path) == NoteLLMConfig()


def test_field_left_out_has_its_default(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text('{"name": "n"}')
    assert NoteLLMConfig.load(tmp_path) == NoteLLMConfig(name="n")


def test_field_unknown_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text('{"name": "n", "temperature": 1}')
    with pytest.raises(CheckpointError, match="temperature"):
        NoteLLMConfig.load(tmp_path)


def test_folder_without_config_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a NoteLLM checkpoint"):
        NoteLLMConfig.load(tmp_path)


@pytest.mark.parametrize("stored", [b"", b"{", b'{"name": "\xff"}', b'"name"', b'["name"]', b"[]", b"null", b"3"])
def test_file_that_is_no_json_object_is_refused(tmp_path: Path, stored: bytes) -> None:
    (tmp_path / CONFIG_FILE).write_bytes(stored)
    with pytest.raises(CheckpointError):
        NoteLLMConfig.load(tmp_path)


@pytest.mark.parametrize(
    "out_of_range",
    [
        {"dimension": 0},
        {"dimension": -3},
        {"max_title_tokens": 0},
        {"max_hashtag_tokens": -1},
        {"max_content_tokens": 0},
        {"categories": ("Food", "Food")},
        {"categories": ("Food", " ")},
        {"category_temperature": 0.0},
        {"mean_share": -0.1},
        {"mean_share": 1.0},
        {"mean_share": "half"},
        {"mean_share": 0.5, "title_mean_share": 1.0},
        {"title_mean_share": 0.5},
        {"category_temperature": -1.0},
        {"category_temperature": math.nan},
        {"min_hashtag_score": -0.1},
        {"min_hashtag_score": 1.0},
        {"min_hashtag_score": math.nan},
        {"written_weights": (0.0, 0.1)},
        {"written_weights": (0.1, math.nan)},
        {"written_weights": (True, 0.1)},
        {"written_weights": (0.1,)},
        {"agreed_written_weights": (0.3, -0.1)},
        {"agreed_written_weights": (0.3, math.nan)},
    ],
)
def test_value_out_of_range_is_refused(out_of_range: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError):
        NoteLLMConfig(**out_of_range)


@pytest.mark.parametrize(
    "mistyped",
    [
        {"name": 3},
        {"dimension": "32"},
        {"dimension": True},
        {"max_title_tokens": 1.5},
        {"max_content_tokens": None},
        {"prompt_version": ["note-first/1"]},
        {"categories": "Fod"},
        {"categories": None},
        {"categories": [1, 2]},
        {"category_temperature": "1"},
        {"category_temperature": True},
        {"category_temperature": None},
        {"adapter": "yes"},
        {"generation_adapter": 1},
        {"written_weights": 0.1},
        {"written_weights": ["0.1", 0.1]},
    ],
    ids=json.dumps,
)
def test_stored_value_of_the_wrong_type_is_refused(tmp_path: Path, mistyped: dict[str, Any]) -> None:
    (tmp_path / CONFIG_FILE).write_text(json.dumps(mistyped))
    with pytest.raises(CheckpointError):
        NoteLLMConfig.load(tmp_path)
