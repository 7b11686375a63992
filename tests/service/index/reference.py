"""Reference index, a dict searched by brute force, and the rows, filters and steps that tests apply to it and to the
real index."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from model.generation import CategoryProbability, Hashtag
from model.note import hashtag_key
from service.filters import (
    AllOf,
    AnyOf,
    AttributeRange,
    Bounds,
    Clause,
    Filter,
    Has,
    HasAttribute,
    Not,
    TimeRange,
    attribute_text,
    order_key,
)
from service.index.backend import Maintainable, VectorIndex
from service.index.texts import LiveTexts
from service.records import ORIGIN, Generated, Hit, StoredNote, Vector
from tests.service.conftest import stored_note

DIMENSION = 8


def hashtags_of(texts: LiveTexts, ids: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return by id the hashtags of the given notes, without notes that have none."""
    return {near.id: near.hashtags for near in texts.with_hashtags((note_id, 1.0) for note_id in ids)}


def do_jobs(index: Maintainable) -> int:
    """Run all jobs that an index or its texts plan, and return their number."""
    done = 0
    while job := index.plan():
        job.run()
        index.finish(job)
        done += 1
    return done


ATTRIBUTE_NAMES = ("language", "seats")
"""Attributes that filters may test."""
TOLERANCE = 1e-5
ANY = Filter()


def unit_vector(vector: Vector) -> Vector:
    """Return a vector at unit length. It is read-only, since callers share it."""
    unit = (vector / np.linalg.norm(vector)).astype(np.float32)
    unit.setflags(write=False)
    return unit


@cache
def direction(seed: int) -> Vector:
    vector = np.random.default_rng(seed).normal(size=DIMENSION)
    return unit_vector(vector)


def row(note_id: str, seed: int = 0, position: str = ORIGIN, **fields: Any) -> StoredNote:
    return replace(stored_note(note_id, vector=direction(seed), **fields), position=position)


def rows(count: int, first: int = 0) -> list[StoredNote]:
    """Return rows of different directions; every tenth is Food, every seventh has a hashtag."""
    return [
        row(f"n{n}", n, category="Food" if n % 10 == 0 else None, hashtags=("seventh",) if n % 7 == 0 else ())
        for n in range(first, first + count)
    ]


def found_ids(index: VectorIndex, where: Filter = ANY, *, k: int = 100, now: float = 0.0) -> set[str]:
    return {hit.id for hit in index.search(direction(0), k, where, now)}


@dataclass
class Model:
    """The reference: a dict whose notes are compared one by one."""

    notes: dict[str, StoredNote] = field(default_factory=dict)

    def upsert(self, notes: Sequence[StoredNote]) -> None:
        self.notes |= {note.note.id: note for note in notes}

    def remove(self, ids: Sequence[str]) -> None:
        self.notes = {i: note for i, note in self.notes.items() if i not in ids}

    def expire(self, now: float) -> list[str]:
        expired = [i for i, note in self.notes.items() if note.expired(now)]
        self.remove(expired)
        return expired

    def scores(self, vector: Vector, where: Filter, now: float) -> dict[str, float]:
        kept = {i: n for i, n in self.notes.items() if where.accepts(n) and not n.expired(now)}
        return {i: float(np.dot(n.vector.astype(float), vector)) for i, n in kept.items() if n.vector is not None}


def check(hits: list[Hit], scores: dict[str, float], k: int) -> None:
    """Assert that `hits` are the best k of `scores`; any of the notes that tie for the last places may be cut off."""
    best = sorted(scores.values(), reverse=True)[:k]
    assert len(hits) == len(best)
    assert [hit.score for hit in hits] == pytest.approx(best, abs=TOLERANCE)
    assert [hit.score for hit in hits] == pytest.approx([scores[h.id] for h in hits], abs=TOLERANCE)
    ids = {hit.id for hit in hits}
    assert len(ids) == len(hits)
    assert ids >= {i for i, score in scores.items() if best and score > best[-1] + TOLERANCE}
    assert hits == sorted(hits, key=lambda hit: (-hit.score, hit.id))


def check_all(index: VectorIndex, model: Model, *, k: int = 10, now: float = 0.0) -> None:
    """Check a few searches with and without filters."""
    for where in (ANY, Filter(category="Food"), Filter(hashtags=("seventh",)), Filter(exclude=frozenset({"n0"}))):
        for seed in range(3):
            check(index.search(direction(seed), k, where, now), model.scores(direction(seed), where, now), k)
    assert len(index) == len(model.notes)


IDS = st.sampled_from("abcdefgh")
TIMES = st.sampled_from([0.0, 10.0, 20.0, 30.0])
CATEGORY = st.sampled_from([None, "Food", "Travel"])
AUTHOR = st.sampled_from([None, "tom", "小明"])
TAGS = st.lists(st.sampled_from(["Kyoto", "kyoto", "night bus", "NightBus", "夜"]), max_size=3).map(tuple)
ATTRIBUTES = st.dictionaries(
    st.sampled_from(ATTRIBUTE_NAMES), st.sampled_from(["en", "zh", "2", 2, True, 2.5]), max_size=2
)
GENERATED = st.builds(
    Generated,
    st.none() | TAGS.map(lambda tags: tuple(Hashtag(tag, 0.5) for tag in tags)),
    st.none() | CATEGORY.filter(bool).map(lambda name: CategoryProbability(str(name), 0.5)),
)
ROWS = st.builds(
    row,
    IDS,
    st.integers(0, 9),
    generated=GENERATED,
    hashtags=TAGS,
    category=CATEGORY,
    author=AUTHOR,
    attributes=ATTRIBUTES,
    position=st.sampled_from(["0-0", "10000-0", "10000-7", "20000-1"]),
    created_at=st.none() | TIMES,
    expires_at=st.none() | TIMES,
)
TEXT_BOUNDS, NUMBER_BOUNDS = (
    st.builds(Bounds, *[st.none() | st.sampled_from(values).map(order_key)] * 4)
    for values in (["en", "f", "true", "zh"], ["-1", "2", "2.5", "3"])
)
CONDITIONS = st.one_of(
    st.builds(Has, st.just("category"), st.frozensets(st.sampled_from(["Food", "Travel", "Pets"]), max_size=2)),
    st.builds(Has, st.just("author"), st.frozensets(st.sampled_from(["tom", "小明", "ann"]), max_size=2)),
    st.builds(Has, st.just("hashtag"), TAGS.map(lambda tags: frozenset(map(hashtag_key, tags)))),
    st.builds(
        HasAttribute,
        st.sampled_from(ATTRIBUTE_NAMES),
        st.frozensets(st.sampled_from(["en", "zh", "2", "true", "2.5", "fr"]), max_size=3),
    ),
    st.builds(AttributeRange, st.sampled_from(ATTRIBUTE_NAMES), TEXT_BOUNDS | NUMBER_BOUNDS),
    st.builds(TimeRange, st.sampled_from(["created", "updated"]), st.builds(Bounds, *[st.none() | TIMES] * 4)),
)
CLAUSES: st.SearchStrategy[Clause] = st.recursive(
    CONDITIONS,
    lambda parts: st.one_of(
        st.builds(AllOf, st.lists(parts, max_size=3).map(tuple)),
        st.builds(AnyOf, st.lists(parts, max_size=3).map(tuple)),
        st.builds(Not, parts),
    ),
    max_leaves=6,
)
FILTERS = st.builds(
    Filter,
    clause=st.none() | CLAUSES,
    category=CATEGORY,
    hashtags=TAGS,
    all_hashtags=TAGS.map(lambda tags: tags[:1]) | TAGS,
    author=AUTHOR,
    attributes=ATTRIBUTES.map(
        lambda values: tuple((name, str(attribute_text(value))) for name, value in values.items())
    ),
    created_after=st.none() | TIMES,
    created_before=st.none() | TIMES,
    exclude=st.frozensets(IDS, max_size=3),
)
STEPS = st.one_of(
    st.lists(ROWS, min_size=1, max_size=6).map(lambda notes: ("upsert", notes)),
    st.lists(IDS, max_size=3).map(lambda ids: ("remove", ids)),
    TIMES.map(lambda now: ("expire", now)),
)
CLUSTERS = 40


@cache
def clustered(n: int) -> StoredNote:
    """Return note c<n> with a vector of 16 dimensions in one of CLUSTERS clusters. A half, a tenth, ... of these notes
    have a hashtag of that name."""
    rng = np.random.default_rng(n)
    centre = np.random.default_rng(10_000 + n % CLUSTERS).normal(size=16)
    vector = centre + 0.8 * rng.normal(size=16)
    periods = {"half": 2, "tenth": 10, "hundredth": 100, "rare": 2000}
    tags = tuple(name for name, period in periods.items() if n % period == 0)
    return stored_note(f"c{n}", vector=unit_vector(vector), hashtags=tags)


def vector_of(stored: StoredNote) -> Vector:
    assert stored.vector is not None
    return stored.vector
