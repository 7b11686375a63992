"""Tests of a teacher's vectors of a corpus: they equal the encoder's, in shards that are written once."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from model.baselines import encoder as encoder_module
from model.baselines import encoder_teacher
from model.baselines.encoder import SentenceEncoder
from model.baselines.encoder_teacher import embed_in_bfloat16
from model.data.corpora import write_notes_file
from model.data.dataset import DatasetError
from model.note import Note
from model.training import corpus_vectors
from model.training.corpus_vectors import (
    digest_path,
    read_corpus_vectors,
    shard_path,
    write_corpus_vectors,
)

NOTES = [Note(title=f"{word} for {number}", hashtags=(word,)) for word in ("soup", "hike") for number in (2, 40)]


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(corpus_vectors, "SHARD_SIZE", 3)
    write_notes_file(tmp_path / "own.jsonl.gz", NOTES, "own")
    return tmp_path


def test_corpus_vectors_are_the_encoders_in_file_order(folder: Path, encoder: SentenceEncoder) -> None:
    assert write_corpus_vectors(partial(embed_in_bfloat16, encoder), "minilm", folder, "own") == 4
    notes, vectors = read_corpus_vectors(folder, "minilm", "own")
    assert [note.title for note in notes] == [note.title for note in NOTES]
    assert vectors.dtype == np.float16
    expected = encoder.embed(NOTES)
    assert (vectors.astype(np.float32) * expected).sum(1).min() > 0.995
    assert sorted(path.name for path in (folder / "minilm").glob("*.npy")) == ["own.0000.npy", "own.0001.npy"]


def test_existing_shards_are_not_written_again(folder: Path, encoder: SentenceEncoder) -> None:
    embed = partial(embed_in_bfloat16, encoder)
    assert write_corpus_vectors(embed, "minilm", folder, "own", max_notes=3) == 3
    written_at = shard_path(folder, "minilm", "own", 0).stat().st_mtime_ns
    assert len(read_corpus_vectors(folder, "minilm", "own")[0]) == 3
    assert write_corpus_vectors(embed, "minilm", folder, "own") == 1
    assert shard_path(folder, "minilm", "own", 0).stat().st_mtime_ns == written_at


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_a_terminal_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, terminal: bool
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1" if terminal else "")  # rich takes what has colours for a terminal
    write_corpus_vectors(lambda notes: np.ones((len(notes), 2), np.float32), "minilm", folder, "own")
    assert ("own: 4 notes" in capsys.readouterr().err) == terminal


def test_shard_that_fewer_notes_cut_short_is_written_again(folder: Path, encoder: SentenceEncoder) -> None:
    embed = partial(embed_in_bfloat16, encoder)
    assert write_corpus_vectors(embed, "minilm", folder, "own", max_notes=2) == 2
    assert len(read_corpus_vectors(folder, "minilm", "own")[0]) == 2
    assert write_corpus_vectors(embed, "minilm", folder, "own") == 4
    notes, vectors = read_corpus_vectors(folder, "minilm", "own")
    assert [note.title for note in notes] == [note.title for note in NOTES]
    assert (vectors.astype(np.float32) * encoder.embed(NOTES)).sum(1).min() > 0.995
    assert write_corpus_vectors(embed, "minilm", folder, "own", max_notes=2) == 0  # the shards already have more


def test_short_shard_before_another_is_refused(folder: Path, encoder: SentenceEncoder) -> None:
    write_corpus_vectors(partial(embed_in_bfloat16, encoder), "minilm", folder, "own")
    first = shard_path(folder, "minilm", "own", 0)
    np.save(first, np.load(first)[:2])
    with pytest.raises(DatasetError, match=r"own\.0000\.npy has vectors of 2 notes, and those of the next 3 follow"):
        read_corpus_vectors(folder, "minilm", "own")


def test_source_that_was_not_embedded_is_refused(folder: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"has no vectors of own by minilm: run model\.baselines\.encoder_teacher"
    ):
        read_corpus_vectors(folder, "minilm", "own")


def test_vectors_of_a_notes_file_that_was_made_anew_are_refused(folder: Path, encoder: SentenceEncoder) -> None:
    embed = partial(embed_in_bfloat16, encoder)
    write_corpus_vectors(embed, "minilm", folder, "own")
    write_notes_file(folder / "own.jsonl.gz", NOTES, "own")  # the same notes, compressed at another time
    assert len(read_corpus_vectors(folder, "minilm", "own")[0]) == 4
    write_notes_file(folder / "own.jsonl.gz", NOTES[::-1], "own")
    for use in (partial(write_corpus_vectors, embed, "minilm", folder), partial(read_corpus_vectors, folder, "minilm")):
        with pytest.raises(DatasetError, match=r"own\.jsonl\.gz has changed since minilm's vectors of it were made"):
            use("own")
    for shard in folder.glob("minilm/*.npy"):
        shard.unlink()
    assert write_corpus_vectors(embed, "minilm", folder, "own") == 4


def test_vectors_without_a_digest_are_refused(folder: Path, encoder: SentenceEncoder) -> None:
    write_corpus_vectors(partial(embed_in_bfloat16, encoder), "minilm", folder, "own")
    digest_path(folder, "minilm", "own").unlink()
    with pytest.raises(DatasetError, match=r"own\.sha256 is missing: remove .*minilm/own\.\*\.npy"):
        read_corpus_vectors(folder, "minilm", "own")


def test_vectors_of_two_encoders_lie_side_by_side(folder: Path, encoder: SentenceEncoder) -> None:
    write_corpus_vectors(partial(embed_in_bfloat16, encoder), "minilm", folder, "own")
    assert write_corpus_vectors(lambda notes: np.eye(len(notes), 2, dtype=np.float32), "other", folder, "own") == 4
    assert read_corpus_vectors(folder, "other", "own")[1].shape == (4, 2)
    assert read_corpus_vectors(folder, "minilm", "own")[1].shape == (4, 384)


def test_vectors_of_an_earlier_version_are_to_be_moved_and_not_made_again(folder: Path) -> None:
    np.save(folder / "own.0000.npy", np.ones((4, 2), np.float16))
    with pytest.raises(DatasetError, match=r"if minilm made them, move own\.\*\.npy and own\.sha256 into .*minilm, or"):
        write_corpus_vectors(lambda notes: np.ones((len(notes), 2), np.float32), "minilm", folder, "own")


def test_command_writes_the_vectors_of_its_encoder(folder: Path) -> None:
    encoder_teacher.main([str(folder)])
    assert read_corpus_vectors(folder, "minilm", "own")[1].shape == (4, 384)


def test_command_without_the_package_of_its_encoder_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(encoder_module, "PACKAGE", "no_such_package")
    with pytest.raises(SystemExit) as end:
        encoder_teacher.main([str(folder)])
    assert end.value.code == 1
    assert capsys.readouterr().err == "all-MiniLM-L6-v2 is not installed\n"


def test_command_names_a_source_that_is_not_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        encoder_teacher.main([str(folder), "--source", "other"])
    assert end.value.code == 1
    assert "other.jsonl.gz" in capsys.readouterr().err
