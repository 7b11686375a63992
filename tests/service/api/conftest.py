"""A real service on a loopback port: uvicorn, the embedded Redis, FAISS, and a tiny checkpoint."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx2
import pytest
import uvicorn

from service.api import connection_watch, protocol, unsent_answers
from service.api.http_server import http_config
from service.api.protocol import BoundedProtocol
from service.lifecycle import Lifecycle
from service.settings import Settings
from service.tracing import Tracer
from service.wiring import build_app
from tests.service.api.connections import SHORT
from tests.service.process import cache_of

SAMPLES = 20
Serve = Callable[..., contextlib.AbstractContextManager[str]]


@contextlib.contextmanager
def serving(
    settings: Settings,
    wait: bool = True,
    tracer: Tracer | None = None,
    more_listeners: Sequence[socket.socket] = (),
    make_server: Callable[[uvicorn.Config], uvicorn.Server] = uvicorn.Server,
) -> Iterator[str]:
    """Run a service in a thread while the block lasts, and yield its address. `wait`: whether to wait for its start."""
    lifecycle = Lifecycle()
    with socket.create_server((settings.host, 0)) as listener:
        server = make_server(http_config(build_app(settings, lifecycle, tracer), settings.shutdown_seconds))
        thread = threading.Thread(target=server.run, args=([listener, *more_listeners],))
        thread.start()
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            if wait:
                eventually_true(lambda: lifecycle.started or lifecycle.failure is not None, 60)
                assert lifecycle.failure is None
            yield url
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="session")
def serve(tiny_checkpoint: Path) -> Iterator[Serve]:
    """Return a function that starts a service with the tiny checkpoint and any settings."""
    folder = Path(tempfile.mkdtemp(prefix="nl-"))  # short, since a unix socket's path has a length limit

    def start(
        wait: bool = True,
        tracer: Tracer | None = None,
        more_listeners: Sequence[socket.socket] = (),
        make_server: Callable[[uvicorn.Config], uvicorn.Server] = uvicorn.Server,
        **settings: object,
    ) -> contextlib.AbstractContextManager[str]:
        name = f"{len(list(folder.iterdir()))}"
        defaults = {"checkpoint": str(tiny_checkpoint), "cache_dir": cache_of(tiny_checkpoint)}
        defaults |= {"data_dir": folder / name, "sample_notes": 0}
        defaults |= {"min_category_probability": 0.0}  # an untrained model is sure of nothing
        return serving(Settings.model_validate(defaults | settings), wait, tracer, more_listeners, make_server)

    yield start
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def url(serve: Serve) -> Iterator[str]:
    """Address of the service that most tests share."""
    limits = {"max_note_bytes": 2**18, "max_body_bytes": 2**20, "max_batch_notes": 50, "max_k": 50, "queue_notes": 45}
    with serve(sample_notes=SAMPLES, filter_attributes=("language", "seats"), **limits) as address:
        yield address


@pytest.fixture(autouse=True, scope="module")
def patient_reads() -> Iterator[None]:
    """Let reads wait up to a minute for the store, so that no answer is degraded on a busy machine. Tests of this bound
    set it themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.read_time.READ_SECONDS", 60.0)
        yield


@pytest.fixture(autouse=True)
def tenants_opened_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a tenant's first request wait up to 30 s until the tenant is open, for slow machines. Tests of this bound set
    it themselves."""
    monkeypatch.setattr("service.tenants.OPEN_SECONDS", 30.0)


@pytest.fixture
def client(url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, timeout=60) as opened:
        yield opened


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set each timeout of a connection to SHORT seconds."""
    monkeypatch.setattr(connection_watch, "CHECK_SECONDS", 0.02)
    for name in ("HEAD_SECONDS", "BODY_SECONDS"):
        monkeypatch.setattr(protocol, name, SHORT)
    monkeypatch.setattr(unsent_answers, "ANSWER_SECONDS", SHORT)


def eventually_true(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def sizes_written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that collects the number of bytes of each further write to a caller."""
    sizes: list[int] = []
    write = BoundedProtocol.write

    def record(self: BoundedProtocol, data: bytes | bytearray | memoryview) -> None:
        sizes.append(len(data))
        write(self, data)

    monkeypatch.setattr(BoundedProtocol, "write", record)
    return sizes


def gauge(client: httpx2.Client, name: str) -> float:
    """Return the value of a metric. `name`: its name and labels as in /metrics."""
    values = [line.split()[-1] for line in client.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
    return float(values[0])


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    return eventually_true


def pytest_itemcollected(item: pytest.Item) -> None:
    """Add the operation to the id of each of schemathesis's tests. Otherwise they would share one id, and pytest-xdist
    would run only one of them."""
    if operation := getattr(item, "operation_label", None):
        item._id = item.id.parse(f"{item.nodeid}[{operation}]")  # pytest has no public way to name an item
