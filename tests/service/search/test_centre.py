"""Searches by a note with a model that subtracts a share of the mean: every path has the same query."""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
import pytest

from model.note import Note
from service.batcher import Batcher
from service.filters import Filter
from service.index import centre
from service.index.centre import MIN_NOTES
from service.index.live import LiveIndex
from service.interfaces import Clock
from service.records import Vector, Write
from service.search import title_centre
from service.search.neighbour_cache import NeighbourCache
from service.search.request import Example, SearchRequest
from service.search.search import NoteSearch
from service.search.shared_lru import SharedLru
from service.search.title_centre import SAMPLED_TITLES
from service.store.ranked_lists import RedisLists
from service.store.redis_keys import DEFAULT_KEYS
from service.telemetry import Telemetry
from tests.service.conftest import DIMENSION, GatedStore, WordEngine, eventually, following, note_vector, stored_note

pytestmark = pytest.mark.anyio
SHARE, TITLE_SHARE, K = 0.5, 0.75, 10

VECTORS = np.random.default_rng(0).normal(size=(MIN_NOTES, DIMENSION)).astype(np.float32)
VECTORS[:, 0] += 2.0
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)


async def put(store: GatedStore, index: LiveIndex, vectors: np.ndarray) -> None:
    """Write notes n0, n1, ... with these vectors, and wait until they can be found."""
    written = await store.put([Write(stored_note(f"n{number}", vector=v)) for number, v in enumerate(vectors)])
    assert written[-1]
    await index.wait_for(written[-1].position, 10)


@pytest.fixture
async def index(embedded_store: GatedStore, clock: Clock) -> AsyncIterator[LiveIndex]:
    """An index of the notes of VECTORS."""
    async with following(embedded_store, clock, mean_share=SHARE) as index:
        await put(embedded_store, index, VECTORS)
        yield index


@pytest.fixture
def search(
    engine: WordEngine, batcher: Batcher, embedded_store: GatedStore, index: LiveIndex, clock: Clock
) -> NoteSearch:
    lists = RedisLists(embedded_store.connection, DEFAULT_KEYS, 600)
    return NoteSearch(engine, batcher, embedded_store, index, lists, Telemetry(), clock, title_mean_share=TITLE_SHARE)


def nearest_to(query: Vector, own: int) -> list[tuple[str, float]]:
    """Return the K notes of VECTORS with the highest cosine to `query`, without row `own`."""
    scores = VECTORS @ (query / np.linalg.norm(query))
    rows = [row for row in np.argsort(-scores).tolist() if row != own][:K]
    return [(f"n{row}", pytest.approx(float(scores[row]), abs=1e-5)) for row in rows]


async def test_stored_note_is_searched_without_the_share_on_every_path(index: LiveIndex, search: NoteSearch) -> None:
    expected = nearest_to(VECTORS[5] - SHARE * VECTORS.mean(axis=0), own=5)
    short = await NeighbourCache(index, SharedLru(2**20), Telemetry()).search("n5", K, Filter())
    whole = await search.related(SearchRequest((Example("n5"),), k=K))
    assert short is not None
    assert [(hit.id, hit.score) for hit in short] == expected
    assert [(item.stored.note.id, item.score) for item in whole.items] == expected


TITLE = Note(title="soup with bread")


async def found_by_title(search: NoteSearch) -> list[tuple[str, float]]:
    found = await search.related(SearchRequest((Example(note=TITLE),), k=K), texts=[note_vector(TITLE)])
    return [(item.stored.note.id, item.score) for item in found.items]


async def test_title_is_searched_by_its_own_vector_until_other_titles_were_read(
    search: NoteSearch, engine: WordEngine
) -> None:
    engine.gate.clear()
    for _ in range(2):
        assert await found_by_title(search) == nearest_to(note_vector(TITLE), own=-1)
    await search.stop()


async def test_title_is_searched_without_the_share_of_the_mean_of_titles(search: NoteSearch) -> None:
    titles = [note_vector(Note(title=f"n{number}")) for number in range(0, MIN_NOTES, MIN_NOTES // SAMPLED_TITLES)]
    await found_by_title(search)
    await eventually(lambda: search._titles.current().vector is not None)
    expected = nearest_to(note_vector(TITLE) - TITLE_SHARE * np.mean(titles, axis=0), own=-1)
    assert await found_by_title(search) == expected


async def test_titles_are_read_again_after_a_failure(
    search: NoteSearch, engine: WordEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(title_centre, "RETRY_SECONDS", 0.0)
    engine.failure = RuntimeError("no model")
    await found_by_title(search)
    await eventually(lambda: search._titles._estimating is None)
    assert await found_by_title(search) == nearest_to(note_vector(TITLE), own=-1)
    engine.failure = None
    await eventually(lambda: search._titles.current().vector is not None)


async def test_titles_are_read_again_only_after_a_pause_where_the_failure_was_unexpected(
    index: LiveIndex, search: NoteSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples: list[int] = []

    async def fail(count: int) -> list[str]:
        samples.append(count)
        raise RuntimeError("no such row")

    monkeypatch.setattr(index, "sampled_ids", fail)
    for _ in range(3):
        await found_by_title(search)
        await eventually(lambda: search._titles._estimating is None)
    assert samples == [SAMPLED_TITLES]


async def test_titles_are_not_read_again_while_the_centre_of_the_notes_hardly_moves(
    index: LiveIndex,
    search: NoteSearch,
    embedded_store: GatedStore,
    engine: WordEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await found_by_title(search)
    await eventually(lambda: search._titles.current().vector is not None)
    before, read = index.centre, len(engine.notes)
    monkeypatch.setattr(centre, "MIN_CENTRE_SHIFT", 0.0)
    await put(embedded_store, index, np.roll(VECTORS, 1, axis=0))
    assert index.centre is not before
    await found_by_title(search)
    assert (len(engine.notes), search._titles._estimating) == (read, None)


async def test_few_titles_have_no_centre(
    search: NoteSearch, engine: WordEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(title_centre, "MIN_TITLES", MIN_NOTES + 1)
    await found_by_title(search)
    await eventually(lambda: search._titles._estimating is None)
    assert (engine.notes, search._titles.current().vector) == ([], None)


@pytest.mark.parametrize("note", [Note(title="soup", content="with bread"), Note(title="soup", hashtags=("bread",))])
async def test_text_of_a_note_is_searched_as_a_stored_note_is(search: NoteSearch, note: Note) -> None:
    found = await search.related(SearchRequest((Example(note=note),), k=K))
    expected = nearest_to(note_vector(note) - SHARE * VECTORS.mean(axis=0), own=-1)
    assert [(item.stored.note.id, item.score) for item in found.items] == expected


async def test_kept_list_is_searched_anew_once_the_centre_has_changed(
    index: LiveIndex, embedded_store: GatedStore
) -> None:
    cache = NeighbourCache(index, SharedLru(2**20), Telemetry())
    assert await cache.search("n5", K, Filter())
    before = index.centre
    turned = np.concatenate([VECTORS, -VECTORS[:1]])[:, ::-1].copy()
    turned[[5]] = VECTORS[[5]]
    await put(embedded_store, index, turned)
    assert index.centre is not before
    found = await cache.search("n5", K, Filter())
    query = index.centre.query(turned[5])
    rows = [row for row in np.argsort(-(turned @ query)).tolist() if row != 5][:K]
    assert found is not None
    assert [hit.id for hit in found] == [f"n{row}" for row in rows]
