"""CoOccurrence equals `notellm pairs` on the same clicks, whatever their order, and forgets completely."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.data.pairs import PairOptions, related_pairs
from service.behaviour.co_occurrence import MAX_HISTORY, CoOccurrence, CoOccurrenceOptions, summed
from tests.optional import require

USERS, NOTES = "abcde", [f"n{number}" for number in range(8)]
Click = tuple[str, str, float]
"""User, note, time."""
CLICKS = st.lists(
    st.tuples(st.sampled_from(USERS), st.sampled_from(NOTES), st.integers(0, 9).map(float)), min_size=1, max_size=40
)
LOGS = st.lists(CLICKS, min_size=8, max_size=8)
"""Logs without a user or a note in common, once `apart` has named them apart: the offline command, most of whose time
is its start, makes the pairs of all of them at once."""
Pairs = dict[tuple[str, str], tuple[float, int]]
FIXED = [HealthCheck.function_scoped_fixture]
"""Health check to suppress: fixtures are made once for all examples, which is intended here."""


def offline(clicks: Iterable[Click], folder: Path, **options: Any) -> Pairs:
    """Scores and numbers of users of the pairs that `notellm pairs` makes."""
    import duckdb

    path = folder / "clicks.jsonl"
    path.write_bytes(b"".join(orjson.dumps({"user": u, "note": n, "time": t}) + b"\n" for u, n, t in clicks))
    related_pairs(path, folder / "pairs.parquet", PairOptions(**options))
    rows = duckdb.sql(f"SELECT note, related, score, users FROM '{folder / 'pairs.parquet'}'").fetchall()
    return {(note, related): (score, users) for note, related, score, users in rows}


def apart(logs: Iterable[list[Click]]) -> list[list[Click]]:
    """Put the number of its log before each user and each note."""
    return [[(f"{n}{user}", f"{n}{note}", time) for user, note, time in log] for n, log in enumerate(logs)]


def live(clicks: Iterable[Click], **options: Any) -> CoOccurrence:
    kept = CoOccurrence(CoOccurrenceOptions(**options))
    for user, note, time in clicks:
        kept.add(user, note, time)
    return kept


def pairs_of(kept: CoOccurrence, notes: Iterable[str]) -> Pairs:
    return {
        (note, one.id): (one.score, round(one.readers)) for note in dict.fromkeys(notes) for one in kept.related(note)
    }


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="defaults"),
        pytest.param({"window": 2}, id="window"),
        pytest.param({"top": 2}, id="top"),
        pytest.param({"lower": 0.3, "upper": 0.8}, id="bounds"),
    ],
)
def test_pairs_equal_those_of_the_offline_command(options: dict[str, Any], tmp_path: Path) -> None:
    @settings(max_examples=5, deadline=None, derandomize=True)
    @given(logs=LOGS)
    def check(logs: list[list[Click]]) -> None:
        chosen, pairs = {"top": 10, **options}, Pairs()
        for log in apart(logs):
            pairs |= pairs_of(live(log, **chosen), [note for _, note, _ in log])
        assert pairs == offline(chain.from_iterable(apart(logs)), tmp_path, **chosen)

    check()


@pytest.fixture(params=[0, 1000], ids=["at once", "one by one"])
def compared(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove readers from the list of a note in each of the two ways."""
    monkeypatch.setattr("service.behaviour.co_occurrence.MAX_COMPARED_ONE_BY_ONE", request.param)


@pytest.mark.usefixtures("compared")
@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(clicks=CLICKS, note=st.sampled_from(NOTES), user=st.sampled_from(USERS))
def test_what_was_removed_leaves_nothing_behind(clicks: list[Click], note: str, user: str) -> None:
    kept = live(clicks)
    kept.remove_note(note)
    kept.forget(user)
    rest = [click for click in clicks if click[1] != note and click[0] != user]
    assert pairs_of(kept, NOTES) == pairs_of(live(rest), NOTES)
    assert (kept.reads, kept.readers, kept.notes) == (
        len({click[:2] for click in rest}),
        len({click[0] for click in rest}),
        len({click[1] for click in rest}),
    )


@pytest.mark.usefixtures("compared")
@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=FIXED)
@given(clicks=CLICKS, before=st.integers(0, 9))
def test_expired_reads_count_no_more(clicks: list[Click], before: int) -> None:
    kept = live(clicks)
    for _ in range(3):
        kept.expire(before, 4)
    last: dict[tuple[str, str], float] = {}
    for user, note, time in clicks:
        last[user, note] = max(time, last.get((user, note), time))
    left = [click for click in clicks if last[click[:2]] >= before]
    assert (kept.reads, pairs_of(kept, NOTES)) == (len({click[:2] for click in left}), pairs_of(live(left), NOTES))


def test_a_read_counts_until_its_last_event_is_too_old() -> None:
    kept = live([("a", "x", 1.0), ("a", "y", 2.0), ("a", "x", 5.0)])
    only_later_event = live([("a", "x", 5.0)])
    for _ in range(2):
        kept.expire(4.0, 4)
    assert [[read.note_id for read in reads] for reads in kept.all_reads()] == [["x"]]
    assert kept.reads == only_later_event.reads, "a process that starts now sees that event alone"
    kept.expire(6.0, 4)
    assert (kept.reads, kept.readers, kept.notes) == (0, 0, 0)


def test_expiry_ends_when_its_time_is_over_and_goes_on_with_the_next_call() -> None:
    kept = live([(f"reader {number}", note, 1.0) for number in range(5) for note in ("a", "b")])
    left, reads = 5, []
    while left:
        left = kept.expire(2.0, left, seconds=0.0)
        reads.append(kept.reads)
    assert reads == [8, 6, 4, 2, 0]
    assert (kept.readers, kept.notes) == (0, 0)


def test_expiry_ends_where_it_writes_many_lists_of_readers_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.behaviour.co_occurrence.MAX_READERS_FILTERED", 6)
    kept = live([(f"reader {number}", note, 1.0) for number in range(5) for note in ("every", f"of {number}")])
    left = kept.expire(2.0, 5)
    assert (left, kept.reads) == (4, 8), "five readers of one note, and one of another"
    assert kept.expire(2.0, left) == 2, "four of the first one are left"
    assert kept.reads == 4


def test_reads_of_a_note_are_removed_in_calls_that_each_leave_a_whole() -> None:
    clicks = [(f"reader {number}", note, float(at)) for number in range(3) for at, note in enumerate("ab")]
    kept, left, calls = live(clicks), True, 0
    while left:
        left, calls = kept.remove_note("a", seconds=0.0), calls + 1
        rest = [click for click in clicks if click[1] == "b" or int(click[0][-1]) < 3 - calls]
        assert pairs_of(kept, "ab") == pairs_of(live(rest), "ab")
        assert kept.reads == len(rest)
    assert (calls, kept.notes) == (3, 1)


def test_a_read_counts_as_long_as_one_of_its_events_is_kept() -> None:
    kept = CoOccurrence()
    for reader, arrival in (("a", 10), ("b", 12)):
        kept.add(reader, "x", 0.0, arrival=arrival)
        kept.add(reader, "y", 1.0, arrival=arrival)
    kept.add("a", "x", 2.0, arrival=12)
    for _ in range(2):
        kept.expire(0.0, 4, first_arrival=12)
    assert [len(history) for history in kept.all_reads()] == [2, 1]
    assert kept.related("x")[0].readers == 1.0
    kept.expire(0.0, 4, first_arrival=13)
    kept.expire(0.0, 4, first_arrival=13)
    assert (kept.reads, kept.readers, kept.notes) == (0, 0, 0)


def test_a_pair_with_fewer_readers_than_asked_for_is_not_told() -> None:
    clicks = [("a", "n1", 0.0), ("a", "n2", 1.0), ("a", "n3", 2.0), ("b", "n1", 0.0), ("b", "n2", 1.0)]
    assert [one.id for one in live(clicks).related("n1")] == ["n2", "n3"]
    assert [one.id for one in live(clicks, min_readers=2).related("n1")] == ["n2"]
    assert live(clicks, min_readers=3).related("n1") == []


def test_a_pair_counts_half_after_its_half_life() -> None:
    kept = live([("a", "x", 0.0), ("a", "y", 100.0)], half_life=50.0, lower=0.0)
    (now,), (later,) = kept.related("x", 100.0), kept.related("x", 150.0)
    assert (now.score, now.readers) == (0.5, 1.0)
    assert (later.score, later.readers) == (0.25, 0.5)


def test_a_read_of_greater_weight_counts_more() -> None:
    kept = CoOccurrence()
    kept.add("a", "x", 0.0)
    kept.add("a", "y", 1.0)
    kept.add("a", "y", 2.0, weight=3.0)
    assert kept.related("x")[0].score == 1.5


def test_what_is_related_to_several_notes_adds_up_without_these() -> None:
    kept = live([("a", "x", 0.0), ("a", "y", 1.0), ("a", "z", 2.0), ("b", "y", 0.0), ("b", "z", 1.0)])
    lists = [kept.related(note) for note in ("x", "y", "nobody")]
    (z,) = summed(lists, ["x", "y"])
    assert (z.id, z.score) == ("z", pytest.approx(1 / 3 + 1 / 3 + 1 / 2))
    assert z.readers == 2.0, "a reader counts once, however many of the examples were read before"
    assert {one.id for one in summed(lists[:1], ["x"])} == {"y", "z"}


def test_equal_scores_are_not_in_the_order_of_ids() -> None:
    names = [f"{number:02}" for number in range(50)]
    kept = CoOccurrence(CoOccurrenceOptions(top=10))
    for number, name in enumerate(names):
        kept.add(f"reader {number}", "first", 0.0)
        kept.add(f"reader {number}", name, 1.0)
    related = kept.related("first")
    for ids in ([one.id for one in related], [one.id for one in summed([related], [])]):
        assert len(ids) == 10
        assert 15 < sum(map(int, ids)) / 10 < 35, "of 0 to 49, which have equal scores, the mean is 24.5"
        assert ids != sorted(ids)


def test_reads_are_bounded_by_those_of_idle_readers() -> None:
    kept = CoOccurrence(CoOccurrenceOptions(max_reads=10))
    for number in range(20):
        kept.add("old" if number < 8 else f"new{number}", f"n{number}", float(number))
    assert kept.reads <= 10
    assert kept.related("n0") == []


def test_the_reads_of_one_reader_are_bounded() -> None:
    kept = live([("a", f"n{number}", float(number)) for number in range(MAX_HISTORY + 10)])
    assert kept.reads == MAX_HISTORY
    assert kept.related("n9") == []


def test_the_last_readers_of_a_note_count_as_far_as_their_reads_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.behaviour.co_occurrence.MAX_READERS_READS", 6)
    kept = CoOccurrence()
    for number in range(4):  # three reads each: two readers reach the bound
        for at, note in enumerate(("first", "second", f"of {number}")):
            kept.add(f"reader {number}", note, float(at))
    assert {one.id for one in kept.related("first")} == {"second", "of 2", "of 3"}


def test_a_read_that_is_later_than_what_takes_it_back_stays() -> None:
    kept = live([("a", "n0", 5.0)])
    kept.remove("a", "n0", 4.0)
    assert kept.reads == 1
    kept.remove("a", "n0", 5.0)
    assert (kept.reads, kept.readers, kept.notes) == (0, 0, 0)


def test_the_memory_that_it_tells_is_what_it_takes() -> None:
    tracemalloc.start()
    kept = CoOccurrence()
    for reader in range(2000):
        for step in range(10):
            kept.add(f"{reader:020x}", f"note-{(reader * 7 + step * 13) % 500}", float(step))
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.6 * taken < kept.bytes < 1.6 * taken


@pytest.mark.slow
def test_pairs_of_real_clicks_equal_those_of_the_offline_command(tmp_path: Path) -> None:
    data = Path(os.environ.get("NOTELLM_DATA", "")) / "microlens50k" / "clicks.jsonl.gz"
    require("NOTELLM_DATA" in os.environ and data.is_file(), "NOTELLM_DATA has no microlens50k")
    with gzip.open(data) as lines:
        read = [json.loads(line) for line in islice(lines, 40_000)]
    clicks = [(click["user"], click["note"], float(number)) for number, click in enumerate(read)]
    options = {"window": 5, "top": 10}
    expected = offline(clicks, tmp_path, **options)
    assert len(expected) > 10_000
    assert pairs_of(live(clicks, **options), [note for _, note, _ in clicks]) == expected
