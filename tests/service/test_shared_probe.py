"""SharedProbe: callers that share one question are answered by one that was sent after all of them had come."""

from __future__ import annotations

import asyncio

import pytest

from service.errors import StoreUnavailable
from service.shared_probe import SharedProbe
from tests.service.conftest import eventually

pytestmark = pytest.mark.anyio


async def test_callers_during_a_question_share_the_next_one() -> None:
    asked, gate = list[int](), asyncio.Event()

    async def ask() -> int:
        asked.append(number := len(asked))
        await gate.wait()
        return number

    probe = SharedProbe(ask)
    first = [asyncio.create_task(probe.answer()) for _ in range(5)]
    await eventually(lambda: bool(asked))
    later = [asyncio.create_task(probe.answer()) for _ in range(50)]
    await asyncio.sleep(0)
    gate.set()
    assert await asyncio.gather(*first) == [0] * 5
    assert await asyncio.gather(*later) == [1] * 50
    assert asked == [0, 1]
    assert await probe.answer() == 2


async def test_caller_that_leaves_does_not_end_the_question_of_others() -> None:
    gate = asyncio.Event()

    async def ask() -> str:
        await gate.wait()
        return "well"

    probe = SharedProbe(ask)
    leaving, staying = (asyncio.create_task(probe.answer()) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    gate.set()
    assert await staying == "well"


async def test_failure_is_told_and_the_next_caller_asks_again() -> None:
    answers = iter([StoreUnavailable("it is loading"), None])

    async def ask() -> str:
        if error := next(answers):
            raise error
        return "well"

    probe = SharedProbe(ask)
    with pytest.raises(StoreUnavailable, match="it is loading"):
        await probe.answer()
    assert await probe.answer() == "well"
