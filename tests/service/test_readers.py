"""Readers: what becomes of processes that do not start. What they serve is tested in api/test_readers.py."""

from __future__ import annotations

import asyncio
import io
import signal
from pathlib import Path

import orjson
import pytest
import structlog

from service.cli.reader import ORPHANED, answer_parent
from service.readers import Readers, ReaderStart, samples_of
from service.telemetry import Telemetry
from tests.service.conftest import eventually

pytestmark = pytest.mark.anyio
START = ReaderStart("model", "space", 4, 0.0, embedded=False)
HALF_MUTE = """
import os, pathlib, sys
try:
    pathlib.Path(os.environ["FOLDER"], "first").touch(exist_ok=False)
    mute = False
except FileExistsError:
    mute = True
print("ready", flush=True)
for line in sys.stdin:
    if line == "stop\\n":
        break
    if not mute:
        print('[%d, {"notellm_items": []}]' % int(line), flush=True)
"""
"""Program of a reader: the first process answers each line, all later ones none, until they are to end."""


async def test_reader_that_cannot_start_is_tried_again_and_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.readers.MODULE", "service.no_such_module")
    restarts: list[None] = []
    readers = Readers(1)
    listener = readers.listen()
    assert listener is not None
    with listener:
        readers.start(START, "redis://none", lambda: restarts.append(None))
        assert not readers.tried
        await eventually(lambda: len(restarts) > 1)
        assert readers.tried
        assert readers.ready == 0
        await readers.stop(5)


async def test_reader_that_answers_no_more_is_killed_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two readers one answers each line, and the other none, though its process lives."""
    (tmp_path / "half_mute.py").write_text(HALF_MUTE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("FOLDER", str(tmp_path))
    for name, value in {
        "MODULE": "half_mute",
        "METRICS_SECONDS": 0.5,
        "CHECK_SECONDS": 0.02,
        "MAX_UNANSWERED": 4,
    }.items():
        monkeypatch.setattr(f"service.readers.{name}", value)
    restarts: list[None] = []
    readers = Readers(2)
    listener = readers.listen()
    assert listener is not None
    with listener, structlog.testing.capture_logs() as lines:
        readers.start(START, "redis://none", lambda: restarts.append(None))
        await eventually(lambda: restarts)
        await readers.stop(5)
    gone = [line for line in lines if line["event"] == "reader_gone"]
    assert {line["status"] for line in gone} == {-signal.SIGKILL}
    assert len({line["reader"] for line in gone}) == 1


def test_question_is_answered_where_the_event_loop_runs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr("os._exit", ended.append)
    registry, answers = Telemetry().registry, io.BytesIO()
    runs = iter([True, False, True])
    answer_parent(io.BytesIO(b"1\n2\n3\n"), answers, registry, lambda: next(runs), lambda: None, lambda: None)
    assert [orjson.loads(line)[0] for line in answers.getvalue().splitlines()] == [1, 3]
    assert ended == [ORPHANED]


async def test_readers_that_were_stopped_are_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.readers.MODULE", "service.no_such_module")
    before, readers = asyncio.all_tasks(), Readers(1)
    listener = readers.listen()
    assert listener is not None
    with listener:
        await readers.stop(5)
        readers.start(START, "redis://none", lambda: None)
        assert asyncio.all_tasks() == before, "no task that would start one"


async def test_connections_that_a_reader_refuses_or_ends_are_told_with_its_metrics() -> None:
    telemetry = Telemetry()
    telemetry.refused_connections.inc()
    telemetry.ended_connections.labels("malformed").inc()
    samples = samples_of(telemetry.registry)
    assert ("notellm_connections_refused_total", {}, 1.0) in samples["notellm_connections_refused"]
    ended = ("notellm_connections_ended_total", {"reason": "malformed"}, 1.0)
    assert ended in samples["notellm_connections_ended"]
