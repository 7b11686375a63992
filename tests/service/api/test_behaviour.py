"""Stored events after restarts, removals of notes and readers, and restores, and the bounds of their stream."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
from fastapi import Request

from model.data.pairs import related_pairs
from model.data.pairs_file import read_pairs
from service.behaviour.follower import EventFollower
from service.store.backup.backup import make_backup
from service.store.backup.restore import restore_backup
from service.store.purge import purge_store
from tests.service.api.conftest import Serve, gauge, sizes_written
from tests.service.api.routes.test_events import event, statuses
from tests.service.conftest import running_embedded
from tests.service.process import call

Eventually = Callable[[Callable[[], bool]], None]


def kept(client: httpx2.Client) -> tuple[float, float, float]:
    """Return the numbers of reads, readers and notes that the service holds."""
    reads, readers, notes = (gauge(client, f"notellm_behaviour_{name}") for name in ("reads", "readers", "notes"))
    return reads, readers, notes


def arrival_of(store: redis.Redis) -> int:
    """Return the second in which the first entry of the stream was written."""
    return int(store.xrange("{notes}:events", count=1)[0][0].split(b"-")[0]) // 1000


@pytest.fixture
def served(serve: Serve, tmp_path: Path) -> Iterator[tuple[httpx2.Client, redis.Redis]]:
    """A service with three notes, and a client of its store."""
    with (
        serve(data_dir=tmp_path) as url,
        httpx2.Client(base_url=url, timeout=60) as client,
        redis.Redis(unix_socket_path=str(tmp_path / "redis.sock")) as store,
    ):
        client.post("/notes", json=[{"id": name, "title": name} for name in "abc"])
        yield client, store


def test_reads_are_held_as_their_weights_say(served: tuple[httpx2.Client, redis.Redis], eventually: Eventually) -> None:
    client, _ = served
    client.post("/events", json=[event("a"), event("b", type="shown"), event("a", user="u2"), event("b", type="like")])
    eventually(lambda: kept(client) == (3, 2, 2))
    client.post("/events", json=[event("b", type="hide"), event("c", type="hide")])
    eventually(lambda: kept(client) == (2, 2, 1))


def test_read_whose_time_is_ahead_is_taken_back_by_a_later_event_without_a_time(
    served: tuple[httpx2.Client, redis.Redis], eventually: Eventually
) -> None:
    client, _ = served
    ahead, further = ((datetime.now(UTC) + timedelta(seconds=seconds)).isoformat() for seconds in (200, 240))
    client.post("/events", json=event("a", at=ahead))
    client.post("/events", json=[event("b", type="hide", at=further), event("b", at=ahead), event("c")])
    client.post("/events", json=event("a", type="hide"))
    eventually(lambda: [json.loads(line).get("note") for line in client.get("/events/reads").iter_lines()] == ["c"])


def test_read_whose_time_is_ahead_is_taken_back_by_an_event_without_a_time_of_the_same_list(
    served: tuple[httpx2.Client, redis.Redis], eventually: Eventually
) -> None:
    client, _ = served
    ahead = (datetime.now(UTC) + timedelta(seconds=200)).isoformat()
    client.post("/events", json=[event("a", at=ahead), event("a", type="hide"), event("b", type="hide"), event("b")])
    eventually(lambda: [json.loads(line).get("note") for line in client.get("/events/reads").iter_lines()] == ["b"])


@pytest.mark.parametrize("lines", [False, True], ids=["list", "lines"])
def test_events_of_one_request_count_by_their_times(
    served: tuple[httpx2.Client, redis.Redis], eventually: Eventually, lines: bool
) -> None:
    client, _ = served
    now = datetime.now(UTC)
    late, early, earliest = ((now - timedelta(seconds=seconds)).isoformat() for seconds in (10, 20, 30))
    newest_first = [
        event("a", type="hide", at=late),
        event("a", at=early),
        event("b", at=late),
        event("b", type="hide", at=early),
        event("b", at=earliest),
    ]
    if lines:
        body, headers = "\n".join(map(json.dumps, newest_first)), {"content-type": "application/x-ndjson"}
        client.post("/events", content=body, headers=headers)
    else:
        client.post("/events", json=newest_first)
    client.post("/events", json=event("c", user="u2"))

    def reads() -> list[tuple[str, float]]:
        rows = map(json.loads, client.get("/events/reads").text.splitlines())
        return [(row["note"], row["time"]) for row in rows]

    eventually(lambda: "c" in dict(reads()))
    assert sorted(reads())[:-1] == [("b", pytest.approx(datetime.fromisoformat(late).timestamp(), abs=0.01))]


def test_a_removed_note_takes_its_reads_along(
    served: tuple[httpx2.Client, redis.Redis], eventually: Eventually
) -> None:
    client, _ = served
    client.post("/events", json=[event("a"), event("b"), event("a", user="u2")])
    eventually(lambda: kept(client) == (3, 2, 2))
    client.delete("/notes/a")
    eventually(lambda: kept(client) == (1, 1, 1))
    client.post("/notes", json={"id": "a", "title": "another"})
    client.post("/events", json=event("a", user="u3"))
    eventually(lambda: kept(client) == (2, 2, 2))


def test_a_forgotten_user_leaves_nothing(served: tuple[httpx2.Client, redis.Redis], eventually: Eventually) -> None:
    client, store = served
    own = {"user": None, "session": "u1"}
    client.post("/events", json=[event("a"), event("b", type="shown"), event("a", user="u2"), event("a") | own])
    eventually(lambda: kept(client) == (3, 3, 1))
    assert client.delete("/users/u1/events").json() == {"events": 2}
    assert kept(client) == (2, 2, 1), "when the answer is sent, the replica that sent it no longer counts the user"
    assert client.delete("/users/u1/events").json() == {"events": 0}
    assert client.delete("/sessions/u1/events").json() == {"events": 1}
    types = [fields[b"type"] for _, fields in store.xrange("{notes}:events")]
    assert types == [b"click", *[b"-reader"] * 3]


def test_what_is_kept_of_a_reader_is_told_and_nothing_of_others(served: tuple[httpx2.Client, redis.Redis]) -> None:
    client, _ = served
    at = (datetime.now(UTC) - timedelta(days=1)).replace(microsecond=500_000).isoformat()
    details = {"recommendation_id": "r1", "position": 3, "value": 0.5}
    events = [event("a", at=at, **details), event("b", type="shown"), event("a", user="u2")]
    anonymous = event("c", type="like") | {"session": "u1"}
    del anonymous["user"]
    client.post("/events", json=[*events, anonymous])
    first, second = map(json.loads, client.get("/users/u1/events").text.splitlines())
    assert first == {"type": "click", "note_id": "a", "at": at, **details}
    assert (second["type"], second["note_id"]) == ("shown", "b")
    assert json.loads(client.get("/sessions/u1/events").text)["note_id"] == "c"
    assert client.get("/users/nobody/events").text == ""
    client.delete("/users/u1/events")
    assert client.get("/users/u1/events").text == ""
    assert len(client.get("/users/u2/events").text.splitlines()) == 1


def test_what_is_kept_of_a_reader_is_told_over_many_pages_of_the_stream(
    served: tuple[httpx2.Client, redis.Redis], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _ = served
    monkeypatch.setattr("service.store.events.BATCH_SIZE", 3)
    client.post("/events", json=[event("a", user=f"u{n % 2}") for n in range(20)])
    assert len(client.get("/users/u1/events").text.splitlines()) == 10


def test_events_and_reads_of_one_reader_are_written_in_small_pieces(
    served: tuple[httpx2.Client, redis.Redis], eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _ = served
    monkeypatch.setattr("service.api.ndjson.SENT_TOGETHER_BYTES", 500)
    names = [f"note-{n}" for n in range(30)]
    client.post("/notes", json=[{"id": name, "title": name} for name in names])
    client.post("/events", json=[event(name) for name in names])
    eventually(lambda: kept(client)[0] == 30)
    sizes = sizes_written(monkeypatch)
    for path in ("/users/u1/events", "/events/reads"):
        sizes.clear()
        assert len(client.get(path).text.splitlines()) == 30
        assert sum(sizes) > 1500
        assert max(sizes) < 1000


def test_reading_a_reader_without_the_store_is_503(serve: Serve, guarded_redis: Any) -> None:
    with serve(redis_url=guarded_redis.url) as url, httpx2.Client(base_url=url, timeout=60) as client:
        guarded_redis.stop()
        answer = client.get("/users/u1/events")
        assert (answer.status_code, answer.json()["status"]) == (503, 503)
        guarded_redis.start()


def test_what_is_kept_is_the_same_after_a_restart(serve: Serve, tmp_path: Path, eventually: Eventually) -> None:
    with serve(data_dir=tmp_path) as url, httpx2.Client(base_url=url, timeout=60) as client:
        client.post("/notes", json=[{"id": name, "title": name} for name in "abc"])
        client.post("/events", json=[event(note, user) for note in "abc" for user in ("u1", "u2", "u3")])
        client.delete("/notes/c")
        client.delete("/users/u3/events")
        client.post("/notes", json={"id": "c", "title": "c"})
        eventually(lambda: kept(client) == (4, 2, 2))
    with serve(data_dir=tmp_path) as url, httpx2.Client(base_url=url, timeout=60) as client:
        eventually(lambda: client.get("/reports/recommendations").json()["complete"])
        assert kept(client) == (4, 2, 2)


def test_no_name_of_a_reader_reaches_the_store(served: tuple[httpx2.Client, redis.Redis], tmp_path: Path) -> None:
    client, store = served
    assert client.post("/events", json=event(user="somebody@example.org")).json()["status"] == "accepted"
    client.delete("/users/somebody@example.org/events")
    assert store.xlen("{notes}:events")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b"-reader" in path.read_bytes() for path in files)
    assert [path for path in files if b"somebody" in path.read_bytes()] == []


def test_the_stream_keeps_to_its_bounds(serve: Serve, tmp_path: Path) -> None:
    with (
        serve(data_dir=tmp_path, event_bytes=2**20) as url,
        httpx2.Client(base_url=url, timeout=60) as client,
        redis.Redis(unix_socket_path=str(tmp_path / "redis.sock")) as store,
    ):
        client.post("/notes", json={"id": "a", "title": "a"})
        for _ in range(12):
            events = [event(recommendation_id="r" * 120) for _ in range(1000)]
            assert set(statuses(client.post("/events", json=events))) == {"accepted"}
            assert store.memory_usage("{notes}:events") < 1.1 * 2**20
        assert 1000 < store.xlen("{notes}:events") < 12_000


def test_a_read_whose_events_were_cut_counts_no_more(
    serve: Serve, tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.behaviour.follower.TRIM_SECONDS", 0.1)
    monkeypatch.setattr("service.behaviour.follower.EXPIRE_SECONDS", 0.1)
    with (
        serve(data_dir=tmp_path, event_bytes=2**20, event_types=("shown=0", "click=1")) as url,
        httpx2.Client(base_url=url, timeout=60) as client,
        redis.Redis(unix_socket_path=str(tmp_path / "redis.sock")) as store,
    ):
        client.post("/notes", json={"id": "a", "title": "a"})
        client.post("/events", json=event(user="early"))
        eventually(lambda: kept(client) == (1, 1, 1))
        client.post("/events", json=event(user="late"))
        eventually(lambda: kept(client) == (2, 2, 1))
        last = int(store.xrevrange("{notes}:events", count=1)[0][0].split(b"-")[0]) // 1000
        while arrival_of(store) < last + 2:  # the bound cuts whole seconds only
            client.post("/events", json=[event(type="shown", recommendation_id="r" * 120) for _ in range(1000)])
        eventually(lambda: kept(client) == (0, 0, 0))
        client.post("/events", json=event(user="now"))
        eventually(lambda: kept(client) == (1, 1, 1))


def test_ids_are_known_in_two_generations(serve: Serve, tmp_path: Path) -> None:
    with (
        serve(data_dir=tmp_path, event_ids=20) as url,
        httpx2.Client(base_url=url, timeout=60) as client,
        redis.Redis(unix_socket_path=str(tmp_path / "redis.sock")) as store,
    ):
        client.post("/notes", json={"id": "a", "title": "a"})
        events = [event() for _ in range(40)]
        for one in events:
            client.post("/events", json=one)
        known = statuses(client.post("/events", json=events))
        assert known[-10:] == ["duplicate"] * 10
        assert known[:20] == ["accepted"] * 20
        assert 0 < store.pttl("{notes}:events:ids") <= 7_200_000


def test_exported_reads_are_the_clicks_that_training_takes(
    served: tuple[httpx2.Client, redis.Redis], eventually: Eventually, tmp_path: Path
) -> None:
    client, _ = served
    client.post("/events", json=[event(note, user) for user in ("u1", "u2", "u3") for note in "abc"])
    client.post("/events", json=[event("a", "u1", type="shown"), event("c", "u3", type="hide")])
    eventually(lambda: kept(client) == (8, 3, 3))
    done = call(["export-events", "clicks.jsonl.gz"], {"NOTELLM_URL": str(client.base_url)}, tmp_path)
    assert (done.exit_code, done.stderr.strip()) == (0, "8 clicks written to clicks.jsonl.gz")
    assert (tmp_path / "clicks.jsonl.gz").stat().st_mode & 0o077 == 0
    made = related_pairs(tmp_path / "clicks.jsonl.gz", tmp_path / "pairs.parquet")
    assert (made.users, made.clicks, made.notes) == (3, 8, 3)
    pairs = {(pair.note, pair.related): pair.score for pair in read_pairs(tmp_path / "pairs.parquet")}
    assert pairs == pytest.approx({("a", "b"): 7 / 6, ("a", "c"): 2 / 3, ("b", "c"): 2 / 3})


def test_export_of_reads_ends_with_a_problem_where_a_purge_has_the_events_read_again(
    served: tuple[httpx2.Client, redis.Redis], eventually: Eventually, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _ = served
    checks, read_again, begin_anew = itertools.count(), threading.Event(), EventFollower._begin_anew

    def begin_anew_and_tell(follower: EventFollower) -> None:
        begin_anew(follower)
        read_again.set()

    async def purge_at_the_second(request: Request) -> None:
        if next(checks) == 1:
            await asyncio.to_thread(purge_store, f"unix://{tmp_path / 'redis.sock'}")
            assert await asyncio.to_thread(read_again.wait, 30)

    client.post("/events", json=[event("a", user) for user in ("u1", "u2", "u3")])
    eventually(lambda: kept(client) == (3, 3, 1))
    monkeypatch.setattr("service.api.ingest_events.CHECKED_READERS", 1)
    monkeypatch.setattr("service.api.ingest_events.reauthorise", purge_at_the_second)
    monkeypatch.setattr(EventFollower, "_begin_anew", begin_anew_and_tell)
    *reads, last = map(json.loads, client.get("/events/reads").text.splitlines())
    assert [read["note"] for read in reads] == ["a", "a"]
    assert (last["problem"]["status"], "purge" in last["problem"]["detail"]) == (503, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["export-events", "clicks.csv"], "must end in .jsonl", id="file-of-another-form"),
        pytest.param(
            ["export-events", "nowhere/clicks.jsonl"],
            "the export of events failed: [Errno 2] No such file",
            id="no-folder",
        ),
        pytest.param(["report", "--by", "colour"], "must be some of scenario", id="unknown-dimension"),
    ],
)
def test_a_command_about_events_says_what_is_wrong(
    served: tuple[httpx2.Client, redis.Redis], tmp_path: Path, arguments: list[str], said: str
) -> None:
    client, _ = served
    done = call(arguments, {"NOTELLM_URL": str(client.base_url)}, tmp_path)
    assert done.exit_code != 0
    assert said in done.stderr


def test_the_report_command_shows_rates(
    served: tuple[httpx2.Client, redis.Redis], eventually: Eventually, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.behaviour.report.MAX_RATES", 1)
    client, _ = served
    place = {"recommendation_id": "r1", "scenario": "feed", "position": 1}
    client.post("/events", json=[event("a", type="shown", **place), event("a", **place)])
    others = [event("a", type="shown", recommendation_id=f"o{i}", scenario=f"other {i}") for i in range(2)]
    client.post("/events", json=[*others, event("b", type="shown", **place)])
    eventually(lambda: kept(client) == (1, 1, 1))
    eventually(lambda: client.get("/reports/recommendations").json()["left_out"] == 2)
    done = call(["report", "--by", "scenario"], {"NOTELLM_URL": str(client.base_url)}, tmp_path)
    assert done.exit_code == 0, done.stderr
    assert all(text in done.stdout for text in ("feed", "50.00%", "9.45 to 90.55%"))
    assert "2 more groups" in done.stderr


def test_events_of_one_replica_count_at_the_other(serve: Serve, tmp_path: Path, eventually: Eventually) -> None:
    with (
        serve(data_dir=tmp_path) as one,
        serve(data_dir=tmp_path) as other,
        httpx2.Client(base_url=one, timeout=60) as first,
        httpx2.Client(base_url=other, timeout=60) as second,
    ):
        first.post("/notes", json=[{"id": name, "title": name} for name in "ab"])
        events = [event(note, user) for user in ("u1", "u2") for note in "ab"]
        first.post("/events", json=events)
        assert statuses(second.post("/events", json=events)) == ["duplicate"] * 4
        for client in (first, second):
            eventually(lambda client=client: kept(client) == (4, 2, 2))
        second.delete("/users/u1/events")
        second.delete("/notes/b")
        for client in (first, second):
            eventually(lambda client=client: kept(client) == (1, 1, 1))


def test_a_restored_backup_brings_its_events_back(
    serve: Serve, short_folder: Path, tmp_path: Path, eventually: Eventually
) -> None:
    with (
        running_embedded(short_folder / "d") as server,
        serve(redis_url=server.url) as url,
        httpx2.Client(base_url=url, timeout=60) as client,
    ):
        client.post("/notes", json=[{"id": name, "title": name} for name in "ab"])
        client.post("/events", json=[event(note, user) for user in ("u1", "u2") for note in "ab"])
        make_backup(server.url, str(tmp_path / "b"), lambda *step: None)
        client.delete("/users/u1/events")
        client.post("/events", json=[event("a", user) for user in ("u3", "u4", "u5")])
        eventually(lambda: kept(client) == (5, 4, 2))
        restore_backup(str(tmp_path / "b"), server.url, lambda *step: None, replace=True)
        eventually(lambda: kept(client) == (4, 2, 2))
        client.post("/events", json=[event("a", "u1"), event("a", "u6")])
        eventually(lambda: kept(client) == (5, 3, 2))


def test_a_removed_tenant_leaves_no_events(serve: Serve, tmp_path: Path, eventually: Eventually) -> None:
    bootstrap = "the-bootstrap-key-of-these-tests"
    with (
        serve(data_dir=tmp_path, bootstrap_key=bootstrap) as url,
        httpx2.Client(base_url=url, timeout=60, headers={"Authorization": f"Bearer {bootstrap}"}) as root,
        redis.Redis(unix_socket_path=str(tmp_path / "redis.sock")) as store,
    ):
        body = {"name": "all", "tenant": "acme", "scopes": ["notes.write", "events"]}
        own = {"Authorization": f"Bearer {root.post('/keys', json=body).json()['key']}"}
        note = {"id": "a", "title": "a"}
        eventually(
            lambda: root.post("/notes", json=note, headers=own).status_code == 201
        )  # 503 while the tenant is opened
        assert root.post("/events", json=event(), headers=own).json()["status"] == "accepted"
        assert root.post("/events", json=event()).status_code == 404  # the default tenant has no such note
        events = {key for key in store.scan_iter() if b"acme:events" in key}
        assert len(events) == 3
        assert root.delete("/tenants/acme").status_code == 204
        assert [key for key in store.scan_iter() if b"acme" in key and not key.endswith(b"removed:acme")] == []
