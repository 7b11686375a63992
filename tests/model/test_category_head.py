"""What a vector says of a category, alone and beside what the model writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from model.category_head import CATEGORIES_FILE, MIN_NOTES_PER_CATEGORY, CategoryHead, fit_pool_weights
from model.config import CheckpointError
from model.generation import CategoryProbability, GenerationRequest
from model.inference.engine import Engine
from model.note import Note

NAMES = ("Food", "Home", "Travel")
NOTES = [Note(title=title) for title in ("lemon soup", "a lamp for the hall", "three days in Kyoto")]


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def some_vectors(names: tuple[str, ...], each: int = 40, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Unit vectors around a centre for each name."""
    rng = np.random.default_rng(seed)
    centres = unit(np.random.default_rng(1).normal(size=(len(names), 8)))
    vectors = np.concatenate([centre + 0.2 * rng.normal(size=(each, 8)) for centre in centres])
    return unit(vectors), [name for name in names for _ in range(each)]


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("names", [NAMES, NAMES[:2]])
def test_it_learns_which_name_goes_with_which_vectors(names: tuple[str, ...]) -> None:
    head = CategoryHead.fit(*some_vectors(names))
    vectors, truth = some_vectors(names, seed=2)
    order = names[::-1]
    log_probs = head.log_probs(order, vectors)
    assert np.exp(log_probs).sum(1) == pytest.approx(np.ones(len(vectors)))
    assert np.mean([order[at] == name for at, name in zip(log_probs.argmax(1), truth, strict=True)]) > 0.9


def test_of_a_part_of_its_names_the_odds_are_the_same() -> None:
    head = CategoryHead.fit(*some_vectors(NAMES))
    vector = some_vectors(NAMES, seed=3)[0][0]
    of_all, of_two = head.log_probs(NAMES, vector), head.log_probs(("Travel", "Food"), vector)
    assert of_two[1] - of_two[0] == pytest.approx(of_all[0] - of_all[2])
    assert head.covers(("Travel", "Food"))
    assert not head.covers(("Travel", "Pets"))


def test_names_of_which_it_has_seen_few_notes_are_not_covered() -> None:
    few, many = some_vectors(NAMES, MIN_NOTES_PER_CATEGORY - 1), some_vectors(NAMES, MIN_NOTES_PER_CATEGORY)
    assert CategoryHead.fit(*many).covers(NAMES)
    assert not CategoryHead.fit(*few).covers(NAMES)
    mixed = CategoryHead.fit(np.concatenate([few[0], many[0]]), [*few[1], *("Pets" for _ in many[1])])
    assert mixed.covers(("Pets", "Food"))  # enough on the average
    assert not mixed.covers(("Home", "Food"))


def test_each_name_is_trusted_as_its_data_set_says() -> None:
    head = (
        CategoryHead.fit(*some_vectors(NAMES))
        .with_pool_weights(NAMES[:2], (0.2, 0.4))
        .with_pool_weights(NAMES[2:], (0.4, 0.8))
    )
    vector, written = some_vectors(NAMES)[0][7], np.array([0.0, -1.0, -2.0])
    for names, a, b in ((NAMES[:2], 0.2, 0.4), (NAMES[1:], 0.3, 0.6)):
        pooled = head.pool(names, written[: len(names)], vector)
        assert pooled == pytest.approx(a * written[: len(names)] + b * head.log_probs(names, vector))


def test_one_category_is_nothing_to_choose_from() -> None:
    with pytest.raises(ValueError, match="fewer than two"):
        CategoryHead.fit(*some_vectors(NAMES[:1]))


def test_what_is_saved_is_loaded_for_its_own_space_alone(tmp_path: Path) -> None:
    assert CategoryHead.load(tmp_path, "space") is None
    head = CategoryHead.fit(*some_vectors(NAMES)).with_pool_weights(NAMES, (0.3, 0.6))
    head.save(tmp_path, "space")
    loaded = CategoryHead.load(tmp_path, "space")
    assert loaded is not None
    vector, written = some_vectors(NAMES)[0][7], np.array([0.0, -1.0, -2.0])
    pooled = loaded.pool(NAMES, written, vector)
    assert pooled == pytest.approx(0.3 * written + 0.6 * head.log_probs(NAMES, vector))
    with pytest.raises(CheckpointError, match="fit-categories"):
        CategoryHead.load(tmp_path, "another")


@pytest.mark.parametrize("broken", ["no file of its kind", "lacks its names"])
def test_a_broken_file_is_named(tmp_path: Path, broken: str) -> None:
    if broken.startswith("no"):
        (tmp_path / CATEGORIES_FILE).write_bytes(b"nothing")
    else:
        save_file({"weights": np.zeros((2, 8), np.float32)}, tmp_path / CATEGORIES_FILE)
    with pytest.raises(CheckpointError, match=CATEGORIES_FILE):
        CategoryHead.load(tmp_path, "space")


def test_the_exponents_under_which_the_truth_was_drawn_are_found() -> None:
    rng = np.random.default_rng(0)
    written, seen = (np.log(softmax(rng.normal(scale=2, size=(4000, 5)))) for _ in range(2))
    truth = (0.3 * written + 0.8 * seen + rng.gumbel(size=written.shape)).argmax(1)
    assert fit_pool_weights(written, seen, truth) == pytest.approx((0.3, 0.8), abs=0.06)


def test_few_notes_that_are_all_right_do_not_make_anything_certain() -> None:
    seen = np.log(softmax(np.random.default_rng(0).normal(scale=2, size=(12, 5))))
    assert max(fit_pool_weights(np.zeros((12, 5)), seen, seen.argmax(1))) < 3


def test_what_contradicts_the_truth_is_not_trusted() -> None:
    rng = np.random.default_rng(0)
    written, seen = (np.log(softmax(rng.normal(scale=2, size=(1000, 5)))) for _ in range(2))
    truth = (seen - written + rng.gumbel(size=written.shape)).argmax(1)
    assert fit_pool_weights(written, seen, truth)[0] == 0


def test_an_engine_pools_where_the_head_knows_all_names(tiny_engine: Engine) -> None:
    """And answers as without one where it does not."""
    vectors = tiny_engine.embed(NOTES)
    fitted = CategoryHead.fit(vectors, NAMES)
    head = replace(fitted, counts=MIN_NOTES_PER_CATEGORY * fitted.counts).with_pool_weights(NAMES, (0.5, 0.7))
    pooling = Engine(tiny_engine.runtime, head)
    known, other = GenerationRequest(categories=NAMES), GenerationRequest(categories=("Food", "Pets"))
    for note, vector in zip(NOTES, vectors, strict=True):
        (plain,), (pooled,) = tiny_engine.generate([note], known), pooling.generate([note], known)
        written = np.log([by_name(plain.categories)[name] for name in NAMES]) * tiny_engine.temperature
        wanted = softmax(head.pool(NAMES, written, vector))
        assert by_name(pooled.categories) == pytest.approx(dict(zip(NAMES, wanted, strict=True)), rel=1e-3)
        (pooled,), (plain,) = (engine.generate([note], other) for engine in (pooling, tiny_engine))
        assert by_name(pooled.categories) == pytest.approx(by_name(plain.categories))


def by_name(categories: tuple[CategoryProbability, ...] | None) -> dict[str, float]:
    return {category.name: category.probability for category in categories or ()}
