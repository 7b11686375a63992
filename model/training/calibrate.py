"""What is fitted to a finished checkpoint, for its categories: by notes of several data sets, each with its own set."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from model.category_head import CategoryHead, fit_pool_weights
from model.evaluation.evaluate import IMPOSSIBLE, Classifier, closed_set, notes_of_split
from model.evaluation.metrics import fit_temperature
from model.generation import GenerationOutput, GenerationRequest
from model.inference.engine import Engine
from model.note import Note
from model.weights import Progress, silent

POOLING_NOTES = 500
"""Validation notes of each data set that say how far to trust which: there are two numbers to be found."""


def category_temperature(
    system: Classifier, data: Sequence[Mapping[str, Note]], most_notes: int, progress: Progress = silent
) -> float:
    """The temperature that fits the validation notes of several data sets, each with its own closed set.

    `most_notes` of each are drawn at random. ValueError where none has a category.
    """
    sets = [closed_set(notes) for notes in data]
    rows, truth = [], []
    for notes, categories in zip(data, sets, strict=True):
        asked = notes_of_split(_with_category(notes, categories), "validation", most_notes)
        progress(f"Choosing one of {len(categories)} categories for {len(asked):,} notes")
        log_probs = np.full((len(asked), max(map(len, sets))), IMPOSSIBLE)
        log_probs[:, : len(categories)] = system.category_log_probs(asked, categories)
        rows.append(log_probs)
        truth += [categories.index(note.category) for note in asked if note.category is not None]
    if not truth:
        raise ValueError("no validation note has a category that training notes have")
    return fit_temperature(np.concatenate(rows), np.array(truth, np.int64))


def category_head(
    engine: Engine, data: Sequence[Mapping[str, Note]], most_notes: int, progress: Progress = silent
) -> CategoryHead:
    """Learnt from the vectors of `most_notes` training notes of each, pooled with what `engine` writes on validation.

    `engine`: loaded without what was fitted before. ValueError where fewer than two categories are found, or no data
    set has enough notes, or no validation note one of them.
    """
    training = [
        note for notes in data for note in notes_of_split(_with_category(notes, closed_set(notes)), "train", most_notes)
    ]
    progress(f"Reading {len(training):,} notes with categories")
    head = CategoryHead.fit(engine.embed(training), [note.category or "" for note in training])
    helped = False
    for notes in data:
        names = tuple(name for name in closed_set(notes) if name in head.names)
        if missing := set(closed_set(notes)) - set(names):
            progress(f"None was drawn of these, so sets with them are not helped: {', '.join(sorted(missing))}")
        asked = notes_of_split(_with_category(notes, names), "validation", POOLING_NOTES)
        if not asked or not head.covers(names):
            progress(f"Too few notes to learn {len(names)} categories from: left to what the model writes")
            continue
        progress(f"Choosing one of {len(names)} categories for {len(asked):,} notes")
        readings = engine.generate(asked, GenerationRequest(categories=names))
        written = [_log_probs(reading, names) for reading in readings]
        seen = head.log_probs(names, np.array([reading.vector for reading in readings]))
        truth = [names.index(note.category or "") for note in asked]
        head, helped = head.with_pool_weights(names, fit_pool_weights(written, list(seen), truth)), True
    if not helped:
        raise ValueError("no data set has enough training notes of its categories, and validation notes of them")
    return head


def _log_probs(reading: GenerationOutput, names: Sequence[str]) -> npt.NDArray[np.float64]:
    told = {category.name: category.probability for category in reading.categories or ()}
    return np.log([max(told[name], 1e-30) for name in names])


def _with_category(notes: Mapping[str, Note], categories: Collection[str]) -> dict[str, Note]:
    return {i: note for i, note in notes.items() if note.category in categories}
