"""Tests of the tables and plots of docs/results.md, made from hand-made records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.quality.plots import core_hours, draw_cost, draw_learning_curves, draw_recall
from benchmarks.quality.records import JOINT, OURS, read_runs
from benchmarks.quality.tables import CURVES, DOCS, HASHTAGS, ORIGIN, RELATED, ablations, results, table
from model.evaluation.protocol import COLD_COLD
from model.evaluation.record import Record
from tests.benchmarks.handmade import RIVAL, record, record_with_hashtags, write_records


def cells(markdown: str) -> list[dict[str, str]]:
    """Rows of a Markdown table, as cells by column title."""
    titles, _, *rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in markdown.splitlines()]
    return [dict(zip(titles, row, strict=True)) for row in rows]


def test_each_record_has_a_row_and_lacking_figures_are_empty(tmp_path: Path):
    whole = record_with_hashtags(OURS, [0.5], "written")
    bare = Record(system=RIVAL, data="kuairec", split="validation", with_hashtags=False)
    runs = read_runs(write_records(tmp_path, x_seed3=whole, y=bare))
    first, second = cells(table(runs, ORIGIN))
    assert (first["record"], first["system"], first["predicted hashtags"]) == ("x-seed3", OURS, "written")
    assert list(second.values()) == ["y", RIVAL, "kuairec, validation", "no", "", "abc"]
    (hashtags,) = cells(table(runs, HASHTAGS))
    assert (hashtags["record"], hashtags["F1@1 / 3 / 5"]) == ("x-seed3", "0.0 / 50.0 / 0.0")
    (related,) = cells(table(runs, RELATED))
    assert related["cold-cold Recall@10 / 100 / 1000"] == "100.0 / 100.0 / 100.0"
    assert related["cold-all Recall@10 / 100 / 1000"] == ""
    assert results(runs).count("| y |") == 1  # only in the table of origins: it has no figures
    assert results(runs).count("| x-seed3 |") == 4  # origins, related notes, by exposure, hashtags


def test_record_of_an_earlier_version_is_refused_by_name(tmp_path: Path):
    write_records(tmp_path, old=record(OURS, [1, 2]))
    stored = json.loads((tmp_path / "old.json").read_text())
    del stored["related"][COLD_COLD]["targets"]
    (tmp_path / "old.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"old\.json holds no record of this version: .*'targets'"):
        read_runs(tmp_path)


def test_each_ablation_stands_beside_the_joint_run(tmp_path: Path):
    records = {
        "joint_seed0": record(JOINT, [1, 1, 200, 200], split="validation"),
        "joint_seed1": record(JOINT, [1, 1, 1, 1], split="validation"),
        "joint_hidden": record(JOINT, [200] * 4, split="validation", with_hashtags=False),
        "full": record("ablation-full", [1, 1, 1, 200], split="validation"),
        "shipped": record(OURS, [1, 1, 1, 1]),
    }
    _, _, *rows = ablations(read_runs(write_records(tmp_path, **records))).splitlines()
    assert len(rows) == 1
    assert rows[0].startswith(
        "| ablation-full | 75.0; baseline ablation-joint: 75.0 %; 2 seeds: 50.00 to 100.00 %; ratio 1.00x"
    )


def test_results_page_fits_a_screen():
    lines = (DOCS / "results.md").read_text("utf-8").splitlines()
    assert max(map(len, lines)) < 400
    assert max(line.count(" | ") + 1 for line in lines if line.startswith("|")) <= 6


def test_plots_are_small_png_files_also_without_records(tmp_path: Path):
    records = {"a": record(OURS, [1, 50, 700]), "b": record(RIVAL, [2, 3, 4]), "c": record("slow", [1, 2, 9])}
    for runs in (read_runs(write_records(tmp_path, **records)), []):
        for draw in (draw_recall, draw_cost):
            draw(runs, tmp_path / "plot.png")
            plot = (tmp_path / "plot.png").read_bytes()
            assert plot.startswith(b"\x89PNG")
            assert len(plot) < 150_000


def test_learning_curve_that_continues_a_run_begins_at_its_hours():
    series = {"core_hours_before": 0.5, "core_seconds_per_step": 36}
    assert [core_hours(series, step) for step in (0, 50, 100)] == pytest.approx([0.5, 1.0, 1.5])


def test_learning_curves_are_drawn_where_series_and_rivals_have_figures(tmp_path: Path):
    line = {"name": "run", "core_hours_before": 0, "core_seconds_per_step": 36}
    points = [{"step": 0, "a": 1.0}, {"step": 50, "a": 2.0, "b": 3.0}]
    curves = {
        "score": "%", "panels": ["a", "b"], "series": [{**line, "points": points}], "rivals": [{"name": "x", "b": 2.5}]
    }  # fmt: skip
    draw_learning_curves(curves, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("plot", CURVES)
def test_each_learning_curve_of_the_page_says_what_its_lines_are_and_where_they_are_from(plot: str):
    page = (DOCS / "results.md").read_text("utf-8")
    assert f"]({plot})" in page
    for line in CURVES[plot]["series"]:
        assert f"| {line['name']} | {line['about']} | [log]({line['sources'][0]})" in page
        assert all(set(point) - {"step"} <= set(CURVES[plot]["panels"]) for point in line["points"])
