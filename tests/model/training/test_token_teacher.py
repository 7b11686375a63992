"""Tests of the token teacher: rare words count most, in any case, and so do words that occur in no text."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from model.data.corpora import write_notes_file
from model.note import Note
from model.training import token_teacher
from model.training.teacher import unit
from model.training.token_teacher import (
    TokenTeacher,
    inverse_document_frequencies,
    main,
    token_text,
    whitened,
)
from model.weights import BACKBONE_FOLDER

NOTES = [Note(title=f"The {word} of the {other}") for word in ("soup", "hike", "lamp") for other in ("day", "year")]


@pytest.fixture(scope="module")
def teacher(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> TokenTeacher:
    folder = tmp_path_factory.mktemp("words")
    write_notes_file(folder / "own.jsonl.gz", NOTES, "own")
    main([str(folder), "--backbone", str(tiny_checkpoint / BACKBONE_FOLDER), "--cache", str(folder)])
    return TokenTeacher.load(folder, folder)


def test_notes_with_common_rare_words_are_similar(teacher: TokenTeacher) -> None:
    soup, same, other = teacher.vectors(
        [Note(title="The soup of the day"), Note(title="SOUP", hashtags=("day",)), Note(title="the lamp of the year")]
    )
    assert soup @ same > soup @ other + 0.2
    assert np.linalg.norm([soup, same, other], axis=1) == pytest.approx(np.ones(3), abs=1e-5)


def test_word_of_no_text_counts_as_the_rarest(teacher: TokenTeacher) -> None:
    unseen, common = teacher.vectors([Note(title="the the volcano"), Note(title="volcano")])
    assert unseen @ common > 0.9


def test_vectors_are_sums_of_the_table_however_many_notes_are_tokenised_together(
    teacher: TokenTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_teacher, "TOKENIZE_BATCH_SIZE", 4)
    ids = [teacher.tokenizer(token_text(note), add_special_tokens=False).input_ids for note in NOTES]
    expected = unit(np.stack([teacher.table[of_note].sum(0) for of_note in ids]))
    assert teacher.vectors(NOTES) == pytest.approx(expected, abs=1e-5)


def test_note_without_text_has_zero_vector(teacher: TokenTeacher) -> None:
    assert teacher.vectors([]).shape == (0, 64)
    assert not teacher.vectors([Note()]).any()
    assert teacher.vectors([Note(), NOTES[0], Note(category="Food")])[1] == pytest.approx(teacher.vectors(NOTES)[0])
    assert token_text(Note(title="A", content="b", hashtags=("C",))) == " a b c"


def test_tokens_of_many_texts_weigh_less() -> None:
    weights = inverse_document_frequencies([[0, 1, 1], [0, 2], [0]], 4)
    assert weights == pytest.approx(np.log([1.0, 2.0, 2.0, 4.0]))


def test_whitened_embeddings_have_no_common_direction() -> None:
    rng = np.random.default_rng(0)
    embeddings = rng.normal(3.0, np.geomspace(1, 0.3, 8), (4000, 8))
    white = whitened(embeddings)
    assert np.linalg.norm(white.mean(0)) < 0.05
    variances = np.linalg.eigvalsh(np.cov(white.T))
    assert variances.max() < 1.3 * variances.min()


@pytest.mark.parametrize(("backbone", "reason"), [("", "own.jsonl.gz, line 1, is not a note"), ("none", "config.json")])
def test_command_that_cannot_read_its_inputs_says_why(
    backbone: str, reason: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with gzip.open(tmp_path / "own.jsonl.gz", "wt") as file:
        file.write("[]\n")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "model.safetensors").touch()
    folder = tmp_path / backbone if backbone else tiny_checkpoint / BACKBONE_FOLDER
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path), "--backbone", str(folder), "--cache", str(tmp_path)])
    assert end.value.code == 1
    assert reason in capsys.readouterr().err
