"""Which notes are ranked against which, and that a checkpoint is read as it is served."""

import numpy as np
import pytest

from model.engine import Engine
from model.evaluate import EngineSystem, Ranks, Record, cosine, evaluate, rank_pairs, recall_of_pairs
from model.note import Note
from model.pairs import Pair, split_of

TEST = [str(i) for i in range(100) if split_of(str(i)) == "test"]
OTHERS = [str(i) for i in range(100) if split_of(str(i)) != "test"]


class ByLength:
    """Scores a note by how close its title's length is to the query's: ranks can be told by hand."""

    name = "by-length"

    def related(self, notes):
        lengths = np.array([len(note.title) for note in notes], np.float32)
        self.hashtags_seen = any(note.hashtags for note in notes)
        return lambda rows: -abs(lengths[rows][:, None] - lengths)


def notes_of(lengths: dict[str, int]) -> dict[str, Note]:
    return {i: Note(id=i, title="x" * n, hashtags=("h",)) for i, n in lengths.items()}


def test_ranks_come_in_the_order_of_the_pairs_and_never_count_the_query():
    vectors = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.5, 0.5]], np.float32)
    pairs = [("c", "a"), ("a", "b"), ("c", "d")]
    assert rank_pairs(cosine(vectors), ["a", "b", "c", "d"], pairs).tolist() == [3, 1, 1]


def test_ties_go_to_the_smaller_id_whatever_the_order_of_the_pool():
    same = np.ones((3, 1), np.float32)
    for ids in (["a", "b", "c"], ["c", "b", "a"], ["b", "c", "a"]):
        assert rank_pairs(cosine(same), ids, [("a", "b"), ("a", "c"), ("b", "a")]).tolist() == [1, 2, 1]


def test_recall_of_pairs_counts_both_directions():
    vectors = np.array([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]], np.float32)
    assert recall_of_pairs(vectors, ["a", "b", "c"], [("a", "b")], k=1) == 0.5  # c is closer to b than a is


def test_cold_cold_ranks_test_notes_among_test_notes_and_cold_all_among_all():
    a, b, c = TEST[:3]
    x, y = OTHERS[:2]
    notes = notes_of({a: 10, b: 14, c: 11, x: 13, y: 40})
    pairs = [Pair(a, b, 1.0), Pair(a, x, 1.0), Pair(x, a, 1.0), Pair(x, y, 1.0)]
    record = evaluate(ByLength(), "data", notes, pairs)
    assert record.related["cold-cold"].ranks == [2]  # c stands before b
    by_id = dict(zip(sorted((b, x)), record.related["cold-all"].ranks, strict=True))
    assert by_id == {b: 3, x: 2}  # c, x, b
    assert record.related["cold-all"].queries == [0, 0]
    assert record.split == "test"


def test_only_the_protocol_asked_for_is_read():
    a, b = TEST[:2]
    notes = notes_of({a: 1, b: 2, **dict.fromkeys(OTHERS, 1)})
    record = evaluate(ByLength(), "data", notes, [Pair(a, b, 1.0)], protocols=["cold-cold"])
    assert record.related.keys() == {"cold-cold"}
    assert record.related["cold-cold"].ranks == [1]


@pytest.mark.parametrize("shown", [True, False])
def test_hashtags_are_shown_or_withheld_from_every_note(shown: bool):
    system = ByLength()
    a, b = TEST[:2]
    record = evaluate(system, "data", notes_of({a: 1, b: 2}), [Pair(a, b, 1.0)], with_hashtags=shown)
    assert system.hashtags_seen == record.with_hashtags == shown


def test_a_checkpoint_scores_by_the_vectors_that_it_serves(tiny_engine: Engine):
    notes = [Note(title=t) for t in ("one", "two", "a much longer title about bread")]
    served = np.array([tiny_engine.run([tiny_engine.prepare(note)])[0].vector for note in notes])
    scores = EngineSystem(tiny_engine).related(notes)(np.array([2, 0]))
    np.testing.assert_allclose(scores, served[[2, 0]] @ served.T, atol=1e-5)


def test_a_record_is_summed_up_in_percent_by_protocol():
    ranks = Ranks([1, 10, 11, 101], [0, 0, 1, 2])
    record = Record(system="s", data="d", split="test", with_hashtags=True, seconds_per_note=0, related={"p": ranks})
    summary = record.summary()["p"]
    assert summary["pairs"] == 4
    assert [summary[f"Recall@{k}"] for k in (10, 100, 1000)] == [50, 75, 100]
    assert summary["MRR"] == pytest.approx((1 + 1 / 10 + 1 / 11 + 1 / 101) / 4)
