"""Tests of related pairs: the scores of paper section 3, what the options drop, and the file formats of clicks."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import duckdb
import pytest

from model.data.pairs import PairOptions, PairsError, PairsReport, clicks_by_note, related_pairs, split_of
from model.data.pairs_file import read_pairs
from model.ties import tie, tie_key
from tests.model.pairs_file import write_pairs_file

ALL = PairOptions(lower=0, top=1_000_000)
Scores = dict[tuple[str, str], float]


def write_clicks(path: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def histories(**notes: str) -> list[dict[str, str]]:
    """Clicks of users on one-letter notes, in order: histories(u="abc")."""
    return [{"user": user, "note": note} for user, text in notes.items() for note in text]


def scores_of(folder: Path, records: Iterable[Mapping[str, Any]], options: PairOptions = ALL, **more: Any) -> Scores:
    clicks = write_clicks(folder / "clicks.jsonl", records)
    related_pairs(clicks, folder / "pairs.parquet", options, **more)
    return {(pair.note, pair.related): pair.score for pair in read_pairs(folder / "pairs.parquet")}


def with_split(split: str, count: int) -> list[str]:
    return [str(number) for number in range(1000) if split_of(str(number)) == split][:count]


# The score


def test_pair_has_the_direction_of_the_clicks(tmp_path: Path) -> None:
    assert scores_of(tmp_path, histories(u="ab")) == {("a", "b"): 0.5}


def test_score_is_the_sum_of_one_by_each_users_distinct_notes(tmp_path: Path) -> None:
    scores = scores_of(tmp_path, histories(u="abc", v="ab", w="ba"))
    assert scores == pytest.approx(
        {("a", "b"): 1 / 3 + 1 / 2, ("a", "c"): 1 / 3, ("b", "c"): 1 / 3, ("b", "a"): 1 / 2}, abs=1e-9
    )


def test_repeated_clicks_count_once_at_the_first(tmp_path: Path) -> None:
    assert scores_of(tmp_path, histories(u="abaab")) == {("a", "b"): 0.5}


def test_single_note_makes_no_pair_with_itself(tmp_path: Path) -> None:
    assert scores_of(tmp_path, histories(u="aaa")) == {}


def test_users_of_a_pair_are_counted(tmp_path: Path) -> None:
    scores_of(tmp_path, histories(u="ab", v="abc", w="ba"))
    rows = duckdb.sql(f"SELECT note, related, users FROM '{tmp_path}/pairs.parquet' WHERE note = 'a'").fetchall()
    assert rows == [("a", "b", 2), ("a", "c", 1)]


def test_times_override_the_order_of_the_file(tmp_path: Path) -> None:
    clicks = [{"user": "u", "note": "a", "time": 20}, {"user": "u", "note": "b", "time": 9.5}]
    assert scores_of(tmp_path, clicks) == {("b", "a"): 0.5}


def test_equal_times_keep_the_order_of_the_file(tmp_path: Path) -> None:
    assert scores_of(tmp_path, [{**click, "time": 7} for click in histories(u="ba")]) == {("b", "a"): 0.5}


def test_times_may_be_iso_text_with_offsets(tmp_path: Path) -> None:
    late, early = "2024-05-01T10:00:00+00:00", "2024-05-01T11:00:00+02:00"
    clicks = [{"user": "u", "note": "a", "time": late}, {"user": "u", "note": "b", "time": early}]
    assert scores_of(tmp_path, clicks) == {("b", "a"): 0.5}


def test_null_times_keep_the_order_of_the_file(tmp_path: Path) -> None:
    assert scores_of(tmp_path, [{**click, "time": None} for click in histories(u="ba")]) == {("b", "a"): 0.5}


def test_clicks_of_several_users_may_be_mixed(tmp_path: Path) -> None:
    clicks = histories(u="a") + histories(v="b") + histories(u="b") + histories(v="a")
    assert scores_of(tmp_path, clicks) == {("a", "b"): 0.5, ("b", "a"): 0.5}


# Options


def test_window_counts_steps_between_distinct_notes(tmp_path: Path) -> None:
    scores = scores_of(tmp_path, histories(u="aabbbc"), PairOptions(lower=0, window=1))
    assert scores == pytest.approx({("a", "b"): 1 / 3, ("b", "c"): 1 / 3}, abs=1e-9)


def test_score_bounds_are_inclusive(tmp_path: Path) -> None:
    clicks = histories(u="ab", v="ab", w="cd", x="efgh")
    assert scores_of(tmp_path, clicks, PairOptions(lower=0.5, upper=1)) == {("a", "b"): 1.0, ("c", "d"): 0.5}
    assert scores_of(tmp_path, clicks, PairOptions(lower=0.3, upper=0.9)) == {("c", "d"): 0.5}


def test_score_bound_holds_for_the_exact_sum(tmp_path: Path) -> None:
    users = {f"u{number}": "abcdefghij" for number in range(3)}  # in floats 0.1 + 0.1 + 0.1 > 0.3
    scores = scores_of(tmp_path, histories(**users), PairOptions(lower=0.3, upper=0.3))
    assert len(scores) == 10 * 9 // 2
    assert set(scores.values()) == {0.3}


def test_top_keeps_the_best_and_of_equal_ones_no_smaller_ids(tmp_path: Path) -> None:
    names = [f"{number:02}" for number in range(50)]
    clicks = [{"user": "u", "note": note} for note in ("a", "z", *names)] + histories(v="az")
    scores = scores_of(tmp_path, clicks, PairOptions(top=11, lower=0))
    best, *others = [related for note, related in scores if note == "a"]
    assert best == "z"
    assert len(others) == 10
    assert 15 < sum(map(int, others)) / 10 < 35, "of 0 to 49, which have equal scores, the mean is 24.5"


@pytest.mark.parametrize(("top", "kept"), [(1, "z"), (3, "z"), (4, "zwxy")])
def test_ties_that_top_would_have_to_decide_are_dropped_on_request(tmp_path: Path, top: int, kept: str) -> None:
    scores = scores_of(tmp_path, histories(u="azyxw", v="az"), PairOptions(top=top, drop_ties=True))
    assert [related for note, related in scores if note == "a"] == list(kept)


def test_click_below_the_minimum_rating_does_not_count(tmp_path: Path) -> None:
    ratings = {"a": 4, "b": 5.0, "c": 3.5, "d": None}
    clicks = [{"user": "u", "note": note, "rating": rating} for note, rating in ratings.items()]
    assert scores_of(tmp_path, clicks, PairOptions(min_rating=4)) == {("a", "b"): 0.5}


def test_split_keeps_its_own_pairs_and_counts_all_notes(tmp_path: Path) -> None:
    (a, b), (c, d) = with_split("test", 2), with_split("train", 2)
    clicks = [{"user": "u", "note": note} for note in (a, c, b, d)]
    assert scores_of(tmp_path, clicks, PairOptions(split="test")) == {(a, b): 0.25}
    assert scores_of(tmp_path, clicks, PairOptions(split="train")) == {(c, d): 0.25}
    assert scores_of(tmp_path, clicks, PairOptions(split="validation")) == {}


def test_split_is_applied_before_top(tmp_path: Path) -> None:
    (a, b), others = with_split("test", 2), with_split("train", 5)
    clicks = [{"user": user, "note": note} for user in "uv" for note in (a, *others)]
    clicks += [{"user": "w", "note": a}, {"user": "w", "note": b}, {"user": "w", "note": others[0]}]
    assert list(scores_of(tmp_path, clicks, PairOptions(split="test", top=1))) == [(a, b)]


def test_split_of_a_note_is_by_the_documented_rule() -> None:
    for note in ("1", "笔记", ""):
        rest = int(hashlib.sha1(note.encode()).hexdigest(), 16) % 5
        assert split_of(note) == {0: "test", 1: "validation"}.get(rest, "train")


def test_per_category_keeps_the_best_pairs(tmp_path: Path) -> None:
    categories = {"a": "X", "b": "X", "c": "Y", "d": "Y"}
    notes = write_clicks(tmp_path / "notes.jsonl.gz", ({"id": i, "category": c} for i, c in categories.items()))
    clicks = histories(u="acd", v="bd", w="ab", x="ca")
    scores = scores_of(tmp_path, clicks, PairOptions(per_category=1), notes=notes)
    # X -> Y: b -> d is 1/2, a -> c and a -> d are 1/3. X -> X, Y -> Y and Y -> X have one pair each.
    assert set(scores) == {("b", "d"), ("a", "b"), ("c", "d"), ("c", "a")}


def test_notes_without_a_category_form_one_category(tmp_path: Path) -> None:
    notes = write_clicks(tmp_path / "notes.jsonl", [{"id": "a", "category": "X"}, {"id": "b", "category": None}])
    scores = scores_of(tmp_path, histories(u="abc", v="de"), PairOptions(per_category=1), notes=notes)
    assert [note for note, _ in scores] == ["a", "d"]  # of a -> b and a -> c one, and d -> e is better than b -> c


def test_category_of_a_note_is_that_of_its_last_line(tmp_path: Path) -> None:
    lines = [("a", "A"), ("a", "\tB "), ("b", "B"), ("c", "C"), ("d", "C"), ("d", " ")]
    notes = write_clicks(tmp_path / "notes.jsonl", ({"id": i, "category": category} for i, category in lines))
    scores = scores_of(tmp_path, histories(u="ac", v="bc", w="bd"), PairOptions(per_category=1), notes=notes)
    assert set(scores) == {("a", "c"), ("b", "d")}  # b -> c has the same categories as a -> c, and d has none


def test_max_history_bounds_the_pairs_and_not_the_weight(tmp_path: Path) -> None:
    assert scores_of(tmp_path, histories(u="aabcd"), PairOptions(max_history=2)) == {("a", "b"): 0.25}


# Comparison with plain Python and with Spark


def random_clicks(seed: int) -> list[dict[str, Any]]:
    """Users of very different lengths, repeated clicks, equal times and missing ratings."""
    rng = random.Random(seed)
    clicks = [
        {"user": rng.randrange(25), "note": str(int(40 * rng.random() ** 2)), "time": rng.randrange(300)}
        for _ in range(400)
    ]
    return [{**click, "rating": rng.choice([None, 1, 2.5, 4, 5])} for click in clicks]


def plain_pairs(clicks: Sequence[Mapping[str, Any]], options: PairOptions, category: Mapping[str, str]) -> Scores:
    """Scores of the kept pairs, by the definition in plain Python."""
    scores: dict[tuple[str, str], Fraction] = defaultdict(Fraction)
    orders: dict[str, dict[str, None]] = defaultdict(dict)
    for click in sorted(clicks, key=lambda click: click["time"]):
        if options.min_rating is None or (click["rating"] or 0) >= options.min_rating:
            orders[click["user"]][click["note"]] = None
    for order in map(list, orders.values()):
        for step, note in enumerate(order[: options.max_history]):
            end = len(order) if options.window is None else step + 1 + options.window
            for related in order[: options.max_history][step + 1 : end]:
                scores[note, related] += Fraction(1, len(order))
    kept, per_note, per_category = {}, Counter[str](), Counter[tuple[str | None, str | None]]()

    def is_in_bounds(note: str, related: str) -> bool:
        in_split = options.split == "all" or {split_of(note), split_of(related)} == {options.split}
        return in_split and Fraction(str(options.lower)) <= scores[note, related] <= options.upper

    kept_by_score = [pair for pair in scores if is_in_bounds(*pair)]
    ranked = sorted(kept_by_score, key=lambda pair: (-scores[pair], tie(*map(tie_key, pair))))
    for note, related in ranked:
        score = scores[note, related]
        per_note[note] += 1
        as_good = sum(one == note and scores[one, other] >= score for one, other in ranked)
        if (as_good if options.drop_ties else per_note[note]) > options.top:
            continue
        per_category[category.get(note), category.get(related)] += 1
        if (
            options.per_category is None
            or per_category[category.get(note), category.get(related)] <= options.per_category
        ):
            kept[note, related] = float(score)
    return kept


OPTIONS = [
    PairOptions(),
    ALL,
    PairOptions(window=3, top=2),
    PairOptions(window=1, lower=0.2, upper=0.5, top=4),
    PairOptions(min_rating=2.5, top=3),
    PairOptions(split="train", top=1, max_history=8, drop_ties=True),
    PairOptions(split="test", lower=0.1, window=10),
    PairOptions(per_category=7, top=5),
    PairOptions(per_category=3, min_rating=4, window=6, max_history=9, lower=0.1, top=2),
]
SPARK_OPTIONS = [OPTIONS[0], OPTIONS[3], OPTIONS[5], OPTIONS[8]]
"""Subset of OPTIONS that has every option: Spark takes five seconds for each, and runs the same SQL as DuckDB."""


@pytest.fixture(scope="module")
def notes_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    around = (" {} ", "\t{}\n", "\u3000{}")
    names = [around[number % 4 % 3].format("XYZ"[number % 3]) if number % 5 else None for number in range(30)]
    notes = [{"id": number, "category": name} for number, name in enumerate(names)]
    return write_clicks(tmp_path_factory.mktemp("notes") / "notes.jsonl", notes)


@pytest.fixture(scope="module")
def categories(notes_file: Path) -> dict[str, str]:
    notes = map(json.loads, notes_file.read_text().splitlines())
    return {str(note["id"]): note["category"].strip() for note in notes if note["category"]}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_sql_and_plain_python_agree(
    tmp_path: Path, options: PairOptions, seed: int, notes_file: Path, categories: dict[str, str]
) -> None:
    clicks = random_clicks(seed)
    expected = plain_pairs(clicks, options, categories)
    assert scores_of(tmp_path, clicks, options, notes=notes_file) == pytest.approx(expected, abs=1e-9)


@pytest.fixture(scope="module")
def spark() -> Iterable[None]:
    """Start one Spark for all tests that need it."""
    sql = pytest.importorskip("pyspark.sql", reason="the extra `spark` is not installed")
    os.environ.update(SPARK_LOCAL_IP="127.0.0.1", PYSPARK_PYTHON=sys.executable)
    builder = sql.SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    # Full JIT compilation takes more time than it saves on these small tables.
    builder = builder.config("spark.driver.extraJavaOptions", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
    session = builder.config("spark.sql.shuffle.partitions", "2").getOrCreate()
    yield
    session.stop()


def rows_of(path: Path) -> list[tuple[Any, ...]]:
    return duckdb.execute("FROM read_parquet(?)", [str(path)]).fetchall()


@pytest.mark.slow
@pytest.mark.usefixtures("spark")
@pytest.mark.parametrize("options", SPARK_OPTIONS, ids=str)
def test_spark_and_duckdb_write_the_same_rows(tmp_path: Path, options: PairOptions, notes_file: Path) -> None:
    clicks = write_clicks(tmp_path / "clicks.jsonl.gz", random_clicks(1))
    reports = [
        related_pairs(clicks, tmp_path / engine, options, notes=notes_file, engine=engine)
        for engine in ("duckdb", "spark")
    ]
    assert rows_of(tmp_path / "spark") == rows_of(tmp_path / "duckdb")
    assert without_seconds(reports[0]) == without_seconds(reports[1])


@pytest.mark.slow
@pytest.mark.usefixtures("spark")
def test_spark_and_duckdb_agree_on_real_clicks(tmp_path: Path) -> None:
    if "NOTELLM_DATA" not in os.environ:
        # The data sets are not in the repository.
        pytest.skip("NOTELLM_DATA does not name the folder of the data sets")
    clicks = Path(os.environ["NOTELLM_DATA"]) / "microlens50k" / "clicks.jsonl.gz"
    for engine in ("duckdb", "spark"):
        related_pairs(clicks, tmp_path / engine, PairOptions(split="train"), engine=engine)
    assert rows_of(tmp_path / "spark") == rows_of(tmp_path / "duckdb") != []


def without_seconds(report: PairsReport) -> dict[str, Any]:
    return {name: getattr(report, name) for name in PairsReport.__slots__ if name != "seconds"}


# Files


def save(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows in the format of the path's name."""
    if ".jsonl" in path.name:
        return write_clicks(path, rows)
    table = path.with_name("table.csv")
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    if path.name.endswith(".csv.gz"):
        path.write_bytes(gzip.compress(table.read_bytes()))
    elif path.suffix == ".csv":
        table.rename(path)
    else:
        duckdb.execute(f"COPY (FROM read_csv('{table}')) TO '{path}' (FORMAT parquet)")
    return path


FILES = ["c.jsonl", "c.jsonl.gz", "c.csv", "c.csv.gz", "c.parquet"]


def check_parts(folder: Path, engine: Any) -> None:
    """Assert that part files, given as a folder or as a pattern, yield the same pairs as one file of all clicks."""
    records = [click | {"time": time} for time, click in enumerate(histories(u="ab", v="bca", w="ab"))]
    expected = scores_of(folder, records)
    parts = folder / "parts"
    parts.mkdir()
    for number, part in enumerate((records[4:], records[:2], records[2:4])):
        write_clicks(parts / f"part-{number}.jsonl", part)
    for leftover in ("_SUCCESS", ".part-0.jsonl.crc", "part-.jsonl"):
        (parts / leftover).touch()
    for path in (parts, parts / "part-*.jsonl"):
        related_pairs(path, folder / "pairs.parquet", ALL, engine=engine)
        assert {pair[:2]: pair.score for pair in read_pairs(folder / "pairs.parquet")} == expected


def test_duckdb_reads_part_files(tmp_path: Path) -> None:
    check_parts(tmp_path, "duckdb")


@pytest.mark.slow
@pytest.mark.usefixtures("spark")
def test_spark_reads_part_files(tmp_path: Path) -> None:
    check_parts(tmp_path, "spark")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("engine", ["duckdb", pytest.param("spark", marks=pytest.mark.slow)])
def test_part_files_may_have_columns_in_another_order_and_lack_some(
    tmp_path: Path, engine: Any, kind: str, request: pytest.FixtureRequest
) -> None:
    if engine == "spark":
        request.getfixturevalue("spark")
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "a.csv").write_text("user,note,time\nu,1,1\nu,2,2\n")
    (parts / "b.csv").write_text("time,rating,user,note\n3,5,v,1\n4,5,v,2\n")
    if kind == "parquet":
        for part in list(parts.iterdir()):
            target = part.with_suffix(".parquet")
            duckdb.execute(f"COPY (FROM read_csv('{part}', all_varchar = true)) TO '{target}' (FORMAT parquet)")
            part.unlink()
    related_pairs(parts, tmp_path / "pairs", ALL, engine=engine)
    assert {pair[:2]: pair.score for pair in read_pairs(tmp_path / "pairs")} == {("1", "2"): 1.0}


def test_file_whose_name_begins_with_an_underscore_is_read(tmp_path: Path) -> None:
    related_pairs(write_clicks(tmp_path / "_c.jsonl", histories(u="ab")), tmp_path / "pairs.parquet", ALL)
    assert read_pairs(tmp_path / "pairs.parquet")


def test_part_files_without_times_or_of_two_formats_are_refused(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        write_clicks(tmp_path / name, histories(u="ab"))
    with pytest.raises(PairsError, match="is 2 files, which have no order: add a time to every click"):
        related_pairs(tmp_path, tmp_path / "pairs")
    (tmp_path / "c.csv").write_text("user,note\n")
    with pytest.raises(PairsError, match="files of several formats: csv, json"):
        related_pairs(tmp_path, tmp_path / "pairs")


def test_columns_that_are_not_read_and_missing_times_are_told(tmp_path: Path) -> None:
    clicks = write_clicks(tmp_path / "c.jsonl", [click | {"timestamp": 1} for click in histories(u="ab")])
    told: list[str] = []
    related_pairs(clicks, tmp_path / "pairs", progress=told.append)
    assert "Ignored columns of c.jsonl: timestamp" in told
    assert "No click of c.jsonl has a time: the clicks of a user are taken in the order of the lines" in told
    told.clear()
    write_clicks(clicks, [click | {"time": time} for time, click in enumerate(histories(u="ab"))])
    related_pairs(clicks, tmp_path / "pairs", progress=told.append)
    assert not [line for line in told if "Ignored" in line or "No click" in line]


def test_report_counts_pairs_that_are_dropped_for_their_score(tmp_path: Path) -> None:
    clicks = write_clicks(tmp_path / "c.jsonl", histories(u="ab", v="ab", w="ab", x="cdef"))
    report = related_pairs(clicks, tmp_path / "pairs", PairOptions(lower=0.3, upper=1.4))
    assert (report.pairs, report.below_lower, report.above_upper) == (0, 6, 1)


def check_format(folder: Path, name: str, engine: Any) -> None:
    clicks = [
        {"user": 1, "note": 10, "time": 3, "rating": 4},
        {"user": 1, "note": 9, "time": 2, "rating": 4},
        {"user": 1, "note": 8, "time": 1, "rating": 1},
    ]
    related_pairs(save(folder / name, clicks), folder / "pairs", PairOptions(min_rating=2), engine=engine)
    assert rows_of(folder / "pairs") == [("9", "10", 0.5, 1)]


@pytest.mark.parametrize("name", FILES)
def test_duckdb_reads_each_format(tmp_path: Path, name: str) -> None:
    check_format(tmp_path, name, "duckdb")


@pytest.mark.slow
@pytest.mark.usefixtures("spark")
@pytest.mark.parametrize("name", ["c.csv", "c.parquet"])  # the tests above read c.jsonl.gz
def test_spark_reads_each_format(tmp_path: Path, name: str) -> None:
    check_format(tmp_path, name, "spark")


@pytest.mark.slow
@pytest.mark.usefixtures("spark")
def test_spark_refuses_a_broken_file_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"user": 1, "note": 2}\n{"user": 1\n')
    with pytest.raises(PairsError, match=r"c\.jsonl cannot be read as json"):
        related_pairs(tmp_path / "c.jsonl", tmp_path / "pairs", engine="spark")


def test_parquet_may_hold_timestamps(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    rows = "('u', 'a', TIMESTAMP '2024-01-02'), ('u', 'b', TIMESTAMP '2024-01-01 23:59:59.5')"
    duckdb.execute(f"COPY (FROM (VALUES {rows}) t(\"user\", note, time)) TO '{path}' (FORMAT parquet)")
    related_pairs(path, tmp_path / "pairs")
    assert rows_of(tmp_path / "pairs") == [("b", "a", 0.5, 1)]


def test_ids_that_look_like_numbers_are_text(tmp_path: Path) -> None:
    clicks = [{"user": 5, "note": "007"}, {"user": "5", "note": 7}, {"user": "5", "note": 10**25}]
    scores = scores_of(tmp_path, clicks)
    assert set(scores) == {("007", "7"), ("007", str(10**25)), ("7", str(10**25))}
    (tmp_path / "c.csv").write_text("note,user\n007,1\n7,1\n1e3,1\n")
    related_pairs(tmp_path / "c.csv", tmp_path / "csv")
    assert [row[:2] for row in rows_of(tmp_path / "csv")] == [("007", "1e3"), ("007", "7"), ("7", "1e3")]


def test_other_columns_are_ignored(tmp_path: Path) -> None:
    assert scores_of(tmp_path, [{**click, "pos": [1, {}]} for click in histories(u="ab")]) == {("a", "b"): 0.5}


def test_output_is_sorted_and_typed(tmp_path: Path) -> None:
    scores_of(tmp_path, random_clicks(2))
    rows = rows_of(tmp_path / "pairs.parquet")
    assert rows == sorted(rows, key=lambda row: (row[0], -row[2], row[1]))
    types = duckdb.execute("DESCRIBE FROM read_parquet(?)", [str(tmp_path / "pairs.parquet")]).fetchall()
    assert [row[:2] for row in types] == [
        ("note", "VARCHAR"),
        ("related", "VARCHAR"),
        ("score", "DOUBLE"),
        ("users", "INTEGER"),
    ]


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    clicks = write_clicks(tmp_path / "clicks.jsonl", random_clicks(3))
    for name in "ab":
        related_pairs(clicks, tmp_path / name, ALL)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_folder_with_a_quote_and_a_space_is_made(tmp_path: Path) -> None:
    clicks = write_clicks(tmp_path / "clicks.jsonl", histories(u="ab"))
    out = tmp_path / "it's mine" / "deep" / "pairs.parquet"
    related_pairs(clicks, out)
    assert list(out.parent.iterdir()) == [out]
    assert list(read_pairs(out)) == [("a", "b", 0.5)]


def test_failed_run_leaves_the_old_pairs_alone(tmp_path: Path) -> None:
    scores = scores_of(tmp_path, histories(u="ab"))
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(PairsError):
        related_pairs(tmp_path / "bad.jsonl", tmp_path / "pairs.parquet")
    assert {pair[:2]: pair.score for pair in read_pairs(tmp_path / "pairs.parquet")} == scores
    assert {path.name for path in tmp_path.iterdir()} == {"bad.jsonl", "clicks.jsonl", "pairs.parquet"}


@pytest.mark.parametrize("through_a_link", [False, True])
def test_pairs_in_the_place_of_the_clicks_are_refused(tmp_path: Path, through_a_link: bool) -> None:
    clicks = write_clicks(tmp_path / "clicks.jsonl", histories(u="ab"))
    before, out = clicks.read_bytes(), clicks
    if through_a_link:
        out = tmp_path / "link.jsonl"
        out.symlink_to(clicks)
    with pytest.raises(PairsError, match=r"would replace a file of .*: write the pairs to another file"):
        related_pairs(clicks, out)
    assert clicks.read_bytes() == before


def test_pairs_in_the_place_of_one_of_the_files_of_clicks_or_notes_are_refused(tmp_path: Path) -> None:
    folder, notes = tmp_path / "clicks", tmp_path / "notes.jsonl"
    folder.mkdir()
    part = write_clicks(folder / "part.jsonl", [{**click, "time": 1} for click in histories(u="ab")])
    write_clicks(notes, [{"id": "a", "category": "Food"}])
    for out in (part, notes):
        with pytest.raises(PairsError, match=r"would replace a file of"):
            related_pairs(folder, out, PairOptions(per_category=4), notes=notes)


KILLED_WHILE_JOINING = """
import os, signal, sys
from pathlib import Path
from model.data.pairs import related_pairs

def kill(message):
    if message.startswith("Joining"):
        os.kill(os.getpid(), signal.SIGKILL)
related_pairs(Path(sys.argv[1]), Path(sys.argv[2]), progress=kill)
"""


def test_copy_of_the_clicks_that_a_killed_run_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    clicks, out = write_clicks(tmp_path / "clicks.jsonl", histories(u="ab")), tmp_path / "out" / "pairs.parquet"
    killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_JOINING, str(clicks), str(out)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in out.parent.iterdir()] == [".pairs.parquet.unfinished"]
    related_pairs(clicks, out)
    assert list(out.parent.iterdir()) == [out]


# The report


def test_report_counts_what_went_in_and_came_out(tmp_path: Path) -> None:
    clicks = write_clicks(tmp_path / "clicks.jsonl", histories(u="abb", v="ab", w="acde", x="z"))
    messages: list[str] = []
    report = related_pairs(clicks, tmp_path / "pairs", PairOptions(window=1), progress=messages.append)
    assert (report.users, report.clicks, report.notes) == (4, 9, 6)
    assert (report.pairs, report.notes_without_pair) == (4, 3)  # a -> b (1), a -> c, c -> d, d -> e (1/4 each)
    assert report.quantiles == pytest.approx(
        {"min": 0.25, "p25": 0.25, "p50": 0.25, "p75": 0.4375, "p90": 0.775, "p99": 0.9775, "max": 1.0}
    )
    assert report.at_least == {0.1: 4, 0.2: 4, 0.3: 1, 0.5: 1, 1.0: 1}
    assert report.seconds > 0
    assert [message.split()[0] for message in messages] == ["Reading", "No", "Joining", "Writing"]


def test_report_counts_notes_of_the_split_only(tmp_path: Path) -> None:
    test, train = with_split("test", 3), with_split("train", 2)
    clicks = write_clicks(tmp_path / "c.jsonl", ({"user": "u", "note": note} for note in [*test, *train]))
    report = related_pairs(clicks, tmp_path / "pairs", PairOptions(split="test"))
    assert (report.clicks, report.notes, report.pairs, report.notes_without_pair) == (5, 3, 3, 1)


def test_clicks_by_note_counts_the_users_who_clicked_it(tmp_path: Path) -> None:
    clicks = write_clicks(tmp_path / "clicks.jsonl.gz", histories(u="aab", v="a", w="cb"))
    assert clicks_by_note(clicks) == {"a": 2, "b": 2, "c": 1}


def test_clicks_by_note_leaves_out_low_ratings(tmp_path: Path) -> None:
    ratings = [("u", "a", 5), ("v", "a", 3), ("v", "b", 3), ("w", "a", 4), ("w", "c", None), ("w", "d", 4)]
    records = [{"user": user, "note": note, "rating": rating} for user, note, rating in ratings]
    clicks = write_clicks(tmp_path / "clicks.jsonl", records)
    assert clicks_by_note(clicks, PairOptions(min_rating=4)) == {"a": 2, "d": 1}
    assert clicks_by_note(clicks) == {"a": 3, "b": 1, "c": 1, "d": 1}


def test_clicks_by_note_refuses_clicks_without_notes(tmp_path: Path) -> None:
    clicks = write_clicks(tmp_path / "clicks.jsonl", [{"user": "u", "title": "no note"}])
    with pytest.raises(PairsError, match="'note'"):
        clicks_by_note(clicks)


def test_clicks_without_pairs_give_an_empty_result(tmp_path: Path) -> None:
    clicks = write_clicks(tmp_path / "clicks.jsonl", histories(u="a", v="b"))
    report = related_pairs(clicks, tmp_path / "pairs")
    assert (report.pairs, report.notes_without_pair, report.quantiles) == (0, 2, {})
    assert list(read_pairs(tmp_path / "pairs")) == []


# Errors


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.jsonl", "", "has no clicks"),
        ("c.csv", "", "has no clicks"),
        ("c.csv", "user,note\n", "has no clicks"),
        ("c.parquet", "", "cannot be read as parquet"),
        ("c.parquet", "no parquet", "cannot be read as parquet"),
        ("c.jsonl", "no json\n", "cannot be read as json"),
        ("c.jsonl", "[1, 2]\n", "cannot be read as json"),
        ("c.jsonl.gz", "not compressed", "cannot be read as json"),
        ("c.csv", "user,note\na,b,c\n", "cannot be read as csv"),
        ("c.jsonl", '{"reader": 1, "note": 2}\n', "no column 'user'"),
        ("c.csv", "user,item\n1,2\n", "no column 'note'"),
        ("c.csv", "1,2\n3,4\n", "no column 'user'"),
        ("c.jsonl", '{"user": 1, "note": 2}\n{"user": 1, "note": null}\n', "1 of 2 clicks .* have no note"),
        ("c.csv", 'user,note\n1,2\n"",3\n', "1 of 2 clicks .* have no user"),
        ("c.csv", "user,note,time\n1,2,\n1,3,5\n", "a time for every click"),
        ("c.csv", "user,note,time\n1,2,soon\n1,3,later\n", "a time for every click"),
        ("c.txt", "user,note\n", "an unknown format"),
        ("c.jsonl", '{"user": 1, "note": 2}\n{"user": " \\t", "note": 3}\n', "1 of 2 clicks .* have no user"),
        ("c.csv", "user,note\n1,2\n1,  \n", "1 of 2 clicks .* have no note"),
        ("c.jsonl", '{"user": {"id": 1}, "note": 2}\n', "1 of 1 clicks .* have an object or a list as user"),
        ("c.jsonl", '{"user": 1, "note": 2}\n{"user": 1, "note": ["3"]}\n', "1 of 2 .* a list as note: write its id"),
        ("c.csv", "user,note,time\n1,2,5\n1,3,NaN\n", "a time for every click, as a finite number"),
        ("c.csv", "user,note,time\n1,2,5\n1,3,inf\n", "a time for every click, as a finite number"),
        ("c.csv", "user,note,time\n1,2,1714557600\n1,3,1714557600500\n", "in seconds and others in milliseconds"),
    ],
)
def test_unusable_clicks_are_refused_with_a_reason(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(PairsError, match=message):
        related_pairs(tmp_path / name, tmp_path / "pairs")
    assert not (tmp_path / "pairs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("clicks", "message"),
    [
        ([{"user": {"id": 1}, "note": 2}], "1 of 1 clicks .* have an object or a list as user"),
        ([{"user": "\t ", "note": 2}, {"user": 1, "note": 2}], "1 of 2 clicks .* have no user"),
        ([{"user": 1, "note": 2, "time": "NaN"}], "a time for every click, as a finite number"),
    ],
)
def test_spark_refuses_unusable_clicks_with_the_reason(
    tmp_path: Path, clicks: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(PairsError, match=message):
        scores_of(tmp_path, clicks, engine="spark")


def test_ids_in_brackets_and_braces_are_text(tmp_path: Path) -> None:
    users = {"{3F2504E0-4F89}": "ab", "[deleted]": "ab"}
    assert scores_of(tmp_path, histories(**users)) == {("a", "b"): 1.0}


def test_times_that_begin_long_before_1985_may_be_of_any_length(tmp_path: Path) -> None:
    times = {"a": 3, "b": 4e12}
    clicks = [{"user": "u", "note": note, "time": time} for note, time in times.items()]
    assert scores_of(tmp_path, clicks) == {("a", "b"): 0.5}


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PairsError, match=r"there is no file .*nothing\.jsonl"):
        related_pairs(tmp_path / "nothing.jsonl", tmp_path / "pairs")


def test_minimum_rating_without_ratings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PairsError, match="has no ratings"):
        scores_of(tmp_path, histories(u="ab"), PairOptions(min_rating=4))


def test_rating_that_is_no_number_is_refused_where_ratings_count(tmp_path: Path) -> None:
    clicks = [{"user": "u", "note": note, "rating": rating} for note, rating in (("a", "4,5"), ("b", "5"), ("c", "4"))]
    assert len(scores_of(tmp_path, clicks)) == 3
    with pytest.raises(PairsError, match=r"1 of 3 ratings in .* are not numbers"):
        scores_of(tmp_path, clicks, PairOptions(min_rating=4))


def test_rating_nan_of_a_parquet_file_counts_as_none(tmp_path: Path) -> None:
    clicks = tmp_path / "clicks.parquet"
    rows = "('u', 'a', 4.0), ('u', 'b', 'NaN'::DOUBLE), ('u', 'c', 5.0)"
    duckdb.execute(f"COPY (FROM (VALUES {rows}) AS t(user, note, rating)) TO '{clicks}' (FORMAT parquet)")
    assert clicks_by_note(clicks, PairOptions(min_rating=4)) == {"a": 1, "c": 1}


def test_per_category_without_categories_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PairsError, match="requires the notes file"):
        scores_of(tmp_path, histories(u="ab"), PairOptions(per_category=4))
    notes = write_clicks(tmp_path / "notes.jsonl", [{"id": "a", "category": None}])
    with pytest.raises(PairsError, match="has no note with an id and a category"):
        scores_of(tmp_path, histories(u="ab"), PairOptions(per_category=4), notes=notes)


def test_memory_that_is_no_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PairsError, match="did not start with a memory limit of 'much'"):
        scores_of(tmp_path, histories(u="ab"), memory="much")


def test_spark_that_is_not_installed_is_a_missing_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyspark", None)
    with pytest.raises(ModuleNotFoundError) as error:
        scores_of(tmp_path, histories(u="ab"), engine="spark")
    assert error.value.name is not None
    assert error.value.name.partition(".")[0] in {"pyspark", "py4j"}
    assert not (tmp_path / "pairs.parquet").exists()


def test_file_without_pairs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs").write_text("?")
    for name in ("pairs", "nothing"):
        with pytest.raises(PairsError, match="is not a file of pairs"):
            list(read_pairs(tmp_path / name))


def test_ids_of_pairs_that_are_numbers_become_text(tmp_path: Path) -> None:
    path = write_pairs_file(tmp_path / "pairs", "(7, 12, 1), (12, 9, 2)")
    assert list(read_pairs(path)) == [("7", "12", 1.0), ("12", "9", 2.0)]


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ("('a', 'b', 1.0), ('c', 'c', 1.0)", "1 of 2 pairs in .* have the same note twice"),
        ("('a', 'b', 1.0), ('c', 'd', NULL)", "1 of 2 pairs in .* have no finite score"),
        ("('a', 'b', 'inf'::DOUBLE), ('c', 'd', 'nan'::DOUBLE)", "2 of 2 pairs in .* have no finite score"),
        ("('a', NULL, 1.0), (NULL, 'd', 1.0), ('e', 'f', 1.0)", "2 of 3 pairs in .* lack an id"),
    ],
)
def test_pairs_that_cannot_be_trained_on_are_counted(tmp_path: Path, values: str, fault: str) -> None:
    with pytest.raises(PairsError, match=f"{fault}: correct or remove them"):
        list(read_pairs(write_pairs_file(tmp_path / "pairs", values)))


@pytest.mark.parametrize(
    "nonsense",
    [
        {"window": 0},
        {"window": 1.5},
        {"window": True},
        {"top": 0},
        {"top": None},
        {"per_category": 0},
        {"max_history": 1},
        {"lower": -0.1},
        {"lower": 2, "upper": 1},
        {"lower": float("nan")},
        {"min_rating": float("nan")},
        {"split": "dev"},
    ],
    ids=str,
)
def test_invalid_option_is_refused(nonsense: dict[str, Any]) -> None:
    with pytest.raises(PairsError, match=next(iter(nonsense))):
        PairOptions(**nonsense)


@pytest.mark.parametrize("name", ["c.jsonl", "c.csv", "c.parquet"])
@pytest.mark.parametrize("folder", ["user=7", "run[1]", "note=7/a*"])
def test_folders_that_look_like_partitions_or_patterns_are_only_folders(tmp_path: Path, folder: str, name: str) -> None:
    inside, table = tmp_path / folder, write_clicks(tmp_path / "all.jsonl", histories(u="ab", v="bc"))
    inside.mkdir(parents=True)
    (tmp_path / "run1").mkdir()
    (tmp_path / "run1" / name).write_text("another file")  # which the pattern run[1] would match
    form = "json" if name == "c.jsonl" else name[2:]
    duckdb.sql(f"COPY (FROM read_json('{table}')) TO '{tmp_path / name}' (FORMAT {form})")
    (tmp_path / name).rename(inside / name)
    related_pairs(inside / name, inside / "out.parquet", ALL)
    assert sorted((pair.note, pair.related) for pair in read_pairs(inside / "out.parquet")) == [("a", "b"), ("b", "c")]


@pytest.mark.parametrize("reader", ["{'a': 1}", "['u']", "MAP {'u': 1}"])
def test_nested_ids_of_a_parquet_file_are_refused(tmp_path: Path, reader: str) -> None:
    path = tmp_path / "clicks.parquet"
    duckdb.sql(f"COPY (SELECT {reader} AS user, unnest(['a', 'b']) AS note) TO '{path}'")
    with pytest.raises(PairsError, match="user"):
        related_pairs(path, tmp_path / "out.parquet", ALL)
