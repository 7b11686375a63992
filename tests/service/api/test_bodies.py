"""Bodies with lists: they are split as a parser would, with little work between two iterations of the event loop."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.api import bodies
from service.api.bodies import (
    MAX_CONTAINERS,
    SLICE_BYTES,
    SLICE_SECONDS,
    TimeSlices,
    body_lines,
    list_items,
    parse_json,
)
from service.errors import InvalidInput, MalformedBody

pytestmark = pytest.mark.anyio
TEXTS = st.text(st.sampled_from('a"\\[]{},: \n\u00e9\u4eac'), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


async def items_of(body: bytes) -> list[bytes]:
    return [item async for item in list_items(body, TimeSlices())]


@pytest.mark.parametrize("window", [2, 3, 7, 2**16])
def test_list_items_equal_those_of_the_parser(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "SLICE_BYTES", window)

    @settings(max_examples=150, deadline=None)
    @given(values=st.lists(VALUES, max_size=6), pretty=st.booleans())
    def check(values: list[Any], pretty: bool) -> None:
        body = orjson.dumps(values, option=orjson.OPT_INDENT_2 if pretty else None)
        items = asyncio.run(items_of(b" \n" + body + b"\n "))
        assert [orjson.loads(item) for item in items] == values

    check()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"[",
        b'["',
        b'["\\',
        b'["]',
        b"[1",
        b"[1] 2",
        b"[[]",
        b"[]]",
        b"[{]}]",
        b"[}",
        b"[0}",
        b'[{"a":1}}',
        b"[[]}",
        b"[" * 100_000,
    ],
)
async def test_body_that_is_empty_or_no_whole_list_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedBody):
        await items_of(body)


@pytest.mark.parametrize("body", [b"{}", b"3", b"null"])
async def test_body_that_is_no_list_is_not_valid(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        await items_of(body)


@pytest.mark.parametrize("body", [b"[,]", b"[1,]", b"[,1]", b"[1,,2]", b"[1 2]"])
async def test_broken_list_item_is_malformed_when_parsed(body: bytes) -> None:
    items = await items_of(body)
    with pytest.raises(MalformedBody):
        [parse_json(item) for item in items]


@pytest.mark.parametrize("body", [b"[" * 200 + b"]" * 200, b"[" + b"{}," * MAX_CONTAINERS + b"1]"])
def test_too_many_containers_are_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        parse_json(body)


def test_brackets_within_strings_are_not_containers() -> None:
    text = '[{"\\' * 1000
    assert parse_json(orjson.dumps({"title": text})) == {"title": text}


@pytest.mark.parametrize("filler", [b" ", b"{},", b'"\\"",', b'"' + b"x" * 90_000 + b'",'])
async def test_list_scan_yields_after_each_slice(filler: bytes) -> None:
    body = b"[" + filler * (20 * SLICE_BYTES // len(filler)) + b"1]"
    recorded = Recorded(body)
    recorded.counted = SLICE_BYTES  # a longer piece is an item as sent, which is only copied
    async for _ in list_items(recorded, recorded.slices()):
        pass
    assert recorded.checks >= len(body) // SLICE_BYTES // 2
    assert recorded.most <= 2 * SLICE_BYTES + len(filler)


@pytest.mark.parametrize("filler", [b"\n", b" \n", b"1\n", b"x" * 90_000 + b"\n"])
async def test_reading_lines_yields_after_each_slice(filler: bytes) -> None:
    body = filler * (20 * SLICE_BYTES // len(filler))
    recorded = Recorded(body)
    async for _ in body_lines(recorded, recorded.slices()):
        pass
    assert recorded.checks >= len(body) // SLICE_BYTES // 2
    assert recorded.most <= SLICE_BYTES + len(filler)


@given(st.lists(st.sampled_from([b"", b" ", b"1", b'{"a": 2}', b"x" * SLICE_BYTES]), max_size=8))
def test_lines_are_those_that_are_not_blank(lines: list[bytes]) -> None:
    async def read() -> list[bytes]:
        return [line async for line in body_lines(b"\n".join(lines), TimeSlices())]

    assert asyncio.run(read()) == [line for line in lines if line.strip()]


class Recorded(bytes):
    """A body that records the most bytes read from it between two checks of its time slices, and counts the checks."""

    checks = most = 0
    counted = sys.maxsize
    """Pieces of more bytes do not count."""
    _since_check = 0

    def __getitem__(self, part: Any) -> Any:
        piece = super().__getitem__(part)
        if isinstance(part, slice) and len(piece) <= self.counted:
            self._since_check += len(piece)
            self.most = max(self.most, self._since_check)
        return piece

    def slices(self) -> TimeSlices:
        recorded = self

        class Counted(TimeSlices):
            async def check(self) -> None:
                recorded.checks += 1
                recorded._since_check = 0
                await super().check()

        return Counted()


async def test_work_of_a_time_slice_lets_other_tasks_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    now = 100.0
    slices, others = TimeSlices(), list[str]()
    task = asyncio.create_task(append(others, "ran"))
    now += SLICE_SECONDS / 2
    await slices.check()
    assert others == []
    now += SLICE_SECONDS / 2
    await slices.check()
    assert others == ["ran"]
    await task
    task = asyncio.create_task(append(others, "ran again"))
    now += SLICE_SECONDS / 2
    await slices.check()
    assert others == ["ran"], "the next time slice begins once the other tasks have run"
    await task


async def append(values: list[str], value: str) -> None:
    values.append(value)
