"""Tests of a record's summary: its figures, and the names that programs read."""

import json
from pathlib import Path

import pytest

from model.evaluation.protocol import PROTOCOLS
from model.evaluation.record import Categories, Hashtags, Ranks, Record


def test_related_summary_is_in_shares_by_protocol():
    ranks = Ranks([1, 10, 11, 101], [0, 0, 1, 2], [0, 1, 1, 2])
    record = Record(system="s", data="d", split="test", with_hashtags=True, seconds_per_note=0.5, related={"p": ranks})
    summary = record.summary()
    assert summary["recall"] == {"p": {"10": 0.5, "100": 0.75, "1000": 1.0}}
    assert summary["mrr"] == {"p": pytest.approx((1 + 1 / 10 + 1 / 11 + 1 / 101) / 4)}
    assert summary["pairs"] == {"p": 4}
    assert summary["notes_per_second"] == 2


def test_summary_has_the_agreed_names():
    """Programs read the summary: names may be added, none may be removed."""
    record = Record(
        system="s",
        data="d",
        split="test",
        with_hashtags=True,
        seconds_per_note=1.0,
        related=dict.fromkeys(PROTOCOLS, Ranks([1], [0], [0])),
        categories=Categories([0], [0], [1.0], [0]),
        hashtags=Hashtags(*([[1.0] * 3] for _ in range(4))),
    )
    summary = record.summary()
    assert summary.keys() >= {"recall", "mrr", "pairs", "category", "hashtags", "notes_per_second"}
    assert summary["recall"].keys() == set(PROTOCOLS)
    assert all(shares.keys() == {"10", "100", "1000"} for shares in summary["recall"].values())
    assert summary["mrr"].keys() == summary["pairs"].keys() == set(PROTOCOLS)
    assert summary["category"].keys() >= {"accuracy_free", "accuracy_constrained", "macro_f1", "illusory", "ece"}
    assert summary["hashtags"].keys() >= {"f1@1", "f1@3", "f1@5", "rouge1", "rouge2", "rougeL"}
    nothing = Record(system="s", data="d", split="test", with_hashtags=True).summary()
    assert nothing.keys() == summary.keys()
    assert set(nothing.values()) == {None}


def test_record_that_cannot_be_written_leaves_the_earlier_one(tmp_path: Path):
    path = tmp_path / "records" / "s.json"
    record = Record(system="s", data="d", split="test", with_hashtags=True)
    record.write(path, {"commit": "1"})
    earlier = path.read_text()
    assert json.loads(earlier)["commit"] == "1"
    (path.parent / "s.json.unfinished").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        record.write(path, {"commit": "2"})
    assert path.read_text() == earlier
