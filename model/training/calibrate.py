"""Fit a finished checkpoint to labelled notes of several data sets at once.

Three things are fitted: the temperature of category probabilities, a category head on vectors and words (each data set
with its own closed set), and the minimum score of a written hashtag.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.category_head import (
    MIN_NOTES_PER_CATEGORY,
    CategoryHead,
    are_enough_notes,
    fit_pool_weights,
    log_softmax,
    names_of_head,
)
from model.config import CONFIG_FILE, NoteLLMConfig
from model.data.dataset import read_notes
from model.evaluation.evaluate import closed_set, notes_of_split
from model.evaluation.metrics import TEMPERATURE_LIMITS, fit_temperature, hashtag_prf
from model.evaluation.protocol import notes_path
from model.evaluation.record import HASHTAG_CUTOFFS
from model.evaluation.system import MIN_PROBABILITY, Classifier, EngineSystem
from model.generation import GenerationOutput, GenerationRequest, Hashtag
from model.inference.engine import Engine
from model.note import Note
from model.platt_scaling import fit_platt_weights
from model.weights import Progress, silent

POOLING_NOTES = 1000
"""Validation notes of each data set to which its pool weights are fitted: enough for three numbers."""
MIN_HASHTAG_SCORES = (0.05, 0.03, 0.02, 0.015, 0.01, 0.007, 0.005, 0.003, 0.002, 0.001)
"""Candidate minimum scores of a written hashtag for `fit_hashtags`, the highest first."""
KEPT_F1 = 0.98
"""Share of F1@3 that a minimum score must keep. A minimum never raises F1@3 (`hashtag_prf`), but it keeps hashtags off
notes that say nothing, so the highest one that costs almost nothing is chosen."""
FITTED_CUTOFF = 3
"""k of the F1@k by which a minimum score is chosen."""
LEARNT_WEIGHTS = (0.1, 0.1)
"""`written_weights` of a checkpoint that has learnt a community's hashtags, for communities of any size: those with
which such a checkpoint was measured (docs/log/hashtags.md)."""
IMPOSSIBLE = -1e9
"""Log probability that pads the columns beyond a data set's closed set: finite, so that a temperature can divide it."""


def calibrate(
    checkpoint: Path, data: Sequence[Path], max_notes: int, cache: Path, progress: Progress = silent
) -> float:
    """Fit the category temperature of a checkpoint, save it in its configuration, and return it.

    `data`: folders with notes.jsonl.gz, or notes files. Raises CheckpointError, DatasetError, FileNotFoundError, and
    ValueError as `category_temperature` does and where most notes are in a script that the checkpoint does not read.
    """
    engine, notes = _open_for_fitting(checkpoint, data, cache, progress)
    temperature = category_temperature(EngineSystem(engine), notes, max_notes, progress)
    _change_settings(checkpoint, category_temperature=round(temperature, 4))
    return temperature


def _open_for_fitting(
    checkpoint: Path, data: Sequence[Path], cache: Path, progress: Progress
) -> tuple[Engine, list[dict[str, Note]]]:
    """Return the engine of a checkpoint without its fitted temperature and head, and the notes of each data set by id.
    Raises CheckpointError, DatasetError, FileNotFoundError, and ValueError as `_load_unfitted` does."""
    NoteLLMConfig.load(checkpoint)  # fail early: reading the notes takes long
    notes = [read_notes(notes_path(path), progress) for path in data]
    return _load_unfitted(checkpoint, notes, cache, progress), notes


def _load_unfitted(checkpoint: Path, data: Sequence[Mapping[str, Note]], cache: Path, progress: Progress) -> Engine:
    """Return the engine of a checkpoint without its fitted temperature and category head. Raises CheckpointError, and
    ValueError where most validation notes are in a script that the checkpoint does not read, so that it writes nothing
    for them."""
    engine = Engine.load(str(checkpoint), cache=cache, fitted=False, progress=progress)
    drawn = [note for notes in data for note in notes_of_split(notes, "validation", POOLING_NOTES)]
    unread = sum(not engine.prompt.supports(note) for note in drawn)
    if 2 * unread > len(drawn):
        read = ", ".join(engine.prompt.config.scripts)
        raise ValueError(
            f"{unread:,} of {len(drawn):,} validation notes are in a script that {checkpoint} does not read. If it "
            f"should read the script, add it to `scripts` of its {CONFIG_FILE}, which has {read}"
        )
    return engine


def _change_settings(checkpoint: Path, **changes: Any) -> None:
    """Save changed settings of a checkpoint. The others are read again: they may have changed during the fit."""
    replace(NoteLLMConfig.load(checkpoint), **changes).save(checkpoint)


def category_temperature(
    system: Classifier, data: Sequence[Mapping[str, Note]], max_notes: int, progress: Progress = silent
) -> float:
    """Fit one temperature to the validation notes of several data sets, each with its own closed set.

    At most `max_notes` of each data set are used, drawn at random. Raises ValueError where no validation note has a
    category of its closed set, and where the best temperature is at a limit, as with a single category.
    """
    closed_sets = [closed_set(notes) for notes in data]
    rows, truth = [], []
    for notes, categories in zip(data, closed_sets, strict=True):
        labelled = notes_of_split(_with_category(notes, categories), "validation", max_notes)
        progress(f"Choosing one of {len(categories)} categories for {len(labelled):,} notes")
        log_probs = np.full((len(labelled), max(map(len, closed_sets))), IMPOSSIBLE)
        log_probs[:, : len(categories)] = system.category_log_probs(labelled, categories)
        rows.append(log_probs)
        truth += [categories.index(note.category) for note in labelled if note.category is not None]
    if not truth:
        raise ValueError("no validation note has the category of a training note")
    temperature = fit_temperature(np.concatenate(rows), np.array(truth, np.int64))
    if any(math.isclose(temperature, limit) for limit in TEMPERATURE_LIMITS):
        raise ValueError(
            f"no temperature fits {len(truth):,} validation notes: the best one is {temperature:g}, a limit of the "
            "search. Add notes: they must have at least two categories, and the model must get some of them wrong"
        )
    return temperature


def fit_categories(
    checkpoint: Path, data: Sequence[Path], max_notes: int, cache: Path, progress: Progress = silent
) -> CategoryHead:
    """Fit a category head to the vectors of a checkpoint and to words, save it beside its weights, and return it.

    `data`: folders with notes.jsonl.gz, or notes files. Raises CheckpointError (a bare backbone has no folder for the
    head), DatasetError, FileNotFoundError, and ValueError as `category_head` does and where most notes are in a script
    that the checkpoint does not read.
    """
    engine, notes = _open_for_fitting(checkpoint, data, cache, progress)
    head = category_head(engine, notes, max_notes, progress)
    head.save(checkpoint, engine.space)
    return head


def category_head(
    engine: Engine, data: Sequence[Mapping[str, Note]], max_notes: int, progress: Progress = silent
) -> CategoryHead:
    """Fit a head to the vectors and words of training notes, and its pool weights to validation notes that the model
    reads. Of data sets with the same categories, only the last one that has such notes counts for these.

    `max_notes`: training notes used of each data set. `engine`: loaded with `fitted=False`. Raises ValueError where
    there are fewer than two categories, or no data set has both enough training notes for its categories and a
    validation note.
    """
    training = []
    for notes in data:
        training += notes_of_split(_with_category(notes, closed_set(notes)), "train", max_notes)
    truth = [note.category or "" for note in training]
    names_of_head(truth)  # the data are checked before the notes are read, which takes minutes
    pools = _pools(engine, data, Counter(truth), max_notes, progress)
    progress(f"Reading {len(training):,} notes with categories")
    head = CategoryHead.fit(engine.embed(training), truth, training)
    for names, validation in pools:
        progress(f"Choosing one of {len(names)} categories for {len(validation):,} notes")
        head = _with_fitted_pool_weights(head, engine, names, validation)
    return head


def _pools(
    engine: Engine, data: Sequence[Mapping[str, Note]], counts: Mapping[str, int], max_notes: int, progress: Progress
) -> list[tuple[tuple[str, ...], list[Note]]]:
    """Return the closed sets for which pool weights are fitted, each with its validation notes. `counts`: training
    notes by category. Raises ValueError where there is none."""
    pools = []
    for notes in _last_with_each_closed_set(engine, data):
        categories = closed_set(notes)
        names = tuple(name for name in categories if name in counts)
        if missing := set(categories) - set(names):
            progress(
                "No note drawn has these categories, so closed sets with them are not improved: "
                f"{', '.join(sorted(missing))}"
            )
        if len(names) < 2:
            progress("A closed set of fewer than two categories teaches nothing: it is left out")
            continue
        validation = _pooling_notes(engine, notes, names)
        if validation and are_enough_notes(counts, names):
            pools.append((names, validation))
            continue
        progress(f"Too few notes to learn {len(names)} categories: the language model alone scores them")
        if validation and (advice := _advice_to_read_more(notes, max_notes)):
            progress(advice)
    if not pools:
        raise ValueError("no data set has both enough training notes of its categories and validation notes of them")
    return pools


def _pooling_notes(engine: Engine, notes: Mapping[str, Note], names: Collection[str]) -> list[Note]:
    """Draw validation notes with one of the categories `names`, and return those that the model reads."""
    drawn = notes_of_split(_with_category(notes, names), "validation", POOLING_NOTES)
    return [note for note in drawn if engine.prompt.supports(note)]


def _last_with_each_closed_set(engine: Engine, data: Sequence[Mapping[str, Note]]) -> list[Mapping[str, Note]]:
    """Return the data sets, but of those with the same categories only the last one that has notes to pool by."""
    chosen: dict[frozenset[str], Mapping[str, Note]] = {}
    for notes in data:
        categories = frozenset(closed_set(notes))
        if categories not in chosen or _pooling_notes(engine, notes, categories):
            chosen[categories] = notes
    return list(chosen.values())


def _advice_to_read_more(notes: Mapping[str, Note], max_notes: int) -> str:
    """Return advice on how many training notes to read, where the data set has enough for its categories but
    `max_notes` is too low; otherwise ""."""
    categories = closed_set(notes)
    enough = MIN_NOTES_PER_CATEGORY * len(categories)
    available = len(notes_of_split(_with_category(notes, categories), "train"))
    if not max_notes < enough <= available:
        return ""
    return (
        f"{max_notes:,} of {available:,} training notes are too few to learn {len(categories)} categories: set "
        f"--max-notes {enough}"
    )


def _with_fitted_pool_weights(
    head: CategoryHead, engine: Engine, names: tuple[str, ...], validation: Sequence[Note]
) -> CategoryHead:
    """Fit the pool weights of one data set to its validation notes, and then the scaling of their highest
    probabilities."""
    outputs = engine.generate(validation, GenerationRequest(categories=names, all_categories=True))
    log_probs = [
        np.vstack([_log_probs(output, names), head.log_probs(names, note, output.vector)])
        for note, output in zip(validation, outputs, strict=True)
    ]
    truth = [names.index(note.category or "") for note in validation]
    exponents = fit_pool_weights(log_probs, truth)
    pooled = [np.exp(log_softmax(exponents @ one)) for one in log_probs]
    return head.with_pool_weights(names, exponents, fit_platt_weights(pooled, truth))


def _log_probs(output: GenerationOutput, names: Sequence[str]) -> npt.NDArray[np.float64]:
    """Log probabilities (len(names),) of the categories in one output; uniform where it has no categories."""
    probabilities = {category.name: category.probability for category in output.categories or ()}
    return np.log([max(probabilities.get(name, 1 / len(names)), MIN_PROBABILITY) for name in names])


def _with_category(notes: Mapping[str, Note], categories: Collection[str]) -> dict[str, Note]:
    """Return the notes, by id, whose category is in `categories`."""
    return {note_id: note for note_id, note in notes.items() if note.category in categories}


def fit_hashtags(
    checkpoint: Path, data: Sequence[Path], max_notes: int, cache: Path, progress: Progress = silent
) -> float:
    """Choose the minimum score of a hashtag that a checkpoint writes, save it in its configuration as
    `min_hashtag_score`, and return it. It is fitted with the hashtag policy "open" and applies to all. LEARNT_WEIGHTS
    become its `written_weights`, for all notes alike: its `agreed_written_weights` become 0.

    `data`: folders with notes.jsonl.gz, or notes files. At most `max_notes` validation notes of each are used, drawn at
    random. Raises CheckpointError, DatasetError, FileNotFoundError, and ValueError where no validation note has
    hashtags, where most are in a script that the checkpoint does not read, and as `least_hashtag_score` does.
    """
    NoteLLMConfig.load(checkpoint)
    chosen: list[dict[str, Note]] = []
    for path in data:
        tagged = {note_id: note for note_id, note in read_notes(notes_path(path), progress).items() if note.hashtags}
        chosen.append({note.id: note for note in notes_of_split(tagged, "validation", max_notes)})
    notes = [note for of_one_set in chosen for note in of_one_set.values()]
    if not notes:
        raise ValueError("no validation note has hashtags")
    engine = _load_unfitted(checkpoint, chosen, cache, progress)
    engine.prompt.config = replace(engine.prompt.config, min_hashtag_score=0.0)  # no minimum while fitting
    progress(f"Writing hashtags of {len(notes):,} notes")
    outputs = engine.generate([replace(note, hashtags=()) for note in notes], GenerationRequest(max(HASHTAG_CUTOFFS)))
    least = least_hashtag_score([output.hashtags or () for output in outputs], [note.hashtags for note in notes])
    weights = {"written_weights": LEARNT_WEIGHTS, "agreed_written_weights": NoteLLMConfig().agreed_written_weights}
    _change_settings(checkpoint, min_hashtag_score=least, **weights)
    return least


def least_hashtag_score(written: Sequence[Sequence[Hashtag]], truth: Sequence[Sequence[str]]) -> float:
    """Return the highest of MIN_HASHTAG_SCORES at which hashtags keep KEPT_F1 of their F1@3 without a minimum, or 0 if
    none does.

    `written`: the hashtags written for each note, the best first. `truth`: for each note, its author's hashtags. Raises
    ValueError as `hashtag_prf` does, and where no written hashtag is one of the author's.
    """

    def f1(least: float) -> float:
        # The beam search also misses a hashtag whose spellings are each below `least`, though their sum is not.
        kept = [[hashtag.text for hashtag in hashtags if hashtag.score > least] for hashtags in written]
        return hashtag_prf(kept, truth, FITTED_CUTOFF).f1

    if not (f1_of_all := f1(0.0)):
        raise ValueError(
            f"none of the hashtags written for {len(truth):,} notes is one of its author: train the checkpoint to "
            "write first"
        )
    return next((least for least in MIN_HASHTAG_SCORES if f1(least) >= KEPT_F1 * f1_of_all), 0.0)
