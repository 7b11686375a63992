"""Notes and pairs -> training batches: which task a note gets, and the token ids of its one forward.

Everything random is a function of (seed, step): a run that was broken off goes on with the batches it would have had.
"""

from __future__ import annotations

import gzip
import json
import random
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.data.pairs import Split, read_pairs, split_of
from model.note import Note, normalise_hashtags
from model.prompt import Prompt

MAX_HASHTAGS = 5
"""Most hashtags that an output holds: j is uniform in 1..min(5, n)."""


class DatasetError(ValueError):
    """Notes or pairs that cannot be trained on; the message names the file and the reason."""


@dataclass(frozen=True, slots=True)
class Example:
    """A note's token ids for one forward. `ids[: read_out + 1]` is the prompt, `targets` are the positions of the ids
    that CSFT asks for."""

    note: Note
    ids: tuple[int, ...]
    read_out: int
    targets: tuple[int, ...] = ()


def read_notes(path: Path) -> dict[str, Note]:
    """Notes of a JSONL file (plain or .gz) by id; only the fields that enter a prompt, and the category."""
    notes: dict[str, Note] = {}
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for line in lines:
                number += 1
                note = _note(json.loads(line))
                notes[note.id] = note
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8: {error}") from error
    except (gzip.BadGzipFile, EOFError) as error:
        raise DatasetError(f"{path} is no whole gzip file: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path}, line {number}, is no note: {error!r}") from error
    return notes


def _note(record: Mapping[str, Any]) -> Note:
    return Note(
        id=str(record["id"]),
        title=record.get("title") or "",
        content=record.get("content") or "",
        hashtags=normalise_hashtags(record.get("hashtags") or ()),
        category=record.get("category") or None,
    )


def draw_example(
    prompt: Prompt, note: Note, hashtag_share: float, rng: random.Random, input_hashtags: bool = False
) -> Example:
    """A task for one note: hashtags with probability `hashtag_share` (r in the paper), else the category.

    In the hashtag task the input's hashtags are withheld. A note that lacks the target of its task gets no task.
    `input_hashtags`: where they are not withheld and the prompt has them last, they are to be foretold from the rest.
    """
    if rng.random() < hashtag_share:
        return hashtag_example(prompt, note, rng)
    return category_example(prompt, note, input_hashtags)


def with_category_synonym(note: Note, names: Mapping[str, Sequence[str]], rng: random.Random) -> Note:
    """The note, its category by its own name or, as often, by another one of `names`; as it is where there are none."""
    others = names.get(note.category or "", ())
    return replace(note, category=rng.choice(others)) if others and rng.random() < 0.5 else note


def hashtag_example(prompt: Prompt, note: Note, rng: random.Random) -> Example:
    """`note` without its hashtags, to write j of them drawn at random; without a task when it has none."""
    if not note.hashtags:
        return embedding_example(prompt, note)
    count = rng.randint(1, min(MAX_HASHTAGS, len(note.hashtags)))
    drawn = rng.sample(note.hashtags, count)
    ids = prompt.note(replace(note, hashtags=()), count)
    before = (*ids, *prompt.hashtag_task(count))
    whole = (*before, *prompt.hashtag_output(drawn))
    return Example(note, whole, len(ids) - 1, tuple(range(len(before), len(whole))))


def category_example(prompt: Prompt, note: Note, input_hashtags: bool = False) -> Example:
    """`note` with its hashtags, to write its category; without a task when it has none."""
    bare = embedding_example(prompt, note, input_hashtags)
    if note.category is None:
        return bare
    before = (*bare.ids, *prompt.category_task())
    (output,) = prompt.category_outputs([note.category])
    whole = (*before, *output)
    return replace(bare, ids=whole, targets=(*bare.targets, *range(len(before), len(whole))))


def embedding_example(prompt: Prompt, note: Note, input_hashtags: bool = False) -> Example:
    """To be embedded, with the prompt of the category; of the task of `draw_example` only the input's hashtags."""
    ids = prompt.note(note)
    return Example(note, tuple(ids), len(ids) - 1, tuple(prompt.input_hashtags(note)) if input_hashtags else ())


class PairedNotes:
    """One split of one data set: its notes, its related pairs, and what is known to be related.

    A pair and its reverse are one pair here, with the better of their scores: the loss knows no direction. `pairs` are
    those to train on, `scores` has all, by (smaller id, larger id). Without
    `pairs` every batch is of single notes, which only CSFT learns from.
    """

    def __init__(self, notes: Path, pairs: Path | None, *, split: Split = "train", min_score: float = 0.0) -> None:
        self.notes = {i: note for i, note in read_notes(notes).items() if split_of(i) == split}
        self._related: dict[str, set[str]] = defaultdict(set)
        scores: dict[tuple[str, str], float] = {}
        for pair in read_pairs(pairs) if pairs else ():
            if pair.note in self.notes and pair.related in self.notes:
                both = (min(pair.note, pair.related), max(pair.note, pair.related))
                scores[both] = max(pair.score, scores.get(both, 0.0))
                self._related[pair.note].add(pair.related)
                self._related[pair.related].add(pair.note)
        self.scores = scores
        self.pairs = sorted(both for both, score in scores.items() if score >= min_score)
        if pairs and not self.pairs:
            raise DatasetError(f"{pairs} has no pair of {split} notes of {notes} with a score of {min_score} or more")
        self.has_pairs = bool(pairs)
        if not pairs:
            singles = sorted(i for i, n in self.notes.items() if n.hashtags or n.category is not None)
            self.pairs = list(zip(singles[::2], singles[1::2], strict=False))

    def batches(self, size: int, seed: int) -> Iterator[list[Note]]:
        """Endless batches of 2 * `size` notes; rows 2i and 2i + 1 are a pair, and no note comes twice in a batch.

        An epoch is a fresh shuffle of all pairs. A pair with a note that is in the batch already waits for the next.
        """
        rng = random.Random(seed)
        waiting: deque[tuple[str, str]] = deque()
        while True:
            waiting += rng.sample(self.pairs, len(self.pairs))
            while len(waiting) >= 2 * size:
                yield [self.notes[i] for pair in _take_disjoint(waiting, size) for i in pair]

    def sample(self, size: int, seed: int) -> tuple[list[Note], list[tuple[str, str]]]:
        """A small pool to measure on: notes of random pairs until there are `size` / 2, then any, as where all are
        searched; and all pairs among them."""
        rng = random.Random(seed)
        chosen: dict[str, Note] = {}
        for pair in rng.sample(self.pairs, len(self.pairs)):
            if len(chosen) + 2 > size / 2:
                break
            chosen |= {i: self.notes[i] for i in pair}
        others = sorted(self.notes.keys() - chosen.keys())
        chosen |= {i: self.notes[i] for i in rng.sample(others, min(len(others), size - len(chosen)))}
        return list(chosen.values()), [pair for pair in self.pairs if chosen.keys() >= set(pair)]

    def known_related(self, notes: Sequence[Note], among: Sequence[Note]) -> Tensor:
        """(len(notes), len(among)) bool: True where two notes are related by any score, or say the same: false
        negatives."""
        columns: dict[str, list[int]] = defaultdict(list)
        same_text: dict[tuple[str, str, tuple[str, ...]], list[int]] = defaultdict(list)
        for column, note in enumerate(among):
            columns[note.id].append(column)
            same_text[note.prompt_text].append(column)
        known = torch.zeros(len(notes), len(among), dtype=torch.bool)
        for row, note in enumerate(notes):
            related = [column for i in self._related[note.id] if i in columns for column in columns[i]]
            known[row, [*related, *same_text[note.prompt_text]]] = True
        return known


def _take_disjoint(waiting: deque[tuple[str, str]], size: int) -> list[tuple[str, str]]:
    """Remove and return the first `size` pairs that share no note; fewer where there are not so many."""
    taken: list[tuple[str, str]] = []
    skipped: list[tuple[str, str]] = []
    seen: set[str] = set()
    while waiting and len(taken) < size:
        pair = waiting.popleft()
        if seen.isdisjoint(pair):
            taken.append(pair)
            seen.update(pair)
        else:
            skipped.append(pair)
    waiting.extendleft(reversed(skipped))
    return taken
