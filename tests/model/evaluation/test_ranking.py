"""Tests of ranks of pairs in small pools, worked out by hand."""

import numpy as np

from model.evaluation.ranking import cosine, pool_cutoff, rank_pairs, recall_of_pairs


def test_ranks_are_in_the_order_of_pairs_without_the_query():
    vectors = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.5, 0.5]], np.float32)
    pairs = [("c", "a"), ("a", "b"), ("c", "d")]
    assert rank_pairs(cosine(vectors), ["a", "b", "c", "d"], pairs).tolist() == [3, 1, 1]


def test_equal_scores_rank_alike_in_any_order_of_the_pool_and_not_by_id():
    ids = [f"{number:03}" for number in range(1, 301)]
    pairs = [("001", other) for other in ids[1:]]
    same = np.ones((len(ids), 1), np.float32)
    ranks = rank_pairs(cosine(same), ids, pairs)
    assert ranks.tolist() == rank_pairs(cosine(same), ids[::-1], pairs).tolist()
    assert sorted(ranks.tolist()) == list(range(1, len(ids)))
    assert abs(np.corrcoef(ranks, np.arange(len(ranks)))[0, 1]) < 0.2


def test_recall_of_pairs_counts_both_directions():
    vectors = np.array([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]], np.float32)
    assert recall_of_pairs(vectors, ["a", "b", "c"], [("a", "b")], k=1) == 0.5  # c is closer to b than a is


def test_queries_leave_out_a_share_of_the_mean_of_all_vectors():
    angles = np.radians([10.0, 40.0, 70.0])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    query = vectors[0] - 0.5 * vectors.mean(axis=0)
    expected = vectors @ (query / np.linalg.norm(query))
    np.testing.assert_allclose(cosine(vectors, mean_share=0.5)(np.array([0]))[0], expected, atol=1e-6)


def test_cutoff_of_a_pool_below_a_thousand_notes_is_a_tenth_of_it():
    assert [pool_cutoff(notes) for notes in (4, 19, 100, 999, 1000, 50_000)] == [1, 1, 10, 99, 100, 100]
