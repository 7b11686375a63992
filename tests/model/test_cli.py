"""The offline commands as a person runs them."""

import gzip
import itertools
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from model.baselines.lexical import CopiedHashtags
from model.category_head import CATEGORIES_FILE
from model.config import CONFIG_FILE
from model.data.dataset import read_notes
from model.data.pairs import split_of
from model.evaluation.evaluate import EngineSystem, evaluate_hashtags
from model.generation import GenerationRequest
from model.inference.engine import Engine
from model.note import Note
from model.training.calibrate import category_temperature
from model.training.model_card import read_log
from model.training.teacher import read_vectors
from model.weights import HEAD_FILE
from service.cli.main import app

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


SUBJECTS = {
    "Baking": ("bread", "dough", "oven", "flour", "yeast"),
    "Travelling": ("paris", "train", "hotel", "beach", "island"),
    "Taxes": ("income", "deduction", "refund", "audit", "law"),
}


def write(folder: Path, name: str, records: Sequence[Mapping[str, Any]]) -> None:
    (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in records).encode()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Notes of three subjects; every user reads four of one subject that are of the same split."""
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
    histories = [ids[at : at + 4] for ids in alike.values() for at in range(0, len(ids) - 3, 2)]
    write(folder, "clicks", [{"user": u, "note": i} for u, history in enumerate(histories) for i in history])
    return folder


@pytest.fixture(scope="module")
def bare(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same notes, without categories and hashtags, and without clicks."""
    bare = tmp_path_factory.mktemp("bare")
    notes = read_notes(folder / "notes.jsonl.gz").values()
    write(bare, "notes", [{"id": note.id, "title": note.title} for note in notes])
    return bare


def evaluated(checkpoint: Path | str, data: Path, *options: str) -> dict[str, Any]:
    """What `notellm evaluate --json` prints, which is all that it prints."""
    result = run.invoke(
        app, ["evaluate", "--checkpoint", str(checkpoint), "--data", str(data), "--split", "test", "--json", *options]
    )
    assert result.exit_code == 0, result.output
    summary: dict[str, Any] = json.loads(result.stdout)
    return summary


def test_evaluate_says_what_was_agreed_on_and_nothing_else(folder: Path, tiny_checkpoint: Path):
    summary = evaluated(tiny_checkpoint, folder)
    assert summary["recall"].keys() == summary["mrr"].keys() == summary["pairs"].keys() == {"cold-cold", "cold-all"}
    assert summary["recall"]["cold-cold"].keys() == {"10", "100", "1000"}
    assert summary["recall"]["cold-cold"]["100"] == 1  # there are fewer test notes
    assert summary["pairs"]["cold-cold"] == summary["pairs"]["cold-all"] > 0
    assert 0 < summary["mrr"]["cold-all"] < summary["mrr"]["cold-cold"] < 1
    assert summary["category"].keys() >= {"accuracy_free", "accuracy_constrained", "macro_f1", "illusory", "ece"}
    assert summary["hashtags"].keys() >= {"f1@1", "f1@3", "f1@5", "rouge1", "rouge2", "rougeL"}
    assert summary["notes_per_second"] > 0
    asked = sum(split_of(str(i)) == "test" for i in range(150))
    assert summary["category"]["notes"] == summary["hashtags"]["notes"] == asked


def test_what_the_data_cannot_answer_is_null(bare: Path, tiny_checkpoint: Path):
    summary = evaluated(tiny_checkpoint, bare)
    assert summary.keys() >= {"recall", "mrr", "pairs", "category", "hashtags", "notes_per_second"}
    assert set(summary.values()) == {None}


def test_a_rival_finds_related_notes_and_copies_hashtags(folder: Path):
    summary = evaluated("tf-idf", folder)
    assert summary["category"] is None
    assert summary["recall"]["cold-cold"]["10"] > 0.5
    assert summary["hashtags"]["f1@1"] > 0.5  # the subject: no word is of two subjects


def test_the_most_frequent_hashtags_are_a_rival_without_related_notes(folder: Path):
    summary = evaluated("frequent", folder, "--copy-hashtags")
    assert {name for name, found in summary.items() if found is not None} == {"hashtags"}
    notes = read_notes(folder / "notes.jsonl.gz")
    trained, asked = (
        [str(note.category) for i, note in notes.items() if split_of(i) == split] for split in ("train", "test")
    )
    first = min(SUBJECTS, key=lambda name: (-trained.count(name), name))
    # It is one hit of 1 written and 2 true, where it is one.
    assert summary["hashtags"]["f1@1"] == pytest.approx(2 / 3 * asked.count(first) / len(asked))


def test_a_checkpoint_may_copy_hashtags_in_place_of_writing_them(
    folder: Path, tiny_checkpoint: Path, tiny_engine: Engine
):
    summary = evaluated(tiny_checkpoint, folder, "--copy-hashtags", "--part", "hashtags")
    notes = read_notes(folder / "notes.jsonl.gz")
    known, asked = ([n for i, n in sorted(notes.items()) if split_of(i) == split] for split in ("train", "test"))
    copied = evaluate_hashtags(CopiedHashtags(EngineSystem(tiny_engine), known), asked, known)
    written = evaluate_hashtags(EngineSystem(tiny_engine), asked, known)
    assert copied is not None
    assert written is not None
    assert copied.f1 != written.f1
    assert summary["hashtags"]["f1@5"] == pytest.approx(np.mean(copied.f1, axis=0)[2])
    assert {name for name, found in summary.items() if found is not None} == {"hashtags"}


def test_hashtags_that_are_copied_are_not_written_too(folder: Path, tiny_checkpoint: Path):
    asked = ["--part", "hashtags", "--copy-hashtags"]
    result = run.invoke(app, ["evaluate", "--checkpoint", str(tiny_checkpoint), "--data", str(folder), *asked])
    assert result.stderr.count("Hashtags of ") == 1


def test_only_the_parts_and_protocols_asked_for_are_answered(folder: Path):
    options = ["--part", "related", "--protocol", "cold-all"]
    summary = evaluated("bm25", folder, *options)
    assert summary["recall"].keys() == {"cold-all"}
    assert (summary["category"], summary["hashtags"]) == (None, None)


def test_people_get_a_table(folder: Path):
    result = run.invoke(app, ["evaluate", "--checkpoint", "tf-idf", "--data", str(folder), "--part", "related"])
    assert result.exit_code == 0, result.output
    for row in ("recall cold-cold 10 ", "recall cold-all 1000 ", "pairs cold-all ", "notes per second "):
        assert row in result.stdout


def test_a_record_holds_ranks_and_choices_and_no_text_of_the_notes(folder: Path, tiny_checkpoint: Path, tmp_path: Path):
    path = tmp_path / "new" / "record.json"
    summary = evaluated(tiny_checkpoint, folder, "--record", str(path))
    text = path.read_text()
    assert not [word for word in (*SUBJECTS, *itertools.chain(*SUBJECTS.values())) if word in text]
    record = json.loads(text)
    assert (record["system"], record["data"], record["split"]) == ("tiny", folder.name, "test")
    assert record["commit"]
    for protocol, count in summary["pairs"].items():
        found = record["related"][protocol]
        assert len(found["ranks"]) == len(found["queries"]) == len(found["exposures"]) == count
    assert len(record["categories"]["truth"]) == len(record["categories"]["free"]) == summary["category"]["notes"]
    assert len(record["hashtags"]["f1"]) == summary["hashtags"]["notes"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--part", "colours"], "no part colours; known: related, categories, hashtags"),
        (["--protocol", "warm", "--protocol", "cold-all"], "no protocol warm; known: cold-cold, cold-all"),
        (["--checkpoint", "nothing/there"], "nothing/there"),
        (["--data", "no/folder"], "no/folder"),
    ],
)
def test_an_evaluation_that_cannot_be_done_ends_with_its_reason(folder: Path, options: list[str], said: str):
    result = run.invoke(app, ["evaluate", "--checkpoint", "tf-idf", "--data", str(folder), *options])
    assert result.exit_code == 1
    assert said in " ".join(result.stderr.split())
    assert result.stdout == ""


def test_what_another_model_read_is_a_teacher_to_train_with(folder: Path, tiny_checkpoint: Path, tmp_path: Path):
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
    vectors.write_bytes(b"")
    result = run.invoke(app, [*train[:-1], str(tmp_path / "other")])
    assert result.exit_code == 1
    assert "teacher.npz" in "".join(result.stderr.split())


def test_what_gives_no_vectors_is_no_teacher(folder: Path, tmp_path: Path):
    notes = str(folder / "notes.jsonl.gz")
    result = run.invoke(app, ["embed", "--checkpoint", "tf-idf", "--notes", notes, "--out", str(tmp_path / "t.npz")])
    assert result.exit_code == 1
    assert "tf-idf gives no vectors" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy, to be changed."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def shown(note: Note) -> dict[str, Any]:
    return {"title": note.title, "content": note.content, "hashtags": note.hashtags}


def files(checkpoint: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()}


def test_to_whiten_changes_the_projection_of_a_checkpoint_and_nothing_else(
    checkpoint: Path, folder: Path, tiny_engine: Engine
):
    """What all notes shared is gone."""
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
    ("dimension", "said"), [("32", "directions, fewer than 32"), ("0", "greater than or equal to 1")]
)
def test_a_checkpoint_that_cannot_be_whitened_stays_as_it_was(
    checkpoint: Path, folder: Path, dimension: str, said: str
):
    before = files(checkpoint)
    result = run.invoke(
        app, ["whiten", "--checkpoint", str(checkpoint), "--data", str(folder), "--dimension", dimension]
    )
    assert result.exit_code != 0
    assert said in " ".join(result.stderr.split())
    assert files(checkpoint) == before


def test_to_calibrate_changes_one_number_of_a_checkpoint(
    checkpoint: Path, folder: Path, tiny_engine: Engine, tmp_path: Path
):
    """Of every four notes the model is right about three."""
    given = list(read_notes(folder / "notes.jsonl.gz").values())
    readings = tiny_engine.generate(given, GenerationRequest(categories=tuple(SUBJECTS)))
    likely = [[category.name for category in reading.categories or ()] for reading in readings]
    categories = [names[at % 4 == 0] for at, names in enumerate(likely)]
    notes = [replace(note, category=category) for note, category in zip(given, categories, strict=True)]
    write(tmp_path, "notes", [{"id": n.id, "category": n.category, **shown(n)} for n in notes])
    fitted = category_temperature(EngineSystem(tiny_engine), [read_notes(tmp_path / "notes.jsonl.gz")], 500)
    assert 1.05 < fitted < 50  # neither what it was nor at a limit

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


def test_to_fit_categories_adds_one_file_by_which_they_are_told_better(
    checkpoint: Path, folder: Path, tiny_engine: Engine
):
    """The vectors of a model that was never trained tell words apart; the names that it writes tell nothing."""
    before = files(checkpoint)
    fit = ["fit-categories", "--checkpoint", str(checkpoint), "--data", str(folder)]
    result = run.invoke(app, fit)
    assert result.exit_code == 0, result.output
    after = files(checkpoint)
    assert {path for path in after if after[path] != before.get(path)} == {str(checkpoint / CATEGORIES_FILE)}
    fitted = Engine.load(str(checkpoint), cache=checkpoint.parent, device="cpu", dtype="float32")
    notes = [note for i, note in read_notes(folder / "notes.jsonl.gz").items() if split_of(i) == "test"]
    right = [
        [(reading.categories or ())[0].name == note.category for reading, note in zip(readings, notes, strict=True)]
        for readings in (
            engine.generate(notes, GenerationRequest(categories=tuple(SUBJECTS))) for engine in (tiny_engine, fitted)
        )
    ]
    assert np.mean(right[0]) < 0.7 < 0.9 < np.mean(right[1])
    again = run.invoke(app, [*fit[:-1], str(folder / "notes.jsonl.gz")])  # the file, and a checkpoint that has a head
    assert again.exit_code == 0, again.output
    assert files(checkpoint).keys() == after.keys()


@pytest.mark.parametrize(
    ("command", "said"),
    [("calibrate", "no validation note has a category"), ("fit-categories", "fewer than two categories")],
)
def test_a_checkpoint_to_which_nothing_can_be_fitted_stays_as_it_was(
    checkpoint: Path, bare: Path, command: str, said: str
):
    before = files(checkpoint)
    result = run.invoke(app, [command, "--checkpoint", str(checkpoint), "--data", str(bare)])
    assert result.exit_code == 1
    assert said in " ".join(result.stderr.split())
    assert files(checkpoint) == before
