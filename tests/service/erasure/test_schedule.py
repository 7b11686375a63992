"""Purges on schedule: once per interval for all replicas."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
import redis
import structlog
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from service.erasure.schedule import PurgeSchedule
from service.index.snapshot_files import MANIFEST, SnapshotFolder, SnapshotOrigin
from service.interfaces import Clock
from service.store.embedded_redis import EmbeddedRedis
from service.store.purge import COMPRESSION, FAILED, LAST, last_purge, purge_store, purge_store_if_due
from service.store.purge_claim import PurgeClaim, PurgeError
from service.store.redis_keys import IDENTITY, LOG
from service.telemetry import Telemetry
from tests.service.conftest import DebianRedis

DAY = 86_400.0


@pytest.fixture(autouse=True)
def no_followers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the wait of a purge for the indexes that follow the log, since here are none."""
    monkeypatch.setattr("service.store.purge.FOLLOW_SECONDS", 0)


@pytest.fixture
def written(embedded_admin: redis.Redis) -> redis.Redis:
    """A store whose log has an entry."""
    embedded_admin.xadd(LOG, {"id": "gone", "op": "delete"})
    return embedded_admin


def purges(client: Any) -> int:
    """Return the number of purges that the server has had: each rewrites its append-only file."""
    return int(client.info("persistence")["aof_rewrites"])


def value(registry: CollectorRegistry, name: str) -> float | None:
    return registry.get_sample_value(name)


def test_store_is_purged_once_per_interval(embedded: EmbeddedRedis, written: redis.Redis) -> None:
    before = purges(written)
    assert purge_store_if_due(embedded.url, DAY, 1000.0) == (1000.0, False)
    assert purge_store_if_due(embedded.url, DAY, 999.0 + DAY) == (1000.0, False)
    assert purge_store_if_due(embedded.url, DAY, 1000.0 + DAY) == (1000.0 + DAY, True)
    assert purge_store_if_due(embedded.url, DAY, 1001.0 + DAY) == (1000.0 + DAY, False)
    assert purges(written) == before + 1
    assert [fields["op"] for _, fields in written.xrange(LOG)] == ["purge"]


def test_stored_time_that_is_ahead_of_the_server_does_not_put_off_the_next_purge(
    embedded: EmbeddedRedis, written: redis.Redis
) -> None:
    now = time.time()
    written.set(LAST, now + 365 * DAY)
    assert purge_store_if_due(embedded.url, DAY, now) == (now, False)
    assert last_purge(embedded.url, now) == now


def test_replica_whose_clock_is_ahead_purges_no_earlier_than_the_others(
    embedded: EmbeddedRedis, written: redis.Redis
) -> None:
    before, begin = purges(written), time.time() - 60
    last_purge(embedded.url, begin)
    for second in range(3):
        assert purge_store_if_due(embedded.url, DAY, begin + second) == (begin, False)
        assert purge_store_if_due(embedded.url, DAY, begin + second + 2 * DAY) == (begin, False)
    assert purges(written) == before
    written.set(LAST, begin - DAY)
    last, purged = purge_store_if_due(embedded.url, DAY, begin + 2 * DAY)
    assert purged
    assert begin < last <= time.time()


def test_clock_that_is_behind_does_not_bring_the_next_purge_forward(
    embedded: EmbeddedRedis, written: redis.Redis
) -> None:
    now = time.time() - 1
    assert purge_store_if_due(embedded.url, DAY, now) == (now, False)
    assert last_purge(embedded.url, now - DAY) == now
    assert purge_store_if_due(embedded.url, DAY, now + 1) == (now, False)


def test_purge_that_another_replica_is_at_is_left_to_it(embedded: EmbeddedRedis, written: redis.Redis) -> None:
    before = purges(written)
    purge_store_if_due(embedded.url, DAY, 1000.0)
    claim = PurgeClaim(written)
    assert claim.take()
    assert purge_store_if_due(embedded.url, DAY, 1000.0 + DAY) == (1000.0, False)
    assert purges(written) == before
    claim.release()
    assert purge_store_if_due(embedded.url, DAY, 1000.0 + DAY)[1]


def test_setting_that_a_purge_has_changed_is_restored_after_one_that_was_broken_off(
    debian_redis: DebianRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    purge_store_if_due(debian_redis.url, DAY, 1000.0)
    with monkeypatch.context() as broken_off:
        broken_off.setattr("service.store.purge._restore_compression", lambda client: None)
        purge_store(debian_redis.url)
    with redis.Redis.from_url(debian_redis.url, decode_responses=True) as admin:
        assert admin.config_get("rdbcompression") == {"rdbcompression": "no"}
        assert purge_store_if_due(debian_redis.url, DAY, 1001.0) == (1000.0, False)
        assert admin.config_get("rdbcompression") == {"rdbcompression": "yes"}
        assert admin.keys() == [LAST]


def test_store_is_purged_on_schedule_where_the_server_forbids_config_set_alone(debian_redis: DebianRedis) -> None:
    url = debian_redis.url.replace("//", "//limited:x@")
    with redis.Redis.from_url(debian_redis.url, decode_responses=True) as admin:
        admin.execute_command("ACL", "SETUSER", "limited", "on", "nopass", "~*", "&*", "+@all", "-config|set")
        assert purge_store_if_due(url, DAY, 1000.0) == (1000.0, False)
        assert purge_store_if_due(url, DAY, 1000.0 + DAY) == (1000.0 + DAY, True)
        assert admin.keys() == [LAST]
        admin.set(COMPRESSION, "yes")  # left by an interrupted purge that could still use CONFIG SET
        with structlog.testing.capture_logs() as lines:
            assert purge_store_if_due(url, DAY, 1001.0 + DAY) == (1000.0 + DAY, False)
        assert [line["event"] for line in lines] == ["compression_not_restored"]
        assert admin.keys() == [LAST]
        assert purge_store_if_due(url, DAY, 1000.0 + 2 * DAY) == (1000.0 + 2 * DAY, True)


def test_metrics_say_when_a_purge_was_and_that_one_is_overdue(
    embedded: EmbeddedRedis, written: redis.Redis, tmp_path: Path
) -> None:
    telemetry, clock = Telemetry(), Clock()
    schedule = PurgeSchedule(SecretStr(embedded.url), tmp_path, DAY, telemetry, clock)
    assert value(telemetry.registry, "notellm_purge_timestamp_seconds") == 0
    schedule._purge_if_due()
    first = value(telemetry.registry, "notellm_purge_timestamp_seconds")
    assert first == pytest.approx(clock(), abs=60)
    assert value(telemetry.registry, "notellm_purge_overdue_seconds") == 0
    clock.offset += DAY + 500
    assert value(telemetry.registry, "notellm_purge_overdue_seconds") == pytest.approx(500, abs=60)
    clock.offset = 0
    written.set(LAST, clock() - DAY - 500)
    schedule._purge_if_due()
    assert value(telemetry.registry, "notellm_purge_overdue_seconds") == 0
    assert value(telemetry.registry, "notellm_purge_timestamp_seconds") == pytest.approx(clock(), abs=60)


def test_purge_that_fails_from_the_start_is_overdue(
    embedded: EmbeddedRedis, written: redis.Redis, tmp_path: Path
) -> None:
    written.execute_command("ACL", "SETUSER", "limited", "on", "nopass", "~*", "&*", "+@all", "-bgrewriteaof")
    telemetry, clock = Telemetry(), Clock()
    assert last_purge(embedded.url, clock() - DAY - 500) < clock() - DAY
    schedule = PurgeSchedule(SecretStr(f"unix://limited:x@{embedded.socket}"), tmp_path, DAY, telemetry, clock)
    assert math.isnan(value(telemetry.registry, "notellm_purge_overdue_seconds") or 0)
    with pytest.raises(PurgeError, match="was not purged"):
        schedule._purge_if_due()
    assert value(telemetry.registry, "notellm_purge_overdue_seconds") == pytest.approx(500, abs=60)


def test_log_is_cut_once_per_interval_while_the_file_cannot_be_rewritten(
    embedded: EmbeddedRedis, written: redis.Redis
) -> None:
    url, begin = f"unix://limited:x@{embedded.socket}", 1000.0 + DAY
    written.execute_command("ACL", "SETUSER", "limited", "on", "nopass", "~*", "&*", "+@all", "-bgrewriteaof")
    purge_store_if_due(url, DAY, 1000.0)
    with pytest.raises(PurgeError, match="was not purged"):
        purge_store_if_due(url, DAY, begin)
    changes = [fields["op"] for _, fields in written.xrange(LOG)]
    assert changes == ["purge"]
    written.xadd(LOG, {"id": "later", "op": "delete"})
    assert purge_store_if_due(url, DAY, begin + 1) == (1000.0, False), "it is not tried again at once"
    for pause, later in ((60, 60.0), (60, 3000.0), (3000, 8000.0)):
        assert pause - 30 < written.ttl(FAILED) <= pause
        written.delete(FAILED)
        with pytest.raises(PurgeError, match="was not purged"):
            purge_store_if_due(url, DAY, begin + later)
    assert [fields["op"] for _, fields in written.xrange(LOG)] == ["purge", "delete"]
    assert written.ttl(FAILED) > 3500
    written.delete(FAILED)
    before = purges(written)
    assert purge_store_if_due(embedded.url, DAY, begin + 9000) == (begin, True), "what was removed later is not gone"
    assert purges(written) == before + 1
    assert [fields["op"] for _, fields in written.xrange(LOG)] == ["purge", "delete"]
    assert sorted(written.keys()) == [LOG, LAST]
    assert purge_store_if_due(embedded.url, DAY, begin + DAY) == (begin + DAY, True)
    assert [fields["op"] for _, fields in written.xrange(LOG)] == ["purge"]


def save_snapshot(folder: Path, store: str, position: str) -> Path:
    """Save a snapshot that no process owns, and return the path of its manifest."""
    owner = SnapshotFolder(folder)
    owner.save(SnapshotOrigin(store, "space"), position, [])
    owner.close()
    return folder / MANIFEST


def test_snapshot_of_a_replica_that_starts_more_slowly_stays_until_a_purge(
    embedded: EmbeddedRedis, written: redis.Redis, tmp_path: Path
) -> None:
    written.set(IDENTITY, "this")
    clock, ((position, _),) = Clock(), written.xrange(LOG)
    snapshot = save_snapshot(tmp_path / "snapshots" / "0", "this", position)
    of_another_store = save_snapshot(tmp_path / "snapshots" / "1", "another", position)
    last_purge(embedded.url, clock())
    schedule = PurgeSchedule(SecretStr(embedded.url), tmp_path, DAY, Telemetry(), clock)
    schedule._purge_if_due()
    schedule._purge_if_due()
    assert (snapshot.exists(), of_another_store.exists()) == (True, False)
    written.set(LAST, clock() - DAY - 500)
    schedule._purge_if_due()
    assert not snapshot.exists()


def test_snapshot_of_before_a_purge_that_this_machine_missed_is_removed_at_the_first_look(
    embedded: EmbeddedRedis, written: redis.Redis, tmp_path: Path
) -> None:
    written.set(IDENTITY, "this")
    clock, ((position, _),) = Clock(), written.xrange(LOG)
    before = save_snapshot(tmp_path / "snapshots" / "0", "this", position)
    written.set(LAST, clock() - DAY)
    assert purge_store_if_due(embedded.url, DAY, clock())[1]
    behind = save_snapshot(tmp_path / "snapshots" / "1", "this", written.xrange(LOG)[0][0])
    (tmp_path / "snapshots" / "00-no-folder").touch()
    PurgeSchedule(SecretStr(embedded.url), tmp_path, DAY, Telemetry(), clock)._purge_if_due()
    assert (before.exists(), behind.exists()) == (False, True)


def test_purge_that_fails_before_any_log_is_cut_is_tried_again_after_pauses(
    embedded: EmbeddedRedis, written: redis.Redis
) -> None:
    url, begin = f"unix://limited:x@{embedded.socket}", 1000.0 + DAY
    written.xadd(f"{LOG.removesuffix('log')}events", {"type": "-purge", "note": "", "reader": ""})
    written.execute_command("ACL", "SETUSER", "limited", "on", "nopass", "~*", "&*", "+@all", "-xrange")
    purge_store_if_due(url, DAY, 1000.0)
    for later, pause in ((0.0, 60), (60.0, 60), (200.0, 200), (8000.0, 3600)):
        with pytest.raises(PurgeError, match="was not purged"):
            purge_store_if_due(url, DAY, begin + later)
        assert pause - 30 <= written.ttl(FAILED) <= pause
        assert purge_store_if_due(url, DAY, begin + later + 1) == (1000.0, False), "it is not tried again at once"
        written.delete(FAILED)
    assert [fields["op"] for _, fields in written.xrange(LOG)] == ["delete"]
    assert purge_store_if_due(embedded.url, DAY, begin + 9000) == (begin + 9000, True)
    assert sorted(written.keys("{notes}:purge*")) == [LAST]


def test_purge_of_a_store_that_is_unavailable_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PurgeError, match="was not purged"):
        purge_store_if_due(f"unix://{tmp_path}/none.sock", DAY, 1000.0)
