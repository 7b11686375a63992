"""The restore drill: a backup is made while notes are written, changed and removed, and restored elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from service.filters import Filter
from service.index.segmented import SegmentedIndex
from service.interfaces import Clock
from service.records import StoredNote, Write, position_key
from service.store.clients import client_of
from service.store.document import encode
from service.store.embedded_redis import EmbeddedRedis
from service.store.redis_store import RedisNoteStore
from tests.service.conftest import DIMENSION, SPACE, eventually, following, stored_note, word_vector
from tests.service.store.backup.conftest import NOTE, back_up, restore

WORDS = ["lemon", "tart", "dough", "oven", "kyoto", "temple", "noodle", "river", "market", "bicycle"]
IDS = 400
Change = tuple[tuple[int, int], str, Mapping[bytes, bytes] | None]
"""Position, id and stored fields of an acknowledged change; None for a removal."""


class Writers:
    """Tasks that write, change and remove notes until stopped. `changes`: all that were acknowledged."""

    def __init__(self, store: RedisNoteStore) -> None:
        self.changes: list[Change] = []
        self._store = store
        self._stopped = False

    async def run(self, seed: int) -> None:
        rng = random.Random(seed)
        while not self._stopped:
            note_id = f"{seed}-{rng.randrange(IDS)}"  # each note has one writer, so that its changes are in order
            if rng.random() < 0.2:
                if position := await self._store.delete(note_id):
                    self.changes.append((position_key(position), note_id, None))
                continue
            stored = stored_note(note_id, " ".join(rng.choices(WORDS, k=4)), hashtags=(rng.choice(WORDS),))
            (written,) = await self._store.put([Write(stored)])
            assert written is not None
            document, vector = encode(stored)
            fields = {b"document": document, b"vector": vector, b"space": SPACE.encode()}
            fields |= {b"revision": str(written.revision).encode(), b"position": written.position.encode()}
            self.changes.append((position_key(written.position), note_id, fields))

    def stop(self) -> None:
        self._stopped = True

    def state_at(self, position: str) -> dict[bytes, Mapping[bytes, bytes]]:
        """Return the fields of each note by its key, after all changes up to `position`."""
        state = {
            f"{NOTE}{note_id}".encode(): fields
            for place, note_id, fields in sorted(self.changes, key=lambda change: change[0])
            if place <= position_key(position)
        }
        return {key: fields for key, fields in state.items() if fields is not None}


@contextlib.asynccontextmanager
async def writing(store: RedisNoteStore, count: int) -> AsyncIterator[Writers]:
    """Run `count` writers until the block ends, and wait for their last changes."""
    writers = Writers(store)
    tasks = [asyncio.create_task(writers.run(seed)) for seed in range(count)]
    try:
        await eventually(lambda: writers.changes)
        yield writers
    finally:
        writers.stop()
        await asyncio.gather(*tasks)


@pytest.fixture
def restored(other: EmbeddedRedis) -> Iterator[Any]:
    with client_of(other.url) as client:
        yield client


@pytest.mark.anyio
async def test_backup_under_load_restores_every_note_up_to_its_position(
    store: RedisNoteStore, redis_url: str, other: EmbeddedRedis, restored: Any, tmp_path: Path, clock: Clock
) -> None:
    async with writing(store, 4) as writers:
        await eventually(lambda: len(writers.changes) > 500)
        manifest = await asyncio.to_thread(back_up, redis_url, tmp_path / "backup")
        at_end = len(writers.changes)
        await eventually(lambda: len(writers.changes) > at_end + 100)
    await asyncio.to_thread(restore, tmp_path / "backup", other.url)

    (entry,) = manifest.notes
    expected = writers.state_at(entry.position)
    assert {key: restored.hgetall(key) for key in restored.scan_iter(match=f"{NOTE}*", count=1000)} == expected
    assert (entry.notes, entry.spaces) == (len(expected), {SPACE: len(expected)})
    later = [place for place, _, _ in writers.changes if place > position_key(entry.position)]
    assert later, "nothing was written behind the backup's position, so that the test shows nothing"

    copy = RedisNoteStore(other.url, clock=clock, dimensions={SPACE: DIMENSION})
    async with following(copy, clock) as index:
        assert index.position == entry.position
        reference = SegmentedIndex(DIMENSION)
        notes = [note async for page in copy.scan() for note in page]
        assert len(notes) == len(expected)
        reference.upsert([note for note in notes if isinstance(note, StoredNote)])
        for word in WORDS:
            query = word_vector(word)
            assert await index.search(query, 20, Filter()) == reference.search(query, 20, Filter(), clock())
    await copy.close()
