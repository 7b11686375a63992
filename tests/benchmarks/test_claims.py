"""Tests of claims: hand-made records become rows with a value, a comparison and a verdict."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from benchmarks.harness import report
from benchmarks.quality.claims import (
    TRAINED_WITH_WORDS,
    WHITENED_WITH_WORDS,
    Contest,
    Limit,
    MaxDeficit,
    MinRatio,
    WithWords,
    hashtag_f1,
    hits,
    right_category,
)
from benchmarks.quality.records import COMMUNITY, MICROLENS, OURS, label, read_runs
from model.evaluation.protocol import COLD_COLD
from model.evaluation.record import Categories
from tests.benchmarks.handmade import RIVAL, record, record_with_hashtags, write_records

RECALL = Contest("Recall@100", MICROLENS, partial(hits, COLD_COLD), RIVAL, MinRatio(1.5, p=0.01))


def test_contest_row_says_ratio_and_whether_target_is_met(tmp_path: Path):
    # 80 hits of 100 against 40 of 100; each pair has its own query, and ours is never behind.
    ours, rival = [1] * 80 + [101] * 20, [100] * 40 + [1000] * 60
    row = RECALL.row(read_runs(write_records(tmp_path, a=record(OURS, ours), b=record(RIVAL, rival))))
    assert (row["what"], row["value"], row["unit"]) == ("microlens50k, Recall@100", 80.0, "%")
    assert row["against"] == "all-MiniLM-L6-v2 without fine-tuning: 40.0 %"
    assert row["spread"].startswith("ratio 2.00x, 95% CI 1.6")
    assert row["spread"].endswith("p < 0.0001; commit abc")
    assert (row["target"], row["met"]) == ("≥ 1.5x, p < 0.01", True)
    missed = replace(RECALL, target=MinRatio(2.5)).row(read_runs(tmp_path))
    assert (missed["target"], missed["met"]) == ("≥ 2.5x", False)
    assert replace(RECALL, target=None).row(read_runs(tmp_path))["met"] is None


def test_deficit_target_counts_points_behind_the_rival(tmp_path: Path):
    runs = read_runs(write_records(tmp_path, a=record(OURS, [1, 200]), b=record(RIVAL, [1, 1])))
    for points, met in ((50, True), (49, False)):
        row = replace(RECALL, target=MaxDeficit(points)).row(runs)
        assert (row["target"], row["met"]) == (f"≤ {points} point behind", met)


@pytest.mark.parametrize("shared", ["queries", "targets"])
def test_pairs_of_one_query_or_target_count_as_one_observation(shared: str, tmp_path: Path):
    # The whole difference comes from one of 21 queries or targets, which has twenty of the forty pairs.
    ours, rival = [1] * 40, [1] * 20 + [500] * 20
    same = {shared: [*range(20), *[20] * 20]}
    row = RECALL.row(read_runs(write_records(tmp_path, a=record(OURS, ours, **same), b=record(RIVAL, rival, **same))))
    assert row["spread"].startswith("ratio 2.00x, ")
    assert "p = 0.057" in row["spread"]
    apart = write_records(tmp_path, a=record(OURS, ours), b=record(RIVAL, rival))
    assert "p < 0.0001" in RECALL.row(read_runs(apart))["spread"]


def test_claim_without_records_is_not_measured(tmp_path: Path):
    hidden = record(RIVAL, [1, 2], with_hashtags=False)
    for records in ({}, {"a": record(OURS, [1, 2])}, {"b": hidden}, {"c": record(RIVAL, [1], split="validation")}):
        row = RECALL.row(read_runs(write_records(tmp_path, **records)))
        assert (row["value"], row["met"], row["against"]) == ("not measured", None, label(RIVAL))
    assert Limit("ECE", MICROLENS, ("category", "ece"), 0.05).row(read_runs(tmp_path))["value"] == "not measured"


def test_records_about_other_pairs_are_refused(tmp_path: Path):
    for queries, targets in (([0, 0, 1], [0, 1, 2]), ([0, 1], [0, 1]), ([0, 1, 1], [0, 1, 0])):
        records = {"a": record(OURS, [1, 2, 3], [0, 1, 1]), "b": record(RIVAL, [1] * len(queries), queries, targets)}
        with pytest.raises(ValueError, match="not about the same pairs"):
            RECALL.row(read_runs(write_records(tmp_path, **records)))


def test_seeds_are_averaged_and_their_spread_is_stated(tmp_path: Path):
    seeds = {"a_seed0": record(OURS, [1, 1, 200, 200]), "a_seed1": record(OURS, [1, 1, 1, 1])}
    row = RECALL.row(read_runs(write_records(tmp_path, **seeds, b=record(RIVAL, [1, 200, 1, 200]))))
    assert row["value"] == 75.0
    assert row["spread"].startswith("ratio 1.50x, ")
    assert row["spread"].endswith("; 2 seeds: 50.00 to 100.00 %; commit abc")
    write_records(tmp_path, again=record(OURS, [1, 1, 1, 1]))
    with pytest.raises(ValueError, match="a-seed0, a-seed1, again record the same"):
        read_runs(tmp_path)


def test_of_two_records_of_one_system_the_one_with_written_hashtags_counts(tmp_path: Path):
    copied = replace(record(OURS, [200, 200]), hashtags_from="copied")
    records = {"a": copied, "b": record(OURS, [1, 1]), "rival": record(RIVAL, [1, 200])}
    assert RECALL.row(read_runs(write_records(tmp_path, **records)))["value"] == 100.0


def test_written_hashtags_are_compared_with_copied_ones(tmp_path: Path):
    records = {
        "own": record_with_hashtags(OURS, [0.6, 0.4, 0.2], "written"),
        "copied": record_with_hashtags(OURS, [0.2, 0.2, 0.0], "copied"),
        "rival": record_with_hashtags(RIVAL, [0.4, 0.4, 0.4], "copied"),
    }
    runs = read_runs(write_records(tmp_path, **records))
    contest = Contest("F1@3", MICROLENS, partial(hashtag_f1, "written"), OURS, MinRatio(1.5), "copied")
    assert contest.row(runs)["spread"].startswith("ratio 3.00x")
    assert contest.row(runs)["against"].startswith("research checkpoint, copying from nearest notes: ")
    assert contest.row(runs)["met"] is True
    assert replace(contest, rival=RIVAL).row(runs)["spread"].startswith("ratio 1.00x")
    assert replace(contest, rival="tf-idf").row(runs)["value"] == "not measured"


def test_categories_are_compared_by_note_and_with_limits(tmp_path: Path):
    ours = Categories(truth=[0, 1, 1, 0], chosen=[0, 1, 1, 1], probability=[0.75] * 4, free=[0, 1, -1, 0])
    rival = replace(ours, chosen=[0, 0, 1, 1], free=None)
    records = {"a": record(OURS, [1], categories=ours), "b": record(RIVAL, [1], categories=rival)}
    runs = read_runs(write_records(tmp_path, **records))
    accuracy = Contest("accuracy", MICROLENS, right_category, RIVAL, MinRatio(1.1)).row(runs)
    assert (accuracy["value"], accuracy["against"], accuracy["met"]) == (75.0, f"{label(RIVAL)}: 50.0 %", True)
    ece = Limit("ECE", MICROLENS, ("category", "ece"), 0.05).row(runs)
    assert (ece["value"], ece["target"], ece["met"]) == (0.0, "≤ 5 %", True)
    illusory = Limit("illusory", MICROLENS, ("category", "illusory"), 0).row(runs)
    assert (illusory["value"], illusory["met"]) == (25.0, False)


@pytest.mark.parametrize(
    ("claim", "against", "ratio", "met"),
    [
        (WithWords(RIVAL, 1.1), f"{label(RIVAL)}: 50.0 %", "1.20x", True),
        (WithWords(RIVAL, 1.1, TRAINED_WITH_WORDS), f"{label(RIVAL)}, vectors and words: 58.0 %", "1.03x", False),
        (WithWords(RIVAL, 1.0, WHITENED_WITH_WORDS), f"{label(RIVAL)}, vectors and words: 60.0 %", "1.00x", True),
    ],
    ids=["without", "with", "from another result"],
)
def test_recall_with_words_is_compared_with_a_rival_that_has_them_or_not(
    claim: WithWords, against: str, ratio: str, met: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recalls = {TRAINED_WITH_WORDS: {COMMUNITY: 60, RIVAL: 58}, WHITENED_WITH_WORDS: {RIVAL: 60}}
    for result, shares in recalls.items():
        rows = [{"what": f"{MICROLENS}, notes, {system}", "value": share} for system, share in shares.items()]
        (tmp_path / f"{result}.json").write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    (tmp_path / "records").mkdir()
    row = claim.row(read_runs(write_records(tmp_path / "records", b=record(RIVAL, [1, 200]))))
    assert (row["value"], row["against"], row["target"], row["met"]) == (60.0, against, f"≥ {claim.min_ratio:g}x", met)
    assert row["spread"].startswith(f"ratio {ratio}, no paired test")


def test_record_from_before_a_field_existed_is_read(tmp_path: Path):
    old = record_with_hashtags(OURS, [0.5], "written")
    path = write_records(tmp_path, old=old) / "old.json"
    fields = json.loads(path.read_text())
    del fields["hashtags_from"]
    path.write_text(json.dumps(fields))
    assert read_runs(tmp_path)[0].record == old
