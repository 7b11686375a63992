"""What `make serve` loads: it is whole, small, says what it is, and writes."""

from pathlib import Path

import numpy as np
import pytest

from model.generation import GenerationRequest
from model.inference.engine import Engine
from model.note import Note
from model.weights import SHIPPED_CHECKPOINT

MOST_BYTES = 25_000_000


@pytest.fixture(scope="module")
def engine(backbone_folder: Path) -> Engine:
    return Engine.load(cache=backbone_folder.parent, device="cpu")


def test_it_is_small_and_carries_its_card():
    assert sum(path.stat().st_size for path in SHIPPED_CHECKPOINT.rglob("*") if path.is_file()) <= MOST_BYTES
    card = (SHIPPED_CHECKPOINT / "README.md").read_text("utf-8")
    assert all(part in card for part in ("## Data", "## Run", "## Terms"))


def test_it_names_no_folder_of_the_machine_that_made_it():
    texts = [path.read_text("utf-8") for path in SHIPPED_CHECKPOINT.rglob("*") if path.suffix in (".json", ".md")]
    assert not [text for text in texts if "/tmp/" in text or "/home/" in text]


def test_one_prefill_gives_a_vector_hashtags_and_a_likely_category(engine: Engine):
    note = Note(
        title="Sourdough bread for beginners", content="Flour, water, salt, a hot oven and two days of patience."
    )
    (reading,) = engine.generate([note], GenerationRequest(hashtags=3, categories=engine.categories))
    assert reading.vector.shape == (engine.dimension,)
    assert np.linalg.norm(reading.vector) == pytest.approx(1, abs=1e-5)
    assert reading.hashtags
    assert reading.categories
    assert reading.categories[0].name == "Food"


def test_it_knows_which_names_its_training_has_shown(engine: Engine):
    assert set(engine.runtime.config.trained_categories) > set(engine.categories)


def test_categories_that_it_never_saw_are_told_apart_by_their_names(engine: Engine):
    names = ("Recipes and restaurants", "Cars", "Astronomy")
    notes = [
        Note(title="My sourdough starter is ten years old"),
        Note(title="New tyres and an oil change before winter"),
    ]
    first = [reading.categories for reading in engine.generate(notes, GenerationRequest(categories=names))]
    assert [found[0].name for found in first if found] == ["Recipes and restaurants", "Cars"]
