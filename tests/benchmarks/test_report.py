"""Tests of the report: result files become the tables of docs/benchmarks.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.harness import report
from benchmarks.harness.report import Result, fill_tables, read, row, table, update_page

STORED = sorted(path.stem for path in report.RESULTS.glob("*.json"))


def result(name: str, commit: str = "abc", hardware: str = "2 cores") -> Result:
    rows = [row("speed", 2.0, "notes/s", target="1 or more", met=True)]
    return Result(
        name=name, commit=commit, date="2026-01-02", hardware=hardware, versions={"torch": "2.13.0"}, rows=rows
    )


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of results: two of one machine, one of another."""
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    for content in (result("a"), result("b", commit="def"), result("c", hardware="64 cores")):
        (tmp_path / f"{content['name']}.json").write_text(json.dumps(content))
    return tmp_path


def test_table_leaves_out_empty_columns():
    rows = [row("speed", 2.5, "notes/s", target="3 or more", met=False), row("memory", 7, "MiB")]
    assert table(rows).splitlines() == [
        "| measurement | value | target | met |",
        "| --- | --- | --- | --- |",
        "| speed | 2.5 notes/s | 3 or more | **no** |",
        "| memory | 7 MiB |  |  |",
    ]


def test_page_names_a_machine_once_where_tables_share_it(results: Path):
    page = fill_tables("".join(f"<!-- results: {name} -->\nold\n<!-- end -->\n\n" for name in "abc"))
    assert "old" not in page
    assert [line for line in page.splitlines() if line.startswith("Commit")] == [
        "Commit abc, 2026-01-02, 2 cores; torch 2.13.0.",
        "Commit def, 2026-01-02, machine and versions as above.",
        "Commit abc, 2026-01-02, 64 cores; torch 2.13.0.",
    ]
    assert fill_tables(page) == page


def test_page_keeps_its_text_and_names_placeless_results(results: Path, capsys: pytest.CaptureFixture[str]):
    page = results / "page.md"
    page.write_text("before\n<!-- results: a -->\n<!-- end -->\nafter\n")
    update_page(page)
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert "| speed | 2.0 notes/s | 1 or more | yes |" in lines
    assert "no place for: b, c" in capsys.readouterr().err


def test_page_with_an_unknown_result_is_refused(results: Path):
    with pytest.raises(FileNotFoundError):
        fill_tables("<!-- results: unknown -->\n<!-- end -->")


@pytest.mark.parametrize("name", STORED)
def test_stored_result_is_named_as_its_file_and_fits_a_screen(name: str):
    stored = read(name)
    assert stored["name"] == name
    lines = table(stored["rows"]).splitlines()
    assert max(map(len, lines)) < 400
    assert max(line.count(" | ") + 1 for line in lines) <= 6
