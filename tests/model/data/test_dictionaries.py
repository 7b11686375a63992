"""Tests of dictionaries in the format of dictd: their indexes, and the paragraphs that become notes."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from model.data.corpora import SOURCES
from model.data.dictionaries import index_number, paragraphs_of_entry, read_entries
from model.note import Note

LEEK = """Leek \\Leek\\, n. [AS. le['a]c; akin to [the] D. look. Cf. {Garlic}.] (Bot.)
   A plant with broad flat leaves. It is {boiled} in soups.
   [1913 Webster]

   2. A national emblem of Wales, worn in a cap. --Shak.
      [1913 Webster]

   3. To chew leeks in a barn. [Obs.]

   See {Onion} for what else may be boiled.

   Too short.
"""
STORE = """leek store
   <storage, jargon> A cold place that holds leeks for a winter. (1996-08-25)
"""


def base64_number(number: int) -> str:
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return (base64_number(number // 64) if number >= 64 else "") + digits[number % 64]


@pytest.fixture
def dictionary(tmp_path: Path) -> Path:
    """Folder of a dictionary with two entries, one of which has two headwords, and one about itself."""
    about = "00-database-info\n   This dictionary is about leeks and nothing else.\n"
    with gzip.open(tmp_path / "leeks.dict.dz", "wt", encoding="utf-8") as file:
        file.write(about + LEEK + STORE)
    starts = {"00-database-info": 0, "Leek": len(about), "Leeks": len(about), "leek store": len(about + LEEK)}
    lengths = {"00-database-info": len(about), "leek store": len(STORE)}
    lines = [
        f"{word}\t{base64_number(start)}\t{base64_number(lengths.get(word, len(LEEK)))}\n"
        for word, start in starts.items()
    ]
    (tmp_path / "leeks.index").write_text("".join(lines))
    return tmp_path


@pytest.mark.parametrize("number", [0, 63, 64, 4095, 4096, 1_000_000])
def test_index_number_is_read_in_base_64(number: int) -> None:
    assert index_number(base64_number(number)) == number


def test_entry_with_two_headwords_is_read_once(dictionary: Path) -> None:
    assert list(read_entries(dictionary / "leeks.index")) == [("Leek", LEEK), ("leek store", STORE)]


def test_paragraphs_have_no_origin_word_class_source_or_number() -> None:
    assert list(paragraphs_of_entry(LEEK)) == [
        "A plant with broad flat leaves. It is boiled in soups.",
        "A national emblem of Wales, worn in a cap.",
    ]


def test_paragraph_of_a_dictionary_becomes_note(dictionary: Path) -> None:
    notes = list(SOURCES["dictionaries"].read(dictionary))
    assert [note.title for note in notes] == ["Leek", "Leek", "leek store"]
    assert notes[-1] == Note(title="leek store", content="leek store A cold place that holds leeks for a winter.")
