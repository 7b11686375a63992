"""Quotas: the sliding window, the headers that say what is left, and requests while the store is unavailable."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from service.access.meter import RETRY_SECONDS, Meter
from service.access.principal import Principal, Quota
from service.access.quota import WINDOW_SECONDS, OwnUse, Usage, WindowCount, carry_over
from service.api.rate_limit import rate_limit_headers
from service.errors import QuotaExceeded, StoreUnavailable
from service.telemetry import Telemetry

pytestmark = pytest.mark.anyio
BOTH = Quota(100, 5000)


@pytest.mark.parametrize(
    ("counted", "used"),
    [
        (WindowCount(0, 7, 30.0), 7),
        (WindowCount(100, 0, 0.0), 100),
        (WindowCount(100, 0, 15.0), 75),
        (WindowCount(60, 10, 59.0), 11),
    ],
)
def test_share_of_the_minute_before_counts(counted: WindowCount, used: float) -> None:
    assert counted.used == pytest.approx(used)


@pytest.mark.parametrize("allowed", [0, 1, 5, 49, 50, 99, 100])
@pytest.mark.parametrize(
    "counted", [WindowCount(0, 0, 0), WindowCount(100, 20, 12.5), WindowCount(10, 100, 30), WindowCount(0, 100, 59)]
)
def test_wait_ends_when_no_more_than_allowed_is_used(counted: WindowCount, allowed: int) -> None:
    seconds = counted.seconds_until(allowed)
    later = counted.elapsed + seconds
    then = (
        WindowCount(counted.before, counted.present, later)
        if later < 60
        else WindowCount(counted.present, 0, later - 60)
    )
    assert then.used <= allowed + 1e-6
    assert (seconds == 0) is (counted.used <= allowed)
    assert 0 <= seconds <= 120


@pytest.mark.parametrize("allowed", [0, 1, 50, 99])
@pytest.mark.parametrize("elapsed", [0, 12.5, 59])
@pytest.mark.parametrize(("before", "present"), [(0, 40), (100, 20), (0, 100), (30, 101), (100, 250), (0, 100_000)])
def test_wait_ends_when_what_was_carried_over_has_left(before: int, present: int, elapsed: float, allowed: int) -> None:
    counted = WindowCount(before, present, elapsed, 100)
    seconds = counted.seconds_until(allowed)
    minutes, later = divmod(elapsed + seconds, WINDOW_SECONDS)
    then = (
        WindowCount(*carry_over(present, int(minutes), 100), later) if minutes else WindowCount(before, present, later)
    )
    assert then.used == pytest.approx(min(allowed, counted.used), abs=1e-3)
    assert (seconds == 0) is (counted.used <= allowed)


@pytest.mark.parametrize(
    ("minutes", "drained", "counted"),
    [
        (1, None, (250, 0)),
        (2, None, (0, 0)),
        (1, 100, (100, 150)),
        (2, 100, (100, 50)),
        (3, 100, (50, 0)),
        (4, 100, (0, 0)),
        (1, 250, (250, 0)),
        (1, 300, (250, 0)),
    ],
)
def test_use_beyond_what_a_minute_drains_is_carried_over(
    minutes: int, drained: int | None, counted: tuple[int, int]
) -> None:
    assert carry_over(250, minutes, drained) == counted


def test_headers_are_structured_fields_of_the_draft() -> None:
    usage = Usage(True, WindowCount(40, 10, 30.0), WindowCount(0, 6000, 45.0))
    assert dict(rate_limit_headers(usage, BOTH)) == {
        b"ratelimit-policy": b'"requests";q=100;w=60, "tokens";q=5000;w=60',
        b"ratelimit": b'"requests";r=70;t=90, "tokens";r=0;t=75',
    }
    assert dict(rate_limit_headers(usage, Quota(None, 9000)))[b"ratelimit"] == b'"tokens";r=3000;t=75'


class Store:
    """A QuotaStore that answers as the test says. While `gate` is cleared it hangs."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.unavailable = False
        self.allowed = True
        self.counted: list[tuple[int, int]] = []

    async def count(self, key: str, quota: Quota, requests: int, tokens: int, *, spends_tokens: bool = True) -> Usage:
        await self.gate.wait()
        if self.unavailable:
            raise StoreUnavailable("unavailable")
        self.counted.append((requests, tokens))
        return Usage(self.allowed, WindowCount(0, 100, 30.0), WindowCount(0, 0, 30.0))


class Now:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


PRINCIPAL = Principal("abcdefghij", "films", frozenset(), BOTH)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def meter(store: Store, now: Now) -> Meter:
    meter = Meter(Telemetry(), now)
    meter.connect(store)
    return meter


def uncounted(meter: Meter) -> float:
    return meter._telemetry.registry.get_sample_value("notellm_quota_uncounted_total") or 0.0


async def test_exceeded_quota_says_when_to_come_back(meter: Meter, store: Store) -> None:
    store.allowed = False
    usage = await meter.take(PRINCIPAL)
    assert usage is not None
    assert not usage.allowed
    refusal = QuotaExceeded(usage.waits(BOTH))
    assert "quota of requests per minute" in str(refusal)
    assert refusal.retry_after == 31  # 30 s to the end of the minute, and until the window has 99 of 100
    assert dict(rate_limit_headers(usage, BOTH))[b"ratelimit"].startswith(b'"requests";r=0;')


async def test_key_is_bounded_by_what_its_process_counted_while_the_store_is_unavailable(
    meter: Meter, store: Store
) -> None:
    store.unavailable = True
    few = Principal("few", "films", frozenset(), Quota(3, 1000))
    usages = [await meter.take(few) for _ in range(4)]
    assert [usage and usage.allowed for usage in usages] == [None, None, None, False]
    with pytest.raises(QuotaExceeded):
        await meter.check(few)
    assert uncounted(meter) == 3


async def test_request_goes_on_uncounted_while_the_store_is_unavailable(meter: Meter, store: Store, now: Now) -> None:
    store.unavailable = True
    assert await meter.take(PRINCIPAL) is None
    store.unavailable = False
    assert await meter.take(PRINCIPAL) is None  # the store is not tried again for each request
    assert (uncounted(meter), store.counted) == (2, [])
    now.seconds += RETRY_SECONDS
    assert await meter.take(PRINCIPAL) is not None


async def test_one_request_waits_for_a_store_that_hangs(
    meter: Meter, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.gate.clear()
    assert await meter.take(PRINCIPAL) is None
    monkeypatch.setattr("service.access.meter.COUNT_SECONDS", 600)
    async with asyncio.timeout(30):
        assert await meter.take(PRINCIPAL) is None
    store.gate.set()
    assert uncounted(meter) == 2


async def test_key_whose_count_is_late_is_bounded_by_what_its_process_counted(
    meter: Meter, store: Store, now: Now
) -> None:
    few = Principal("few", "films", frozenset(), Quota(3, 1000))
    store.gate.clear()
    assert [await meter.take(few) for _ in range(3)] == [None] * 3
    refused = await meter.take(few)
    assert refused is not None
    assert (refused.allowed, refused.requests.present) == (False, 3)
    with pytest.raises(QuotaExceeded):
        await meter.check(few)
    now.seconds += 2 * WINDOW_SECONDS
    assert await meter.take(few) is None
    meter.charge(few, 1000)
    with pytest.raises(QuotaExceeded):
        await meter.check_tokens(few)
    store.gate.set()


async def test_late_count_of_a_key_leaves_the_quotas_of_others(meter: Meter, store: Store) -> None:
    store.gate.clear()
    assert await meter.take(Principal("slow", "films", frozenset(), BOTH)) is None
    store.gate.set()
    store.allowed = False
    usage = await meter.take(PRINCIPAL)
    assert usage is not None
    assert not usage.allowed


def test_use_of_one_process_is_counted_by_the_same_window() -> None:
    own, quota = OwnUse(), Quota(5, 5000)
    steps = [
        ((0, 4, 0), Usage(True, WindowCount(0, 4, 0), WindowCount(0, 0, 0))),
        ((30, 2, 7), Usage(False, WindowCount(0, 4, 30), WindowCount(0, 7, 30))),
        ((75, 1, 0), Usage(True, WindowCount(4, 1, 15), WindowCount(7, 0, 15))),
        ((75, 2, 0), Usage(False, WindowCount(4, 1, 15), WindowCount(7, 0, 15))),
        ((200, 5, 9000), Usage(True, WindowCount(0, 5, 20), WindowCount(0, 9000, 20))),
        ((241, 0, 0), Usage(False, WindowCount(5, 0, 1), WindowCount(5000, 4000, 1))),
        ((310, 1, 0), Usage(True, WindowCount(0, 1, 10), WindowCount(4000, 0, 10))),
    ]
    for (now, requests, tokens), usage in steps:
        drained = replace(usage, tokens=replace(usage.tokens, drained=5000))
        assert own.count(now, quota, requests, tokens) == drained


async def test_process_admits_requests_that_use_no_tokens_when_those_of_the_quota_are_used_up(
    meter: Meter, store: Store
) -> None:
    store.unavailable = True
    few = Principal("few", "films", frozenset(), Quota(1, 100))
    meter.charge(few, 1000)
    await meter.check(few, spends_tokens=False)
    with pytest.raises(QuotaExceeded):
        await meter.check(few)
    assert await meter.take(few, spends_tokens=False) is None
    usage = await meter.take(few, spends_tokens=False)
    assert usage is not None
    assert not usage.allowed, "the requests are still bounded"


async def test_key_that_uses_many_times_its_tokens_in_one_request_keeps_to_its_quota(
    meter: Meter, store: Store, now: Now
) -> None:
    limited, allowed = Principal("limited", "films", frozenset(), Quota(None, 1000)), 0
    store.unavailable = True
    for _ in range(100):
        if await meter.take(limited) is None:
            meter.charge(limited, 30_000)
            allowed += 1
        now.seconds += 2 * WINDOW_SECONDS
    assert allowed * 30_000 <= 201 * 1000 + 30_000, "that of the time, and what the last one takes"


async def test_nothing_is_counted_before_there_is_a_store() -> None:
    meter = Meter(Telemetry())
    assert await meter.take(PRINCIPAL) is None
    assert uncounted(meter) == 1


async def test_tokens_that_the_store_did_not_count_are_told(meter: Meter, store: Store) -> None:
    store.unavailable = True
    meter.charge(PRINCIPAL, 7)
    await asyncio.sleep(0)  # lets the count run
    await asyncio.sleep(0)
    assert uncounted(meter) == 1
    meter.charge(PRINCIPAL, 7)
    assert uncounted(meter) == 2


async def test_tokens_are_counted_where_they_are_bounded(meter: Meter, store: Store) -> None:
    meter.charge(PRINCIPAL, 0)
    meter.charge(Principal("abcdefghij", "films", frozenset(), Quota(100)), 7)
    meter.charge(PRINCIPAL, 12)
    await asyncio.sleep(0)
    assert store.counted == [(0, 12)]
