"""Weighted pairs of related notes from clicks (paper section 3), by SQL that DuckDB and Spark both run.

s(A->B) is the sum of 1 / N over the users who clicked note A and later note B, where N counts the distinct notes that
the user clicked.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import whitespace
from typing import Any, Literal, TypeVar, get_args

from model.data.sql_tables import ENGINES, PARQUET_FILE, DuckDBTables, Tables, TablesError, literal_path
from model.ties import PRIME, tie_key_text

Split = Literal["train", "validation", "test"]
T = TypeVar("T", bound=Tables)

QUANTILES = {"min": 0.0, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p90": 0.9, "p99": 0.99, "max": 1.0}
"""Quantiles of the scores in the report, by name."""
THRESHOLDS = (0.1, 0.2, 0.3, 0.5, 1.0)
"""Scores for which the report counts the pairs that reach them."""
DEFAULT_MEMORY = "1GB"
"""Default memory limit of a join, which spills to disk beyond it."""
UNIX_SECONDS = (5e8, 1e10)
"""Interval of times in seconds since 1970, from 1985 to 2286. A time of 1,000 times as much is in milliseconds."""
CLICK_COLUMNS = ("user", "note", "time", "rating")
NOTE_COLUMNS = ("id", "category")
FORMATS = {
    ".jsonl": "json", ".jsonl.gz": "json", ".ndjson": "json", ".ndjson.gz": "json",
    ".csv": "csv", ".csv.gz": "csv", ".parquet": "parquet",
}  # fmt: skip
"""File formats by suffix."""


class PairsError(ValueError):
    """Clicks, notes or options cannot be used to make pairs; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairOptions:
    """Options that choose which clicks count and which pairs are kept. Raises PairsError for invalid options.

    `window`: maximum distance of the two notes in the user's order of distinct notes; None for the whole history.
    `max_history`: pairs come only from a user's first `max_history` notes, which bounds the join (a user with n notes
    makes n²/2 pairs); the user's weight 1/N still counts all notes.
    `min_rating`: clicks with a lower rating, or without one, do not count at all.
    `lower`, `upper`: bounds of the score; pairs outside are dropped (l and u in the paper). `split`: split that both
    notes must be in.
    `top`: pairs kept per note (t in the paper), after the bounds and the split, the best first; which of equal scores,
    a hash of the two notes decides. `drop_ties`: drop all pairs of a score for which `top` has not room for all.
    `per_category`: pairs kept per (category of note, category of related), after `top`, chosen in the same way; notes
    without a category form one category.
    """

    window: int | None = None
    lower: float = 0.01
    upper: float = 30.0
    top: int = 10
    drop_ties: bool = False
    min_rating: float | None = None
    per_category: int | None = None
    split: Split | Literal["all"] = "all"
    max_history: int | None = None

    def __post_init__(self) -> None:
        for name, minimum in (("window", 1), ("top", 1), ("per_category", 1), ("max_history", 2)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < minimum):
                raise PairsError(f"{name} must be an integer of at least {minimum}, not {value!r}")
        if self.top is None:
            raise PairsError("top must be a number; use a large one to keep every pair")
        if not 0 <= self.lower <= self.upper:
            raise PairsError(f"lower and upper must satisfy 0 <= lower <= upper, not {self.lower} and {self.upper}")
        if self.min_rating is not None and not math.isfinite(self.min_rating):
            raise PairsError(f"min_rating must be a finite number, not {self.min_rating}")
        if self.split not in ("all", *get_args(Split)):
            raise PairsError(f"split must be all, train, validation or test, not {self.split!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PairsReport:
    """Counts of the clicks that were read and the pairs that were written.

    `users`, `clicks`: those that count; several clicks of a user on one note are one. `notes`: clicked notes of the
    split; `notes_without_pair` of them start no pair. `below_lower`, `above_upper`: pairs that were dropped for their
    score. `quantiles`: quantiles of the scores, by the names of QUANTILES; empty without pairs. `at_least`: number of
    pairs whose score reaches each of THRESHOLDS.
    """

    users: int
    clicks: int
    notes: int
    pairs: int
    notes_without_pair: int
    below_lower: int
    above_upper: int
    quantiles: Mapping[str, float]
    at_least: Mapping[float, int]
    seconds: float


def split_of(note_id: str) -> Split:
    """Return the split of a note: test where sha1 of the id modulo 5 is 0, validation where it is 1, else train."""
    remainder = int(hashlib.sha1(note_id.encode()).hexdigest(), 16) % 5
    return "test" if remainder == 0 else "validation" if remainder == 1 else "train"


def stripped(text: str) -> str:
    """Return a text without surrounding white space: the engines' own trim() functions differ in what they remove."""
    return text.strip()


def nested(text: str) -> str:
    """Return a text that is a JSON object or list; otherwise an empty text."""
    try:
        return text if isinstance(json.loads(text), dict | list) else ""
    except ValueError:
        return ""
    except RecursionError:
        return text


FUNCTIONS = {"split_of": split_of, "stripped": stripped, "tie_key": tie_key_text, "nested": nested}
"""Functions of the queries, by their SQL names."""
_NESTED = "CASE WHEN left(l.{0}, 1) IN ('{{', '[') THEN nullif(nested(l.{0}), '') END"
"""The text of a column where it is a JSON object or list, which both engines read as a text. Few rows call Python."""
# SQL for both engines, except for SORTED and SCORES, which only DuckDB runs. Values are
# bound to the question marks in order.
HEALTH = f"""
SELECT count(*), count(nullif(translate(l.user, '{whitespace}', ''), '')),
       count(nullif(translate(l.note, '{whitespace}', ''), '')), count({_NESTED.format("user")}),
       count({_NESTED.format("note")}), count(l.time), count(l.seconds), count(try_cast(l.time AS TIMESTAMP_LTZ)),
       min(l.seconds), max(l.seconds), count(l.rating), count(try_cast(l.rating AS DOUBLE))
FROM (SELECT *, CASE WHEN abs(try_cast(time AS DOUBLE)) < 1e300 THEN try_cast(time AS DOUBLE) END AS seconds
      FROM click_lines) l
"""
CLICKS = """
SELECT l.user, l.note, nullif(try_cast(l.rating AS DOUBLE), CAST('NaN' AS DOUBLE)) AS rating, row_number() OVER (
    PARTITION BY l.user ORDER BY try_cast(l.time AS DOUBLE), try_cast(l.time AS TIMESTAMP_LTZ), l.line) AS place
FROM click_lines l
"""
# The rules of reading a notes file for training: of lines with the same id the last counts, and a blank category is
# none. Lines of several files have no order.
CATEGORIES = """
SELECT latest.id, nullif(stripped(coalesce(latest.category, '')), '') AS category FROM (
    SELECT n.id, n.category, row_number() OVER (PARTITION BY n.id ORDER BY n.line DESC) AS age FROM note_lines n
) latest WHERE latest.age = 1
"""
NO_CATEGORIES = "SELECT CAST(NULL AS STRING) AS id, CAST(NULL AS STRING) AS category"

# Numbers of notes, in the order of their ids, make the join smaller.
COUNTED = """
WITH firsts AS (
    SELECT c.user, c.note, min(c.place) AS place FROM clicks c WHERE ? IS NULL OR c.rating >= ? GROUP BY c.user, c.note
), notes AS (
    SELECT d.note, row_number() OVER (ORDER BY d.note) AS number, split_of(d.note) AS split,
           CAST(tie_key(d.note) AS BIGINT) AS tie_key
    FROM (SELECT DISTINCT note FROM firsts) d
)
"""
COUNTS = f"""{COUNTED}
SELECT count(DISTINCT f.user), count(*), (SELECT count(*) FROM notes WHERE ? = 'all' OR split = ?) FROM firsts f
"""
EXPOSURE = "SELECT c.note, count(DISTINCT c.user) FROM clicks c WHERE ? IS NULL OR c.rating >= ? GROUP BY c.note"
# Scores are rounded, so that an engine's order of addition cannot decide a tie or a bound.
SCORED = f"""{COUNTED}, histories AS (
    SELECT f.user, f.note, row_number() OVER (PARTITION BY f.user ORDER BY f.place) AS step,
           count(*) OVER (PARTITION BY f.user) AS length
    FROM firsts f
), steps AS (
    SELECT h.user, CAST(n.number AS INT) AS number, h.step, h.length
    FROM histories h JOIN notes n ON n.note = h.note
    WHERE (? = 'all' OR n.split = ?) AND (? IS NULL OR h.step <= ?)
)
SELECT a.number AS note, b.number AS related, round(sum(1e0 / a.length), 9) AS score, count(*) AS users
FROM steps a JOIN steps b ON b.user = a.user AND b.step > a.step AND (? IS NULL OR b.step - a.step <= ?)
GROUP BY a.number, b.number
"""
OUT_OF_BOUNDS = "SELECT count(CASE WHEN score < ? THEN 1 END), count(CASE WHEN score > ? THEN 1 END) FROM scored"
BEST_FIRST = "s.score DESC, s.tie, s.note, s.related"
PAIRS = f"""{COUNTED}, named AS (
    SELECT a.note, b.note AS related, s.score, s.users, a.tie_key * b.tie_key % {PRIME} AS tie
    FROM scored s JOIN notes a ON a.number = s.note JOIN notes b ON b.number = s.related
    WHERE s.score BETWEEN ? AND ?
), ranked AS (
    SELECT s.*, row_number() OVER (PARTITION BY s.note ORDER BY {BEST_FIRST}) AS rank,
           rank() OVER (PARTITION BY s.note ORDER BY s.score DESC) - 1
               + count(*) OVER (PARTITION BY s.note, s.score) AS last_of_score
    FROM named s
), balanced AS (
    SELECT s.note, s.related, s.score, CAST(s.users AS INT) AS users, row_number() OVER (
        PARTITION BY ca.category, cb.category ORDER BY {BEST_FIRST}) AS rank
    FROM ranked s LEFT JOIN categories ca ON ca.id = s.note LEFT JOIN categories cb ON cb.id = s.related
    WHERE CASE WHEN ? THEN s.last_of_score ELSE s.rank END <= ?
)
SELECT note, related, score, users FROM balanced WHERE ? IS NULL OR rank <= ?
"""
SORTED = f"FROM {PARQUET_FILE} ORDER BY note, score DESC, related"
SCORES = f"""
SELECT count(*), count(DISTINCT note), quantile_cont(score, {list(QUANTILES.values())}),
       {", ".join(f"count(*) FILTER (score >= {threshold})" for threshold in THRESHOLDS)}
FROM {PARQUET_FILE}
"""


def related_pairs(
    clicks: Path,
    out: Path,
    options: PairOptions = PairOptions(),
    *,
    notes: Path | None = None,
    engine: Literal["duckdb", "spark"] = "duckdb",
    memory: str = DEFAULT_MEMORY,
    progress: Callable[[str], None] = lambda message: None,
) -> PairsReport:
    """Make the weighted pairs of `clicks` and write them to `out`, Parquet with note, related, score and users.

    `users` counts the users who made the pair. Rows are sorted by note, score (highest first) and related. The file is
    written beside its final name and renamed; only one process at a time may write it.

    `clicks`: JSONL, CSV (each plain or .gz) or Parquet with user and note, and optionally time (a number in any unit,
    or ISO 8601 text) and rating; or a folder or a pattern (`*`) of such files, whose clicks must all have times. A
    user's clicks are ordered by time; clicks with equal times or without times keep the file's order.
    `notes`: files in one of these formats with id and category, for `per_category`. Of lines with the same id the last
    counts; across several files it is undefined which one does.
    `memory`: DuckDB's limit; it spills to a hidden folder beside `out`. Spark has its own settings.
    `progress` is called before each long step, and where no click has a time or a column is not read. Raises PairsError
    for bad input or a failure of the engine, and ModuleNotFoundError where the engine is not installed.
    """
    started = time.perf_counter()
    if options.per_category is not None and notes is None:
        raise PairsError("per_category balances the categories of the notes, so it requires the notes file")
    for path in (clicks, notes):
        if path and out.exists() and any(out.samefile(file) for file in _files(path)[0]):
            raise PairsError(f"{out} would replace a file of {path}: write the pairs to another file")
    with _tables_folder(out) as folder:
        with _opened(ENGINES[engine], folder, memory) as tables:
            progress(f"Reading {clicks.name}")
            _read_clicks(tables, clicks, options, progress)
            _read_categories(tables, notes if options.per_category is not None else None)
            with _explained(tables, "the clicks could not be joined; allow more memory or set max_history"):
                counts = tables.rows(COUNTS, _bound(options, "min_rating", "split"))[0]
                progress(f"Joining {counts[1]:,} clicks of {counts[0]:,} users")
                tables.keep("scored", SCORED, _bound(options, "min_rating", "split", "max_history", "window"))
                outside = tables.rows(OUT_OF_BOUNDS, [options.lower, options.upper])[0]
                tables.write(PAIRS, _pairs_values(options), folder / "parts")
        progress(f"Writing {out.name}")
        with _opened(DuckDBTables, folder, memory) as writer, _explained(writer, f"{out} could not be written"):
            writer.copy(SORTED, [f"{literal_path(folder / 'parts')}/*.parquet"], folder / out.name)
            scores = writer.rows(SCORES, [literal_path(folder / out.name)])[0]
        os.replace(folder / out.name, out)
    return _report(counts, outside, scores, time.perf_counter() - started)


@contextmanager
def _tables_folder(out: Path) -> Iterator[Path]:
    """Make a hidden folder beside `out` for the tables of a join, a copy of the clicks among them, and remove it after
    the context. A process that is killed leaves it; its name is fixed, so that the next one for `out` removes it."""
    folder = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def clicks_by_note(clicks: Path, options: PairOptions = PairOptions(), memory: str = DEFAULT_MEMORY) -> dict[str, int]:
    """Count the users who clicked each note, over the clicks that `options` count. Raises as `related_pairs` does."""
    with tempfile.TemporaryDirectory() as name, _opened(DuckDBTables, Path(name), memory) as tables:
        _read_clicks(tables, clicks, options)
        return dict(tables.rows(EXPOSURE, _bound(options, "min_rating")))


def _bound(options: PairOptions, *names: str) -> list[Any]:
    """Return the values of the named options, each twice, for conditions of the form `? IS NULL OR x <= ?`."""
    return [getattr(options, name) for name in names for _ in range(2)]


def _pairs_values(options: PairOptions) -> list[Any]:
    """Return the values for the question marks of PAIRS."""
    bounds = (options.lower, options.upper, options.drop_ties, options.top)
    return [*_bound(options, "min_rating"), *bounds, *_bound(options, "per_category")]


def _report(counts: Sequence[int], outside: Sequence[int], scores: Sequence[Any], seconds: float) -> PairsReport:
    users, clicks, notes = counts
    pairs, with_pair, quantiles, *at_least = scores
    return PairsReport(
        users=users,
        clicks=clicks,
        notes=notes,
        pairs=pairs,
        notes_without_pair=notes - with_pair,
        below_lower=outside[0],
        above_upper=outside[1],
        quantiles=dict(zip(QUANTILES, quantiles or (), strict=False)),
        at_least=dict(zip(THRESHOLDS, at_least, strict=True)),
        seconds=seconds,
    )


@contextmanager
def _opened(engine: type[T], folder: Path, memory: str) -> Iterator[T]:
    """Open an engine's tables, and close them after the context. Raises PairsError where the engine does not start."""
    try:
        tables = engine(folder, memory, FUNCTIONS)
    except TablesError as error:
        raise PairsError(str(error)) from error
    with closing(tables):
        yield tables


@contextmanager
def _explained(tables: Tables, what: str) -> Iterator[None]:
    """Convert a failure of the engine into a PairsError; `what` says what failed."""
    try:
        yield
    except tables.failures as error:
        reason, _, _java_stack_trace = str(error).partition("\n\tat ")
        raise PairsError(f"{what}: {reason}") from error


def _read_clicks(
    tables: Tables, path: Path, options: PairOptions, progress: Callable[[str], None] = lambda message: None
) -> None:
    """Make the table clicks(user, note, place, rating) from one or more files. Raises PairsError that names what is
    wrong with them."""
    files, kind = _files(path)
    with _explained(tables, f"{path} cannot be read as {kind}"):
        tables.read(files, kind, CLICK_COLUMNS, "click_lines")
        health = tables.rows(HEALTH)[0]
    lines, users, notes, nested_users, nested_notes, times, numbers, timestamps, first, last, ratings, rated = health
    if not lines:
        raise PairsError(f"{path} has no clicks")
    for column, filled, unfit in (("user", users, nested_users), ("note", notes, nested_notes)):
        if not filled:
            raise PairsError(f"{path} has no column {column!r}: each click requires user and note")
        if filled < lines:
            raise PairsError(f"{lines - filled} of {lines} clicks in {path} have no {column}: correct or remove them")
        if unfit:
            raise PairsError(f"{unfit} of {lines} clicks in {path} have an object or a list as {column}: write its id")
    if times and lines not in (numbers, timestamps):
        raise PairsError(f"{path} must have a time for every click, as a finite number or in ISO 8601, or for none")
    if numbers and UNIX_SECONDS[0] <= first < UNIX_SECONDS[1] and last >= 1000 * UNIX_SECONDS[0]:
        raise PairsError(
            f"the times of {path} are from {first:.0f} to {last:.0f}, as if some were in seconds and others in "
            "milliseconds: give all in one unit"
        )
    if not times and len(files) > 1:
        raise PairsError(f"{path} is {len(files)} files, which have no order: add a time to every click")
    if unused := _unused_columns(files, kind):
        progress(f"Ignored columns of {path.name}: {', '.join(unused)}")
    if not times:
        progress(f"No click of {path.name} has a time: the clicks of a user are taken in the order of the lines")
    if options.min_rating is not None and not ratings:
        raise PairsError(f"{path} has no ratings: omit min_rating, or add the column 'rating'")
    if options.min_rating is not None and rated < ratings:
        raise PairsError(f"{ratings - rated} of {ratings} ratings in {path} are not numbers: correct or remove them")
    with _explained(tables, f"{path} could not be ordered by user and time"):
        tables.keep("clicks", CLICKS)


def _read_categories(tables: Tables, path: Path | None) -> None:
    """Make the table categories(id, category) from a notes file; it is empty without a file."""
    if path is None:
        tables.keep("categories", NO_CATEGORIES)
        return
    files, kind = _files(path)
    with _explained(tables, f"{path} cannot be read as {kind}"):
        tables.read(files, kind, NOTE_COLUMNS, "note_lines")
        tables.keep("categories", CATEGORIES)
        categories = tables.rows("SELECT count(DISTINCT category) FROM categories WHERE id IS NOT NULL")[0][0]
    if not categories:
        raise PairsError(f"{path} has no note with an id and a category: omit per_category")


def _unused_columns(files: Sequence[Path], kind: str) -> list[str]:
    """Return the columns in the first lines of click files that are not in CLICK_COLUMNS."""
    with (
        tempfile.TemporaryDirectory() as name,
        _opened(DuckDBTables, Path(name), DEFAULT_MEMORY) as tables,
        _explained(tables, f"{files[0]} cannot be read as {kind}"),
    ):
        return [column for column in tables.columns(files[0], kind) if column not in CLICK_COLUMNS]


def _files(path: Path) -> tuple[list[Path], str]:
    """Return the files of a path, sorted by name, and their format: the file itself, the files of a folder, or the
    files of a folder that match a pattern. In folders and patterns, empty files, hidden files and files that begin with
    `_`, such as Spark's own, are skipped.

    Raises PairsError where there is no file, or where the files have more than one format.
    """
    if path.is_file():
        return [path], _format(path)
    files = sorted(path.glob("*") if path.is_dir() else path.parent.glob(path.name))
    files = [file for file in files if file.is_file() and not file.name.startswith((".", "_"))]
    files = [file for file in files if file.stat().st_size] or files  # Spark writes empty parts
    if not files:
        raise PairsError(f"there is no file {path}")
    kinds = {_format(file) for file in files}
    if len(kinds) > 1:
        raise PairsError(f"{path} has files of several formats: {', '.join(sorted(kinds))}")
    return files, kinds.pop()


def _format(path: Path) -> str:
    """Return the format of a file by its suffix. Raises PairsError for an unknown one."""
    for suffix, kind in FORMATS.items():
        if path.name.lower().endswith(suffix):
            return kind
    raise PairsError(f"{path} has an unknown format; its name must end in one of {', '.join(FORMATS)}")
