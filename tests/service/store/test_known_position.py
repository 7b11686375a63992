"""KnownPosition: what processes of one data folder know of the log, and by which answers of the store they hear."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path

import pytest

from service.errors import PreconditionFailed
from service.interfaces import Clock
from service.records import ORIGIN, Attempt, Condition, Remembered, StoredNote, Write
from service.store.embedded_redis import EmbeddedRedis, EmbeddedRedisError
from service.store.known_position import MEMORY, NEVER, PLACE, SEQUENCE_MASK, KnownPosition, KnownPositions
from service.store.redis_store import RedisNoteStore
from tests.service.conftest import DIMENSION, SPACE, stored_note

RAISED = 2000
"""Positions that each of two processes raises a file to."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "default"


@pytest.fixture
def known(path: Path) -> Iterator[KnownPosition]:
    with closing(KnownPosition(path)) as known:
        yield known


def test_new_file_is_reached_by_every_position(known: KnownPosition) -> None:
    assert known.reached_by(ORIGIN)
    assert known.reached_by("1700000000000-0")


@pytest.mark.parametrize(
    ("position", "reached"),
    [
        ("1700000000000-4", False),
        ("1699999999999-9", False),
        (ORIGIN, False),
        ("1700000000000-5", True),
        ("1700000000000-6", True),
        ("1700000000001-0", True),
    ],
)
def test_position_is_reached_by_itself_and_later_ones(known: KnownPosition, position: str, reached: bool) -> None:
    known.raise_to("1700000000000-5")
    known.raise_to("1700000000000-3")  # never goes back
    assert known.reached_by(position) == reached


def test_another_process_sees_what_one_has_raised(known: KnownPosition, path: Path) -> None:
    with closing(KnownPosition(path)) as other:
        known.raise_to("7-1")
        assert not other.reached_by("7-0")
        other.raise_to("7-2")
        assert not known.reached_by("7-1")
    with closing(KnownPosition(path)) as later:
        assert not later.reached_by("7-1")
        assert later.reached_by("7-2")


def test_sequence_number_beyond_the_bits_tells_nothing(known: KnownPosition) -> None:
    known.raise_to(f"7-{SEQUENCE_MASK - 1}")
    assert known.reached_by(f"7-{SEQUENCE_MASK - 1}")
    known.raise_to(f"7-{SEQUENCE_MASK + 5}")
    assert not known.reached_by(f"7-{SEQUENCE_MASK + 9}")
    known.raise_to("8-0")
    assert known.reached_by("8-0")


def test_ended_position_is_reached_by_none(known: KnownPosition) -> None:
    known.end()
    assert not known.reached_by(f"{NEVER}-{NEVER}")


def raise_odd_or_even(path: Path, first: int) -> None:
    with closing(KnownPosition(path)) as known:
        for n in range(first, 2 * RAISED, 2):
            known.raise_to(f"{n}-0")
            assert not known.reached_by(f"{n - 1}-0")


def test_two_processes_that_raise_it_never_lower_it(known: KnownPosition, path: Path) -> None:
    context = get_context("spawn")
    processes = [context.Process(target=raise_odd_or_even, args=(path, first)) for first in (1, 2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert known.reached_by(f"{2 * RAISED - 1}-0")
    assert not known.reached_by(f"{2 * RAISED - 2}-0")


@pytest.fixture
def positions(tmp_path: Path) -> Iterator[KnownPositions]:
    with closing(KnownPositions(tmp_path)) as positions:
        yield positions
        shutil.rmtree(place_of(tmp_path))


def place_of(data_folder: Path) -> Path:
    return Path((data_folder / PLACE).read_text())


def test_positions_of_tenants_are_apart_and_end_one_by_one(positions: KnownPositions) -> None:
    with positions.open("acme", "1") as acme, positions.open("acme", "2") as anew, positions.open("default", "") as own:
        acme.raise_to("7-0")
        positions.end("acme", "1")
        positions.end("acme", "3")  # which nobody has opened
        assert [one.reached_by("8-0") for one in (acme, anew, own)] == [False, True, True]
        positions.doubt_all(0.0085)
        assert [one.reached_by("8-9") for one in (acme, anew, own)] == [False, True, True]
        positions.doubt_all(0.009)
        assert [one.reached_by("8-9") for one in (anew, own)] == [False, False]
        assert [one.reached_by("9-0") for one in (anew, own)] == [True, True]


def test_files_of_tenants_that_are_no_more_are_forgotten(positions: KnownPositions, tmp_path: Path) -> None:
    for tenant in (("acme", "1"), ("acme", "2"), ("default", "")):
        with positions.open(*tenant):
            pass
    positions.forget_others({"acme": "2"})
    assert sorted(path.name for path in place_of(tmp_path).iterdir()) == ["acme-2", "default"]


def test_processes_of_a_data_folder_share_its_place_in_memory(positions: KnownPositions, tmp_path: Path) -> None:
    with (
        closing(KnownPositions(tmp_path)) as other,
        positions.open("default", "") as known,
        other.open("default", "") as there,
    ):
        known.raise_to("7-1")
        assert not there.reached_by("7-0")
    assert place_of(tmp_path).parent == MEMORY


def test_place_that_is_gone_is_made_anew_by_a_process_that_is_alone(tmp_path: Path) -> None:
    with closing(KnownPositions(tmp_path)):
        first = place_of(tmp_path)
    shutil.rmtree(first)  # as when the machine is started again
    with closing(KnownPositions(tmp_path)) as positions, positions.open("default", "") as known:
        assert known.reached_by(ORIGIN)
        assert place_of(tmp_path) != first
        shutil.rmtree(place_of(tmp_path))


def test_process_that_does_not_see_the_place_of_another_is_refused(positions: KnownPositions, tmp_path: Path) -> None:
    seen = place_of(tmp_path)
    hidden = seen.rename(seen.with_name(f"{seen.name}-hidden"))  # as in another container
    with pytest.raises(EmbeddedRedisError, match="NOTELLM_REDIS_URL"):
        KnownPositions(tmp_path)
    hidden.rename(seen)
    KnownPositions(tmp_path).close()


def test_without_files_in_memory_the_data_folder_is_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.store.known_position.MEMORY", tmp_path / "nowhere")
    with closing(KnownPositions(tmp_path)) as positions, positions.open("default", "") as known:
        assert known.reached_by(ORIGIN)
        assert place_of(tmp_path).parent == tmp_path


@pytest.fixture
async def stores(embedded: EmbeddedRedis, path: Path, clock: Clock) -> AsyncIterator[list[RedisNoteStore]]:
    """Two stores on one server. The first writes and dies before anybody hears of it; the second has the file."""
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
    first = await put(store, stored_note("a", "soup"))
    second = await put(store, stored_note("b", "soup"))
    assert (store.is_newest(first), store.is_newest(second)) == (False, True)
    removal = await store.delete("a")
    assert removal
    assert (store.is_newest(second), store.is_newest(removal)) == (False, True)
    (bulk,) = await store.delete_all([("b", None)])
    assert bulk
    assert (store.is_newest(removal), store.is_newest(bulk)) == (False, True)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "answer",
    ["note", "no-note", "no-removal", "no-removals", "condition", "condition-of-put", "log", "bounds", "tail", "claim"],
)
async def test_position_is_known_to_who_hears_of_a_change_by_another_answer(
    stores: list[RedisNoteStore], answer: str
) -> None:
    dying, store = stores
    before = await put(store, stored_note("a", "soup"))
    attempt = Attempt("key", "fingerprint")
    (claim,) = await dying.claim([attempt], 60, 60)
    after = await put(dying, stored_note("b", "soup"), Remembered(claim, b"answer"))
    assert store.is_newest(before)  # nobody was told of the other's write
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
            (known,) = await store.claim([attempt], 60, 60)
            assert known.earlier
    assert (store.is_newest(before), store.is_newest(after)) == (False, True)


@pytest.mark.anyio
async def test_store_that_others_write_to_is_never_known_to_be_the_newest(stores: list[RedisNoteStore]) -> None:
    position = await put(stores[0], stored_note("a", "soup"))
    assert not stores[0].is_newest(position)
