"""KnownPosition: what the processes of one data folder know of the log, and which answers of the store tell them."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, closing
from multiprocessing import get_context
from pathlib import Path

import pytest

from service.errors import PreconditionFailed
from service.events import Event, EventBounds
from service.interfaces import Clock
from service.records import ORIGIN, Attempt, Condition, Remembered, StoredNote, Write, position_key
from service.store.embedded_redis import EmbeddedRedis, EmbeddedRedisError
from service.store.events import RedisEventStore
from service.store.known_position import (
    FOLDER_POINTER,
    MAX_POSITION_WRITERS,
    MEMORY,
    SEQUENCE_MASK,
    KnownPosition,
    KnownPositions,
)
from service.store.redis_store import RedisNoteStore
from tests.service.conftest import DIMENSION, SPACE, stored_note
from tests.service.process import wait_until

RAISED = 2000
"""Number of positions to which each of two processes raises a file."""
STOPS = 200
"""Number of times that another process is stopped at a random moment."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "default"


@pytest.fixture
def known(path: Path) -> Iterator[KnownPosition]:
    with closing(KnownPosition(path)) as known:
        yield known


def test_new_file_has_the_position_before_every_change(known: KnownPosition) -> None:
    assert known.read() == ORIGIN


def test_position_is_the_latest_it_was_raised_to(known: KnownPosition) -> None:
    for raised, position in (("17-5", "17-5"), ("17-3", "17-5"), ("16-9", "17-5"), ("17-6", "17-6"), ("18-0", "18-0")):
        known.advance_to(raised)
        assert known.read() == position


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="lists the open files of a process as Linux does")
def test_file_that_cannot_be_mapped_is_closed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(OSError, match="no space left"):
        KnownPosition(path)
    opened = {file.resolve() for file in Path("/proc/self/fd").iterdir()}
    assert path.resolve() not in opened


def test_another_process_sees_what_one_has_raised(known: KnownPosition, path: Path) -> None:
    with closing(KnownPosition(path)) as other:
        known.advance_to("7-1")
        assert other.read() == "7-1"
        other.advance_to("1700000000000-2")
    assert known.read() == "1700000000000-2"
    with closing(KnownPosition(path)) as later:
        assert later.read() == "1700000000000-2"


def test_position_whose_sequence_number_needs_more_bits_is_not_known(known: KnownPosition) -> None:
    known.advance_to(f"7-{SEQUENCE_MASK - 1}")
    assert known.read() == f"7-{SEQUENCE_MASK - 1}"
    known.advance_to(f"7-{SEQUENCE_MASK + 5}")
    assert known.read() is None
    known.advance_to("8-0")
    assert known.read() == "8-0"
    known.advance_to(f"{1 << 43}-0")
    assert known.read() is None


def test_ended_position_is_never_known_again(known: KnownPosition) -> None:
    known.invalidate_for_good()
    known.advance_to("1700000000000-0")
    assert known.read() is None


def raise_odd_or_even(path: Path, first: int) -> None:
    with closing(KnownPosition(path, first)) as known:
        for n in range(first, 2 * RAISED, 2):
            known.advance_to(f"{n}-0")
            assert position_key(known.read() or "") >= (n, 0)


def test_two_processes_that_raise_it_never_lower_it(known: KnownPosition, path: Path) -> None:
    context = get_context("spawn")
    processes = [context.Process(target=raise_odd_or_even, args=(path, first)) for first in (1, 2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert known.read() == f"{2 * RAISED - 1}-0"


def raise_by_one(known: KnownPosition) -> int:
    """Raise a position to the next millisecond, and return the millisecond."""
    milliseconds = 1 + position_key(known.read() or "")[0]
    known.advance_to(f"{milliseconds}-0")
    return milliseconds


def raise_for_ever(data_folder: Path) -> None:
    with closing(KnownPositions(data_folder)) as positions, positions.open("default", "") as known:
        while True:
            raise_by_one(known)


def test_process_that_is_stopped_stops_no_other(tmp_path: Path) -> None:
    """Another process raises the position all the time, and is stopped with SIGSTOP at STOPS moments."""
    with closing(KnownPositions(tmp_path)) as positions, positions.open("default", "") as known:
        other = get_context("spawn").Process(target=raise_for_ever, args=(tmp_path,))
        other.start()
        wait_until(lambda: known.read() != ORIGIN)
        assert other.pid
        try:
            for _ in range(STOPS):
                os.kill(other.pid, signal.SIGSTOP)
                position = f"{raise_by_one(known)}-0"
                assert known.read() == position
                os.kill(other.pid, signal.SIGCONT)
                while known.read() == position:
                    assert other.is_alive()
        finally:
            other.kill()
            other.join()


def test_number_of_a_process_that_died_is_written_by_another(tmp_path: Path) -> None:
    with closing(KnownPositions(tmp_path)) as positions, positions.open("default", "") as known:
        for n in range(1, 2 * MAX_POSITION_WRITERS):
            with closing(KnownPositions(tmp_path)) as others, others.open("default", "") as there:
                there.advance_to(f"{n}-0")
            assert known.read() == f"{n}-0"


def test_process_beyond_as_many_as_may_use_a_folder_is_refused(tmp_path: Path) -> None:
    with ExitStack() as stack:
        for _ in range(MAX_POSITION_WRITERS):
            stack.enter_context(closing(KnownPositions(tmp_path)))
        with pytest.raises(EmbeddedRedisError, match=f"{MAX_POSITION_WRITERS} processes"):
            KnownPositions(tmp_path)


@pytest.fixture
def positions(tmp_path: Path) -> Iterator[KnownPositions]:
    with closing(KnownPositions(tmp_path)) as positions:
        yield positions


def place_of(data_folder: Path) -> Path:
    return Path((data_folder / FOLDER_POINTER).read_text())


def test_positions_of_tenants_are_apart_and_end_one_by_one(positions: KnownPositions) -> None:
    with positions.open("acme", "1") as acme, positions.open("acme", "2") as anew, positions.open("default", "") as own:
        acme.advance_to("7-0")
        positions.invalidate_for_good("acme", "1")
        positions.invalidate_for_good("acme", "3")  # a position that nobody has opened
        assert [one.read() for one in (acme, anew, own)] == [None, ORIGIN, ORIGIN]


def test_doubted_position_is_known_again_after_a_later_change(positions: KnownPositions) -> None:
    with positions.open("default", "") as known:
        known.advance_to("8-3")
        positions.invalidate_all(0.009)
        known.advance_to("9-2")
        assert known.read() is None
        known.advance_to("10-0")
        assert known.read() == "10-0"


def test_position_that_is_ahead_of_the_clock_is_doubted_too(positions: KnownPositions) -> None:
    with positions.open("default", "") as known:
        known.advance_to("8-3")
        positions.invalidate_all(0.001)  # the machine's clock was set back
        assert known.read() is None
        known.advance_to("9-0")
        assert known.read() == "9-0"


def test_processes_of_a_data_folder_share_its_place_in_memory(positions: KnownPositions, tmp_path: Path) -> None:
    with (
        closing(KnownPositions(tmp_path)) as other,
        positions.open("default", "") as known,
        other.open("default", "") as there,
    ):
        known.advance_to("7-1")
        assert there.read() == "7-1"
    assert place_of(tmp_path).parent == MEMORY


@pytest.mark.parametrize("left", ["folder", "name", "nothing"])
def test_process_that_is_alone_begins_anew(tmp_path: Path, left: str) -> None:
    with closing(KnownPositions(tmp_path)) as positions, positions.open("default", "") as known:
        known.advance_to("7-1")
        first = place_of(tmp_path)
        if left != "nothing":  # keep the files, as if the process were killed
            place, kept = tmp_path / FOLDER_POINTER, tmp_path / "kept"
            shutil.copytree(first, kept)
    assert not first.exists()
    if left != "nothing":
        place.write_text(str(first))
    if left == "folder":
        shutil.copytree(kept, first)
    with closing(KnownPositions(tmp_path)) as positions, positions.open("default", "") as known:
        assert known.read() == ORIGIN
        assert not first.exists()


def test_copy_of_a_data_folder_leaves_the_running_service_alone(
    positions: KnownPositions, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    copy = tmp_path_factory.mktemp("copy") / "data"
    with positions.open("default", "") as known:
        shutil.copytree(tmp_path, copy)
        with closing(KnownPositions(copy)) as other, other.open("default", "") as there:
            there.advance_to("9-0")
            assert known.read() == ORIGIN
    assert place_of(tmp_path).is_dir()
    assert not place_of(copy).name


def test_folder_goes_with_the_last_process(tmp_path: Path) -> None:
    with closing(KnownPositions(tmp_path)):
        with closing(KnownPositions(tmp_path)):
            folder = place_of(tmp_path)
        assert folder.is_dir()
    assert not folder.exists()


def test_closed_position_is_not_known(path: Path) -> None:
    known = KnownPosition(path)
    known.close()
    known.advance_to("7-1")
    assert known.read() is None


def test_process_that_does_not_see_the_place_of_another_is_refused(positions: KnownPositions, tmp_path: Path) -> None:
    seen = place_of(tmp_path)
    hidden = seen.rename(seen.with_name(f"{seen.name}-hidden"))  # as if it were in another container
    with pytest.raises(EmbeddedRedisError, match="NOTELLM_REDIS_URL"):
        KnownPositions(tmp_path)
    hidden.rename(seen)
    KnownPositions(tmp_path).close()


def test_without_files_in_memory_the_data_folder_is_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.store.known_position.MEMORY", tmp_path / "nowhere")
    with closing(KnownPositions(tmp_path)) as positions, positions.open("default", "") as known:
        assert known.read() == ORIGIN
        assert place_of(tmp_path).parent == tmp_path


@pytest.fixture
async def stores(embedded: EmbeddedRedis, path: Path, clock: Clock) -> AsyncIterator[list[RedisNoteStore]]:
    """Two stores on one server. The first has no file, so nobody hears of its writes; the second has the file."""
    with closing(KnownPosition(path)) as known:
        pair = [
            RedisNoteStore(embedded.url, clock=clock, dimensions={SPACE: DIMENSION}, known=one) for one in (None, known)
        ]
        yield pair
        for store in pair:
            await store.close()


async def put(store: RedisNoteStore, note: StoredNote, remembered: Remembered | None = None) -> str:
    (written,) = await store.put([Write(note, remembered=remembered)])
    assert written
    return written.position


@pytest.mark.anyio
async def test_position_of_a_write_is_known(stores: list[RedisNoteStore]) -> None:
    store = stores[1]
    for note_id in ("a", "b"):
        position = await put(store, stored_note(note_id, "soup"))
        assert store.known_position == position
    removal = await store.delete("a")
    assert removal
    assert store.known_position == removal
    (bulk,) = await store.delete_all([("b", None)])
    assert bulk
    assert store.known_position == bulk


@pytest.mark.anyio
@pytest.mark.parametrize(
    "answer",
    [
        *("note", "no-note", "no-removal", "no-removals", "condition", "condition-of-put", "log", "bounds", "tail"),
        *("claim", "event", "no-event"),
    ],
)
async def test_position_is_known_to_who_hears_of_a_change_by_another_answer(
    stores: list[RedisNoteStore], known: KnownPosition, answer: str
) -> None:
    dying, store = stores
    events = RedisEventStore(store.connection, EventBounds(86_400, 2**24, 3600, 1000), known=known)
    before = await put(store, stored_note("a", "soup"))
    attempt = Attempt("key", "fingerprint")
    (claim,) = await dying.claim([attempt], "first", 60, 60)
    after = await put(dying, stored_note("b", "soup"), Remembered(claim, b"answer"))
    assert store.known_position == before  # the other's write is not known yet
    match answer:
        case "note":
            await store.get(["b"])
        case "no-note":
            assert await store.get(["c"]) == [None]
        case "no-removal":
            assert await store.delete("c") is None
        case "no-removals":
            assert await store.delete_all([("c", None)]) == [None]
        case "condition":
            with pytest.raises(PreconditionFailed):
                await store.delete("b", Condition((before,)))
        case "condition-of-put":
            assert await store.put([Write(stored_note("b", "tea"), Condition((), negated=True))]) == [None]
        case "log":
            await store.read_log(before, 10, 0.1)
        case "bounds":
            await store.log_bounds()
        case "tail":
            await store.log_tail(before, 10)
        case "claim":
            (repeated,) = await store.claim([attempt], "second", 60, 60)
            assert repeated.earlier
        case "event":
            assert await events.add([Event("e", "click", "b", "u", time.time(), b"")]) == ["accepted"]
        case "no-event":
            assert await events.add([Event("e", "click", "c", "u", time.time(), b"")]) == ["unknown_note"]
    assert store.known_position == after


@pytest.mark.anyio
async def test_store_that_others_write_to_has_no_known_position(stores: list[RedisNoteStore]) -> None:
    await put(stores[0], stored_note("a", "soup"))
    assert stores[0].known_position is None
