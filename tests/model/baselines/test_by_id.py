"""Tests of OrderOfIds, which answers every query with the notes in id order."""

from model.baselines.by_id import OrderOfIds
from model.evaluation.ranking import rank_pairs
from model.note import Note


def test_order_of_ids_is_the_answer_to_every_query():
    ids = ["b", "10", "9", "a"]
    score = OrderOfIds().related([Note(id=note_id, title="") for note_id in ids])
    pairs = [("a", "10"), ("a", "9"), ("a", "b"), ("9", "10"), ("9", "a"), ("9", "b")]
    assert rank_pairs(score, ids, pairs).tolist() == [1, 2, 3, 1, 2, 3]
