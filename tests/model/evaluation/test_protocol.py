"""Tests of the protocols' pairs: their notes, and the options of each data set."""

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from model.data.pairs import PairsError, split_of
from model.evaluation.protocol import CLICKS_FILE, COLD_ALL, COLD_COLD, PROTOCOLS, evaluation_pairs

TEST = [str(i) for i in range(100) if split_of(str(i)) == "test"]
TRAIN = [str(i) for i in range(100) if split_of(str(i)) == "train"]


def write(folder: Path, clicks: Sequence[Mapping[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / CLICKS_FILE).write_bytes(gzip.compress("".join(json.dumps(c) + "\n" for c in clicks).encode()))
    return folder


def read_by(*histories: Sequence[str]) -> list[dict[str, Any]]:
    return [{"user": user, "note": note} for user, notes in enumerate(histories) for note in notes]


def ends(folder: Path, protocol: str) -> set[tuple[str, str]]:
    pairs, _ = evaluation_pairs(folder, "test", [protocol])
    return {(pair.note, pair.related) for pair in pairs[protocol]}


def test_cold_cold_pairs_are_the_best_among_the_split(tmp_path: Path):
    """`a` is read more often with each of eleven training notes than with `b`, and ten pairs of each note are kept."""
    a, b = TEST[:2]
    folder = write(
        tmp_path / "data", read_by([a, b], *[[a, x] for i, x in enumerate(TRAIN[:11]) for _ in range(2 + i)])
    )
    assert ends(folder, COLD_COLD) == {(a, b)}
    assert ends(folder, COLD_ALL) == {(a, x) for x in TRAIN[1:11]}


def test_pairs_that_only_a_tie_would_choose_do_not_count(tmp_path: Path):
    """The first note has twelve pairs: two have higher scores than the other ten, whose scores are equal. `top` is 10,
    so it has room for eight of these ten, and none of them counts."""
    a, best, second = TEST[0], *TRAIN[:2]
    histories = [[a, x] for x in TRAIN[2:12]] + [[a, best]] * 3 + [[a, second]] * 2
    folder = write(tmp_path / "data", read_by(*histories))
    assert ends(folder, COLD_ALL) == {(a, best), (a, second)}


def test_pairs_start_in_the_split_and_end_there_in_cold_cold(tmp_path: Path):
    a, b = TEST[:2]
    x, y = TRAIN[:2]
    folder = write(tmp_path / "data", read_by([a, x], [x, b], [x, y], [b, a]))
    pairs, clicks = evaluation_pairs(folder, "test", PROTOCOLS)
    assert pairs == {COLD_COLD: [(b, a, 0.5)], COLD_ALL: sorted([(a, x, 0.5), (b, a, 0.5)])}
    assert clicks == {a: 2, b: 2, x: 3, y: 1}


def test_max_history_bounds_the_pairs_of_a_user(tmp_path: Path):
    a, b, c = TEST[:3]
    folder = write(tmp_path / "data", read_by([a, b, c]))
    pairs, clicks = evaluation_pairs(folder, "test", [COLD_COLD], max_history=2)
    assert [(pair.note, pair.related) for pair in pairs[COLD_COLD]] == [(a, b)]
    assert clicks == {a: 1, b: 1, c: 1}


def test_join_without_enough_memory_says_so(tmp_path: Path):
    folder = write(tmp_path / "data", read_by(TEST[:2]))
    with pytest.raises(PairsError, match="DuckDB did not start with a memory limit of 'little'"):
        evaluation_pairs(folder, "test", [COLD_COLD], memory="little")


def test_only_requested_protocols_are_made(tmp_path: Path):
    folder = write(tmp_path / "data", read_by(TEST[:2]))
    pairs, _ = evaluation_pairs(folder, "test", [COLD_ALL])
    assert pairs.keys() == {COLD_ALL}


def test_folder_without_clicks_gives_no_pairs(tmp_path: Path):
    assert evaluation_pairs(tmp_path, "test", PROTOCOLS) == ({}, {})


def test_unreadable_clicks_are_named(tmp_path: Path):
    folder = write(tmp_path / "data", [{"user": "u"}])
    with pytest.raises(PairsError, match="clicks"):
        evaluation_pairs(folder, "test", PROTOCOLS)


def test_microlens_pair_of_one_user_counts_if_few_clicks(tmp_path: Path):
    a, b, c, d, e = TEST[:5]
    clicks = read_by([a, b, c, d], [e, a, b])  # 1/4 from the first user, 1/3 from the second
    expected = {(e, a), (e, b), (a, b)}  # only (a, b) has a click of both users: 1/4 + 1/3
    assert ends(write(tmp_path / "microlens50k", clicks), COLD_COLD) == expected
    assert ends(write(tmp_path / "another", clicks), COLD_COLD) > expected


def test_films_are_paired_by_good_ratings_within_a_window(tmp_path: Path):
    a, disliked, b, late = TEST[:4]
    history = [a, disliked, b, *TRAIN[:55], late]  # more than fifty films later
    clicks = [{"user": "u", "note": note, "rating": 3 if note == disliked else 4} for note in history]
    folder = write(tmp_path / "movielens_tmdb", clicks)
    assert ends(folder, COLD_COLD) == {(a, b)}
    _, counted = evaluation_pairs(folder, "test", PROTOCOLS)
    assert counted == dict.fromkeys([a, b, *TRAIN[:55], late], 1)


def test_folder_reached_by_a_link_is_known_by_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write(tmp_path / "microlens50k", read_by([*TEST[:4]]))  # scores of 1/4, below the bound of this data set
    monkeypatch.chdir(folder)
    assert ends(Path(), COLD_COLD) == set()
    (tmp_path / "link").symlink_to(folder)
    assert ends(tmp_path / "link", COLD_COLD) == set()
