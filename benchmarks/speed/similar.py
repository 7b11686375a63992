"""Related notes over HTTP from a store of a million, against an endpoint that returns a stored answer; and how long a
change takes to be searchable, against one transaction that the disk has.

.venv/bin/python benchmarks/speed/similar.py DATA/microlens50k/notes.jsonl.gz [ROWS]

Texts of real notes, vectors as in index.py, of a million ROWS. Fifteen minutes; nothing else should run.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import redis
import uvicorn
import uvloop
from fastapi import FastAPI, Response

from benchmarks.harness.report import row, write
from benchmarks.harness.service_process import Running
from benchmarks.speed.index import base_vectors, enlarged
from benchmarks.speed.ingest_and_query import percentile
from model.data.dataset import read_notes
from model.inference.engine import Engine
from service.interfaces import Clock
from service.records import StoredNote, Write
from service.settings import Settings
from service.store.embedded_redis import EmbeddedRedis
from service.store.redis_store import LOG_ENTRIES, NOTE, PUT, RedisNoteStore
from service.wiring import open_service

BATCH = 512
CONNECTIONS = 16
SECONDS = 10.0
OPEN_CONNECTIONS = 64
CHANGES = 500
PROBE = "{notes}:probe"
ANSWER = "NOTELLM_BENCHMARK_ANSWER"


class Client(asyncio.Protocol):
    """One connection that is kept: a request goes out once the answer before it is whole. As little as there can be of
    it, since it shares the processor with whom it measures."""

    def __init__(self) -> None:
        self._answer = bytearray()
        self._whole: asyncio.Future[bytes] | None = None
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head = self._answer.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self._answer.find(b"content-length: ") + len(b"content-length: ")
        size = int(self._answer[at : self._answer.find(b"\r\n", at)])
        if len(self._answer) >= head + 4 + size and self._whole is not None:
            whole, self._answer = bytes(self._answer), bytearray()
            self._whole.set_result(whole)

    def connection_lost(self, error: Exception | None) -> None:
        if self._whole is not None and not self._whole.done():
            self._whole.set_exception(error or ConnectionResetError())

    async def get(self, request: bytes) -> bytes:
        """The body of the answer, which must be a 200."""
        self._whole = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        answer = await self._whole
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(answer.decode())
        return answer.partition(b"\r\n\r\n")[2]


Ask = Callable[[], bytes]


async def connect(port: int, count: int) -> list[Client]:
    loop = asyncio.get_running_loop()
    return [(await loop.create_connection(Client, "127.0.0.1", port))[1] for _ in range(count)]


async def closed_loop(port: int, ask: Ask) -> float:
    """Requests a second of CONNECTIONS clients, each of which asks again once it is answered."""
    until, done = time.perf_counter() + SECONDS, 0

    async def work(client: Client) -> None:
        nonlocal done
        while time.perf_counter() < until:
            await client.get(ask())
            done += 1

    clients = await connect(port, CONNECTIONS)
    started = time.perf_counter()
    await asyncio.gather(*map(work, clients))
    return done / (time.perf_counter() - started)


async def open_loop(port: int, ask: Ask, rate: float) -> list[float]:
    """Seconds of each request, from when it was due: they come at random times, `rate` a second, however the ones
    before them are doing."""
    chance, free, seconds = random.Random(1), asyncio.Queue[Client](), list[float]()
    for client in await connect(port, OPEN_CONNECTIONS):
        free.put_nowait(client)

    async def once(due: float) -> None:
        client = await free.get()
        await client.get(ask())
        seconds.append(time.perf_counter() - due)
        free.put_nowait(client)

    due, tasks = time.perf_counter(), list[asyncio.Task[None]]()
    for _ in range(int(rate * SECONDS)):
        due += chance.expovariate(rate)
        await asyncio.sleep(due - time.perf_counter())
        tasks.append(asyncio.create_task(once(due)))
    await asyncio.gather(*tasks)
    return seconds


def asking(paths: Sequence[str]) -> Ask:
    """One of them at random, each time."""
    requests = [f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode() for path in paths]
    chance = random.Random(2)
    return lambda: chance.choice(requests)


def serve_stored(port: int) -> None:
    """What a cache in front of a service would be: FastAPI, and an answer that is there."""
    app, answer = FastAPI(), orjson.loads(os.environ[ANSWER])

    @app.get("/stored")
    async def stored() -> Response:
        return Response(orjson.dumps(answer), media_type="application/json")

    uvicorn.run(app, port=port, log_level="error", access_log=False)


@contextmanager
def stored_answer(answer: bytes) -> Iterator[int]:
    """The port of a process that serves it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, __file__, "stored", str(port)], env=os.environ | {ANSWER: answer.decode()}
    )
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.wait()


def notes_of(path: Path, rows: int) -> Iterator[list[StoredNote]]:
    """Batches of real notes, over and over again under other ids, with vectors made of theirs."""
    engine = Engine.load(cache=Settings().cache_dir)
    real = [note for note in read_notes(path).values() if note.title]
    bases = base_vectors(path)
    assert bases.shape[1] == engine.dimension
    for begin in range(0, rows, BATCH):
        count = min(BATCH, rows - begin)
        vectors = enlarged(bases, count, begin)
        yield [
            StoredNote(replace(real[n % len(real)], id=f"n{n}", author=f"a{n % 1000}"), engine.space, vector)
            for n, vector in zip(range(begin, begin + count), vectors, strict=True)
        ]


async def fill(url: str, notes: Path, rows: int) -> float:
    """Notes a second that a store takes."""
    store, seconds = RedisNoteStore(url, clock=Clock()), 0.0
    for batch in notes_of(notes, rows):
        started = time.perf_counter()
        await store.put([Write(stored) for stored in batch])
        seconds += time.perf_counter() - started
    await store.close()
    return rows / seconds


def build_rate(log: Path) -> int:
    """Notes a second of the building from the store, as it told last."""
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    told = [line for line in lines if line["event"] == "index_building"]
    return int(told[-1]["a_second"]) if told else 0


def transactions(url: str) -> list[float]:
    """Seconds of each of CHANGES writes of a note's own bytes, which the disk has when they are answered; to keys that
    no service follows."""
    client, seconds = redis.Redis.from_url(url), []
    for number in range(CHANGES):
        fields = client.hmget(f"{NOTE}n{number}", "document", "vector", "space")
        began = time.perf_counter()
        client.eval(PUT, 2, f"{PROBE}{number}", PROBE, "", f"n{number}", *fields, "", LOG_ENTRIES, "")
        seconds.append(time.perf_counter() - began)
    client.delete(PROBE, *(f"{PROBE}{number}" for number in range(CHANGES)))
    return seconds


async def changes(port: int) -> list[float]:
    """Seconds of each of CHANGES of a note's author, until it is searchable: no model is needed for them."""
    (client,), seconds = await connect(port, 1), []
    for number in range(CHANGES):
        body = orjson.dumps({"author": f"changed {number}"})
        head = f"PATCH /notes/n{number} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        began = time.perf_counter()
        await client.get(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        seconds.append(time.perf_counter() - began)
    return seconds


async def changes_inside(data: Path) -> list[float]:
    """The same in this process, without HTTP: from when the change is asked for until it is searchable."""
    settings, seconds = Settings(data_dir=data, sample_notes=0), []
    async with open_service(settings, progress=lambda _: None) as service:
        gc.freeze()  # as the service does
        for number in range(CHANGES):
            author = f"changed again {number}"
            began = time.perf_counter()
            await service.recommender.change(f"n{number}", partial(replace, author=author))
            seconds.append(time.perf_counter() - began)
    return seconds


def told(seconds: Sequence[float]) -> str:
    return " / ".join(f"{1000 * percentile(list(seconds), q):.1f}" for q in (50, 95, 99))


def main(notes: Path, rows: int) -> None:
    with tempfile.TemporaryDirectory(prefix="nl-") as folder:
        service = Running(Path(folder))
        service.environment["NOTELLM_LOG_FORMAT"] = "json"
        store = EmbeddedRedis(Path(folder) / "data")
        try:
            store.start()
            filled = run(fill(store.url, notes, rows))
            built = service.start()
            rate = build_rate(Path(folder) / "serve.log")
            port = int(service.url.rpartition(":")[2])
            ask = asking([f"/notes/n{number}/similar?k=10" for number in range(0, rows, max(1, rows // 10_000))])
            answer = run(one(port, ask()))
            run(closed_loop(port, ask))  # warms up
            ours = run(closed_loop(port, ask))
            open_ours = run(open_loop(port, ask, ours / 2))
            with stored_answer(answer) as other:
                theirs = run(closed_loop(other, asking(["/stored"])))
                open_theirs = run(open_loop(other, asking(["/stored"]), ours / 2))
            bare = transactions(store.url)
            changed = run(changes(port))
            mib = service.resident_mib()
            service.end()
            again = service.start()
            service.end()
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                inside = runner.run(changes_inside(Path(folder) / "data"))
        finally:
            service.end()
            store.stop()
    p50, p99 = (percentile(open_ours, q) for q in (50, 99))
    bare99, changed99, inside99 = (percentile(each, 99) for each in (bare, changed, inside))
    write(f"similar_{rows}", [
        row(f"{rows:,} notes written to the store", round(filled), "notes/s"),
        row("first start, the index built from the store", round(built), "s", against=f"told: {rate} notes a second"),
        row("start from its snapshot", round(again, 1), "s"),
        row("memory of the service", mib, "MiB"),
        row(f"similar, requests a second of {CONNECTIONS} clients", round(ours), "",
            against=f"a stored answer of {len(answer)} bytes: {theirs:.0f}, so {ours / theirs:.2f}x",
            reach="0.4x or more", held=ours >= 0.4 * theirs),
        row(f"similar at random times, {ours / 2:.0f} a second, p50 / p95 / p99", told(open_ours), "ms",
            against=f"the stored answer as often: {told(open_theirs)} ms; p99 is {p99 / p50:.1f}x p50",
            reach="10x or less", held=p99 <= 10 * p50),
        row("a note's author changed, until searchable, p50 / p95 / p99", told(changed), "ms",
            against=f"one write that the disk has: {told(bare)} ms, so p99 is {changed99 / bare99:.1f}x",
            reach="3x or less", held=changed99 <= 3 * bare99),
        row("the same inside the service, without HTTP", told(inside), "ms",
            against=f"one write that the disk has: {told(bare)} ms, so p99 is {inside99 / bare99:.1f}x",
            reach="3x or less", held=inside99 <= 3 * bare99),
    ])  # fmt: skip


async def one(port: int, request: bytes) -> bytes:
    (client,) = await connect(port, 1)
    return await client.get(request)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Without the garbage collector: its pauses, 0.1 s with all that is imported here, were told as the service's."""
    gc.disable()
    try:
        with asyncio.Runner() as runner:
            return runner.run(work)
    finally:
        gc.enable()


if __name__ == "__main__":
    if sys.argv[1] == "stored":
        serve_stored(int(sys.argv[2]))
    else:
        main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000)
