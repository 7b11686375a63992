"""Tracing: the spans of requests, the caller's trace, and no tracing if no endpoint is configured."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx2
import pytest
import structlog

from service.tracing import ENDPOINTS, Tracer, open_tracer
from tests.service.api.conftest import Serve

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel is not installed")
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

TRACE_ID, CALLER_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALLER = {"traceparent": f"00-{TRACE_ID}-{CALLER_SPAN}-01"}
TEXT = "the secret of the lemon tart"
Eventually = Callable[[Callable[[], bool]], None]


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture(scope="module")
def traced_url(serve: Serve, exporter: InMemorySpanExporter) -> Iterator[str]:
    with serve(tracer=Tracer(SimpleSpanProcessor(exporter))) as address:
        httpx2.post(f"{address}/notes", json={"title": "the first write asks the store how durable it is"}, timeout=60)
        yield address


@pytest.fixture
def traced(traced_url: str, exporter: InMemorySpanExporter, eventually: Eventually) -> Iterator[httpx2.Client]:
    """A client of a service with tracing, whose exporter has no spans of earlier tests."""
    exporter.clear()
    with httpx2.Client(base_url=traced_url, timeout=60) as opened:
        yield opened


def spans_of(exporter: InMemorySpanExporter, eventually: Eventually, request: str) -> dict[str, Any]:
    """Return the last span of each name, once that of `request` has ended."""

    def spans() -> dict[str, Any]:
        return {span.name: span for span in exporter.get_finished_spans()}

    eventually(lambda: request in spans())
    return spans()


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/users/alice/events", "/users/.../events"),
        ("/users/ali%20alice/events", "/users/.../events"),
        ("/sessions/alice", "/sessions/..."),
        ("/notes/a/similar?k=1&user=alice", "/notes/a/similar"),
        ("/notes?author=alice&limit=1", "/notes"),
        ("/notes/a/similar?attribute=owner%3Dalice", "/notes/a/similar"),
    ],
)
def test_span_does_not_name_a_reader(
    traced: httpx2.Client, exporter: InMemorySpanExporter, path: str, told: str
) -> None:
    traced.request("GET" if "?" in path else "DELETE", path)
    traced.get("/limits")  # the span of a request ends before that of the next one on its connection
    spans = exporter.get_finished_spans()
    assert told in [span.attributes.get("url.path") for span in spans]
    assert not any("alice" in str(value) for span in spans for value in (span.name, *span.attributes.values()))


def test_post_of_a_note_gives_its_spans_below_the_request(
    traced: httpx2.Client, exporter: InMemorySpanExporter, eventually: Eventually
) -> None:
    assert traced.post("/notes", json={"title": TEXT}, headers=CALLER).status_code == 201
    spans = spans_of(exporter, eventually, "POST /notes")
    request = spans.pop("POST /notes")
    assert f"{request.parent.span_id:016x}" == CALLER_SPAN
    assert request.attributes["http.route"] == "/notes"
    assert request.attributes["http.response.status_code"] == 201
    spans.pop("store load keys", None)  # once a second, some request also loads the keys
    assert set(spans) == {"store get", "queue wait", "engine prefill", "store write", "index wait"}
    assert {f"{span.context.trace_id:032x}" for span in (request, *spans.values())} == {TRACE_ID}
    assert {span.parent.span_id for span in spans.values()} == {request.context.span_id}
    order = ["queue wait", "engine prefill", "store write", "index wait"]
    assert sorted(order, key=lambda name: spans[name].start_time) == order
    assert all(span.start_time <= span.end_time for span in spans.values())
    assert TEXT not in "".join(span.to_json() for span in (request, *spans.values()))


def test_generation_has_a_span_of_its_decode_steps(
    traced: httpx2.Client, exporter: InMemorySpanExporter, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    times, add = dict[str, tuple[float, float]](), Tracer.add

    def recorded(own: Tracer, name: str, began: float, ended: float, *arguments: Any) -> None:
        times[name] = began, ended
        add(own, name, began, ended, *arguments)

    monkeypatch.setattr(Tracer, "add", recorded)
    assert traced.post("/generate/hashtags", json={"title": TEXT, "count": 2, "policy": "open"}).status_code == 200
    spans = spans_of(exporter, eventually, "POST /generate/hashtags")
    request, decode = spans["POST /generate/hashtags"], spans["engine decode"]
    assert decode.parent.span_id == spans["engine prefill"].parent.span_id == request.context.span_id
    assert times["engine prefill"][1] == times["engine decode"][0]
    assert decode.end_time > decode.start_time


def test_similar_has_spans_of_index_and_store(
    traced: httpx2.Client, exporter: InMemorySpanExporter, eventually: Eventually
) -> None:
    note_id = traced.post("/notes", json={"title": "lemon tart"}).json()["id"]
    exporter.clear()
    options = {"k": 3, "diversity": 0.5}  # without an option the answer may come from memory
    assert traced.get(f"/notes/{note_id}/similar", params=options).status_code == 200
    spans = spans_of(exporter, eventually, "GET /notes/{note_id}/similar")
    assert spans["index search"].attributes["k"] >= 3
    assert "store get" in spans


def test_note_that_fails_in_the_engine_marks_its_span(
    traced: httpx2.Client, exporter: InMemorySpanExporter, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(engine: object) -> None:
        raise RuntimeError(TEXT)

    monkeypatch.setattr("model.inference.engine.Engine.step", fail)
    assert traced.post("/notes", json={"title": "lemon tart"}).status_code == 503
    spans = spans_of(exporter, eventually, "POST /notes")
    assert spans["engine prefill"].status.status_code is StatusCode.ERROR
    assert spans["POST /notes"].status.status_code is StatusCode.ERROR
    assert TEXT not in "".join(span.to_json() for span in spans.values())


def test_answer_and_log_line_name_the_trace(traced: httpx2.Client, eventually: Eventually) -> None:
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        answer = traced.get("/limits", headers=CALLER | {"x-request-id": "mine"})
        eventually(lambda: "mine" in [line.get("request_id") for line in lines])
    assert answer.headers["traceresponse"].split("-")[1] == TRACE_ID
    assert answer.headers["traceresponse"].split("-")[2] != CALLER_SPAN
    assert [line["trace_id"] for line in lines if line.get("request_id") == "mine"] == [TRACE_ID]


def test_without_an_endpoint_no_tracing_is_imported(client: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "traceresponse" not in client.get("/limits", headers=CALLER).headers
    for name in ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    check = (
        "import sys; from service.settings import Settings; from service.wiring import build_app; "
        "build_app(Settings()); "
        "tracing = ('opentelemetry.sdk.trace', 'opentelemetry.exporter'); "
        "print([name for name in sys.modules if name.startswith(tracing)])"
    )
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_sdk_that_is_disabled_gives_no_tracer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINTS[0], "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert open_tracer() is None


def test_missing_extra_is_logged_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINTS[0], "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with structlog.testing.capture_logs() as lines:
        assert open_tracer() is None
    assert [line["event"] for line in lines] == ["no_tracing"]
    assert "notellm[otel]" in lines[0]["detail"]


@pytest.fixture
def collector() -> Iterator[tuple[str, Sequence[tuple[str, bytes]]]]:
    """Run a trace collector; yield its address, and the paths and bodies of the requests to it."""
    received: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()
        thread.join()


def test_spans_reach_the_endpoint_before_the_service_ends(
    serve: Serve, collector: tuple[str, Sequence[tuple[str, bytes]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, received = collector
    monkeypatch.setenv(ENDPOINTS[0], address)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    with serve() as url:
        assert httpx2.post(f"{url}/notes", json={"title": TEXT}, headers=CALLER, timeout=60).status_code == 201
    body = b"".join(part for path, part in received if path == "/v1/traces")
    assert bytes.fromhex(TRACE_ID) in body
    assert all(name in body for name in (b"POST /notes", b"store write", b"engine prefill", b"notellm"))
    assert TEXT.encode() not in body
