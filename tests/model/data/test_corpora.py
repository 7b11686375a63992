"""Tests of unlabelled text sources: how records become notes, how texts are cut, and the command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.data import corpora
from model.data.corpora import SOURCES, Source, shorten, without_duplicates
from model.data.dataset import read_notes
from model.data.pairs import split_of
from model.note import Note

STANZA = "Package: {}\nSection: games\nTag: game::strategy, use::gameplaying\nDescription-en: {}\n It has maps.\n .\n"


def test_repeated_package_description_is_one_note(tmp_path: Path) -> None:
    listing = tmp_path / "packages"
    listing.write_text("\n".join([STANZA.format("ants", "game of ants"), STANZA.format("ants-too", "Game of ants")]))
    (note,) = SOURCES["debian"].read(listing)
    assert "game of ants" in note.title
    assert note.content.split() == ["It", "has", "maps."]


def test_each_new_paragraph_of_a_package_description_is_a_note(tmp_path: Path) -> None:
    listing = tmp_path / "packages"
    maps = " It has maps of many lands and seas, and some music.\n .\n"
    listing.write_text("\n".join([STANZA.format("ants", "game of ants") + maps, STANZA.format("bees", "bees") + maps]))
    notes = list(SOURCES["debian"].read(listing))
    assert [note.content for note in notes] == [
        "It has maps.",
        "It has maps of many lands and seas, and some music.",
        "It has maps.",
    ]
    assert all("bees" in note.title for note in notes[2:])


def test_recipe_becomes_note(tmp_path: Path) -> None:
    cookbook = tmp_path / "recipes.json"
    record = {"title": "Leek soup", "category": "Soup recipes", "ingredients": ["2 leeks", "salt"], "steps": ["Boil."]}
    cookbook.write_text(json.dumps({"a": record, "b": {"title": "Bread"}}))
    soup, bread = SOURCES["recipes"].read(cookbook)
    assert (soup.title, bread.title, bread.content) == ("Leek soup", "Bread", "")
    assert soup.content in ("2 leeks, salt", "Boil.")


def test_trivia_question_with_first_answer_becomes_note(tmp_path: Path) -> None:
    (tmp_path / "music.yaml").write_text(
        'AUTHOR: A\nWho played "Help?":\n- The Beatles\n- Beatles\n"Largest drum?":\n- Taiko\n'
    )
    (tmp_path / "usmap.yaml").write_text("A picture:\n- B\n")
    first, second = SOURCES["trivia"].read(tmp_path)
    assert (first.title, first.content) == ('Who played "Help?', "The Beatles")
    assert (second.title, second.content) == ("Largest drum?", "Taiko")


@pytest.mark.parametrize("name", SOURCES)
def test_source_without_path_is_left_out(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "SOURCES", {name: SOURCES[name]})
    corpora.main(["--out", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["wordnet", "recipes", "debian", "samples"])
def test_path_without_the_source_is_refused_by_name(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        corpora.main(["--out", str(tmp_path / "out"), f"--{name}", str(tmp_path / "nothing")])
    assert refused.value.code == 1
    error = capsys.readouterr().err
    assert f"--{name}: " in error
    assert str(tmp_path / "nothing") in error
    assert SOURCES[name].path in error


@pytest.mark.parametrize("name", ["dictionaries", "trivia", "lines"])
def test_folder_without_texts_is_refused_by_name(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        corpora.main(["--out", str(tmp_path / "out"), f"--{name}", str(tmp_path)])
    assert refused.value.code == 2
    assert f"--{name}: no text was found in {tmp_path}. Give the folder of" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_each_source_names_terms_and_is_not_held_out() -> None:
    assert all(len(source.terms) > 5 for source in SOURCES.values())
    assert not {"microlens50k", "movielens_tmdb", "clicks"} & set(SOURCES)


def test_shortened_texts_have_the_stated_lengths() -> None:
    long_notes = [Note(title=f"Title {n}", content="One two three four five six. " * 60) for n in range(400)]
    shortened = list(map(shorten, long_notes))
    words = [len(f"{note.title} {note.content}".split()) for note in shortened]
    assert max(words) <= 110
    assert min(words) >= 6
    for max_words, share in ((14, 0.3), (26, 0.75), (50, 0.95)):
        assert sum(count <= max_words for count in words) / len(words) == pytest.approx(share, abs=0.08)
    assert shortened == list(map(shorten, long_notes))
    assert all(note.content.endswith("six.") for note in shortened)


def test_short_note_stays_whole() -> None:
    note = Note(title="Soup of the day", content="Leeks.", hashtags=("soup",))
    assert shorten(note) == note


def test_near_duplicates_and_empty_texts_are_dropped() -> None:
    notes = [
        Note(title="Leek soup tonight"),
        Note(title="Tonight: leek soup!"),
        Note(title="Hi"),
        Note(title="Leek bread tonight"),
    ]
    assert list(without_duplicates(notes)) == [notes[0], notes[3]]


def test_command_writes_each_source_under_new_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def three_notes(path: Path) -> Iterator[Note]:
        yield from (Note(title=f"A note about {thing}", hashtags=("x",)) for thing in ("lamps", "yarn", "hikes"))

    monkeypatch.setitem(SOURCES, "three", Source("three", "our own", "any file", three_notes))
    corpora.main(["--out", str(tmp_path / "out"), "--three", str(tmp_path), "--max-notes", "2"])
    notes = read_notes(tmp_path / "out" / "three.jsonl.gz")
    assert list(notes) == ["three-1", "three-2"]
    assert all(note.hashtags == ("x",) for note in notes.values())
    assert "three: 2 notes; our own" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["three.jsonl.gz"]


def test_chinese_texts_have_words_without_spaces() -> None:
    notes = [
        Note(title="今天天气很好"),
        Note(title="今天天气很好。", hashtags=("天气",)),
        Note(title="红烧肉的做法"),
        Note(title="好"),
    ]
    assert [note.title for note in without_duplicates(notes)] == ["今天天气很好", "红烧肉的做法"]


def test_lines_are_those_of_the_training_split_without_labels(tmp_path: Path) -> None:
    (tmp_path / "food.txt").write_text("".join(f"第{n}次做红烧肉 // 好吃 | 红烧肉, 家常菜\n" for n in range(1, 12)))
    notes = list(SOURCES["lines"].read(tmp_path))
    assert [note.title for note in notes] == [f"第{n}次做红烧肉" for n in range(1, 12) if n != 10]
    assert {(note.content, note.hashtags, note.category) for note in notes} == {("好吃", ("红烧肉", "家常菜"), None)}


def test_captions_are_those_of_the_training_split(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    notes = [Note(title=f"caption {n}", category="美食") for n in range(60)]
    path.write_text("".join(corpora.note_line(str(n), note) for n, note in enumerate(notes)))
    titles = [note.title for note in SOURCES["captions"].read(path)]
    assert titles == [f"caption {n}" for n in range(60) if split_of(str(n)) == "train"]
    assert 0 < len(titles) < 60
