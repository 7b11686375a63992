"""Fuzzing of a real process with raw bytes: no failure, hang or growth, and each connection is answered or closed.

2,000 requests here; `make fuzz` sends 100,000. A failure prints the seed and the number of its request.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx2
import pytest

from tests.service.process import Process, running
from tests.service.raw_requests import RawRequest, raw_request

REQUESTS = int(os.environ.get("NOTELLM_FUZZ_REQUESTS", "2000"))
SEED = int(os.environ.get("NOTELLM_FUZZ_SEED", "0"))
AT_ONCE = 16
HANG_SECONDS = 60.0
MAX_GROWTH_MIB = 50
pytestmark = [pytest.mark.slow, pytest.mark.timeout(120 + REQUESTS // 20)]
Outcome = Callable[[int, str], Awaitable[None]]


async def outcome(port: int, request: RawRequest, stay: bool) -> str:
    """Send a request; return the status of the answer, "closed", "hang" or "junk". `stay`: keep the sending side open,
    as the caller of a complete request does."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        with contextlib.suppress(OSError):  # the request may be refused before all of it is sent
            for part in request.parts:
                writer.write(part)
                await writer.drain()
            if not stay:
                writer.write_eof()
        async with asyncio.timeout(HANG_SECONDS):
            answer = await reader.read(65536)
        return answer[9:12].decode("latin-1") if answer.startswith(b"HTTP/1.1 ") else "closed" if not answer else "junk"
    except TimeoutError:
        return "hang"
    except OSError:
        return "closed"
    finally:
        writer.close()


async def fuzz(port: int, numbers: range) -> tuple[Counter[str], list[tuple[int, str, RawRequest]]]:
    """Send the requests with these numbers; return counts of the outcomes, and the requests with a forbidden one."""
    outcomes: Counter[str] = Counter()
    wrong: list[tuple[int, str, RawRequest]] = []
    left = iter(numbers)

    async def send() -> None:
        for number in left:
            rng = random.Random(f"{SEED}-{number}")
            request = raw_request(rng)
            stay = request.complete and rng.random() < 0.8
            told = await outcome(port, request, stay)
            outcomes[told] += 1
            if told in ("500", "hang", "junk") or (told == "408" and stay):  # the end of the request was missed
                wrong.append((number, told, request))

    await asyncio.gather(*(send() for _ in range(AT_ONCE)))
    return outcomes, wrong


def resident_mib(process: Process) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) // 1024


def failures(url: str) -> list[str]:
    lines = httpx2.get(f"{url}/metrics").text.splitlines()
    return [line for line in lines if 'code="500"' in line and "_count{" in line]


def test_raw_requests_are_answered_or_closed(tiny_checkpoint: Path) -> None:
    with running(tiny_checkpoint) as process:
        port = httpx2.URL(process.url).port
        assert port is not None
        warm = REQUESTS // 4
        first, wrong = asyncio.run(fuzz(port, range(warm)))
        before = resident_mib(process)
        second, more_wrong = asyncio.run(fuzz(port, range(warm, REQUESTS)))
        growth = resident_mib(process) - before
        print(f"seed {SEED}, {REQUESTS} requests, growth {growth} MiB, {dict(first + second)}")
        assert [*wrong, *more_wrong] == []
        assert failures(process.url) == []
        assert "request_failed" not in process.log
        assert "Traceback" not in process.log
        assert growth <= MAX_GROWTH_MIB
        note = httpx2.post(f"{process.url}/notes", json={"title": "after it all"})
        assert note.status_code == 201
