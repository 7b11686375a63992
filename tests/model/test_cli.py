"""The offline commands as a person runs them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from model.card import read_log
from service.cli import app

run = CliRunner()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """pairs, then train, from two files and a recipe."""
    folder = tmp_path_factory.mktemp("run")
    notes = [{"id": str(i), "title": f"note {i % 5}", "hashtags": ["daily"], "category": "Food"} for i in range(200)]
    clicks = [{"user": i // 4, "note": str(i * 7 % 200)} for i in range(800)]
    for name, records in {"notes": notes, "clicks": clicks}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    made = run.invoke(
        app, ["pairs", "--clicks", str(folder / "clicks.jsonl"), "--out", str(folder / "p.parquet"), "--json"]
    )
    assert made.exit_code == 0, made.output
    (folder / "report.json").write_text(made.stdout)
    (folder / "recipe.toml").write_text(
        f'name = "cli"\nbackbone = "{tiny_checkpoint}/backbone"\nbatch_pairs = 4\nsteps = 50\nlora_rank = 2\n'
        f"dimension = 8\nvalidation_min_score = 0.0\nevaluate_every = 2\n"
        f'[[data]]\nnotes = "{folder}/notes.jsonl"\npairs = "{folder}/p.parquet"\nterms = "made up for a test"\n'
    )
    result = run.invoke(
        app, ["train", "--config", str(folder / "recipe.toml"), "--out", str(folder / "out"), "--set", "steps=4"]
    )
    assert result.exit_code == 0, result.output
    return folder


def test_pairs_reports_what_went_in_and_came_out(trained: Path):
    report = json.loads((trained / "report.json").read_text())
    assert (report["users"], report["clicks"], report["notes"]) == (200, 800, 200)
    assert report["pairs"] > 0


def test_train_leaves_a_log_curves_and_a_checkpoint_with_its_card(trained: Path):
    out = trained / "out"
    assert [step["step"] for step in read_log(out)] == [1, 2, 3, 4]
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    card = (out / "best" / "README.md").read_text()
    for said in ("# cli", "made up for a test", "LoRA of rank 2", "4 steps of 4 pairs", "notellm.json"):
        assert said in card or (out / "best" / said).is_file()


def test_the_same_command_goes_on_and_finds_nothing_to_do(trained: Path):
    again = ["train", "--config", str(trained / "recipe.toml"), "--out", str(trained / "out"), "--set", "steps=4"]
    assert run.invoke(app, again).exit_code == 0
    assert len((trained / "out" / "log.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pairs", "--clicks", "nothing.jsonl", "--out", "p.parquet"], "nothing.jsonl"),
        (["pairs", "--clicks", "nothing.jsonl", "--out", "p.parquet", "--top", "0"], "top"),
        (["train", "--config", "nothing.toml", "--out", "out"], "nothing.toml"),
        (["train-encoder", "--config", "nothing.toml", "--out", "out"], "nothing.toml"),
    ],
)
def test_what_cannot_be_done_ends_with_its_reason(arguments: list[str], said: str):
    result = run.invoke(app, arguments)
    assert result.exit_code == 1
    assert said in result.output
    assert "Traceback" not in result.output


def test_a_changed_field_that_the_recipe_does_not_know_is_named(trained: Path):
    result = run.invoke(
        app, ["train", "--config", str(trained / "recipe.toml"), "--out", str(trained / "x"), "--set", "stepz=4"]
    )
    assert result.exit_code == 1
    assert "stepz" in result.output
