"""Tests of the GPU kit's distillation without a card: pack, run in several goes, stop, and export in parts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_kit import __main__ as command_line
from benchmarks.gpu_kit import start
from benchmarks.gpu_kit.corpus import corpus_files, read_recipe
from benchmarks.gpu_kit.pack import files_to_distil, pack
from benchmarks.gpu_kit.run import DONE, FAILED, NO_CARD
from model.inference.engine import Engine
from model.note import Note
from model.training import token_teacher
from model.training.distil import LOG
from model.weights import BACKBONE_FOLDER
from tests.model.training.distillation import write_corpus

RECIPE = """
backbone = "{backbone}"
batch = 8
starting_notes = 20
ranked = 30
teachers = ["by-rule"]
[shares]
lists = 0.7
long = 0.3
"""
SMALL = ("--device", "cpu", "--rank", "4", "--dimension", "6")


@pytest.fixture(scope="module")
def recipe(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    file.write_text(RECIPE.format(backbone=tiny_checkpoint / BACKBONE_FOLDER))
    return file


@pytest.fixture(scope="module")
def corpus(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus with the vectors of both teachers. It is shared: a test must not change its files."""
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    token_teacher.main([str(folder), "--backbone", str(tiny_checkpoint / BACKBONE_FOLDER), "--cache", str(folder)])
    return folder


def steps(log: Path) -> list[int]:
    return [json.loads(line)["step"] for line in log.read_text().splitlines()]


@pytest.mark.slow
def test_packed_distillation_goes_on_and_its_checkpoint_serves(
    recipe: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run of the same command does one more step. DuckDB is made unavailable, as on the machine with the card."""
    lacking = tmp_path / "lacking"
    lacking.mkdir()
    (lacking / "duckdb.py").write_text("raise ModuleNotFoundError(name='duckdb')")
    monkeypatch.setenv("PYTHONPATH", str(lacking))
    out = tmp_path / "out"
    assert pack(out, corpus=corpus, recipe=recipe, carried=(), part_bytes=8 << 20) == 0
    for _ in range(2):
        command = [sys.executable, "start.py", "distil", *SMALL, "--minutes", "0.00001"]
        assert subprocess.run(command, cwd=out, check=False, timeout=100).returncode == DONE
    distilled = out / "distilled"
    assert steps(distilled / LOG) == [1, 2]
    subprocess.run(f"cat {distilled}/part-* | tar xz -C {tmp_path}", shell=True, check=True)
    engine = Engine.load(str(tmp_path / "checkpoint"), cache=tmp_path, device="cpu", runtime="torch")
    assert engine.embed([Note(title="soup and hike")]).shape == (1, 6)


@pytest.mark.slow
def test_terminated_distillation_is_saved_and_not_exported(recipe: Path, corpus: Path, tmp_path: Path) -> None:
    folders = [f"--{name}={tmp_path / name}" for name in ("run", "results", "cache")]
    command = [sys.executable, "-m", "benchmarks.gpu_kit", "distil", f"--corpus={corpus}", f"--recipe={recipe}"]
    with subprocess.Popen([*command, *folders, *SMALL], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline().startswith("80 texts; from step 0")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == FAILED
    done = steps(tmp_path / "results" / LOG)
    assert (tmp_path / "run" / f"state.{done[-1]:08d}.pt").is_file()
    assert [file.name for file in (tmp_path / "results").iterdir()] == [LOG]


@pytest.mark.slow
def test_limit_that_has_passed_still_gives_a_checkpoint(
    recipe: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [f"--{name}={tmp_path / name}" for name in ("run", "results", "cache")]
    arguments = ["distil", f"--corpus={corpus}", f"--recipe={recipe}", *folders, *SMALL, "--limit", "0"]
    monkeypatch.setattr(sys, "argv", ["gpu_kit", *arguments])
    assert command_line.main() == DONE
    assert steps(tmp_path / "results" / LOG) == [1]
    assert (tmp_path / "results" / "part-00").is_file()


def test_distillation_with_its_unpacking_takes_25_minutes_at_most() -> None:
    minute = 1  # for unpacking
    assert command_line.parser().parse_args(["distil", "--corpus", "c"]).limit + minute <= 25


def test_recipe_for_a_card_takes_what_its_file_gives_and_a_cards_batch(recipe: Path, tmp_path: Path) -> None:
    assert (read_recipe(recipe).batch, read_recipe(recipe).threads) == (8, 1)
    assert read_recipe(command_line.GENERALIST).batch > 48
    (tmp_path / "none.toml").write_text("batch = 8")
    with pytest.raises(ValueError, match="no source has a share"):
        read_recipe(tmp_path / "none.toml")


def test_only_files_that_the_recipe_reads_are_packed(recipe: Path, corpus: Path) -> None:
    read = read_recipe(recipe)
    of_source = ("{}.jsonl.gz", "by-rule/{}.sha256", "by-rule/{}.0000.npy")

    def names(*sources: str) -> list[str]:
        return sorted(["tokens.npz", *(name.format(source) for source in sources for name in of_source)])

    assert sorted(files_to_distil(corpus, recipe)) == sorted([start.RECIPE, *names("lists", "long")])
    read.shares.pop("long")
    assert sorted(str(file.relative_to(corpus)) for file in corpus_files(corpus, read)) == names("lists")


def test_corpus_that_lacks_a_source_is_refused(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert pack(out, corpus=corpus, recipe=command_line.GENERALIST) == 2
    assert "wordnet.jsonl.gz is missing" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_distillation_without_a_card_says_so(
    recipe: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [f"--{name}={tmp_path / name}" for name in ("run", "results", "cache")]
    monkeypatch.setattr(sys, "argv", ["gpu_kit", "distil", f"--corpus={corpus}", f"--recipe={recipe}", *folders])
    assert command_line.main() == NO_CARD
    assert "finds no card here" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
