"""From hand-made records to rows, tables and plots."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest

from benchmarks.quality.tables import (
    FIGURES,
    JOINT,
    MICROLENS,
    OURS,
    Contest,
    Limit,
    Reach,
    ablations,
    draw_cost,
    draw_recall,
    hashtag_f1,
    hits,
    read_runs,
    results,
    right_category,
    table,
)
from model.evaluation.protocol import COLD_COLD
from model.evaluation.record import Categories, Hashtags, Ranks, Record

RIVAL = "minilm"
RECALL = Contest("Recall@100", MICROLENS, partial(hits, COLD_COLD), RIVAL, Reach(1.5, p=0.01))


def of(system: str, ranks: list[int], queries: list[int] | None = None, **parts) -> Record:
    related = {
        COLD_COLD: Ranks(ranks, queries or list(range(len(ranks))), [at * 3 // len(ranks) for at in range(len(ranks))])
    }
    fields = {"data": MICROLENS, "split": "test", "with_hashtags": True, "seconds_per_note": 0.01} | parts
    return Record(system=system, related=related, **fields)


def written(folder: Path, **records: Record) -> Path:
    """As `notellm evaluate --record` writes them."""
    for name, record in records.items():
        (folder / f"{name.replace('_', '-')}.json").write_text(json.dumps({"commit": "abc", **asdict(record)}))
    return folder


def tagged(system: str, f1: list[float], source: str) -> Record:
    rows = [[0.0, value, 0.0] for value in f1]
    return of(system, [1, 2, 3], hashtags=Hashtags(rows, rows, rows, rows), hashtags_from=source)


def test_the_ratio_and_whether_it_is_enough(tmp_path: Path):
    # 80 of 100 against 40 of 100, a query each, ours never behind.
    ours, rival = [1] * 80 + [101] * 20, [100] * 40 + [1000] * 60
    row = RECALL.row(read_runs(written(tmp_path, a=of(OURS, ours), b=of(RIVAL, rival))))
    assert (row["what"], row["value"], row["unit"]) == ("microlens50k, Recall@100", 80.0, "%")
    assert row["against"] == "minilm: 40.0 %"
    assert row["spread"].startswith("2.00x, 95% 1.6")
    assert row["spread"].endswith("p = 0.0002; commit abc")
    assert (row["reach"], row["held"]) == ("1.5x or more, p < 0.01", True)
    missed = replace(RECALL, reach=Reach(2.5)).row(read_runs(tmp_path))
    assert (missed["reach"], missed["held"]) == ("2.5x or more", False)
    assert replace(RECALL, reach=None).row(read_runs(tmp_path))["held"] is None


def test_queries_are_drawn_whole(tmp_path: Path):
    # Of two queries the second makes the difference. Drawn twice it gives 4 / 2; pairs drawn alone would give 4 / 1.
    records = {"a": of(OURS, [1, 1, 1, 1], [0, 0, 1, 1]), "b": of(RIVAL, [1, 1, 1, 500], [0, 0, 1, 1])}
    row = RECALL.row(read_runs(written(tmp_path, **records)))
    assert row["spread"].startswith("1.33x, 95% 1.00 to 2.00, ")
    assert row["held"] is False


def test_what_has_no_record_is_not_measured(tmp_path: Path):
    hidden = of(RIVAL, [1, 2], with_hashtags=False)
    for records in ({}, {"a": of(OURS, [1, 2])}, {"b": hidden}, {"c": of(RIVAL, [1], split="validation")}):
        row = RECALL.row(read_runs(written(tmp_path, **records)))
        assert (row["value"], row["held"], row["against"]) == ("not measured", None, RIVAL)
    assert Limit("ECE", MICROLENS, ("category", "ece"), 0.05).row(read_runs(tmp_path))["value"] == "not measured"


def test_other_pairs_are_refused(tmp_path: Path):
    for queries in ([0, 0, 1], [0, 1]):
        records = {"a": of(OURS, [1, 2, 3], [0, 1, 1]), "b": of(RIVAL, [1] * len(queries), queries)}
        with pytest.raises(ValueError, match="not about the same pairs"):
            RECALL.row(read_runs(written(tmp_path, **records)))


def test_seeds_are_averaged_and_their_spread_is_stated(tmp_path: Path):
    seeds = {"a_seed0": of(OURS, [1, 1, 200, 200]), "a_seed1": of(OURS, [1, 1, 1, 1])}
    row = RECALL.row(read_runs(written(tmp_path, **seeds, b=of(RIVAL, [1, 200, 1, 200]))))
    assert row["value"] == 75.0
    assert row["spread"].startswith("1.50x, ")
    assert row["spread"].endswith("; 2 seeds: 50.00 to 100.00 %; commit abc")
    written(tmp_path, again=of(OURS, [1, 1, 1, 1]))
    with pytest.raises(ValueError, match="a-seed0, a-seed1, again record the same"):
        read_runs(tmp_path)


def test_written_hashtags_are_compared_with_copied_ones(tmp_path: Path):
    records = {
        "own": tagged(OURS, [0.6, 0.4, 0.2], "written"),
        "copied": tagged(OURS, [0.2, 0.2, 0.0], "copied"),
        "rival": tagged(RIVAL, [0.4, 0.4, 0.4], "copied"),
    }
    runs = read_runs(written(tmp_path, **records))
    contest = Contest(
        "F1@3", MICROLENS, partial(hashtag_f1, "written"), OURS, Reach(1.5), partial(hashtag_f1, "copied")
    )
    assert contest.row(runs)["spread"].startswith("3.00x")
    assert contest.row(runs)["held"] is True
    assert replace(contest, rival=RIVAL).row(runs)["spread"].startswith("1.00x")
    assert replace(contest, rival="tf-idf").row(runs)["value"] == "not measured"


def test_categories_are_compared_note_by_note_and_held_to_limits(tmp_path: Path):
    ours = Categories(truth=[0, 1, 1, 0], chosen=[0, 1, 1, 1], probability=[0.75] * 4, free=[0, 1, -1, 0])
    rival = replace(ours, chosen=[0, 0, 1, 1], free=None)
    runs = read_runs(written(tmp_path, a=of(OURS, [1], categories=ours), b=of(RIVAL, [1], categories=rival)))
    accuracy = Contest("accuracy", MICROLENS, right_category, RIVAL, Reach(1.1)).row(runs)
    assert (accuracy["value"], accuracy["against"], accuracy["held"]) == (75.0, "minilm: 50.0 %", True)
    ece = Limit("ECE", MICROLENS, ("category", "ece"), 0.05).row(runs)
    assert (ece["value"], ece["reach"], ece["held"]) == (0.0, "at most 5 %", True)
    illusory = Limit("illusory", MICROLENS, ("category", "illusory"), 0).row(runs)
    assert (illusory["value"], illusory["held"]) == (25.0, False)


def test_every_record_has_a_row_and_what_it_lacks_is_empty(tmp_path: Path):
    whole = tagged(OURS, [0.5], "written")
    bare = Record(system=RIVAL, data="kuairec", split="validation", with_hashtags=False)
    runs = read_runs(written(tmp_path, x_seed3=whole, y=bare))
    titles, _, first, second = [line.strip("| ").split(" | ") for line in table(runs, FIGURES).splitlines()]
    assert dict(zip(titles, first, strict=True))["hashtags F1@1 / 3 / 5"] == "0.0 / 50.0 / 0.0"
    assert dict(zip(titles, first, strict=True))["cold-cold R@10 / 100 / 1000"] == "100.0 / 100.0 / 100.0"
    assert first[:2] == ["x-seed3", OURS]
    assert {cell.strip() for cell in second} == {"y", RIVAL, "kuairec", "validation", "no", "", "abc"}
    assert results(runs).count("| y |") == 2  # figures, and by exposure


def test_each_ablation_stands_beside_the_joint_run(tmp_path: Path):
    records = {
        "joint_seed0": of(JOINT, [1, 1, 200, 200], split="validation"),
        "joint_seed1": of(JOINT, [1, 1, 1, 1], split="validation"),
        "joint_hidden": of(JOINT, [200] * 4, split="validation", with_hashtags=False),
        "full": of("ablation-full", [1, 1, 1, 200], split="validation"),
        "shipped": of(OURS, [1, 1, 1, 1]),
    }
    _, _, *rows = ablations(read_runs(written(tmp_path, **records))).splitlines()
    assert len(rows) == 1
    assert rows[0].startswith(
        "| ablation-full | 75.0 against ablation-joint: 75.0 %; 2 seeds: 50.00 to 100.00 % (1.00x"
    )


def test_a_record_from_before_a_field_is_read(tmp_path: Path):
    written(tmp_path, old=tagged(OURS, [0.5], "written"))
    fields = json.loads((tmp_path / "old.json").read_text())
    del fields["hashtags_from"]
    (tmp_path / "old.json").write_text(json.dumps(fields))
    assert read_runs(tmp_path)[0].record == tagged(OURS, [0.5], "written")


def test_plots_are_small_png_files_also_without_records(tmp_path: Path):
    some = read_runs(written(tmp_path, a=of(OURS, [1, 50, 700]), b=of(RIVAL, [2, 3, 4]), c=of("slow", [1, 2, 9])))
    for runs in (some, []):
        for draw in (draw_recall, draw_cost):
            draw(runs, tmp_path / "plot.png")
            made = (tmp_path / "plot.png").read_bytes()
            assert made.startswith(b"\x89PNG")
            assert len(made) < 150_000
