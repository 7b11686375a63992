"""A stream of notes, one a line: every line has its own result, in order."""

from __future__ import annotations

import json

import httpx2
import pytest

from tests.service.api.requests import DEPTHS, NDJSON, NOTE, nested, send


def test_stream_answers_each_line_in_order(client: httpx2.Client) -> None:
    lines = [json.dumps({"id": f"s{i}", "title": f"stream {i}"}) for i in range(150)]
    lines[70] = "{broken"
    lines[71] = json.dumps({"id": "s71", "title": "x" * 300_000})
    body = "\n".join(lines).encode()
    answer = client.post("/notes", content=body, headers={"content-type": "application/x-ndjson"})
    results = [json.loads(line) for line in answer.text.splitlines()]
    assert len(results) == 150
    assert [i for i, r in enumerate(results) if r["status"] == "rejected"] == [70, 71]
    assert [results[70]["problem"]["status"], results[71]["problem"]["status"]] == [400, 413]
    assert results[149]["id"] == "s149"
    assert client.get("/notes/s149").status_code == 200


@pytest.mark.parametrize("depth", DEPTHS)
def test_stream_with_a_deeply_nested_line_rejects_it_alone(client: httpx2.Client, depth: int) -> None:
    body = b'{"id": "around-1", "title": "good"}\n%s\n{"id": "around-2", "title": "good"}' % nested(depth)
    answer = send(client, "POST", "/notes", body, NDJSON)
    results = [json.loads(line) for line in answer.text.splitlines()]
    assert [result.get("problem", {}).get("status") for result in results] == [None, 422, None]
    assert client.get("/notes/around-2").status_code == 200


def test_stream_needs_exactly_the_ndjson_media_type(client: httpx2.Client) -> None:
    assert send(client, "POST", "/notes", NOTE + b"\n", "application/x-ndjson-but-not").status_code == 415
    assert send(client, "POST", "/notes", NOTE + b"\n", f"{NDJSON}; charset=utf-8").status_code == 200
