"""Evaluation of one system on one split of one data set: related notes, categories and hashtags, kept in a Record."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from model.data.dataset import DatasetError, read_notes
from model.data.pairs import DEFAULT_MEMORY, Split, split_of
from model.data.pairs_file import Pair
from model.evaluation.metrics import exposure_groups, hashtag_prf, rouge
from model.evaluation.protocol import COLD_ALL, COLD_COLD, NOTES_FILE, evaluation_pairs
from model.evaluation.ranking import Scorer, rank_pairs, within
from model.evaluation.record import CUTOFFS, HASHTAG_CUTOFFS, INVENTED, Categories, Hashtags, Ranks, Record
from model.evaluation.system import Classifier, Copier, EngineSystem, FreeClassifier, Retriever, System, Tagger
from model.note import Note, hashtag_key
from model.weights import Progress, silent

PARTS = ("related", "categories", "hashtags")
"""Parts of an evaluation, by the names of `notellm evaluate --part`."""


class NothingToMeasure(ValueError):
    """Raised for a requested part that the system cannot do or that the data has no truth for."""


@dataclass(frozen=True, slots=True)
class EvaluationData:
    """A data set to evaluate on: its notes by id, the pairs by protocol, and the clicks of each note."""

    name: str
    notes: Mapping[str, Note]
    pairs: Mapping[str, Sequence[Pair]]
    clicks: Mapping[str, int]

    @classmethod
    def read(
        cls,
        folder: Path,
        split: Split,
        protocols: Sequence[str],
        progress: Progress = silent,
        *,
        memory: str = DEFAULT_MEMORY,
        max_history: int | None = None,
    ) -> EvaluationData:
        """Read a folder with notes.jsonl.gz and, for related notes, clicks.jsonl.gz.

        `memory`, `max_history`: as for `evaluation_pairs`. `progress` receives the number of pairs that count. Raises
        DatasetError, PairsError, FileNotFoundError.
        """
        if folder.is_file():
            raise DatasetError(f"{folder} is a file: name the folder that contains {NOTES_FILE}")
        notes = read_notes(folder / NOTES_FILE, progress)
        if not protocols:
            return cls(folder.resolve().name, notes, {}, {})
        pairs, clicks = evaluation_pairs(folder, split, protocols, progress, memory=memory, max_history=max_history)
        data = cls(folder.resolve().name, notes, pairs, clicks)
        for protocol, made in pairs.items():
            unknown = sum(pair.note not in notes or pair.related not in notes for pair in made)
            named = f"; {unknown:,} name a note that is not in {NOTES_FILE}" if unknown else ""
            progress(f"{protocol}: {len(data.counted_pairs(protocol, split)):,} of {len(made):,} pairs count{named}")
        return data

    def counted_pairs(self, protocol: str, split: Split) -> list[tuple[str, str]]:
        """Return the pairs (note, related) of a protocol that count, sorted: both notes exist, the first is in the
        split, and in cold-cold the second is too."""
        counted = []
        for pair in self.pairs[protocol]:
            exist = pair.note in self.notes and pair.related in self.notes
            starts_inside = split_of(pair.note) == split
            ends_inside = protocol != COLD_COLD or split_of(pair.related) == split
            if exist and starts_inside and ends_inside:
                counted.append((pair.note, pair.related))
        return sorted(counted)

    def training_notes(self) -> list[Note]:
        """Return the notes of the training split in file order: the only ones whose hashtags a system may use."""
        return [note for note_id, note in self.notes.items() if split_of(note_id) == "train"]


def evaluate(
    system: System,
    data: EvaluationData,
    *,
    split: Split = "test",
    with_hashtags: bool = True,
    parts: Sequence[str] = PARTS,
    max_notes: int | None = None,
    copier: Copier | None = None,
    progress: Progress = silent,
) -> Record:
    """Measure those of `parts` that the system can do and that the data has a truth for.

    `with_hashtags`: whether the system sees the notes' hashtags; never when it predicts hashtags. `max_notes`: notes
    whose categories and hashtags are predicted, drawn at random; all by default. `copier`: predicts the hashtags in
    place of the system, by copying those of training notes. Raises CategoriesTooLong before anything is measured.
    """
    if "categories" in parts and isinstance(system, EngineSystem):
        system.check_categories(closed_set(data.notes))
    notes = notes_of_split(data.notes, split, max_notes)
    shown = notes if with_hashtags else [replace(note, hashtags=()) for note in notes]
    record = Record(system=system.name, data=data.name, split=split, with_hashtags=with_hashtags)
    if "related" in parts and isinstance(system, Retriever) and data.pairs:
        related, seconds = evaluate_related(system, data, split=split, with_hashtags=with_hashtags, progress=progress)
        record = replace(record, related=related, seconds_per_note=seconds)
    if "categories" in parts and isinstance(system, Classifier):
        categories = evaluate_categories(system, shown, closed_set(data.notes), progress)
        record = replace(record, categories=categories)
    if "hashtags" in parts and copier is not None:
        hashtags = evaluate_hashtags(copier, notes, data.training_notes(), progress)
        record = replace(record, hashtags=hashtags, hashtags_from=copier.source)
    elif "hashtags" in parts and isinstance(system, Tagger):
        hashtags = evaluate_hashtags(system, notes, data.training_notes(), progress)
        record = replace(record, hashtags=hashtags)
        if isinstance(system, EngineSystem) and system.policy != "open":
            record = replace(record, hashtags_from=system.policy)
    return record


def check_parts(
    parts: Sequence[str],
    system: System,
    data: EvaluationData,
    split: Split,
    max_notes: int | None = None,
    copier: Copier | None = None,
) -> None:
    """Raise NothingToMeasure for the first of `parts` that `evaluate` would leave out; arguments as there."""
    whole, notes = notes_of_split(data.notes, split), notes_of_split(data.notes, split, max_notes)
    none = f"no {split} note" if len(notes) == len(whole) else f"none of the {len(notes)} {split} notes drawn"
    if "related" in parts and not isinstance(system, Retriever):
        raise NothingToMeasure(f"related notes cannot be measured: {system.name} does not find related notes")
    if "categories" in parts and not isinstance(system, Classifier):
        raise NothingToMeasure(f"categories cannot be measured: {system.name} does not choose categories")
    if "categories" in parts and not set(closed_set(data.notes)).intersection(note.category or "" for note in notes):
        raise NothingToMeasure(f"categories cannot be measured: {none} has the category of a training note")
    if "hashtags" in parts and copier is None and not isinstance(system, Tagger):
        raise NothingToMeasure(f"hashtags cannot be measured: {system.name} does not predict hashtags")
    if "hashtags" in parts and not any(note.hashtags for note in notes):
        raise NothingToMeasure(f"hashtags cannot be measured: {none} has hashtags")


def notes_of_split(notes: Mapping[str, Note], split: Split, max_notes: int | None = None) -> list[Note]:
    """Return the notes of a split by ascending id; at most `max_notes` of them, drawn at random, the same at every
    call."""
    in_split = [note for note_id, note in sorted(notes.items()) if split_of(note_id) == split]
    if max_notes is None or len(in_split) <= max_notes:
        return in_split
    return [in_split[row] for row in sorted(random.Random(0).sample(range(len(in_split)), max_notes))]


def closed_set(notes: Mapping[str, Note]) -> tuple[str, ...]:
    """Return the categories of the training notes, the most frequent first, ties by name."""
    counts = Counter(note.category for i, note in notes.items() if note.category and split_of(i) == "train")
    return tuple(name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def evaluate_related(
    system: Retriever,
    data: EvaluationData,
    *,
    split: Split,
    with_hashtags: bool = True,
    progress: Progress = silent,
) -> tuple[dict[str, Ranks], float | None]:
    """Return the ranks by protocol, and the seconds to read one note of the pool; ({}, None) where no pair counts.

    In the protocol cold-cold the pool is the split; in cold-all it is all notes, as for a new post.
    """
    counted = {protocol: data.counted_pairs(protocol, split) for protocol in data.pairs}
    pairs_by_protocol = {protocol: pairs for protocol, pairs in counted.items() if pairs}
    if not pairs_by_protocol:
        return {}, None
    all_notes = COLD_ALL in pairs_by_protocol
    pool = [note for note_id, note in sorted(data.notes.items()) if all_notes or split_of(note_id) == split]
    if not with_hashtags:
        pool = [replace(note, hashtags=()) for note in pool]
    progress(f"{system.name}: embedding {len(pool):,} notes")
    started = time.perf_counter()
    score = system.related(pool)
    seconds = (time.perf_counter() - started) / len(pool)
    related = {}
    for protocol, pairs in pairs_by_protocol.items():
        rows = np.array([i for i, note in enumerate(pool) if protocol != COLD_COLD or split_of(note.id) == split])
        progress(f"{protocol}: {_pool_size(len(rows))}")
        related[protocol] = _ranks(within(score, rows), [pool[row].id for row in rows], pairs, data.clicks)
    return related, seconds


def _pool_size(notes: int) -> str:
    """Return a sentence with the number of notes that a query is ranked against, itself included, and at which cutoffs
    recall says nothing."""
    trivial = ", ".join(f"Recall@{k}" for k in CUTOFFS if k >= notes - 1)
    return f"the pool has {notes:,} notes" + (f", so {trivial} is 100% whatever the system" if trivial else "")


def _ranks(score: Scorer, ids: Sequence[str], pairs: Sequence[tuple[str, str]], clicks: Mapping[str, int]) -> Ranks:
    queries, targets = zip(*pairs, strict=True)
    column = {note_id: place for place, note_id in enumerate(sorted(ids))}
    exposures: list[int] = []
    if clicks:
        columns = np.array([column[target] for target in targets])
        exposures = exposure_groups(columns, np.array([clicks.get(note_id, 0) for note_id in column])).tolist()
    return Ranks(rank_pairs(score, ids, pairs).tolist(), _numbers(queries), _numbers(targets), exposures)


def _numbers(ids: Sequence[str]) -> list[int]:
    """Return the index of each id among the distinct ids in ascending order."""
    number = {note_id: i for i, note_id in enumerate(sorted(set(ids)))}
    return [number[note_id] for note_id in ids]


def evaluate_categories(
    system: Classifier, notes: Sequence[Note], categories: Sequence[str], progress: Progress = silent
) -> Categories | None:
    """Choose a category for each note whose own is in the closed set `categories`; return None if there is no such
    note. A note for which all are equally likely got none, and counts as wrong."""
    place = {name: i for i, name in enumerate(categories)}
    labelled = [note for note in notes if note.category in place]
    if not labelled:
        return None
    all_labelled = sum(bool(note.category) for note in notes)
    others = "" if all_labelled == len(labelled) else "; the category of the others is in no training note"
    progress(
        f"Choosing one of {len(categories)} categories for {len(labelled):,} of {all_labelled:,} labelled notes{others}"
    )
    log_probs = system.category_log_probs(labelled, categories)
    probabilities = np.exp(log_probs - log_probs.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    chosen = log_probs.argmax(1)
    if len(categories) > 1:
        unanswered = np.ptp(log_probs, axis=1) == 0
        chosen[unanswered] = INVENTED
        if count := int(unanswered.sum()):
            progress(f"{count:,} of these notes got no category: the model does not read their script")
    free = None
    if isinstance(system, FreeClassifier):
        progress("Writing categories without a closed set")
        free = [place.get(text, INVENTED) for text in system.write_category(labelled)]
    return Categories(
        truth=[place[note.category] for note in labelled if note.category is not None],
        chosen=chosen.tolist(),
        probability=probabilities.max(1).tolist(),
        free=free,
    )


def evaluate_hashtags(
    tagger: Tagger, notes: Sequence[Note], known: Iterable[Note], progress: Progress = silent
) -> Hashtags | None:
    """Predict the hashtags of each note that has some from the rest of the note; return None if there is no such note.

    `known`: training notes; a prediction that none of them has counts as unused.
    """
    tagged = [note for note in notes if note.hashtags]
    if not tagged:
        return None
    progress(f"Predicting the hashtags of {len(tagged):,} notes")
    predicted = tagger.hashtags([replace(note, hashtags=()) for note in tagged], max(HASHTAG_CUTOFFS))
    truth = [note.hashtags for note in tagged]
    used = {hashtag_key(hashtag) for note in known for hashtag in note.hashtags}
    scores, rouges, unused = [], [], []
    for own_prediction, own_truth in zip(predicted, truth, strict=True):
        scores.append([hashtag_prf([own_prediction], [own_truth], k) for k in HASHTAG_CUTOFFS])
        rouges.append(rouge([" ".join(own_prediction)], [" ".join(own_truth)]))
        unused.append([sum(hashtag_key(hashtag) not in used for hashtag in own_prediction), len(own_prediction)])
    return Hashtags(
        f1=[[score.f1 for score in by_cutoff] for by_cutoff in scores],
        precision=[[score.precision for score in by_cutoff] for by_cutoff in scores],
        recall=[[score.recall for score in by_cutoff] for by_cutoff in scores],
        rouge=[[score.rouge_1, score.rouge_2, score.rouge_l] for score in rouges],
        unused=unused,
    )
