"""Reader processes that do not start, or do not answer. What they serve is tested in api/test_reader_processes.py."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
import structlog
from pydantic import SecretStr

from service import wiring
from service.cli.reader_process import ORPHANED, answer_parent
from service.reader_processes import ReaderProcess, ReaderProcesses, ReaderProcessStart, samples_of
from service.telemetry import Telemetry
from tests.service.conftest import eventually
from tests.service.process import alive

pytestmark = pytest.mark.anyio
START = ReaderProcessStart("model", "space", 4, 0.0, embedded=False)
ANSWERING = """
import pathlib, sys
print("ready", flush=True)
for line in sys.stdin:
    print('[%d, {{"notellm_items": []}}]' % int(line), flush=True)
    pathlib.Path({path!r}).write_text(str(int(line)))
"""
"""Program of a reader process that answers each line, and then writes its number to a file."""
HALF_MUTE = """
import os, pathlib, sys
mute = True
for name in ("answering", "mute"):
    try:
        with pathlib.Path(os.environ["FOLDER"], name).open("x") as file:
            file.write(str(os.getpid()))
        mute = name == "mute"
        break
    except FileExistsError:
        pass
print("ready", flush=True)
for line in sys.stdin:
    if line == "stop\\n":
        break
    if not mute:
        print('[%d, {"notellm_items": []}]' % int(line), flush=True)
"""
"""Program of a reader process: the first process answers each line, later ones answer none, until they are told to
stop. The first process of each kind writes its id to a file."""


async def test_reader_process_that_cannot_start_is_tried_again_and_waited_for_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.reader_processes.MODULE", "service.no_such_module")
    restarts: list[None] = []
    readers = ReaderProcesses(1)
    listener = readers.listen()
    assert listener is not None
    with listener:
        readers.start(START, "redis://none", lambda: restarts.append(None))
        assert not readers.tried
        await eventually(lambda: len(restarts) > 1)
        assert readers.tried
        assert readers.ready == 0
        await readers.stop(5)


async def test_reader_process_that_answers_no_more_is_killed_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run two reader processes, of which one answers each line, the other answers none."""
    (tmp_path / "half_mute.py").write_text(HALF_MUTE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("FOLDER", str(tmp_path))
    for name, value in {"MODULE": "half_mute", "CHECK_SECONDS": 0.02, "MAX_UNANSWERED": 4}.items():
        monkeypatch.setattr(f"service.reader_processes.{name}", value)
    restarts: list[None] = []
    readers = ReaderProcesses(2)
    listener = readers.listen()
    assert listener is not None
    with listener, structlog.testing.capture_logs() as lines:
        readers.start(START, "redis://none", lambda: restarts.append(None))
        await eventually(lambda: restarts and not alive(int((tmp_path / "mute").read_text())))
        await readers.stop(5)
    assert {line["status"] for line in lines if line["event"] == "reader_gone"} == {-signal.SIGKILL}


async def test_questions_are_answered_as_soon_as_the_event_loop_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    exits: list[int] = []
    monkeypatch.setattr("os._exit", exits.append)
    answers, calls = io.BytesIO(), list[Callable[[], None]]()

    def keep_call(take: Callable[[int], None], number: int) -> None:
        calls.append(partial(take, number))

    answer_parent(io.BytesIO(b"1\n2\n3\n"), answers, Telemetry().registry, keep_call, lambda: None, lambda: None)
    assert (exits, answers.getvalue()) == ([ORPHANED], b""), "a loop that hangs hides neither lines nor their end"
    for call in calls:
        call()
    await eventually(lambda: answers.getvalue().count(b"\n") == 3)
    assert [orjson.loads(line)[0] for line in answers.getvalue().splitlines()] == [1, 2, 3]


@contextlib.asynccontextmanager
async def reader_of(program: str) -> AsyncIterator[ReaderProcess]:
    """Run a reader process with this program while the block lasts; kill it at the end."""
    reader = ReaderProcess(1)
    running = asyncio.create_task(reader.run([sys.executable, "-c", program], os.environ))
    await eventually(lambda: reader.ready)
    try:
        yield reader
    finally:
        reader.send_signal(signal.SIGKILL)
        await running


async def test_reader_process_that_answers_late_is_not_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each question is given up before its answer comes.
    monkeypatch.setattr("service.reader_processes.METRICS_SECONDS", 0.0)
    monkeypatch.setattr("service.reader_processes.MAX_UNANSWERED", 4)
    answered = tmp_path / "answered"
    with structlog.testing.capture_logs() as lines:
        async with reader_of(ANSWERING.format(path=str(answered))) as reader:
            for number in range(1, 13):
                await reader.check()
                await eventually(lambda number=number: answered.exists() and answered.read_text() == str(number))
            assert reader.runs
    assert lines == []


@pytest.mark.parametrize("answer", ['[1, {"notellm_', "x" * 2**10 + "\n"], ids=["broken off", "too long"])
async def test_reader_process_whose_answer_cannot_be_read_has_no_samples(
    monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.setattr("service.reader_processes.MAX_LINE_BYTES", 2**8)
    program = f"import sys; print('ready', flush=True); sys.stdin.readline(); print({answer!r}, end='', flush=True)"
    async with reader_of(program) as reader:
        assert await reader.samples() == {}


async def test_failure_of_a_check_is_logged_and_reader_processes_are_checked_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checks = 0

    async def fail_once(self: ReaderProcess) -> None:
        nonlocal checks
        checks += 1
        if checks == 1:
            raise RuntimeError("broken")

    monkeypatch.setattr(ReaderProcess, "check", fail_once)
    monkeypatch.setattr("service.reader_processes.CHECK_SECONDS", 0.0)
    readers = ReaderProcesses(1)
    listener = readers.listen()
    assert listener is not None
    with listener, structlog.testing.capture_logs() as lines:
        readers.start(START, "redis://none", lambda: None)
        await eventually(lambda: checks > 1)
        await readers.stop(5)
    assert [line["exc_info"] for line in lines if line["event"] == "readers_not_checked"] == [True]


async def test_reader_processes_that_were_stopped_are_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.reader_processes.MODULE", "service.no_such_module")
    before, readers = asyncio.all_tasks(), ReaderProcesses(1)
    listener = readers.listen()
    assert listener is not None
    with listener:
        await readers.stop(5)
        readers.start(START, "redis://none", lambda: None)
        assert asyncio.all_tasks() == before, "no task that would start one"


async def test_connections_that_a_reader_process_refuses_or_ends_are_told_with_its_metrics() -> None:
    telemetry = Telemetry()
    telemetry.refused_connections.inc()
    telemetry.ended_connections.labels("malformed").inc()
    samples = samples_of(telemetry.registry)
    assert ("notellm_connections_refused_total", {}, 1.0) in samples["notellm_connections_refused"]
    ended = ("notellm_connections_ended_total", {"reason": "malformed"}, 1.0)
    assert ended in samples["notellm_connections_ended"]


async def test_start_of_the_reader_processes_waits_for_all_tenants_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tenant would use up all the time that it is given; a tenant that is being removed gets none."""
    now, waited, started = 1000.0, dict[str, float](), list[ReaderProcessStart]()

    def tenant(name: str, closing: bool = False) -> Any:
        async def save_merged(seconds: float) -> None:
            nonlocal now
            waited[name] = seconds
            now += seconds

        event = asyncio.Event()
        if closing:
            event.set()
        index = SimpleNamespace(save_merged=save_merged)
        return SimpleNamespace(service=SimpleNamespace(index=index), ready=True, closing=event)

    monkeypatch.setattr(wiring.time, "monotonic", lambda: now)
    shared: Any = SimpleNamespace(
        known=None, url=SecretStr("redis://r"), telemetry=SimpleNamespace(reader_restarts=SimpleNamespace(inc=None))
    )
    engine: Any = SimpleNamespace(name="model", space="space", dimension=4, mean_share=0.0)
    readers: Any = SimpleNamespace(start=lambda start, *rest: started.append(start))
    tenants: Any = [tenant("a"), tenant("leaving", closing=True), tenant("b"), tenant("c")]
    await wiring._start_reader_processes(readers, shared, engine, tenants)
    assert waited == {"a": wiring.MERGE_SECONDS, "b": 0, "c": 0}
    assert started == [START]
