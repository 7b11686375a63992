"""POST /v1/embeddings, in the form of OpenAI's API."""

from __future__ import annotations

import base64
from typing import Any

import httpx2
import numpy as np
import pytest

from tests.service.api.conftest import SAMPLES, Serve

TEXTS = ["Flour, water, salt and two days.", "Buses all day for 700 yen, temples before eight.", "短い旅"]


def ask(client: httpx2.Client, **body: Any) -> httpx2.Response:
    return client.post("/v1/embeddings", json={"model": "tiny", "input": TEXTS} | body)


def vectors(answer: httpx2.Response) -> np.ndarray[Any, np.dtype[np.float32]]:
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [(item["object"], item["index"]) for item in data] == [("embedding", i) for i in range(len(data))]
    return np.array([item["embedding"] for item in data], np.float32)


def test_texts_get_their_vectors_in_order_in_openai_form(client: httpx2.Client) -> None:
    answer = ask(client, user="someone")
    found = vectors(answer)
    assert found == pytest.approx(np.concatenate([vectors(ask(client, input=text)) for text in TEXTS]), abs=1e-5)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)
    body = answer.json()
    assert (body["object"], body["model"]) == ("list", "tiny")
    alone = [ask(client, input=[text]).json()["usage"]["prompt_tokens"] for text in TEXTS]
    assert body["usage"] == {"prompt_tokens": sum(alone), "total_tokens": sum(alone)}
    assert min(alone) > 0
    assert {frozenset(item) for item in body["data"]} == {frozenset({"object", "index", "embedding"})}


def test_base64_is_of_little_endian_floats(client: httpx2.Client) -> None:
    plain = vectors(ask(client))
    packed = ask(client, encoding_format="base64", dimensions=plain.shape[1]).json()["data"]
    unpacked = np.array([np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in packed])
    assert unpacked == pytest.approx(plain, abs=1e-6)


def test_vector_is_that_of_a_note_with_this_content(client: httpx2.Client) -> None:
    (vector,) = vectors(ask(client, input=TEXTS[0]))
    generated = client.post("/generate", json={"content": TEXTS[0]}).json()["embedding"]
    assert vector == pytest.approx(np.array(generated, np.float32), abs=1e-5)


def test_more_texts_than_the_queue_has_room_for_are_read_batch_by_batch(client: httpx2.Client) -> None:
    assert client.get("/limits").json()["queue_notes"] < 100
    assert len(vectors(ask(client, input=[f"text {i}" for i in range(100)]))) == 100


def test_text_beyond_what_the_model_reads_says_truncated(client: httpx2.Client) -> None:
    data = ask(client, input=["short", "word " * 20_000]).json()["data"]
    assert [item.get("truncated") for item in data] == [None, True]


@pytest.mark.parametrize(
    ("body", "pointer", "says"),
    [
        ({"input": [1, 2, 3]}, "/input", "tokens are not supported"),
        ({"input": [[1, 2], [3]]}, "/input", "tokens are not supported"),
        ({"input": []}, "/input", "at least 1 item"),
        ({"input": ["text"] * 257}, "/input", "at most 256 items"),
        ({"input": None}, "/input", "valid list"),
        ({"input": ""}, "/input/0", "must not be empty"),
        ({"input": ["text", " \n"]}, "/input/1", "must not be empty"),
        ({"input": ["text", 1]}, "/input/1", "valid string"),
        ({"model": "text-embedding-3-small"}, "/model", "must be 'tiny'"),
        ({"dimensions": 3}, "/dimensions", "or omitted"),
        ({"dimensions": 0}, "/dimensions", "greater than or equal to 1"),
        ({"encoding_format": "hex"}, "/encoding_format", "'float' or 'base64'"),
        ({"colour": "red"}, "/colour", "is not a known field"),
    ],
    ids=range(13),
)
def test_bad_body_is_a_problem_that_openai_clients_can_read(
    client: httpx2.Client, body: dict[str, Any], pointer: str, says: str
) -> None:
    answer = ask(client, **body)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    problem = answer.json()
    (field,) = problem["errors"]
    assert field["pointer"] == problem["error"]["param"] == pointer
    assert says in field["detail"]
    assert problem["error"]["message"].count(says) == 1
    assert problem["error"]["type"] == "invalid-input"
    assert problem["instance"] == answer.headers["x-request-id"]


def test_other_refusals_have_the_error_member_and_their_headers(serve: Serve) -> None:
    with serve(bootstrap_key="the-bootstrap-key-of-these-tests") as url, httpx2.Client(base_url=url) as client:
        answer = ask(client)
        assert (answer.status_code, answer.json()["error"]["type"]) == (401, "unauthenticated")
        assert answer.headers["www-authenticate"].startswith("Bearer")
        key = {"Authorization": "Bearer the-bootstrap-key-of-these-tests"}
        broken = client.post("/v1/embeddings", content=b"{", headers=key | {"content-type": "application/json"})
        assert (broken.status_code, broken.json()["error"]["type"]) == (400, "malformed-body")


def test_tokens_are_charged_to_the_key(serve: Serve) -> None:
    bootstrap = {"Authorization": "Bearer the-bootstrap-key-of-these-tests"}
    with serve(bootstrap_key="the-bootstrap-key-of-these-tests") as url, httpx2.Client(base_url=url) as client:
        body = {"name": "small", "scopes": ["generate"], "quota": {"tokens_per_minute": 10}}
        made = client.post("/keys", json=body, headers=bootstrap)
        assert made.status_code == 201, made.text
        client.headers["Authorization"] = f"Bearer {made.json()['key']}"
        statuses = [ask(client).status_code for _ in range(20)]
        assert statuses[0] == 200
        assert statuses[-1] == 429


def test_nothing_is_stored(client: httpx2.Client) -> None:
    before = client.get("/readyz").json()["notes"]
    vectors(ask(client))
    assert client.get("/readyz").json()["notes"] == before >= SAMPLES
