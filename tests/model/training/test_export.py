"""Tests of export settings, as `make checkpoint` passes them. Exported weights are tested in test_distil.py."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from model.config import CheckpointError, NoteLLMConfig
from model.training.export import argument_parser, main, with_settings
from model.training.writing import MIN_HASHTAG_SCORE
from model.weights import SHIPPED_CHECKPOINT

MAKEFILE = Path(__file__).resolve().parents[3] / "Makefile"
SET_BY_OTHER_STEPS = {
    "adapter", "dimension", "generation_adapter", "generation_trunk", "prompt_version", "min_hashtag_score",
    "category_temperature", "trained_categories",
}  # fmt: skip
"""Fields of notellm.json that the export leaves to the steps before and after it."""
REQUIRED = ["--state", "state.pt", "--out", "out"]


def export_arguments(target: str) -> list[str]:
    """Return the options of the export in the Makefile's recipe of `target`."""
    recipe = MAKEFILE.read_text("utf-8").split(f"\n{target}:", 1)[1].split("\n\n", 1)[0].replace("\\\n", "")
    (command,) = (line for line in recipe.splitlines() if "model.training.export" in line)
    options = shlex.split(command.split("--out", 1)[1].split("&&")[0])[1:]
    return [*REQUIRED, *options]


def test_make_checkpoint_ends_with_the_settings_of_the_shipped_one() -> None:
    shipped = NoteLLMConfig.load(SHIPPED_CHECKPOINT)
    options = argument_parser().parse_args(export_arguments("checkpoint"))
    made = with_settings(NoteLLMConfig(), options)
    differing = {field.name for field in fields(made) if getattr(made, field.name) != getattr(shipped, field.name)}
    assert differing <= SET_BY_OTHER_STEPS
    assert (
        f"whiten --checkpoint $(WORK)/cut --data $(WORK)/corpus/wordnet.jsonl.gz --dimension {shipped.dimension} "
        in MAKEFILE.read_text("utf-8")
    )
    assert shipped.min_hashtag_score == MIN_HASHTAG_SCORE  # which the step that trains writing sets


def test_export_without_settings_keeps_those_of_the_backbone() -> None:
    config = NoteLLMConfig(licence="terms of the backbone")
    made = with_settings(config, argument_parser().parse_args([*REQUIRED, "--name", config.name]))
    assert made == config


def test_negative_weight_of_a_names_cosine_is_refused() -> None:
    options = argument_parser().parse_args([*REQUIRED, "--name-cosine-weight", "-1"])
    with pytest.raises(CheckpointError, match="name_cosine_weight must be at least 0"):
        with_settings(NoteLLMConfig(), options)


def test_export_into_a_folder_that_is_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--state", str(tmp_path / "state.pt"), "--out", str(tmp_path)])
    assert f"{tmp_path} already exists: choose a new folder" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"", b"no state", "of another run"])
def test_file_that_is_no_state_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | str | None
) -> None:
    state = tmp_path / "state.pt"
    if isinstance(content, bytes):
        state.write_bytes(content)
    elif content:
        torch.save({"recipe": {"name": content}}, state)
    with pytest.raises(SystemExit):
        main(["--state", str(state), "--out", str(tmp_path / "out")])
    assert f"{state} is not a state.<step>.pt of model.training.distil" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_state_that_does_not_record_its_teachers_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / "state.pt"
    torch.save({"recipe": {"shares": {"own": 1.0}}, "masters": {"averages": []}, "head": torch.zeros(1)}, state)
    with pytest.raises(SystemExit):
        main(["--state", str(state), "--out", str(tmp_path / "out")])
    assert f"{state} does not record its teachers" in capsys.readouterr().err
