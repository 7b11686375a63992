"""Tests of recombined texts: made from parts of training notes only, and repeatable for a seed."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from model.data.dataset import read_notes
from model.data.pairs import split_of
from model.data.recombined_notes import main, recombine
from model.note import Note

NOTES = [Note(id=str(i), title=f"first{i} second{i} third{i} last{i}", hashtags=(f"tag{i}",)) for i in range(40)]


def numbers_of(note: Note) -> set[str]:
    """Numbers of the notes whose words or hashtags a text has."""
    return {"".join(filter(str.isdigit, word)) for word in (*note.title.split(), *note.hashtags)}


def write(path: Path, notes: list[Note]) -> Path:
    path.write_text("".join(json.dumps({"id": n.id, "title": n.title, "hashtags": n.hashtags}) + "\n" for n in notes))
    return path


def test_text_has_words_and_hashtags_of_at_most_two_notes():
    rng = random.Random(0)
    texts = [recombine(NOTES, rng) for _ in range(400)]
    assert all(1 <= len(numbers_of(text)) <= 2 for text in texts)
    joined = [text for text in texts if text.title.startswith("first") and "last" in text.title.split()[-1]]
    assert any(text.title.split()[0][5:] != text.title.split()[-1][4:] for text in joined)
    assert any(len(text.title.split()) < 4 for text in texts)
    assert any(text.hashtags[0][3:] not in text.title for text in texts)


def test_note_without_a_title_is_recombined():
    text = recombine([Note(hashtags=("soup",), content="Leeks.")], random.Random(0))
    assert text == Note(hashtags=("soup",), content="Leeks.")


def test_command_adds_texts_of_training_notes_to_the_training_split(tmp_path: Path):
    notes = write(tmp_path / "notes.jsonl", NOTES)
    outs = [tmp_path / name for name in ("a.jsonl.gz", "new/b.jsonl.gz", "c.jsonl.gz")]
    for out, seed in zip(outs, ("1", "1", "2"), strict=True):
        main(["--notes", str(notes), "--out", str(out), "--texts", "60", "--seed", seed])
    written = [read_notes(out) for out in outs]
    assert written[0] == written[1] != written[2]
    texts = {name: note for name, note in written[0].items() if name not in {note.id for note in NOTES}}
    assert len(texts) == 60
    assert written[0] == {note.id: note for note in NOTES} | texts
    assert {split_of(name) for name in texts} == {"train"}
    assert {split_of(number) for text in texts.values() for number in numbers_of(text)} == {"train"}


def test_command_on_its_own_output_adds_further_texts(tmp_path: Path):
    first, second = tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl.gz"
    main(["--notes", str(write(tmp_path / "notes.jsonl", NOTES)), "--out", str(first), "--texts", "10"])
    main(["--notes", str(first), "--out", str(second), "--texts", "10"])
    before, after = read_notes(first), read_notes(second)
    assert len(after) == len(before) + 10
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize(
    ("notes", "out", "said"),
    [
        (
            [note for note in NOTES if split_of(note.id) == "test"],
            "out.jsonl.gz",
            "no notes with a text in the training split",
        ),
        (NOTES, "out.jsonl", "must end in .gz"),
        (None, "out.jsonl.gz", "No such file"),
    ],
)
def test_command_that_cannot_work_says_why_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], notes: list[Note] | None, out: str, said: str
):
    file = tmp_path / "notes.jsonl" if notes is None else write(tmp_path / "notes.jsonl", notes)
    with pytest.raises(SystemExit):
        main(["--notes", str(file), "--out", str(tmp_path / out)])
    assert said in capsys.readouterr().err
    assert not (tmp_path / out).exists()


def test_notes_without_a_text_are_left_out(tmp_path: Path):
    empty = [Note(id=f"empty{n}", title=" " * (n % 2)) for n in range(40)]
    notes = write(tmp_path / "notes.jsonl", [*NOTES, *empty])
    out = tmp_path / "out.jsonl.gz"
    main(["--notes", str(notes), "--out", str(out), "--texts", "200"])
    texts = [note for note_id, note in read_notes(out).items() if note_id not in {n.id for n in (*NOTES, *empty)}]
    assert len(texts) == 200
    assert all(note.title or note.content for note in texts)
