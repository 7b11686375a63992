"""Tests of WordNet: parsing of entries, and the notes and topics made from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.data.wordnet import Noun, everyday_things, parse_synset, read_nouns, wordnet_notes

LICENCE = "  1 This is the licence, which is no entry"
KITTEN = '00000001 05 n 02 kitten 0 kitty 0 001 @ 00000002 n 0000 | a young cat; "the kitten slept all day"'
CAT = "00000002 05 n 01 domestic_cat 0 000 | any small animal that is kept for mice"
TOM = "00000005 18 n 01 Tom_cat 0 000 | an obscene word for a cat"
QUICK = '00000003 00 a 01 quick(p) 0 001 & 00000004 a 0000 | moving fast; "a quick lunch"; "he is quick"'


@pytest.fixture
def wordnet_folder(tmp_path: Path) -> Path:
    files = {"data.noun": [LICENCE, KITTEN, CAT, TOM], "data.adj": [QUICK], "data.verb": [], "data.adv": []}
    files["index.noun"] = [
        LICENCE,
        "kitten n 2 1 @ 2 1 00000001 00000002",
        "domestic_cat n 1 0 1 0 00000002",
        "tom_cat n 1 0 1 0 00000005",
    ]
    files["cntlist.rev"] = ["kitten%1:05:00:: 1 7", "kitten%2:30:00:: 1 2"]
    for name, lines in files.items():
        (tmp_path / name).write_text("\n".join(lines))
    return tmp_path


def test_wordnet_entry_is_read_whole() -> None:
    synset = parse_synset(KITTEN)
    assert (synset.key, synset.parent, synset.words) == ("n00000001", "n00000002", ("kitten", "kitty"))
    assert (synset.meaning, synset.examples) == ("a young cat", ("the kitten slept all day",))
    assert parse_synset(QUICK).words == ("quick",)
    assert parse_synset(QUICK).parent == ""


def test_wordnet_entries_become_notes_and_topics(wordnet_folder: Path) -> None:
    notes = list(wordnet_notes(wordnet_folder))
    texts = [f"{note.title} {note.content} {note.hashtags}" for note in notes]
    assert any("kitten" in text for text in texts)
    assert any("quick" in text or "moving fast" in text for text in texts)
    assert notes == list(wordnet_notes(wordnet_folder))
    assert everyday_things(wordnet_folder) == ["domestic cat", "kitten"]


def test_nouns_are_read_with_their_uses_and_without_rude_ones(wordnet_folder: Path) -> None:
    assert list(read_nouns(wordnet_folder)) == [Noun("kitten", "05", 7, 2), Noun("domestic cat", "05", 0, 0)]
