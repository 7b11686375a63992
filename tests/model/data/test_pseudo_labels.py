"""Tests of labels for unlabelled texts: candidate tags, chosen tags, and when a category is given."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from model.config import DEFAULT_CATEGORIES
from model.data.community_tags import tags_by_category
from model.data.pseudo_labels import Floats, PseudoLabeller
from model.data.tag_vocabulary import TagVocabulary, build_vocabulary
from model.dedup_key import dedup_key
from model.note import Note, normalise_hashtag

DIMENSION = 512


def embed(texts: Sequence[str]) -> Floats:
    """Unit vectors of texts: each word has its own random direction."""
    rows = []
    for text in texts:
        row = np.zeros(DIMENSION)
        for word in text.lower().replace(".", " ").split():
            row += np.random.default_rng(list(hashlib.sha1(word.encode()).digest())).standard_normal(DIMENSION)
        rows.append(row / max(float(np.linalg.norm(row)), 1e-9))
    return np.array(rows, np.float32)


def text_of(note: Note) -> str:
    return f"{note.title} {note.content}"


@pytest.fixture(scope="module")
def vocabulary() -> TagVocabulary:
    tags = dict.fromkeys(tag for tags in tags_by_category().values() for tag in tags)
    contained = {dedup_key(tag): tag for tag in (*tags, "Nice", "marzipan", "marzipan cake", "orchards")}
    return TagVocabulary(tuple(tags), contained)


@pytest.fixture(scope="module")
def labeller(vocabulary: TagVocabulary) -> PseudoLabeller:
    return PseudoLabeller(vocabulary, embed, embed([f"a text about {tag}" for tag in vocabulary.open_tags]))


def label(labeller: PseudoLabeller, note: Note) -> Note:
    (labelled,) = labeller.label([note], embed([text_of(note)]))
    return labelled


def test_tags_in_a_text_are_its_longest_phrases_first(vocabulary: TagVocabulary) -> None:
    note = Note(title="A marzipan cake", content="from the orchard. Marzipan again")
    assert vocabulary.tags_in(note) == ["marzipan cake", "marzipan", "cake", "orchards"]


def test_name_is_in_a_text_only_where_it_is_capitalised(vocabulary: TagVocabulary) -> None:
    assert vocabulary.tags_in(Note(title="a nice place")) == []
    assert vocabulary.tags_in(Note(title="a week in Nice")) == ["Nice"]


def test_tag_that_the_text_contains_comes_first_in_lower_case(labeller: PseudoLabeller) -> None:
    assert label(labeller, Note(title="Nice in November")).hashtags[0] == "nice"
    assert label(labeller, Note(title="houseplants need marzipan")).hashtags[:2] == ("houseplants", "marzipan")


def test_hashtags_of_the_source_are_preferred_if_known(labeller: PseudoLabeller) -> None:
    note = Note(title="sourdough orchards and pottery", hashtags=("pottery", "zzz"))
    assert label(labeller, note).hashtags[0] == "pottery"
    assert "zzz" not in label(labeller, note).hashtags


def test_text_that_no_tag_fits_gets_no_labels(labeller: PseudoLabeller) -> None:
    labelled = label(labeller, Note(title="qwe rty uio"))
    assert labelled.hashtags == ()
    assert labelled.category is None


def test_chosen_tags_do_not_repeat_each_other(labeller: PseudoLabeller) -> None:
    hashtags = label(labeller, Note(title="marzipan cake marzipan cakes")).hashtags
    assert len({dedup_key(tag) for tag in hashtags}) == len(hashtags)
    assert hashtags.count("marzipan cake") == 1


def test_category_is_the_one_whose_tags_are_near(labeller: PseudoLabeller) -> None:
    note = Note(title="cats kitten puppy dogs corgi hamster")
    assert label(labeller, note).category == "Pets"
    assert label(labeller, Note(title="cats kitten jazz opera piano puppy")).category is None


def test_category_that_a_note_has_is_kept(labeller: PseudoLabeller) -> None:
    assert label(labeller, Note(title="cats kitten puppy dogs", category="Home")).category == "Home"


def test_subjects_beside_the_categories_are_no_category(labeller: PseudoLabeller) -> None:
    assert label(labeller, Note(title="football soccer rugby cricket golf hockey")).category is None


def test_vocabulary_takes_common_concrete_nouns_of_wordnet(tmp_path: Path) -> None:
    synsets = {
        "00000001": ("05", "otter"),  # common and concrete
        "00000002": ("05", "grison"),  # rare
        "00000003": ("07", "shininess"),  # abstract
        "00000004": ("15", "Windhoek"),  # a name
        "00000005": ("04", "fetch"),  # mostly a verb
        "00000006": ("04", "thing"),  # too general
    }
    lines = [f"{key} {topic} n 01 {word} 0 000 | a meaning" for key, (topic, word) in synsets.items()]
    (tmp_path / "data.noun").write_text("\n".join(lines))
    for name in ("data.verb", "data.adj", "data.adv"):
        (tmp_path / name).write_text("")
    index = [f"{word.lower()} n 1 0 1 0 {key}" for key, (_, word) in synsets.items()]
    (tmp_path / "index.noun").write_text("\n".join(index))
    uses = ["otter%1:05:00:: 1 3", "fetch%1:04:00:: 1 1", "fetch%2:35:00:: 1 5", "thing%1:04:00:: 1 90"]
    (tmp_path / "cntlist.rev").write_text("\n".join(uses))
    vocabulary = build_vocabulary(tmp_path)
    assert "otter" in vocabulary.open_tags
    assert {"grison", "windhoek"} <= set(vocabulary.contained_tags)
    assert not {"grison", "Windhoek", "shininess", "fetch", "thing"} & set(vocabulary.open_tags)
    assert not {"shininess", "fetch", "thing"} & set(vocabulary.contained_tags)


def test_community_tags_cover_all_categories_in_stored_form() -> None:
    assert set(DEFAULT_CATEGORIES) < set(tags_by_category())
    for tags in tags_by_category().values():
        assert all(tag == normalise_hashtag(tag).lower() != "" for tag in tags)
