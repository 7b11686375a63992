"""Words and behaviour beside vectors: the order and the scores of notes inside and outside the pool."""

from __future__ import annotations

import random
import threading
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from model.note import Note
from service.behaviour.co_occurrence import CoOccurrenceOptions, Related, Successor, summed
from service.behaviour.live import LiveBehaviour
from service.filters import Filter
from service.index.live import LiveIndex
from service.interfaces import Clock
from service.recommender import Recommender
from service.records import Hit
from service.search import fusion
from service.search.behaviour import BehaviourEvidence
from service.search.request import Example, SearchRequest
from service.search.search import NoteSearch
from service.search.sources import Candidates
from service.search.words import WordEvidence
from service.telemetry import Telemetry
from tests.service.steps import add, ids, soup

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

QUERY = Note(title="soup " * 20 + "zq0 zq1 zq2 zq3 zq4 zq5")


class NothingRead:
    """Behaviour of a community that has read nothing."""

    kappa = 4.0

    async def candidates(self, note_ids: Collection[str]) -> list[Related]:
        return []


@pytest.fixture
def small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion, "POOL_SIZE", 8)
    monkeypatch.setattr(WordEvidence, "pool_size", 4)


@pytest.fixture
async def notes(recommender: Recommender) -> list[Note]:
    """Thirty notes near to QUERY, and four that are far and share rare words with it."""
    numbers = random.Random(1)
    rare = " ".join(f"zq{j}" for j in range(6))
    far = [
        Note(id=f"far{i}", title=" ".join(f"x{numbers.randrange(10**6)}" for _ in range(9)) + f" {rare}")
        for i in range(4)
    ]
    notes = [*soup(30), *far]
    await add(recommender, *notes)
    return notes


def with_words(k: int) -> SearchRequest:
    return SearchRequest((Example(note=QUERY),), k=k, sources=(("content", 1.0), ("words", 0.5)), explain=True)


async def test_notes_outside_the_pool_keep_score_and_place_of_their_vectors(
    search: NoteSearch, notes: list[Note], small_pools: None
) -> None:
    plain = await search.related(SearchRequest((Example(note=QUERY),), k=40))
    cosines = {item.stored.note.id: item.score for item in plain.items}
    found = await search.related(with_words(40))
    assert set(ids(found)) == {note.id for note in notes}
    scores = [item.score for item in found.items]
    assert scores == sorted(scores, reverse=True)
    for item in found.items:
        assert item.explanation is not None
        assert item.explanation.words is not None
        assert item.score == pytest.approx(cosines[item.stored.note.id] + item.explanation.words, abs=1e-5)
    assert len(found.items) > fusion.POOL_SIZE + WordEvidence.pool_size, "some are outside the pool"


@pytest.mark.parametrize("k", [1, 7, 12, 25])
async def test_first_notes_are_the_same_however_many_are_asked_for(
    search: NoteSearch, notes: list[Note], small_pools: None, k: int
) -> None:
    assert ids(await search.related(with_words(k))) == ids(await search.related(with_words(40)))[:k]


async def test_bound_on_the_score_leaves_out_no_note_that_vectors_alone_find(
    search: NoteSearch, notes: list[Note], small_pools: None
) -> None:
    bounded = replace(with_words(40), min_score=0.5)
    vectors_alone = await search.related(SearchRequest((Example(note=QUERY),), k=40, min_score=0.5))
    assert len(vectors_alone.items) > fusion.POOL_SIZE
    assert set(ids(vectors_alone)) <= set(ids(await search.related(bounded)))


async def test_search_whose_nearest_notes_are_all_nearer_to_a_negative_example_is_answered(
    recommender: Recommender, search: NoteSearch, small_pools: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add(recommender, *(Note(id=f"n{i}", title=f"ramen ramen ramen ramen bowl{i}") for i in range(30)))
    monkeypatch.setattr(search, "_behaviour", NothingRead())
    request = SearchRequest((Example("n0"),), (Example("n1", weight=2.0),), strategy="best_score", k=5)
    both = await search.related(replace(request, sources=(("content", 1.0), ("behaviour", 1.0))))
    assert len(both.items) == 5
    assert ids(both) == ids(await search.related(request))


async def test_words_lift_no_note_past_the_jump_of_best_score(search: NoteSearch, notes: list[Note]) -> None:
    """The four notes of rare words, which the positive example has, too, are nearer to the negative one."""
    request = replace(with_words(40), negative=(Example("far0"),), strategy="best_score")
    found = await search.related(request)
    assert {note_id.rstrip("0123456789") for note_id in ids(found)[-3:]} == {"far"}
    positive = [item.score for item in found.items[:-3]]
    assert max(one.explanation.words for one in found.items if one.explanation) < 5 * float(np.std(positive))


async def test_behaviour_puts_forward_what_passes_the_filter_however_many_come_before(
    recommender: Recommender, live_index: LiveIndex
) -> None:
    read = [replace(note, category="Food" if number > 5 else "Travel") for number, note in enumerate(soup(9))]
    await add(recommender, *read)
    where = Filter(category="Food", exclude=frozenset({"n7"}))
    known = [Related(note.id, 1.0, 1.0) for note in read]
    behaviour = BehaviourEvidence(known, live_index, 1.0, 4.0, 1.0)
    assert await behaviour.candidates(2, where, []) == ["n6", "n8"]
    assert await behaviour.candidates(1, where, []) == ["n6"]


SEEN = [f"seen{number}" for number in range(1100)]


@pytest.fixture
def much_read(clock: Clock) -> LiveBehaviour:
    """Behaviour in which each note of SEEN is more strongly related to n0 than n29 is."""
    stream: Any = None  # the test reads nothing from it
    options = CoOccurrenceOptions(lower=0.0, top=2000)
    behaviour = LiveBehaviour(stream, options, {"click": 1.0}, 60.0, Telemetry(), clock)
    histories = [SEEN[begin : begin + 100] for begin in range(0, len(SEEN), 100)] + [[*SEEN[:200], "n29"]]
    for number, history in enumerate(histories):
        for at, note_id in enumerate(["n0", *history]):
            behaviour._follower.state.co_occurrence.add(f"reader {number}", note_id, float(at))
    return behaviour


@pytest.mark.parametrize("where", [Filter(exclude=frozenset(SEEN)), Filter(category="Food")], ids=["seen", "filter"])
async def test_readers_of_a_note_count_however_many_notes_that_do_not_pass_were_read_more_often(
    recommender: Recommender,
    search: NoteSearch,
    much_read: LiveBehaviour,
    monkeypatch: pytest.MonkeyPatch,
    where: Filter,
) -> None:
    await add(recommender, *(replace(note, category="Food") for note in soup(30)))
    monkeypatch.setattr(search, "_behaviour", much_read)
    sources = (("content", 1.0), ("behaviour", 10.0))
    found = await search.related(SearchRequest((Example("n0"),), k=3, where=where, sources=sources, explain=True))
    explanation = found.items[0].explanation
    assert explanation is not None
    assert (ids(found)[0], explanation.co_readers) == ("n29", 1.0)


@pytest.mark.parametrize("examples", [["n0"], ["seen198", "seen199"]], ids=["many successors", "few successors"])
async def test_many_successors_are_merged_outside_the_event_loop(
    much_read: LiveBehaviour, monkeypatch: pytest.MonkeyPatch, examples: list[str]
) -> None:
    threads = list[int]()

    def merge(lists: Sequence[Sequence[Successor]], without: Collection[str]) -> list[Related]:
        threads.append(threading.get_ident())
        return summed(lists, without)

    monkeypatch.setattr("service.behaviour.live.summed", merge)
    assert await much_read.candidates(examples)
    assert [thread == threading.get_ident() for thread in threads] == [len(examples) > 1]


class CutContent:
    """Content that has been searched as deep as it can, and returns all that it has found."""

    unit = 1.0
    hits = tuple(Hit(f"n{number:03}", 1 - number / 1000) for number in range(400))

    async def find(
        self, depth: int, where: Filter, recall_k: int | None = None, *, with_rows: bool = False
    ) -> Candidates:
        return Candidates(list(self.hits) if depth > fusion.POOL_SIZE else list(self.hits[:depth]), False, cut=True)


async def test_search_that_ends_at_its_bound_returns_all_that_was_found() -> None:
    content: Any = CutContent()
    index: Any = None  # only evidence, which is empty, would ask it for rows
    source = fusion.FusedSource(index, content, [], await fusion.find_nearest(content, Filter()))
    found = await source.find(fusion.POOL_SIZE + 1, Filter())
    assert (len(found.hits), found.cut) == (400, True)


class MissingContent:
    """Content whose shallow searches miss a note in fifty, as an approximate index does."""

    unit = 1.0
    hits = tuple(Hit(f"n{number:03}", 1 - number / 1000) for number in range(400))

    async def find(
        self, depth: int, where: Filter, recall_k: int | None = None, *, with_rows: bool = False
    ) -> Candidates:
        found = [hit for number, hit in enumerate(self.hits) if recall_k is None or number % 50 != 40]
        return Candidates(found[:depth], depth >= len(found))


async def test_first_notes_are_the_same_where_a_deeper_search_finds_what_the_pool_missed() -> None:
    content: Any = MissingContent()
    index: Any = None  # only evidence, which is empty, would ask it for rows
    source = fusion.FusedSource(index, content, [], await fusion.find_nearest(content, Filter()))
    deep = await source.find(400, Filter())
    assert len(deep.hits) == 400
    for depth in (10, 200, fusion.POOL_SIZE):
        shallow = await source.find(depth, Filter(), depth // 8)
        assert [hit.id for hit in shallow.hits] == [hit.id for hit in deep.hits][: len(shallow.hits)]
