"""Tests of the options that are counts: a command refuses another number before it does anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from model.baselines import encoder_labels, encoder_teacher
from model.data import chinese_notes, corpora, generated_notes, recombined_notes
from model.training import cut_adapter, export

OUT = ("--out", "new")


@pytest.mark.parametrize(
    ("main", "arguments", "option"),
    [
        (corpora.main, OUT, "--max-notes"),
        (chinese_notes.main, OUT, "--notes"),
        (generated_notes.main, (*OUT, "--samples", "file"), "--batch"),
        (recombined_notes.main, ("--notes", "file", *OUT), "--texts"),
        (encoder_teacher.main, ("folder",), "--max-notes"),
        (encoder_labels.main, ("folder", *OUT, "--wordnet", "folder"), "--threads"),
        (cut_adapter.main, (*OUT, "--checkpoint", "folder"), "--rank"),
        (export.main, (*OUT, "--state", "file"), "--windows"),
    ],
)
@pytest.mark.parametrize("number", ["0", "-1", "1.5", "many"])
def test_number_that_is_no_count_ends_the_command(
    main: Callable[[list[str]], None],
    arguments: tuple[str, ...],
    option: str,
    number: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main([*arguments, option, number])
    error = capsys.readouterr().err
    assert f"argument {option}: {number!r} is not a whole number of at least 1" in error
    assert list(tmp_path.iterdir()) == []
