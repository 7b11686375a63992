"""RedisKeyStore on each Redis: keys read back as written, and concurrent changes are noticed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator

import pytest
import redis

from service.access.api_key import Act, ApiKey, OldSecret
from service.access.authenticator import Authenticator
from service.access.manager import Manager
from service.access.principal import ANONYMOUS, BOOTSTRAP, Quota, Scope
from service.errors import StoreUnavailable, TooManyApiKeys, Unauthenticated
from service.interfaces import Clock
from service.store.api_keys import RedisKeyStore, _decode
from service.store.connection import Connection
from tests.service.conftest import Server

pytestmark = pytest.mark.anyio
KEY = ApiKey(
    prefix="abcdefghij",
    digest="0" * 64,
    name="the website",
    tenant="films",
    scopes=frozenset({Scope.SIMILAR, Scope.NOTES_READ}),
    created_at=1000.5,
    expires_at=2000.0,
    quota=Quota(60, None),
    old_secrets=(OldSecret("1" * 64, 1500.0), OldSecret("2" * 64, 1200.0)),
)
ACT = Act("bootstrap", "default", "keys.create", "abcdefghij", 1000.5, {"scopes": ["similar"]})


@pytest.fixture
async def keys(redis_url: str) -> AsyncIterator[RedisKeyStore]:
    connection = Connection(redis_url)
    yield RedisKeyStore(connection)
    await connection.close()


async def test_created_key_is_loaded_as_it_was(keys: RedisKeyStore) -> None:
    assert (await keys.load(None, {})).keys == {}
    assert await keys.replace(KEY.prefix, None, KEY, ACT)
    table = await keys.load(None, {})
    assert table.keys == {KEY.prefix: KEY}
    assert table.keys[KEY.prefix].last_used_at is None


@pytest.mark.parametrize("count", [0, 1, 2])
async def test_key_that_was_loaded_can_be_replaced(keys: RedisKeyStore, count: int) -> None:
    await keys.replace(KEY.prefix, None, dataclasses.replace(KEY, old_secrets=KEY.old_secrets[:count]), ACT)
    loaded = (await keys.load(None, {})).keys[KEY.prefix]
    assert await keys.replace(KEY.prefix, loaded, dataclasses.replace(loaded, name="another"), ACT)


async def test_document_of_a_key_that_was_rotated_twice_is_one_that_an_earlier_version_compares(
    keys: RedisKeyStore, admin: redis.Redis
) -> None:
    await keys.replace(KEY.prefix, None, dataclasses.replace(KEY, old_secrets=KEY.old_secrets[:1]), ACT)
    written_before = admin.hget("{access}:keys", KEY.prefix)
    await keys.revoke([(dataclasses.replace(KEY, old_secrets=KEY.old_secrets[:1]), ACT)])
    await keys.replace(KEY.prefix, None, KEY, ACT)
    assert admin.hget("{access}:keys", KEY.prefix) == written_before
    assert await keys.find(KEY.prefix) == KEY
    once = dataclasses.replace(KEY, old_secrets=KEY.old_secrets[:1])
    assert await keys.replace(KEY.prefix, KEY, once, ACT)
    assert await keys.find(KEY.prefix) == once
    assert await keys.replace(KEY.prefix, once, KEY, ACT)
    assert await keys.revoke([(KEY, ACT)]) == {KEY.prefix}
    assert not admin.exists("{access}:older")


async def test_older_secret_ends_with_the_newest_one_that_an_earlier_version_has_ended(
    keys: RedisKeyStore, admin: redis.Redis
) -> None:
    await keys.replace(KEY.prefix, None, KEY, ACT)
    document = json.loads(admin.hget("{access}:keys", KEY.prefix) or "")
    admin.hset("{access}:keys", KEY.prefix, json.dumps(document | {"old_until": 1100.0}))
    found = await keys.find(KEY.prefix)
    assert found
    assert [secret.until for secret in found.old_secrets] == [1100.0, 1100.0]


async def test_older_secret_ends_with_a_rotation_by_an_earlier_version(keys: RedisKeyStore, admin: redis.Redis) -> None:
    await keys.replace(KEY.prefix, None, KEY, ACT)
    document = json.loads(admin.hget("{access}:keys", KEY.prefix) or "")
    admin.hset("{access}:keys", KEY.prefix, json.dumps(document | {"old_digest": "of a later rotation"}))
    key = await keys.find(KEY.prefix)
    assert key
    assert [secret.digest for secret in key.old_secrets] == ["of a later rotation"]


async def test_unchanged_keys_are_not_read_again(keys: RedisKeyStore) -> None:
    empty = await keys.load(None, {})
    assert await keys.load(empty, {}) is empty
    await keys.replace(KEY.prefix, None, KEY, ACT)
    table = await keys.load(empty, {})
    assert table.keys
    assert await keys.load(table, {}) is table


async def test_key_that_was_changed_meanwhile_is_not_replaced(keys: RedisKeyStore) -> None:
    await keys.replace(KEY.prefix, None, KEY, ACT)
    renamed = dataclasses.replace(KEY, name="another")
    assert not await keys.replace(KEY.prefix, None, renamed, ACT)
    assert await keys.replace(KEY.prefix, KEY, renamed, ACT)
    assert await keys.revoke([(KEY, ACT)]) == set()
    assert await keys.revoke([(renamed, ACT)]) == {KEY.prefix}
    assert (await keys.load(None, {})).keys == {}
    assert len(await keys.acts(10)) == 3


async def test_keys_of_a_tenant_are_managed_without_reading_all_keys_each_time(
    keys: RedisKeyStore, admin: redis.Redis, clock: Clock
) -> None:
    def readings() -> int:
        counted: int = admin.info("commandstats").get("cmdstat_hgetall", {"calls": 0})["calls"]
        assert counted % 2 == 0, "one of the keys, and one of their older secrets"
        return counted // 2

    authenticator = Authenticator("b" * 32, clock)
    authenticator.connect(keys)
    manager = Manager(authenticator)
    manager.connect(keys)
    makers = dataclasses.replace(BOOTSTRAP, scopes=BOOTSTRAP.scopes - {Scope.ADMIN}, tenant="films")
    made = [(await manager.create(makers, name=str(number), scopes=[Scope.SIMILAR]))[0] for number in range(3)]
    before = readings()
    assert {key.prefix for key in await manager.keys(BOOTSTRAP)} == {key.prefix for key in made}
    assert readings() == before
    await manager.rotate(BOOTSTRAP, made[0].prefix, 60)
    assert readings() == before + 1, "a change has the keys of the process read again"
    assert await manager.revoke_all(BOOTSTRAP, "films") == 3
    assert readings() == before + 2
    acts = [(act.name, act.target) for act in await keys.acts(3)]
    assert sorted(acts) == sorted(("keys.revoke", key.prefix) for key in made)


async def test_whoever_revokes_the_keys_of_its_own_tenant_revokes_its_own_last(
    keys: RedisKeyStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.access.manager.KEY_BATCH_SIZE", 1)
    authenticator = Authenticator(None, clock)
    authenticator.connect(keys)
    manager = Manager(authenticator)
    manager.connect(keys)
    own, _ = await manager.create(ANONYMOUS, name="own", scopes=list(Scope), tenant="films")
    by = own.principal(own.digest)
    for number in range(3):
        await manager.create(by, name=str(number), scopes=[Scope.SIMILAR])
    assert await manager.revoke_all(by, "films") == 4
    assert (await keys.load(None, {})).keys == {}


async def test_documents_of_keys_that_have_not_changed_are_not_decoded_again(keys: RedisKeyStore) -> None:
    others = [dataclasses.replace(KEY, prefix=f"bbbbbbbbb{letter}") for letter in "abc"]
    for key in (KEY, *others):
        await keys.replace(key.prefix, None, key, ACT)
    _decode.cache_clear()  # the cache is shared by the whole process
    await keys.load(None, {})
    decoded = _decode.cache_info().misses
    renamed = dataclasses.replace(KEY, name="another")
    await keys.replace(KEY.prefix, KEY, renamed, ACT)
    assert (await keys.load(None, {})).keys == {key.prefix: key for key in (renamed, *others)}
    assert _decode.cache_info().misses == decoded + 1


async def test_revoked_key_changes_no_key(keys: RedisKeyStore) -> None:
    by_key = dataclasses.replace(ACT, key=KEY.prefix)
    other = dataclasses.replace(KEY, prefix="zyxwvutsrq")
    with pytest.raises(Unauthenticated):
        await keys.replace(other.prefix, None, other, by_key)
    assert await keys.replace(KEY.prefix, None, KEY, ACT)
    assert await keys.replace(other.prefix, None, other, by_key)
    assert await keys.revoke([(KEY, by_key)]), "a key may revoke itself"
    with pytest.raises(Unauthenticated):
        await keys.revoke([(other, by_key)])


async def test_actor_without_a_key_makes_the_first_key_and_no_other(keys: RedisKeyStore) -> None:
    anonymous = dataclasses.replace(ACT, key=None)
    other = dataclasses.replace(KEY, prefix="zyxwvutsrq")
    assert await keys.replace(KEY.prefix, None, KEY, anonymous)
    with pytest.raises(Unauthenticated):
        await keys.replace(other.prefix, None, other, anonymous)
    with pytest.raises(Unauthenticated):
        await keys.revoke([(KEY, anonymous)])
    assert (await keys.load(None, {})).keys == {KEY.prefix: KEY}


async def test_last_use_is_kept_and_goes_with_the_key(keys: RedisKeyStore, admin: redis.Redis) -> None:
    await keys.replace(KEY.prefix, None, KEY, ACT)
    await keys.load(None, {KEY.prefix: 1234.5})
    found = await keys.find(KEY.prefix)
    assert (found, found and found.last_used_at) == (KEY, 1234.5)
    assert [key.last_used_at for key in await keys.with_last_uses([KEY])] == [1234.5]
    await keys.revoke([(KEY, ACT)])
    assert await keys.find(KEY.prefix) is None
    assert admin.hlen("{access}:used") == 0
    await keys.load(None, {KEY.prefix: 1235.5})  # a use that another replica recorded before it heard of the removal
    assert admin.hlen("{access}:used") == 0


@pytest.mark.parametrize("document", ["{}", "[]", "not JSON", '{"scopes": ["of a later version"]}'])
async def test_key_that_cannot_be_read_closes_all_the_same(
    keys: RedisKeyStore, admin: redis.Redis, clock: Clock, document: str
) -> None:
    admin.hset("{access}:keys", KEY.prefix, document)
    assert (await keys.load(None, {})).keys == {}
    authenticator = Authenticator(None, clock)
    authenticator.connect(keys)
    with pytest.raises(Unauthenticated):
        await authenticator.authenticate(None)


async def test_acts_are_read_newest_first_and_by_pages(keys: RedisKeyStore) -> None:
    for number in range(5):
        await keys.record(dataclasses.replace(ACT, target=str(number)))
    first = await keys.acts(2)
    assert [act.target for act in first] == ["4", "3"]
    assert [act.target for act in await keys.acts(9, first[-1].position)] == ["2", "1", "0"]
    assert dataclasses.replace(first[0], position="", target=ACT.target) == ACT


async def test_acts_are_bounded(keys: RedisKeyStore, admin: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.store.api_keys.MAX_STORED_ACTS", 100)
    for _ in range(400):
        await keys.record(ACT)
    assert 100 <= admin.xlen("{access}:audit") < 400


async def test_keys_are_bounded(keys: RedisKeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.store.api_keys.MAX_KEYS", 1)
    await keys.replace(KEY.prefix, None, KEY, ACT)
    with pytest.raises(TooManyApiKeys, match="max_keys = 1"):
        await keys.replace("bbbbbbbbbb", None, dataclasses.replace(KEY, prefix="bbbbbbbbbb"), ACT)
    assert await keys.replace(KEY.prefix, KEY, dataclasses.replace(KEY, name="still changed"), ACT)


@pytest.mark.parametrize("document", ["no json", "{}", '{"scopes": ["everything"]}', "[]"])
async def test_damaged_key_opens_nothing_and_harms_no_other(
    keys: RedisKeyStore, admin: redis.Redis, document: str
) -> None:
    admin.hset("{access}:keys", "bbbbbbbbbb", document)
    await keys.replace(KEY.prefix, None, KEY, ACT)
    assert (await keys.load(None, {})).keys == {KEY.prefix: KEY}


async def test_store_that_is_unavailable_is_said_so(keys: RedisKeyStore, server: Server) -> None:
    server.stop()
    with pytest.raises(StoreUnavailable):
        await keys.load(None, {})
