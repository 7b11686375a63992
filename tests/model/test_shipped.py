"""Tests of the checkpoint that `make serve` loads: complete, small, documented, and able to read notes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model.data.labelled_lines import labelled_notes
from model.generation import GenerationRequest
from model.inference.engine import Engine
from model.note import Note
from model.weights import SHIPPED_CHECKPOINT

pytestmark = pytest.mark.slow

MAX_BYTES = 40_000_000
"""Bound on the size of all its files, which are in the package and in every clone."""

SENTENCE = "We walked along the lake until the rain came over the hills. "
"""Twelve words."""
BREAD = "At home we baked bread with rye flour, salt and a starter that my aunt had kept in her fridge for years."
GUITARS = (
    "At night a band played loud guitars in the cellar, and the drummer broke three sticks before the encore began."
)
ROUNDING = 0.001
"""1 - cosine of a note's vectors in bfloat16 and in float32 is below this (docs/benchmarks.md, precision)."""


@pytest.fixture(scope="module")
def engine(backbone_folder: Path) -> Engine:
    return Engine.load(cache=backbone_folder.parent, device="cpu")


def test_shipped_checkpoint_is_small_and_has_a_model_card() -> None:
    assert sum(path.stat().st_size for path in SHIPPED_CHECKPOINT.rglob("*") if path.is_file()) <= MAX_BYTES
    card = (SHIPPED_CHECKPOINT / "README.md").read_text("utf-8")
    assert all(heading in card for heading in ("## Data", "## Run", "## Terms"))


def test_shipped_checkpoint_names_no_folder_of_its_origin() -> None:
    texts = [path.read_text("utf-8") for path in SHIPPED_CHECKPOINT.rglob("*") if path.suffix in (".json", ".md")]
    assert not [text for text in texts if "/tmp/" in text or "/home/" in text]


def test_shipped_model_gives_vector_hashtags_and_likely_category(engine: Engine) -> None:
    note = Note(
        title="Sourdough bread for beginners", content="Flour, water, salt, a hot oven and two days of patience."
    )
    (output,) = engine.generate([note], GenerationRequest(hashtags=3, categories=engine.categories))
    assert output.vector.shape == (engine.dimension,)
    assert np.linalg.norm(output.vector) == pytest.approx(1, abs=1e-5)
    assert output.hashtags
    assert output.categories
    assert output.categories[0].name == "Food"


def test_shipped_model_writes_no_hashtag_for_a_note_that_says_nothing(engine: Engine) -> None:
    titles = ["Finally", "well well well", "here we go"]
    assert not {note.title for note in labelled_notes()} & set(titles), "training has shown them"
    *nothing, bread = engine.generate([Note(title=title) for title in (*titles, BREAD)], GenerationRequest(hashtags=3))
    assert [output.hashtags for output in nothing] == [(), (), ()]
    assert bread.hashtags


def test_shipped_model_lists_the_names_of_its_training(engine: Engine) -> None:
    assert set(engine.runtime.config.trained_categories) > set(engine.categories)


def test_shipped_model_tells_untrained_categories_apart(engine: Engine) -> None:
    names = ("Recipes and restaurants", "Cars", "Astronomy")
    notes = [
        Note(title="My sourdough starter is ten years old"),
        Note(title="New tyres and an oil change before winter"),
    ]
    answers = [output.categories for output in engine.generate(notes, GenerationRequest(categories=names))]
    assert [categories[0].name for categories in answers if categories] == ["Recipes and restaurants", "Cars"]


def test_shipped_model_reads_what_comes_after_word_130(engine: Engine) -> None:
    same = " ".join((SENTENCE * 11).split()[:130])
    bread, guitars = engine.embed([Note("A weekend away", f"{same} {ending}") for ending in (BREAD, GUITARS)])
    assert float(bread @ guitars) < 1 - 10 * ROUNDING
