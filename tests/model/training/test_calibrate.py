"""Tests of fits to a finished checkpoint: `category_temperature` recovers the temperature by which probabilities were
sharpened, `least_hashtag_score` finds the highest bound that drops hardly any right hashtag."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from model.config import NoteLLMConfig
from model.data.pairs import split_of
from model.evaluation.metrics import apply_temperature
from model.generation import Hashtag
from model.note import Note
from model.training import calibrate
from model.training.calibrate import category_temperature, least_hashtag_score

Fit = Callable[[Path, Sequence[Path], int, Path], float]
TRAIN = [str(i) for i in range(100) if split_of(str(i)) == "train"]


class EmptyRows:
    """A classifier that gives every category the same score; the test passes it no notes."""

    name = "empty"

    def category_log_probs(self, notes: Sequence[Note], categories: Sequence[str]) -> npt.NDArray[np.float64]:
        return np.zeros((len(notes), len(categories)))


class Sharpened:
    """A classifier whose logits are `times` those of the distribution that the truth is drawn from."""

    name = "sharpened"

    def __init__(self, times: float, seed: int, classes: int) -> None:
        generator = np.random.default_rng(seed)
        ids = [str(i) for i in range(12_000)]
        self.logits = {i: generator.normal(scale=2, size=classes) for i in ids if split_of(i) == "validation"}
        self.times = times
        self.asked: list[int] = []
        drawn = {i: int(np.argmax(row + generator.gumbel(size=classes))) for i, row in self.logits.items()}
        trained = {note_id: c for c, note_id in enumerate(TRAIN[:classes])}
        self.notes = {i: Note(id=i, title=str(seed), category=f"{c}") for i, c in (drawn | trained).items()}

    def category_log_probs(self, notes: Sequence[Note], categories: Sequence[str]) -> npt.NDArray[np.float64]:
        assert list(categories) == [str(i) for i in range(len(categories))]
        self.asked.append(len(notes))
        return apply_temperature(np.array([self.logits[note.id] for note in notes]) * self.times, 1)


@pytest.mark.parametrize("times", [0.5, 2.5])
def test_temperature_of_a_sharpened_system_is_recovered(times: float):
    system = Sharpened(times, 0, 5)
    assert category_temperature(system, [system.notes], 10_000) == pytest.approx(times, rel=0.1)


def test_temperature_of_closed_sets_of_two_sizes_is_recovered():
    small, large = Sharpened(2.0, 1, 3), Sharpened(2.0, 2, 7)

    class Either:
        name = "either"

        def category_log_probs(self, notes: Sequence[Note], categories: Sequence[str]) -> npt.NDArray[np.float64]:
            return (small if notes[0].title == "1" else large).category_log_probs(notes, categories)

    temperature = category_temperature(Either(), [small.notes, large.notes], 1000)
    assert temperature == pytest.approx(2, rel=0.1)
    assert small.asked == large.asked == [1000]


def test_temperature_fitted_twice_uses_the_same_notes():
    system = Sharpened(1.0, 3, 4)
    first, again = (category_temperature(system, [system.notes], 50) for _ in range(2))
    assert first == again != category_temperature(system, [system.notes], 60)


def test_temperature_without_validation_categories_is_refused():
    system = Sharpened(1.0, 0, 3)
    trained = {i: note for i, note in system.notes.items() if split_of(i) == "train"}
    with pytest.raises(ValueError, match="no validation note"):
        category_temperature(system, [], 10)
    with pytest.raises(ValueError, match="no validation note"):
        category_temperature(EmptyRows(), [trained], 10)


@pytest.mark.parametrize(
    ("scores_of_right_ones", "expected"),
    [
        ([0.9] * 100, 0.05),  # the highest bound that is tried
        ([0.9] * 50 + [0.012] * 50, 0.01),
        ([0.9] * 97 + [0.004] * 3, 0.003),
        ([0.9] * 98 + [0.004] * 2, 0.05),  # two of a hundred may be lost
        ([0.9] * 50 + [0.0001] * 50, 0.0),
    ],
)
def test_least_hashtag_score_is_the_highest_that_loses_next_to_nothing(
    scores_of_right_ones: list[float], expected: float
):
    written = [(Hashtag("right", score), Hashtag("wrong", score / 2)) for score in scores_of_right_ones]
    assert least_hashtag_score(written, [("right",)] * len(written)) == expected


def test_least_hashtag_score_of_hashtags_that_are_all_wrong_is_refused():
    with pytest.raises(ValueError, match="train the checkpoint to write first"):
        least_hashtag_score([(Hashtag("wrong", 0.9),), ()], [("right",), ("right",)])


def test_temperature_that_no_note_bounds_is_refused() -> None:
    notes = {i: Note(id=i, category="Pets") for i in TRAIN + [str(i) for i in range(100)]}
    with pytest.raises(ValueError, match="no temperature fits"):
        category_temperature(EmptyRows(), [notes], 1000)


def copy_with_two_notes(tiny_checkpoint: Path, folder: Path) -> tuple[Path, Path]:
    """Return a copy of the tiny checkpoint in `folder`, and a file of one validation and one training note."""
    checkpoint = Path(shutil.copytree(tiny_checkpoint, folder / "checkpoint"))
    validation = next(str(i) for i in range(100) if split_of(str(i)) == "validation")
    notes = [{"id": i, "title": "soup", "hashtags": ["soup"], "category": "Food"} for i in (validation, TRAIN[0])]
    (folder / "notes.jsonl").write_text("".join(json.dumps(note) + "\n" for note in notes))
    return checkpoint, folder / "notes.jsonl"


@pytest.mark.parametrize(
    ("fit", "fitted_by", "setting"),
    [
        (calibrate.calibrate, "category_temperature", "category_temperature"),
        (calibrate.fit_hashtags, "least_hashtag_score", "min_hashtag_score"),
    ],
)
def test_settings_that_were_changed_during_a_fit_stay(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fit: Fit, fitted_by: str, setting: str
) -> None:
    checkpoint, notes = copy_with_two_notes(tiny_checkpoint, tmp_path)

    def change_and_fit(*arguments: object) -> float:
        replace(NoteLLMConfig.load(checkpoint), mean_share=0.5).save(checkpoint)
        return 0.25

    monkeypatch.setattr(calibrate, fitted_by, change_and_fit)
    assert fit(checkpoint, [notes], 10, tmp_path) == 0.25
    expected = replace(NoteLLMConfig.load(tiny_checkpoint), mean_share=0.5, **{setting: 0.25})
    assert NoteLLMConfig.load(checkpoint) == expected


def test_weights_after_fit_hashtags_are_those_of_a_checkpoint_that_learnt_from_its_community(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, notes = copy_with_two_notes(tiny_checkpoint, tmp_path)
    shipped = replace(NoteLLMConfig.load(checkpoint), written_weights=(0.05, 0.02), agreed_written_weights=(0.3, 0.05))
    shipped.save(checkpoint)
    monkeypatch.setattr(calibrate, "least_hashtag_score", lambda *_: 0.25)
    calibrate.fit_hashtags(checkpoint, [notes], 10, tmp_path)
    fitted = NoteLLMConfig.load(checkpoint)
    assert (fitted.written_weights, fitted.agreed_written_weights) == (calibrate.LEARNT_WEIGHTS, (0.0, 0.0))
