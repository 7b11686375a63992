"""Authenticator: whom it lets in, what that costs, and what it does while the store is unavailable."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from service.access.api_key import ApiKey, KeyTable, OldSecret, new_prefix, new_token
from service.access.authenticator import (
    AHEAD_SECONDS,
    CACHE_SECONDS,
    RETRY_SECONDS,
    STALE_SECONDS,
    USED_SECONDS,
    WAIT_SECONDS,
    Authenticator,
)
from service.access.principal import ANONYMOUS, Principal, Quota, Scope
from service.errors import Starting, StoreUnavailable, Unauthenticated
from service.interfaces import Clock

pytestmark = pytest.mark.anyio
BOOTSTRAP_KEY = "b" * 32


class Keys:
    """A KeyReader in memory. While `unavailable` it fails; while `gate` is cleared it hangs."""

    def __init__(self) -> None:
        self.keys: dict[str, ApiKey] = {}
        self.version = 0
        self.reads = 0
        self.unavailable = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.used: list[Mapping[str, float]] = []

    def add(self, **fields: Any) -> str:
        """Add a key, and return its token."""
        prefix = new_prefix()
        token, digest = new_token(prefix)
        key = ApiKey(prefix, digest, "a key", "films", frozenset({Scope.SIMILAR}), 0.0)
        self.keys[prefix] = dataclasses.replace(key, **fields)
        self.version += 1
        return token

    async def load(self, known: KeyTable | None, used: Mapping[str, float]) -> KeyTable:
        self.reads += 1
        await self.gate.wait()
        if self.unavailable:
            raise StoreUnavailable("unavailable")
        if used:
            self.used.append(used)
        return KeyTable(str(self.version), dict(self.keys))


class Now:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def authenticator(keys: Keys, now: Now, clock: Clock) -> Authenticator:
    authenticator = Authenticator(None, clock, now)
    authenticator.connect(keys)
    return authenticator


async def sent(authenticator: Authenticator, token: str) -> Principal:
    return await authenticator.authenticate(f"Bearer {token}")


async def refused(authenticator: Authenticator, authorization: str | None) -> str:
    """Return the reason for which a header is refused."""
    with pytest.raises(Unauthenticated) as refusal:
        await authenticator.authenticate(authorization)
    return refusal.value.reason


async def test_service_without_keys_is_open(authenticator: Authenticator) -> None:
    assert await authenticator.authenticate(None) is ANONYMOUS
    assert await authenticator.authenticate("Basic dXNlcjpwYXNz") is ANONYMOUS  # credentials for a proxy


async def test_key_of_ours_is_unknown_to_an_open_service(authenticator: Authenticator) -> None:
    assert await refused(authenticator, f"Bearer {new_token(new_prefix())[0]}") == "unknown_key"


async def test_key_opens_with_its_tenant_and_scopes(authenticator: Authenticator, keys: Keys) -> None:
    token = keys.add()
    principal = await authenticator.authenticate(f"bearer  {token}")
    assert principal == Principal(token.split("_")[1], "films", frozenset({Scope.SIMILAR}))


async def test_closed_service_refuses_all_else(authenticator: Authenticator, keys: Keys) -> None:
    token = keys.add()
    other = new_token(token.split("_")[1])[0]
    assert await refused(authenticator, None) == "no_key"
    assert await refused(authenticator, f"Bearer {other}") == "unknown_key"
    for header in ("", "Bearer", "Bearer ", f"Basic {token}", token, f"Bearer {token}x", f"Bearer {token} x"):
        assert await refused(authenticator, header) == "malformed_key"


async def test_expired_key_is_refused(authenticator: Authenticator, keys: Keys, clock: Clock) -> None:
    token = keys.add(expires_at=clock() + 60)
    assert (await sent(authenticator, token)).tenant == "films"
    clock.offset = 61
    assert await refused(authenticator, f"Bearer {token}") == "expired_key"


async def test_old_secret_opens_until_its_overlap_ends(authenticator: Authenticator, keys: Keys, clock: Clock) -> None:
    old, digest = new_token("abcdefghij")
    new, new_digest = new_token("abcdefghij")
    keys.add(prefix="abcdefghij", digest=new_digest, old_secrets=(OldSecret(digest, clock() + 60),))
    keys.keys = {key.prefix: key for key in keys.keys.values()}
    assert await sent(authenticator, old) == await sent(authenticator, new)
    clock.offset = 61
    assert await refused(authenticator, f"Bearer {old}") == "unknown_key"
    assert (await sent(authenticator, new)).key == "abcdefghij"


async def test_bootstrap_key_opens_before_there_is_a_store(clock: Clock) -> None:
    authenticator = Authenticator(BOOTSTRAP_KEY, clock)
    principal = await sent(authenticator, BOOTSTRAP_KEY)
    assert (principal.key, principal.tenant, principal.scopes) == ("bootstrap", "default", frozenset(Scope))
    for _ in range(2):
        with pytest.raises(Starting):
            await authenticator.authenticate(None)


async def test_bootstrap_key_closes_a_service_without_keys(keys: Keys, clock: Clock) -> None:
    authenticator = Authenticator(BOOTSTRAP_KEY, clock)
    authenticator.connect(keys)
    assert await refused(authenticator, None) == "no_key"
    assert await refused(authenticator, f"Bearer {BOOTSTRAP_KEY[1:]}") == "malformed_key"
    assert await refused(authenticator, "Bearer é") == "malformed_key"


async def test_known_key_costs_one_read_in_two_seconds(authenticator: Authenticator, keys: Keys, now: Now) -> None:
    token = keys.add()
    await asyncio.gather(*(sent(authenticator, token) for _ in range(100)))
    now.seconds += CACHE_SECONDS * 0.9
    await sent(authenticator, token)
    assert keys.reads == 1
    now.seconds += CACHE_SECONDS * 0.2
    await asyncio.gather(*(sent(authenticator, token) for _ in range(100)))
    assert keys.reads == 2


async def test_revoked_key_is_refused_after_two_seconds(authenticator: Authenticator, keys: Keys, now: Now) -> None:
    token = keys.add()
    keys.add()
    await sent(authenticator, token)
    del keys.keys[token.split("_")[1]]
    now.seconds += CACHE_SECONDS
    assert await refused(authenticator, f"Bearer {token}") == "unknown_key"


async def test_key_made_just_now_is_known_at_once(authenticator: Authenticator, keys: Keys, now: Now) -> None:
    keys.add()
    assert await refused(authenticator, None) == "no_key"
    now.seconds += RETRY_SECONDS
    assert (await sent(authenticator, keys.add())).tenant == "films"


async def test_unknown_keys_of_one_time_share_a_reading(authenticator: Authenticator, keys: Keys) -> None:
    keys.add()
    before = keys.reads
    await asyncio.gather(*(refused(authenticator, f"Bearer {new_token(new_prefix())[0]}") for _ in range(1000)))
    assert keys.reads <= before + 2


async def test_key_that_was_made_just_now_is_known_though_keys_were_read_just_before(
    authenticator: Authenticator, keys: Keys, now: Now
) -> None:
    keys.add()
    await refused(authenticator, f"Bearer {new_token(new_prefix())[0]}")
    token = keys.add()
    now.seconds += RETRY_SECONDS / 10
    assert await authenticator.authenticate(f"Bearer {token}")


async def test_secret_that_was_made_just_now_is_accepted_though_its_key_was_read_before(
    authenticator: Authenticator, keys: Keys, now: Now
) -> None:
    await sent(authenticator, keys.add())
    (prefix,), (key,) = keys.keys, keys.keys.values()
    token, digest = new_token(prefix)
    keys.keys[prefix] = dataclasses.replace(key, digest=digest)
    now.seconds += RETRY_SECONDS
    assert (await sent(authenticator, token)).key == prefix


async def test_wrong_secrets_of_one_time_share_a_reading(authenticator: Authenticator, keys: Keys, now: Now) -> None:
    await sent(authenticator, keys.add())
    (prefix,) = keys.keys
    now.seconds += RETRY_SECONDS
    await asyncio.gather(*(refused(authenticator, f"Bearer {new_token(prefix)[0]}") for _ in range(1000)))
    assert keys.reads <= 3


async def test_keys_stay_known_while_the_store_is_unavailable(
    authenticator: Authenticator, keys: Keys, now: Now
) -> None:
    token = keys.add()
    await sent(authenticator, token)
    keys.unavailable = True
    now.seconds += STALE_SECONDS - 1
    assert (await sent(authenticator, token)).tenant == "films"
    assert await refused(authenticator, None) == "no_key"
    now.seconds += 2
    with pytest.raises(StoreUnavailable):
        await sent(authenticator, token)
    keys.unavailable = False
    now.seconds += CACHE_SECONDS
    assert (await sent(authenticator, token)).tenant == "films"


async def test_key_that_may_be_new_is_not_called_unknown_while_the_store_is_unavailable(
    authenticator: Authenticator, keys: Keys, now: Now
) -> None:
    await sent(authenticator, keys.add())
    new, keys.unavailable = keys.add(), True
    now.seconds += RETRY_SECONDS
    with pytest.raises(StoreUnavailable):
        await sent(authenticator, new)


async def test_open_service_stays_open_while_the_store_is_unavailable(
    authenticator: Authenticator, keys: Keys, now: Now
) -> None:
    assert await authenticator.authenticate(None) is ANONYMOUS
    keys.unavailable = True
    now.seconds += 2 * STALE_SECONDS
    assert await authenticator.authenticate(None) is ANONYMOUS


async def test_keys_that_were_never_read_open_nothing(authenticator: Authenticator, keys: Keys) -> None:
    keys.unavailable = True
    for header in (None, f"Bearer {keys.add()}"):
        with pytest.raises(StoreUnavailable):
            await authenticator.authenticate(header)


async def test_first_reading_of_the_keys_is_a_part_of_the_start(authenticator: Authenticator, keys: Keys) -> None:
    keys.gate.clear()
    for _ in range(2):
        with pytest.raises(Starting):
            await authenticator.authenticate(None)
    keys.gate.set()


async def test_one_request_waits_for_a_store_that_hangs(
    authenticator: Authenticator, keys: Keys, now: Now, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = keys.add()
    await sent(authenticator, token)
    keys.gate.clear()
    now.seconds += CACHE_SECONDS
    waiting = asyncio.ensure_future(sent(authenticator, token))
    await asyncio.wait({waiting}, timeout=WAIT_SECONDS * 20)
    assert waiting.result().tenant == "films"
    monkeypatch.setattr("service.access.authenticator.WAIT_SECONDS", 600)
    async with asyncio.timeout(30):
        await sent(authenticator, token)
    keys.gate.set()


async def test_last_use_is_recorded_once_a_minute(authenticator: Authenticator, keys: Keys, now: Now) -> None:
    token = keys.add()
    for _ in range(int(USED_SECONDS * 2.5)):
        await sent(authenticator, token)
        now.seconds += 1
    await authenticator.close()
    assert [list(used) for used in keys.used] == [[token.split("_")[1]]] * 3


async def test_last_use_is_recorded_after_an_outage(authenticator: Authenticator, keys: Keys, now: Now) -> None:
    token = keys.add()
    await sent(authenticator, token)
    keys.unavailable = True
    now.seconds += CACHE_SECONDS
    await sent(authenticator, token)
    keys.unavailable = False
    now.seconds += CACHE_SECONDS
    await sent(authenticator, token)
    assert [list(used) for used in keys.used] == [[token.split("_")[1]]]


async def test_keys_are_read_again_before_authenticate_nowait_would_return_none(
    authenticator: Authenticator, keys: Keys, now: Now
) -> None:
    token = keys.add()
    await sent(authenticator, token)
    for _ in range(10):
        now.seconds += AHEAD_SECONDS
        assert [authenticator.authenticate_nowait(f"Bearer {token}") for _ in range(3)] != [None] * 3
        await asyncio.sleep(0)  # lets the read run
        await asyncio.sleep(0)
    assert keys.reads == 11


async def test_keys_that_cannot_be_read_ahead_are_tried_once_a_second(
    authenticator: Authenticator, keys: Keys, now: Now
) -> None:
    token = keys.add()
    await sent(authenticator, token)
    keys.unavailable = True
    now.seconds += AHEAD_SECONDS
    for _ in range(3):
        assert authenticator.authenticate_nowait(f"Bearer {token}")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert keys.reads == 2
    now.seconds += AHEAD_SECONDS
    assert authenticator.authenticate_nowait(f"Bearer {token}") is None


async def test_caller_is_let_go_on_by_the_secret_and_the_quota_of_now(
    authenticator: Authenticator, keys: Keys, now: Now, clock: Clock
) -> None:
    token = keys.add()
    caller = await sent(authenticator, token)
    assert await authenticator.check_again(caller) == caller
    (prefix,), (key,) = keys.keys, keys.keys.values()
    _, digest = new_token(prefix)
    rotated = dataclasses.replace(key.rotated(digest, clock(), clock() + 60), quota=Quota(7))
    keys.keys[prefix] = rotated
    now.seconds += CACHE_SECONDS
    assert (await authenticator.check_again(caller)).quota == Quota(7), "the old secret is accepted for the overlap"
    keys.keys[prefix] = dataclasses.replace(rotated, old_secrets=())
    now.seconds += CACHE_SECONDS
    with pytest.raises(Unauthenticated) as refusal:
        await authenticator.check_again(caller)
    assert refusal.value.reason == "unknown_key"


async def test_caller_of_an_open_service_does_not_go_on_once_there_are_keys(
    authenticator: Authenticator, keys: Keys, now: Now
) -> None:
    caller = await authenticator.authenticate(None)
    assert await authenticator.check_again(caller) is ANONYMOUS
    keys.add()
    now.seconds += CACHE_SECONDS
    with pytest.raises(Unauthenticated) as refusal:
        await authenticator.check_again(caller)
    assert refusal.value.reason == "no_key"


async def test_a_principal_tells_no_digest() -> None:
    prefix = new_prefix()
    _, digest = new_token(prefix)
    key = ApiKey(prefix, digest, "a key", "films", frozenset({Scope.SIMILAR}), 0.0)
    assert digest not in repr(key.principal(digest))
