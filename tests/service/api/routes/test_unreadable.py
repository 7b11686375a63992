"""A stored note that cannot be decoded: it is left out and reported, can be healed, and all others are served."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import redis

from service.store.embedded_redis import EmbeddedRedis
from service.store.redis_keys import LOG, NOTE
from tests.service.api.conftest import Serve
from tests.service.damage import DAMAGES, SECRET, Damage

pytestmark = pytest.mark.slow

every_damage = pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())


@pytest.fixture(scope="module")
def store() -> Iterator[EmbeddedRedis]:
    folder = Path(tempfile.mkdtemp(prefix="nl-", dir="/tmp"))
    server = EmbeddedRedis(folder / "d")
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def admin(store: EmbeddedRedis) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(store.url) as client:
        yield client


@pytest.fixture(scope="module")
def client(store: EmbeddedRedis, serve: Serve) -> Iterator[httpx2.Client]:
    """Client of one service for all kinds of damage, with two good notes. It caches no items: damage that has no entry
    in the log would not change them (docs/decisions/0031-reads.md)."""
    with serve(redis_url=store.url, item_cache_bytes=0) as url, httpx2.Client(base_url=url, timeout=30) as opened:
        for note_id in ("good", "better"):
            assert post(opened, note_id).status_code == 201
        yield opened


def post(client: httpx2.Client, note_id: str) -> httpx2.Response:
    return client.post("/notes", json={"id": note_id, "title": "Kyoto", "content": SECRET})


def quarantined(client: httpx2.Client) -> int:
    (line,) = [x for x in client.get("/metrics").text.splitlines() if x.startswith("notellm_quarantined_notes ")]
    return int(float(line.split()[1]))


@pytest.fixture
def bad(client: httpx2.Client, admin: redis.Redis, damage: Damage) -> Iterator[str]:
    """Id of a note that was damaged after the index had read it."""
    assert post(client, "bad").status_code in (200, 201)
    damage(admin, "bad")
    yield "bad"
    client.delete("/notes/bad")
    assert client.get("/notes/bad").status_code == 404
    assert quarantined(client) == 0


def test_unchanged_write_of_a_note_that_names_a_position_beyond_the_log_is_answered(
    client: httpx2.Client, admin: redis.Redis
) -> None:
    assert post(client, "ahead").status_code == 201
    admin.hset(NOTE + "ahead", "position", "99999999999999-0")
    answers = [post(client, "ahead"), client.patch("/notes/ahead", json={"title": "Kyoto"})]
    assert [(answer.status_code, answer.json()["revision"]) for answer in answers] == [(200, 1)] * 2
    assert client.delete("/notes/ahead").status_code == 200


@every_damage
def test_an_unreadable_note_answers_with_what_to_do(client: httpx2.Client, bad: str) -> None:
    answers = [client.get(f"/notes/{bad}"), client.get(f"/notes/{bad}/similar")]
    answers.append(client.patch(f"/notes/{bad}", json={"title": "new"}))
    for answer in answers:
        assert answer.status_code == 409
        problem = answer.json()
        assert problem["type"].endswith("/stored-note-unreadable")
        assert "POST" in problem["detail"]
        assert "DELETE" in problem["detail"]
        assert SECRET not in problem["detail"]
    assert quarantined(client) == 1


@every_damage
def test_related_notes_never_have_an_unreadable_one(client: httpx2.Client, bad: str) -> None:
    answers = [client.get("/notes/good/similar", params={"k": 2}), client.post("/similar", json={"title": "Kyoto"})]
    assert [answer.status_code for answer in answers] == [200, 200]
    found = [[item["id"] for item in answer.json()["items"]] for answer in answers]
    assert found[0] == ["better"]
    assert set(found[1]) == {"good", "better"}
    assert not any(answer.json()["degraded"] for answer in answers)


@every_damage
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_an_unreadable_note_is_healed_by_a_write(client: httpx2.Client, bad: str, method: str) -> None:
    if method == "DELETE":
        assert client.delete(f"/notes/{bad}").status_code == 200
        assert client.get(f"/notes/{bad}").status_code == 404
        return
    written = post(client, bad) if method == "POST" else client.put(f"/notes/{bad}", json={"title": "Kyoto"})
    assert written.status_code in (200, 201), written.text
    assert client.get(f"/notes/{bad}").json()["title"] == "Kyoto"
    assert client.get(f"/notes/{bad}/similar").status_code == 200
    assert bad in [item["id"] for item in client.get("/notes/good/similar").json()["items"]]


@every_damage
def test_verify_lists_an_unreadable_note(client: httpx2.Client, bad: str) -> None:
    report = client.post("/verify", params={"repair": True}).json()
    assert not report["well"]
    assert report["differing"]["unreadable"] == {"count": 1, "ids": [bad]}


def test_a_service_starts_beside_unreadable_notes(
    store: EmbeddedRedis, admin: redis.Redis, client: httpx2.Client, serve: Serve, tmp_path: Path
) -> None:
    for n, damage in enumerate(DAMAGES.values()):
        post(client, f"bad{n}")
        damage(admin, f"bad{n}")
    admin.xadd(LOG, {"op": "put"})
    for _ in ("without a snapshot", "from one"):
        with serve(redis_url=store.url, data_dir=tmp_path) as url, httpx2.Client(base_url=url, timeout=30) as other:
            assert other.get("/readyz").status_code == 200
            assert quarantined(other) == len(DAMAGES)
            assert [item["id"] for item in other.get("/notes/good/similar").json()["items"]] == ["better"]
            assert other.post("/verify").json()["differing"]["unreadable"]["count"] == len(DAMAGES)
    for n in range(len(DAMAGES)):
        assert client.delete(f"/notes/bad{n}").status_code == 200
    assert quarantined(client) == 0


def test_a_field_that_is_not_known_is_tolerated(client: httpx2.Client, admin: redis.Redis) -> None:
    note = {"id": "later", "title": "Kyoto", "category": "Travel"}
    before = client.post("/notes", json=note, params={"generate": "hashtags"}).json()
    document = admin.hget(f"{NOTE}later", "document")
    assert document is not None
    assert document.startswith(b'{"version":1,')
    more = document.replace(b'"title"', b'"mood":[1],"title"').replace(b'{"text"', b'{"language":"en","text"')
    admin.hset(f"{NOTE}later", "document", more.replace(b'"version":1,', b""))
    assert client.get("/notes/later").json()["hashtags"] == before["hashtags"]
    assert client.delete("/notes/later").status_code == 200
