"""Sample notes: a store that never held a note gets all of them once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast
from unittest.mock import Mock

import pytest

from model.note import Note
from service.container import Service
from service.errors import IndexBehind
from service.recommender import Recommender
from service.records import StoredNote
from service.samples import BATCH_SIZE, load_samples
from service.settings import Settings
from tests.service.conftest import GatedStore, stored_note
from tests.service.index.live_steps import put

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
WANTED = 3 * BATCH_SIZE


class Killed(BaseException):
    """Ends the loading of samples as a signal would."""


@pytest.fixture
def service(embedded_store: GatedStore, recommender: Recommender) -> Service:
    settings = Settings.model_validate({"sample_notes": WANTED})
    return cast(Service, Mock(settings=settings, store=embedded_store, recommender=recommender))


async def load(service: Service) -> int:
    """Load the samples as a start does, and return the number of notes in the store."""
    await load_samples(service, lambda message: None)
    return len([note async for notes in service.store.scan() for note in notes if isinstance(note, StoredNote)])


async def test_samples_are_loaded_once(service: Service) -> None:
    assert await load(service) == WANTED
    await service.recommender.remove("sample-en-001")
    assert await load(service) == WANTED - 1


async def test_samples_do_not_enter_a_used_store(service: Service, embedded_store: GatedStore) -> None:
    await put(embedded_store, stored_note())
    assert await load(service) == 1
    await service.recommender.remove("a")
    assert await load(service) == 0


async def test_samples_go_on_where_a_kill_ended_them(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, calls = Recommender.add, 0

    async def add(recommender: Recommender, notes: Sequence[Note], *rest: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Killed
        return await whole(recommender, notes, *rest)

    monkeypatch.setattr(Recommender, "add", add)
    with pytest.raises(Killed):
        await load(service)
    assert await load(service) == WANTED


async def test_samples_that_another_process_has_loaded_are_not_written_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, removed = Recommender.add, False

    async def add(recommender: Recommender, notes: Sequence[Note], *rest: Any) -> Any:
        nonlocal removed
        added = await whole(recommender, notes, *rest)
        if not removed:
            removed = True
            await load(service)  # the other process
            await service.recommender.remove("sample-en-020")
        return added

    monkeypatch.setattr(Recommender, "add", add)
    assert await load(service) == WANTED - 1


@pytest.mark.parametrize("used", ["written", "removed"])
async def test_interrupted_loading_does_not_go_on_in_a_store_that_was_used(
    service: Service, embedded_store: GatedStore, monkeypatch: pytest.MonkeyPatch, used: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(embedded_store, "mark_samples_loaded", killed)
        with pytest.raises(Killed):
            await load(service)
    if used == "written":
        await put(embedded_store, stored_note())
    else:
        await service.recommender.remove("sample-en-001")
    expected = WANTED + 1 if used == "written" else WANTED - 1
    assert await load(service) == expected
    await service.recommender.remove("sample-en-002")
    assert await load(service) == expected - 1


async def test_interrupted_loading_leaves_an_edited_sample_as_it_is(
    service: Service, embedded_store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(embedded_store, "mark_samples_loaded", killed)
        with pytest.raises(Killed):
            await load(service)
    await put(embedded_store, stored_note("sample-en-001", "edited"))
    assert await load(service) == WANTED
    (edited,) = await embedded_store.get(["sample-en-001"])
    assert isinstance(edited, StoredNote)
    assert edited.note.title == "edited"


async def test_index_that_falls_behind_ends_the_loading_and_not_the_start(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Recommender.add

    async def add(recommender: Recommender, notes: Sequence[Note], *rest: Any) -> Any:
        await whole(recommender, notes, *rest)
        raise IndexBehind("2-0", "1-0")

    with monkeypatch.context() as patch:
        patch.setattr(Recommender, "add", add)
        assert await load(service) == BATCH_SIZE
    assert await load(service) == WANTED


async def killed() -> None:
    raise Killed
