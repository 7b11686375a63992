"""Tests of CategoryHead: categories from a vector and from words, pooled with what the model writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from model.category_head import CATEGORIES_FILE, MIN_NOTES_PER_CATEGORY, CategoryHead, fit_pool_weights
from model.config import CheckpointError
from model.generation import CategoryProbability, GenerationRequest
from model.inference.engine import Engine
from model.note import Note

NAMES = ("Food", "Home", "Travel")
TRAIN = Note(content="The night train was late")
NOTES = [Note(title=title) for title in ("lemon soup", "a lamp for the hall", "three days in Kyoto")]


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def labelled_vectors(names: tuple[str, ...], per_name: int = 40, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Return unit vectors (N, 8) around a centre for each name, and their N names."""
    rng = np.random.default_rng(seed)
    centres = unit(np.random.default_rng(1).normal(size=(len(names), 8)))
    vectors = np.concatenate([centre + 0.2 * rng.normal(size=(per_name, 8)) for centre in centres])
    return unit(vectors), [name for name in names for _ in range(per_name)]


def labelled_notes(truth: list[str]) -> list[Note]:
    """Return a note for each name of `truth`, with words that identify the name."""
    titles = dict(zip(NAMES, ("lemon soup", "a lamp for the hall", "a train to Kyoto"), strict=True))
    return [Note(title=titles[name]) for name in truth]


def pooled(head: CategoryHead) -> CategoryHead:
    """Return the head with pool weights for all of its names."""
    return head.with_pool_weights(head.names, np.array([0.5, 0.5]))


def experts(*log_probs: np.ndarray) -> np.ndarray:
    """Stack the log probabilities of E experts, each (N, K), into shape (N, E, K)."""
    return np.stack(log_probs, axis=1)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("names", [NAMES, NAMES[:2]])
def test_fit_learns_which_name_goes_with_which_vectors(names: tuple[str, ...]) -> None:
    head = CategoryHead.fit(*labelled_vectors(names))
    vectors, truth = labelled_vectors(names, seed=2)
    order = names[::-1]
    log_probs = head.log_probs_by_vector(order, vectors)
    assert np.exp(log_probs).sum(1) == pytest.approx(np.ones(len(vectors)))
    best = [order[index] for index in log_probs.argmax(1)]
    assert np.mean([guess == name for guess, name in zip(best, truth, strict=True)]) > 0.9


def test_odds_in_a_subset_of_the_names_are_the_same() -> None:
    head = pooled(CategoryHead.fit(*labelled_vectors(NAMES)))
    vector = labelled_vectors(NAMES, seed=3)[0][0]
    among_all, among_two = (head.log_probs_by_vector(names, vector) for names in (NAMES, ("Travel", "Food")))
    assert among_two[1] - among_two[0] == pytest.approx(among_all[0] - among_all[2])
    assert head.covers(("Travel", "Food"))
    assert not head.covers(("Travel", "Pets"))


def test_names_with_few_training_notes_are_not_covered() -> None:
    few = labelled_vectors(NAMES, MIN_NOTES_PER_CATEGORY - 1)
    many = labelled_vectors(NAMES, MIN_NOTES_PER_CATEGORY)
    assert pooled(CategoryHead.fit(*many)).covers(NAMES)
    assert not pooled(CategoryHead.fit(*few)).covers(NAMES)
    mixed = pooled(CategoryHead.fit(np.concatenate([few[0], many[0]]), [*few[1], *("Pets" for _ in many[1])]))
    assert mixed.covers(("Pets", "Food"))  # enough notes on average
    assert not mixed.covers(("Home", "Food"))


def test_names_without_pool_weights_are_not_covered(tmp_path: Path) -> None:
    head = CategoryHead.fit(*labelled_vectors(NAMES)).with_pool_weights(NAMES[:2], np.array([0.2, 0.4]))
    head.save(tmp_path, "space")
    loaded = CategoryHead.load(tmp_path, "space")
    for either in (head, loaded):
        assert either is not None
        assert either.covers(NAMES[:2])
        assert not either.covers(NAMES)
        assert not either.covers(NAMES[2:])
        assert either.pooled_names == NAMES[:2]


def test_pool_takes_the_mean_of_its_names_pool_weights() -> None:
    head = (
        CategoryHead.fit(*labelled_vectors(NAMES))
        .with_pool_weights(NAMES[:2], np.array([0.2, 0.4]))
        .with_pool_weights(NAMES[2:], np.array([0.4, 0.8]))
    )
    vector, written = labelled_vectors(NAMES)[0][7], np.array([0.0, -1.0, -2.0])
    for names, a, b in ((NAMES[:2], 0.2, 0.4), (NAMES[1:], 0.3, 0.6)):
        pooled = head.pool(names, written[: len(names)], Note(), vector, head.exponents(names))
        assert pooled == pytest.approx(a * written[: len(names)] + b * head.log_probs_by_vector(names, vector))


def test_platt_weights_are_stored_and_unfitted_names_are_not_scaled(tmp_path: Path) -> None:
    fitted = CategoryHead.fit(*labelled_vectors(NAMES)).with_pool_weights(NAMES[:2], np.array([0.2, 0.4]))
    fitted.save(tmp_path, "space")
    earlier = CategoryHead.load(tmp_path, "space")
    assert earlier is not None
    assert earlier.platt(NAMES[:2]) == pytest.approx([1, 0])
    head = fitted.with_pool_weights(NAMES[:2], np.array([0.2, 0.4]), np.array([0.8, -0.2]))
    head.save(tmp_path, "space")
    loaded = CategoryHead.load(tmp_path, "space")
    assert loaded is not None
    assert loaded.platt(NAMES[:2]) == pytest.approx([0.8, -0.2])
    assert loaded.platt(NAMES[1:]) == pytest.approx([0.9, -0.1])


def test_fit_to_one_category_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two categories, not of 1"):
        CategoryHead.fit(*labelled_vectors(NAMES[:1]))


def test_words_tell_a_category_that_the_vector_does_not() -> None:
    vectors, truth = labelled_vectors(NAMES)
    same = np.tile(vectors[:1], (len(vectors), 1))
    head = CategoryHead.fit(same, truth, labelled_notes(truth)).with_pool_weights(NAMES, np.array([0.0, 1.0, 1.0]))
    logits = head.pool_unwritten(NAMES, TRAIN, same[0], head.exponents(NAMES))
    assert NAMES[int(logits.argmax())] == "Travel"
    by_vector, by_words = np.exp(head.log_probs(NAMES, TRAIN, same[0]))
    assert by_vector == pytest.approx(np.full(3, 1 / 3), abs=0.01)
    assert by_words[2] > 0.5


def test_names_are_told_apart_before_any_is_read_where_the_pool_listens_to_writing_alone() -> None:
    vectors, truth = labelled_vectors(NAMES)
    head = CategoryHead.fit(vectors, truth, labelled_notes(truth)).with_pool_weights(NAMES, np.array([1.0, 0.0, 0.0]))
    logits = head.pool_unwritten(NAMES, TRAIN, vectors[-1], head.exponents(NAMES))
    assert logits == pytest.approx(head.log_probs(NAMES, TRAIN, vectors[-1]).sum(0))


def test_saved_head_loads_for_its_own_space_alone(tmp_path: Path) -> None:
    assert CategoryHead.load(tmp_path, "space") is None
    vectors, truth = labelled_vectors(NAMES)
    written = np.array([0.0, -1.0, -2.0])
    for notes, exponents in (((), [0.3, 0.6]), (labelled_notes(truth), [0.3, 0.6, 0.9])):
        head = CategoryHead.fit(vectors, truth, notes).with_pool_weights(NAMES, np.array(exponents))
        head.save(tmp_path, "space")
        loaded = CategoryHead.load(tmp_path, "space")
        assert loaded is not None
        assert (loaded.by_words is not None) == bool(notes)
        pooled = loaded.pool(NAMES, written, TRAIN, vectors[7], loaded.exponents(NAMES))
        assert pooled == pytest.approx(
            exponents[0] * written + exponents[1:] @ head.log_probs(NAMES, TRAIN, vectors[7])
        )
    with pytest.raises(CheckpointError, match="fit-categories"):
        CategoryHead.load(tmp_path, "another")


def test_file_from_before_words_is_read(tmp_path: Path) -> None:
    tensors = {
        "weights": np.eye(3, 8, dtype=np.float32),
        "bias": np.zeros(3, np.float32),
        "counts": np.full(3, 40),
        "trusts": np.tile([0.3, 0.6], (3, 1)),
    }
    save_file(tensors, tmp_path / CATEGORIES_FILE, {"names": json.dumps(NAMES), "space": "space"})
    head = CategoryHead.load(tmp_path, "space")
    assert head is not None
    assert head.covers(NAMES)
    assert head.by_words is None
    vector, written = np.eye(8)[1], np.zeros(3)
    pooled = head.pool(NAMES, written, TRAIN, vector, head.exponents(NAMES))
    assert pooled == pytest.approx(0.6 * head.log_probs_by_vector(NAMES, vector))


@pytest.mark.parametrize("broken", ["not safetensors", "lacks its names", "lacks a tensor of words"])
def test_broken_file_is_refused_by_name(tmp_path: Path, broken: str) -> None:
    if broken == "lacks a tensor of words":
        vectors, truth = labelled_vectors(NAMES)
        CategoryHead.fit(vectors, truth, labelled_notes(truth)).save(tmp_path, "space")
        stored = load_file(tmp_path / CATEGORIES_FILE)
        del stored["word_bias"]
        save_file(stored, tmp_path / CATEGORIES_FILE, {"names": json.dumps(NAMES), "space": "space"})
    elif broken == "not safetensors":
        (tmp_path / CATEGORIES_FILE).write_bytes(b"nothing")
    else:
        save_file({"weights": np.zeros((2, 8), np.float32)}, tmp_path / CATEGORIES_FILE)
    with pytest.raises(CheckpointError, match=CATEGORIES_FILE):
        CategoryHead.load(tmp_path, "space")


@pytest.mark.parametrize("tensor", ["counts", "trusts", "weights", "bias", "word_idf", "word_weights", "word_bias"])
def test_file_with_a_tensor_of_another_shape_is_refused(tmp_path: Path, tensor: str) -> None:
    vectors, truth = labelled_vectors(NAMES)
    CategoryHead.fit(vectors, truth, labelled_notes(truth)).save(tmp_path, "space")
    stored = load_file(tmp_path / CATEGORIES_FILE)
    stored[tensor] = stored[tensor][:-1].copy()
    save_file(stored, tmp_path / CATEGORIES_FILE, {"names": json.dumps(NAMES), "space": "space"})
    with pytest.raises(CheckpointError, match="shapes"):
        CategoryHead.load(tmp_path, "space")


def test_fit_pool_weights_finds_the_exponents_of_the_truth() -> None:
    rng = np.random.default_rng(0)
    written, by_vector = (np.log(softmax(rng.normal(scale=2, size=(4000, 5)))) for _ in range(2))
    truth = (0.3 * written + 0.8 * by_vector + rng.gumbel(size=written.shape)).argmax(1)
    assert fit_pool_weights(experts(written, by_vector), truth) == pytest.approx((0.3, 0.8), abs=0.06)


def test_fit_pool_weights_stays_bounded_with_few_right_notes() -> None:
    by_vector = np.log(softmax(np.random.default_rng(0).normal(scale=2, size=(12, 5))))
    assert max(fit_pool_weights(experts(np.zeros((12, 5)), by_vector), by_vector.argmax(1))) < 3


def test_fit_pool_weights_gives_0_to_what_contradicts_the_truth() -> None:
    rng = np.random.default_rng(0)
    written, by_vector = (np.log(softmax(rng.normal(scale=2, size=(1000, 5)))) for _ in range(2))
    truth = (by_vector - written + rng.gumbel(size=written.shape)).argmax(1)
    assert fit_pool_weights(experts(written, by_vector), truth)[0] == 0


def test_engine_pools_only_where_the_head_covers_all_names(tiny_engine: Engine) -> None:
    """For other closed sets it answers as without a head."""
    vectors = tiny_engine.embed(NOTES)
    fitted = CategoryHead.fit(np.concatenate([vectors, vectors]), 2 * NAMES, 2 * NOTES)
    exponents = np.array([0.5, 0.7, 0.4])
    head = replace(fitted, counts=MIN_NOTES_PER_CATEGORY * fitted.counts).with_pool_weights(NAMES, exponents)
    pooling = Engine(tiny_engine.runtime, head)
    covered, other = GenerationRequest(categories=NAMES), GenerationRequest(categories=("Food", "Pets"))
    for note, vector in zip(NOTES, vectors, strict=True):
        (plain,), (pooled,) = tiny_engine.generate([note], covered), pooling.generate([note], covered)
        written = np.log([by_name(plain.categories)[name] for name in NAMES]) * tiny_engine.temperature
        expected = softmax(head.pool(NAMES, written, note, vector, exponents))
        assert by_name(pooled.categories) == pytest.approx(dict(zip(NAMES, expected, strict=True)), rel=1e-3)
        (pooled,), (plain,) = (engine.generate([note], other) for engine in (pooling, tiny_engine))
        assert by_name(pooled.categories) == pytest.approx(by_name(plain.categories))


def by_name(categories: tuple[CategoryProbability, ...] | None) -> dict[str, float]:
    return {category.name: category.probability for category in categories or ()}
