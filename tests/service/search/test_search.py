"""The use-case of related notes on a real store and index."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

import model.words
from model.note import Note
from service.errors import IndexBehind, NoteNotFound, OtherSpace, StoreUnavailable
from service.filters import Filter
from service.index.live import LiveIndex
from service.interfaces import Clock
from service.ranking.boosts import Boost, Match, boost_values
from service.ranking.strategies import Numbers, Query, best_scores
from service.recommender import Recommender
from service.records import Hit, Similar, StoredNote, Unreadable, Vectors, Write
from service.search.request import Example, SearchRequest
from service.search.search import NoteSearch
from service.search.verified import KEPT_CHARACTERS
from service.search.words import query_note
from service.store.embedded_redis import EmbeddedRedis
from service.store.ranked_lists import RedisLists
from service.store.redis_keys import DEFAULT_KEYS
from service.stored_notes import read_note
from service.telemetry import Telemetry
from tests.service.conftest import (
    CATEGORIES,
    GatedStore,
    WordEngine,
    batching,
    eventually,
    note_vector,
    record_reads,
    stored_note,
)
from tests.service.steps import add, add_one, ids, ranking, related, similar_ids, soup

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


async def related_to_text(search: NoteSearch, note: Note, k: int) -> Similar:
    return await search.related(SearchRequest((Example(note=note),), k=k))


async def test_similar_ranks_like_brute_force_without_the_note_itself(
    recommender: Recommender, search: NoteSearch
) -> None:
    notes = soup(30)
    await add(recommender, *notes)
    for note in (notes[0], notes[17]):
        result = await related(search, note.id, 10)
        assert ids(result) == ranking(notes, note)[:10]
        for item in result.items:
            cosine = float(note_vector(note) @ note_vector(item.stored.note))
            assert item.score == pytest.approx(cosine, abs=1e-5)


async def test_similar_calls_no_model(recommender: Recommender, search: NoteSearch, engine: WordEngine) -> None:
    await add(recommender, *soup(3))
    batches = len(engine.batches)
    await related(search, "n0", 10)
    assert len(engine.batches) == batches


@pytest.mark.parametrize("k", [1, 5, 11, 12, 200])
async def test_k_items_come_or_all_there_are(recommender: Recommender, search: NoteSearch, k: int) -> None:
    await add(recommender, *soup(12))
    result = await related(search, "n0", k)
    assert len(result.items) == min(k, 11)
    assert result.complete


async def test_filtered_and_excluded_search_still_fills_k(recommender: Recommender, search: NoteSearch) -> None:
    notes = [replace(note, category=CATEGORIES[n % 3]) for n, note in enumerate(soup(30))]
    await add(recommender, *notes)
    where = Filter(category="Food", exclude=frozenset({"n3", "n9"}))
    expected = [i for i in ranking(notes, notes[0]) if int(i[1:]) % 3 == 0 and i not in where.exclude]
    assert await similar_ids(search, "n0", 5, where) == expected[:5]


async def test_min_score_cuts_off_what_is_farther(recommender: Recommender, search: NoteSearch) -> None:
    notes = soup(20)
    await add(recommender, *notes)
    best = (await related(search, "n0", 20)).items
    bound = (best[6].score + best[7].score) / 2
    assert await similar_ids(search, "n0", 20, min_score=bound) == [item.stored.note.id for item in best[:7]]
    assert await similar_ids(search, "n0", 3, min_score=bound) == [item.stored.note.id for item in best[:3]]


async def test_a_note_of_another_space_is_refused_and_never_returned(
    recommender: Recommender, search: NoteSearch, embedded_store: GatedStore, live_index: LiveIndex
) -> None:
    (written,) = await embedded_store.put([Write(stored_note("alien", "soup", space="another"))])
    assert written is not None
    await add(recommender, *soup(3))
    with pytest.raises(OtherSpace):
        await related(search, "alien", 10)
    assert sorted(ids(await related(search, "n0", 10))) == ["n1", "n2"]


async def test_a_list_is_incomplete_while_a_note_of_another_space_may_be_missing(
    recommender: Recommender, search: NoteSearch, embedded_store: GatedStore
) -> None:
    await add(recommender, *soup(3))
    assert (await related(search, "n0", 10)).complete
    await embedded_store.put([Write(stored_note("alien", "soup", space="another"))])
    await add(recommender, Note(id="later", title="soup"))
    for diversity in 0.0, 0.5:
        request = SearchRequest((Example("n0"),), k=10, diversity=diversity)
        assert not (await search.related(request)).complete
        assert (await search.related(replace(request, k=2))).complete
    await embedded_store.delete("alien")
    await add(recommender, Note(id="last", title="soup"))
    assert (await related(search, "n0", 10)).complete


async def gone_behind_the_index(
    recommender: Recommender, store: GatedStore, gone: Sequence[str], how: str, clock: Clock
) -> None:
    """Keep these notes in the index, while the store has deleted them, let them expire or changed their category."""
    await store.hold()
    notes = [note for note in await store.get(gone, with_vectors=True) if note is not None]
    if how == "deleted":
        for note_id in gone:
            assert await store.delete(note_id)
    else:
        other: dict[str, dict[str, Any]] = {
            "expired": {"expires_at": clock() + 1000},
            "moved to another category": {"category": "Travel"},
        }
        changed: list[StoredNote] = [replace(n, note=replace(n.note, **other[how])) for n in notes]
        assert all(await store.put([Write(note) for note in changed]))
        clock.offset = 1001


@pytest.mark.parametrize("how", ["deleted", "expired", "moved to another category"])
async def test_index_that_is_behind_returns_no_note_the_store_lost(
    recommender: Recommender, search: NoteSearch, embedded_store: GatedStore, clock: Clock, how: str
) -> None:
    notes = [replace(note, category="Food") for note in soup(25)]
    await add(recommender, *notes)
    gone = ranking(notes, notes[0])[:12]
    await gone_behind_the_index(recommender, embedded_store, gone, how, clock)
    for k in (5, 12, 13, 100):
        assert await similar_ids(search, "n0", k, Filter("Food")) == ranking(notes, notes[0])[12:][:k]
    if how != "moved to another category":
        with pytest.raises(NoteNotFound):
            await related(search, gone[0], 5)


async def test_index_that_is_behind_answers_for_a_note_it_lacks(
    recommender: Recommender, search: NoteSearch, embedded_store: GatedStore
) -> None:
    await add(recommender, *soup(3))
    await embedded_store.hold()
    await embedded_store.put([Write(stored_note("new", "soup"))])
    assert sorted(await similar_ids(search, "new")) == ["n0", "n1", "n2"]


async def test_similar_to_a_text_stores_nothing(
    recommender: Recommender, search: NoteSearch, embedded_store: GatedStore
) -> None:
    notes = soup(5)
    await add(recommender, *notes)
    last = (await embedded_store.log_bounds()).last
    result = await related_to_text(search, Note(title=notes[0].title), 10)
    assert ids(result) == ["n0", *ranking(notes, notes[0])]
    assert result.log_position == last == (await embedded_store.log_bounds()).last


async def test_every_answer_names_a_log_position_that_it_has_seen(recommender: Recommender, search: NoteSearch) -> None:
    *_, last = await add(recommender, *soup(3))
    assert (await related(search, "n0", 1)).log_position == last.stored.position


async def test_a_note_is_found_as_soon_as_its_add_returns(recommender: Recommender, search: NoteSearch) -> None:
    async def write_and_find(task: int) -> None:
        for n in range(10):
            note = Note(id=f"{task}-{n}", title=f"soup {task}x{n} of {n}y{task}")
            await add_one(recommender, note)
            (best,) = (await related_to_text(search, note, 1)).items
            assert best.stored.note.id == note.id
            assert note.id not in await similar_ids(search, note.id, 5)

    await asyncio.gather(*(write_and_find(task) for task in range(20)))
    assert recommender.index.status().vectors == 200


async def written(store: GatedStore, note_id: str) -> bool:
    return (await store.get([note_id]))[0] is not None


async def test_a_caller_that_leaves_does_not_part_store_and_index(
    recommender: Recommender, embedded_store: GatedStore, live_index: LiveIndex
) -> None:
    await embedded_store.hold()
    adding = asyncio.create_task(add_one(recommender, Note(id="a", title="soup")))
    await eventually(lambda: written(embedded_store, "a"))
    adding.cancel()
    await asyncio.gather(adding, return_exceptions=True)
    embedded_store.release()
    await live_index.wait_for((await read_note(embedded_store, "a")).position, 10)
    assert live_index.vector("a") is not None


async def test_similar_is_degraded_while_the_store_hangs(
    recommender: Recommender, search: NoteSearch, embedded: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.read_time.READ_SECONDS", 0.05)
    await add(recommender, *soup(6))
    expected = await similar_ids(search, "n0", 3, Filter(exclude=frozenset({"n2"})))
    assert embedded.pid is not None
    os.kill(embedded.pid, signal.SIGSTOP)
    try:
        result = await related(search, "n0", 3, Filter(exclude=frozenset({"n2"})))
        assert result.degraded
        assert ids(result) == expected
    finally:
        os.kill(embedded.pid, signal.SIGCONT)

    async def well() -> bool:
        return not (await related(search, "n0", 3)).degraded

    await eventually(well)


async def test_degraded_answer_has_at_most_k_and_no_note_known_lost(
    recommender: Recommender, search: NoteSearch, embedded_store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add(recommender, *soup(9))
    nearest = ranking(soup(9), soup(9)[0])
    await embedded_store.hold()
    for note_id in nearest[:2]:
        await embedded_store.delete(note_id)
    whole, asked = embedded_store.get_in_parts, list[int]()

    async def get_in_parts(ids: Sequence[str]) -> AsyncIterator[list[StoredNote | Unreadable | None]]:
        asked.append(len(ids))
        if len(asked) > 1:
            raise StoreUnavailable("gone in the middle")
        async for part in whole(ids):
            yield part

    monkeypatch.setattr(embedded_store, "get_in_parts", get_in_parts)
    result = await related(search, "n0", 3)
    embedded_store.release()
    assert len(asked) == 2
    assert result.degraded
    assert ids(result) == nearest[2:5]


@pytest.mark.parametrize(
    "options",
    [
        {"boosts": (Boost(0.2, Match("category", "Food")),)},
        {"explain": True, "sources": (("content", 1.0), ("words", 0.5))},
        {"explain": True, "cursor": "*"},
    ],
    ids=["boosted", "explained", "pages"],
)
async def test_long_notes_are_read_in_parts_and_answered_as_if_at_once(
    recommender: Recommender,
    search: NoteSearch,
    embedded_store: GatedStore,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
) -> None:
    await add(recommender, *(replace(note, content=f"{note.content} {'long ' * 1000}") for note in soup(20)))
    request = SearchRequest((Example("n0"),), k=10, **options)
    reads = record_reads(embedded_store, monkeypatch)
    at_once = await search.related(request)
    assert max(map(len, reads)) >= 10
    reads.clear()
    monkeypatch.setattr("service.store.redis_store.MAX_READ_BYTES", 20_000)
    in_parts = await search.related(request)
    assert in_parts.items == at_once.items
    assert len(in_parts.items) == 10
    assert len(reads) > 3
    assert max(map(len, reads)) <= 4


async def test_search_for_an_example_that_is_gone_leaves_nothing_running(
    recommender: Recommender,
    search: NoteSearch,
    embedded_store: GatedStore,
    live_index: LiveIndex,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await add(recommender, *soup(3))
    await embedded_store.hold()
    await embedded_store.delete("n0")
    ended = list[str]()

    async def search_for_ever(*_: Any) -> list[Hit]:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("search")
        return []

    monkeypatch.setattr(live_index, "search", search_for_ever)
    with pytest.raises(NoteNotFound):
        await search.related(SearchRequest((Example("n0"),), sources="auto"))
    assert ended == ["search"]
    embedded_store.release()


async def test_search_that_the_index_cannot_answer_leaves_no_read_running(
    recommender: Recommender,
    search: NoteSearch,
    embedded_store: GatedStore,
    live_index: LiveIndex,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await add(recommender, *soup(3))
    reading, ended = asyncio.Event(), list[str]()

    async def read_for_ever(_: Sequence[str]) -> AsyncIterator[list[StoredNote | Unreadable | None]]:
        reading.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("read")
        yield []

    async def fail(*_: Any) -> list[Hit]:
        await reading.wait()
        raise IndexBehind("the end of the store's log", "0-0")

    monkeypatch.setattr(embedded_store, "get_in_parts", read_for_ever)
    monkeypatch.setattr(live_index, "search", fail)
    with pytest.raises(IndexBehind):
        await search.related(SearchRequest((Example("n0"),), sources="auto"))
    assert ended == ["read"]


async def test_first_page_is_the_only_one_while_the_store_hangs(
    recommender: Recommender, search: NoteSearch, embedded: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.read_time.READ_SECONDS", 0.05)
    await add(recommender, *soup(6))
    assert embedded.pid is not None
    os.kill(embedded.pid, signal.SIGSTOP)
    try:
        result = await search.related(SearchRequest((Example("n0"),), k=3, cursor="*", max_per_author=1))
        assert (result.degraded, result.paged, result.next_cursor, result.complete) == (True, True, None, False)
        assert ids(result) == ranking(soup(6), soup(6)[0])[:3]
        with pytest.raises(StoreUnavailable):
            await search.related(SearchRequest((Example("n0"),), k=3, cursor="01KAZ00000000000000000000Z.3"))
    finally:
        os.kill(embedded.pid, signal.SIGCONT)


async def test_search_that_looks_no_deeper_while_the_store_is_unavailable_is_not_complete(
    recommender: Recommender, search: NoteSearch, embedded_store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.search.ranker.BLOCK_SIZE", 4)
    await add(recommender, *(replace(note, author="tom") for note in soup(9)))
    plain = await search.related(SearchRequest((Example("n0"),), k=3, max_per_author=1))
    assert (plain.degraded, plain.complete, len(ids(plain))) == (False, True, 1)

    async def unavailable(_: Sequence[str]) -> AsyncIterator[list[StoredNote | Unreadable | None]]:
        raise StoreUnavailable("it is unavailable")
        yield []

    monkeypatch.setattr(embedded_store, "get_in_parts", unavailable)
    result = await search.related(SearchRequest((Example("n0"),), k=3, max_per_author=1))
    assert (result.degraded, result.complete, len(ids(result))) == (True, False, 1)


async def test_list_that_is_too_large_is_cut_and_says_so(
    recommender: Recommender, search: NoteSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.store.ranked_lists.MAX_LIST_BYTES", 250)
    await add(recommender, *soup(20))
    request = SearchRequest((Example("n0"),), k=4, cursor="*")
    first = await search.related(request)
    assert len(first.items) == 4
    assert first.complete
    shown, page = ids(first), first
    while page.next_cursor:
        page = await search.related(replace(request, cursor=page.next_cursor))
        shown += ids(page)
    assert shown == ranking(soup(20), soup(20)[0])[: len(shown)]
    assert not page.complete
    assert 4 <= len(shown) < 19


@pytest.mark.parametrize(("most", "complete"), [(7, False), (19, True)])
async def test_list_of_more_notes_than_a_list_may_have_says_that_there_are_more(
    recommender: Recommender, search: NoteSearch, monkeypatch: pytest.MonkeyPatch, most: int, complete: bool
) -> None:
    monkeypatch.setattr("service.search.search.MAX_LIST_NOTES", most)
    await add(recommender, *soup(20))
    for request in (
        SearchRequest((Example("n0"),), k=4, cursor="*"),
        SearchRequest((Example("n0"),), k=4, cursor="*", diversity=0.5),
    ):
        page = await search.related(request)
        shown = ids(page)
        while page.next_cursor:
            page = await search.related(replace(request, cursor=page.next_cursor))
            shown += ids(page)
        assert (len(shown), page.complete) == (most, complete)


async def test_more_texts_than_the_queue_has_places_are_read_part_by_part(
    engine: WordEngine, embedded_store: GatedStore, live_index: LiveIndex, clock: Clock
) -> None:
    lists = RedisLists(embedded_store.connection, DEFAULT_KEYS, 600)
    async with batching(engine, max_queue=4) as batcher:
        search = NoteSearch(engine, batcher, embedded_store, live_index, lists, Telemetry(), clock)
        vectors = await search.read_texts(soup(11))
    assert [vector.tolist() for vector in vectors] == [note_vector(note).tolist() for note in soup(11)]


def test_words_of_all_examples_are_searched_for() -> None:
    assert KEPT_CHARACTERS == model.words.MAX_CHARS
    notes = [Note(title=f"title{n} " * 50, content=f"word{n} " * 300) for n in range(20)]
    for order in (notes, notes[::-1]):
        words = model.words.words_of(query_note(order))
        assert words >= {f"title{n}" for n in range(20)} | {f"word{n}" for n in range(20)}


async def test_caps_go_deeper_than_the_first_block(
    recommender: Recommender, search: NoteSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.search.ranker.BLOCK_SIZE", 4)
    notes = [replace(note, author="ann" if n < 25 else f"a{n}") for n, note in enumerate(soup(30))]
    await add(recommender, *notes)
    result = await search.related(SearchRequest((Example("n0"),), k=4, max_per_author=1))
    order = ranking(notes, notes[0])
    others = [note_id for note_id in order if int(note_id[1:]) >= 25]
    assert ids(result) == [order[0], *others[:3]]
    assert result.complete


async def test_search_that_would_go_too_deep_is_not_complete(
    recommender: Recommender, search: NoteSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.search.ranker.BLOCK_SIZE", 4)
    monkeypatch.setattr("service.search.ranker.MAX_DEPTH", 8)
    await add(recommender, *(replace(note, author="ann") for note in soup(30)))
    result = await search.related(SearchRequest((Example("n0"),), k=4, max_per_author=1))
    assert (len(result.items), result.complete) == (1, False)


@pytest.mark.parametrize("min_score", [None, 0.0])
async def test_best_score_that_would_go_too_deep_is_not_complete(
    min_score: float | None, recommender: Recommender, search: NoteSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search looks at the eight notes nearest to its positive example. All eight score below 0, since each is
    nearer to the negative example, and notes that the search did not look at may score more."""
    monkeypatch.setattr("service.search.sources.MAX_DEPTH", 8)
    monkeypatch.setattr("service.search.sources.MIN_DEPTH", 8)
    await add(recommender, *soup(30))

    def request(k: int) -> SearchRequest:
        negative = (Example("n1", weight=4.0),)
        return SearchRequest((Example("n0"),), negative, k=k, strategy="best_score", min_score=min_score)

    many, few = await search.related(request(20)), await search.related(request(3))
    assert not many.complete
    assert len(many.items) < 10
    assert ids(many)[: len(few.items)] == ids(few)
    assert few.complete is (len(few.items) == 3)


async def test_best_score_reads_its_candidates_in_parts(
    recommender: Recommender, search: NoteSearch, live_index: LiveIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = soup(40)
    await add(recommender, *notes)
    examples = tuple(Example(note.id) for note in notes[:6])
    request = SearchRequest(examples, (Example("n39"),), strategy="best_score", k=20)
    whole, sizes, rows = await search.related(request), list[int](), live_index.rows

    async def recorded(ids: Sequence[str]) -> Any:
        sizes.append(len(ids))
        return await rows(ids)

    monkeypatch.setattr("service.search.sources.SCORE_BATCH_SIZE", 7)
    monkeypatch.setattr(live_index, "rows", recorded)
    in_parts = await search.related(request)
    assert [(item.stored.note.id, item.score) for item in in_parts.items] == [
        (item.stored.note.id, item.score) for item in whole.items
    ]
    assert max(sizes[:-1]) == 7


@pytest.mark.parametrize("k", [3, 20])
async def test_best_score_reads_no_more_candidates_from_the_store_than_it_returns(
    k: int,
    recommender: Recommender,
    search: NoteSearch,
    embedded_store: GatedStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    notes = soup(40)
    await add(recommender, *notes)
    request = SearchRequest(tuple(Example(note.id) for note in notes[:6]), (), strategy="best_score", k=k)
    reads = record_reads(embedded_store, monkeypatch)
    found = {item.stored.note.id for item in (await search.related(request)).items}
    read = {one.note.id for notes in reads for one in notes if isinstance(one, StoredNote)}
    assert len(found) == k
    assert read - {note.id for note in notes[:6]} == found


@pytest.mark.parametrize("compared", [10_000, 100])
async def test_many_examples_are_compared_outside_the_event_loop(
    recommender: Recommender, search: NoteSearch, monkeypatch: pytest.MonkeyPatch, compared: int
) -> None:
    notes, threads = soup(40), list[int]()
    await add(recommender, *notes)

    def recorded(query: Query, vectors: Vectors) -> Numbers:
        threads.append(threading.get_ident())
        return best_scores(query, vectors)

    monkeypatch.setattr("service.search.sources.best_scores", recorded)
    monkeypatch.setattr("service.search.sources.MAX_COMPARED_IN_LOOP", compared)
    examples = tuple(Example(note.id) for note in notes[:6])
    await search.related(SearchRequest(examples, (), strategy="best_score", k=20))
    assert {thread == threading.get_ident() for thread in threads} == {compared == 10_000}


@pytest.mark.parametrize("boosts", [1, 20])
async def test_many_boosts_are_computed_outside_the_event_loop(
    recommender: Recommender, search: NoteSearch, monkeypatch: pytest.MonkeyPatch, boosts: int
) -> None:
    notes, threads = soup(90), list[int]()
    await add(recommender, *notes)

    def recorded(*arguments: Any) -> tuple[float, ...]:
        threads.append(threading.get_ident())
        return boost_values(*arguments)

    monkeypatch.setattr("service.ranking.selection.boost_values", recorded)
    boost = (Boost(0.1, Match("hashtag", "x")),) * boosts
    await search.related(SearchRequest((Example("n0"),), k=5, boosts=boost))
    assert {thread == threading.get_ident() for thread in threads} == {boosts == 1}


async def test_note_that_the_store_lost_frees_its_author(
    recommender: Recommender, search: NoteSearch, embedded_store: GatedStore
) -> None:
    notes = [replace(note, author=f"a{n % 2}") for n, note in enumerate(soup(9))]
    await add(recommender, *notes)
    order = ranking(notes, notes[0])
    await embedded_store.hold()
    await embedded_store.delete(order[0])
    result = await search.related(SearchRequest((Example("n0"),), k=5, max_per_author=1))
    first, *_ = [note_id for note_id in order[1:] if int(note_id[1:]) % 2 == int(order[0][1:]) % 2]
    assert first in ids(result)
    assert len(result.items) == 2
    embedded_store.release()
