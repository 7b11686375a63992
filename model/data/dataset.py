"""Training batches from notes and pairs: the task that each note gets, and the token ids of its forward.

All random choices are functions of the seed and the step, so that a resumed run gets the batches it would have had.
"""

from __future__ import annotations

import gzip
import json
import math
import random
import zlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.data.pairs import Split, split_of
from model.data.pairs_file import read_pairs
from model.note import Note, normalise_hashtags, replace_lone_surrogates
from model.prompt import Prompt

PromptText = tuple[str, str, tuple[str, ...]]
"""Title, content and hashtags of a note."""
MAX_HASHTAGS = 5
"""Maximum hashtags in one output: as many as a request for hashtags gets by default. The paper gives no number."""

EXPORT_VERSION = 1
"""Supported version of the lines of `notellm export-notes`."""
NOTE_KEYS = frozenset(("id", "title", "content", "hashtags", "category"))
"""Keys of a note's line that are read."""
MAX_CATEGORY_CHARS = 200
"""Maximum characters of a category. Training repeats the category as a target without truncation, so a long text in its
place would make one row that takes all memory. The service accepts names of up to 128 characters."""
KEY_LINES = 100
"""Number of a file's first notes whose keys are compared with NOTE_KEYS, to report keys that are not read."""


class DatasetError(ValueError):
    """Notes, pairs or vectors cannot be used for training or evaluation; the message says which, and why."""


@dataclass(frozen=True, slots=True)
class Example:
    """A note's token ids for one forward.

    `ids[: read_out + 1]` is the prompt, whose last state becomes the vector. `targets`: positions of the ids that CSFT
    predicts.
    """

    note: Note
    ids: tuple[int, ...]
    read_out: int
    targets: tuple[int, ...] = ()


def read_notes(path: Path, progress: Callable[[str], None] | None = None) -> dict[str, Note]:
    """Read the notes of a JSONL file (plain or .gz) by id: the fields that enter a prompt, and the category.

    An export of `notellm export-notes` is accepted, too (docs/guides/notes-out.md): notes that a later line removes are
    left out, and so is everything the model wrote. Blank lines are skipped; of several lines with the same id, the last
    counts. `progress` gets a message with the number of notes that have each field, and the keys that are not read.
    Raises DatasetError for a broken file or line, for an incomplete export and where no note has a title or content,
    FileNotFoundError for a missing file.
    """
    if path.is_dir():
        raise DatasetError(f"{path} is a folder, not a notes file")
    file, number = _NotesFile(), 0
    try:
        packed, encoding = path.suffix.lower() == ".gz", "utf-8-sig"  # spreadsheets write a BOM before the first line
        with gzip.open(path, "rt", encoding=encoding) if packed else path.open(encoding=encoding) as lines:
            for line in lines:
                number += 1
                if line.strip():
                    file.add(json.loads(line))
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8: {error}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} is not a complete gzip file: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DatasetError(f"{path}, line {number}, is not a note: {error!r}") from error
    if not file.whole:
        raise DatasetError(f"{path} is an incomplete export: run `notellm export-notes` again")
    if file.notes and not any(map(_has_text, file.notes.values())):
        raise DatasetError(f"no note of {path} has a title or content{file.unread_keys()}")
    if progress:
        progress(f"{path}: {file.summary()}")
    return file.notes


@dataclass(slots=True)
class _NotesFile:
    """Notes and other facts gathered from the lines of a notes file so far.

    `exported`: whether the file is an export. `whole`: False for an export whose last line has not been read.
    `replaced`: number of lines that repeat an earlier id. `keys`: keys of the first KEY_LINES notes.
    """

    notes: dict[str, Note] = field(default_factory=dict)
    exported: bool = False
    whole: bool = True
    replaced: int = 0
    keys: set[str] = field(default_factory=set)

    def add(self, record: Any) -> None:
        """Apply a line: a note, or in an export its header, its end, a removal, or the reason why it is incomplete.
        Raises ValueError, KeyError, TypeError."""
        if not isinstance(record, dict):
            raise TypeError("a line must be a JSON object")
        if "id" in record:
            note = _note(record)
            if len(self.notes) < KEY_LINES:
                self.keys |= record.keys()
            self.replaced += note.id in self.notes
            self.notes[note.id] = note
        elif "export" in record:
            if record["export"] != EXPORT_VERSION:
                raise ValueError(
                    f"it begins an export of version {record['export']}, but only {EXPORT_VERSION} can be read"
                )
            self.exported, self.whole = True, False
        elif self.exported and "end" in record:
            self.whole = True
        elif self.exported and "removed" in record:
            self.notes.pop(str(record["removed"]), None)
        elif not self.exported or "problem" not in record:
            raise KeyError("id")

    def unread_keys(self) -> str:
        """Return a clause that names the keys that are not read; "" if there are none, and for an export (many)."""
        keys = sorted(self.keys - NOTE_KEYS)
        return f"; ignored keys: {', '.join(keys)}" if keys and not self.exported else ""

    def summary(self) -> str:
        """Return the number of notes with each field, the keys that are not read, and the number of replaced notes."""
        notes = self.notes.values()
        counts = (
            f"{len(notes):,} notes, {sum(map(_has_text, notes)):,} with a title or content, "
            f"{sum(bool(note.hashtags) for note in notes):,} with hashtags, "
            f"{sum(note.category is not None for note in notes):,} with a category"
        )
        replaced = f"; {self.replaced:,} lines replaced an earlier one of the same id"
        return counts + self.unread_keys() + (replaced if self.replaced and not self.exported else "")


def _has_text(note: Note) -> bool:
    return bool(note.title.strip() or note.content.strip())


def _note(record: Mapping[str, Any]) -> Note:
    """Return the note of a line; null stands for a missing field. Raises TypeError for fields of a wrong type, and
    ValueError for an id that is blank or has a lone surrogate and for a category of more than MAX_CATEGORY_CHARS
    characters."""
    if not isinstance(record["id"], str | int) or isinstance(record["id"], bool):
        raise TypeError("id must be a string or an integer")
    note_id = str(record["id"])
    if not note_id.strip():
        raise ValueError("id must not be blank")
    if note_id != replace_lone_surrogates(note_id):
        raise ValueError("its id has a lone surrogate, which UTF-8 cannot encode")
    for name in ("title", "content", "category"):
        if not isinstance(record.get(name), str | None):
            raise TypeError(f"{name} must be a string")
    hashtags = record.get("hashtags") or []
    if not isinstance(hashtags, list) or not all(isinstance(hashtag, str) for hashtag in hashtags):
        raise TypeError("hashtags must be a list of strings")
    category = replace_lone_surrogates(record.get("category") or "").strip()
    if len(category) > MAX_CATEGORY_CHARS:
        raise ValueError(
            f"the category of note {note_id} has {len(category):,} characters, more than {MAX_CATEGORY_CHARS}"
        )
    return Note(
        id=note_id,
        title=replace_lone_surrogates(record.get("title") or ""),
        content=replace_lone_surrogates(record.get("content") or ""),
        hashtags=normalise_hashtags(hashtags),
        category=category or None,
    )


def draw_example(
    prompt: Prompt, note: Note, hashtag_share: float, rng: random.Random, input_hashtags: bool = False
) -> Example:
    """Draw the task of a note: hashtags with probability `hashtag_share` (r in the paper), else the category.

    In the hashtag task, the input's hashtags are withheld. A note without the target of its task is only embedded.
    `input_hashtags`: hashtags in the input are targets too, where the prompt version puts them last.
    """
    if rng.random() < hashtag_share:
        return hashtag_example(prompt, note, rng)
    return category_example(prompt, note, input_hashtags)


def with_category_synonym(note: Note, synonyms: Mapping[str, Sequence[str]], rng: random.Random) -> Note:
    """Replace the note's category by a random synonym with probability 1/2, if it has synonyms."""
    names = synonyms.get(note.category or "", ())
    if names and rng.random() < 0.5:
        return replace(note, category=rng.choice(names))
    return note


def free_synonyms(synonyms: Mapping[str, Sequence[str]], notes: Iterable[Note]) -> dict[str, list[str]]:
    """Return the synonyms that are not themselves a category of `notes`, case aside: a community that has both Fitness
    and Running must not learn to call the one the other."""
    taken = {note.category.casefold() for note in notes if note.category}
    return {category: [name for name in names if name.casefold() not in taken] for category, names in synonyms.items()}


def shown_categories(
    taught: Iterable[tuple[Iterable[Note], Mapping[str, Sequence[str]]]],
) -> tuple[str, ...]:
    """Return the names that training shows as categories, sorted: those of the notes, and their synonyms.

    `taught`: notes whose categories are taught, each with synonyms as `with_category_synonym` takes them. Without any
    category the result is one empty name, since a checkpoint that lists none counts as trained on all.
    """
    names: set[str] = set()
    for notes, synonyms in taught:
        categories = {note.category for note in notes if note.category}
        names |= categories | {name for category in categories for name in synonyms.get(category, ())}
    return tuple(sorted(names)) or ("",)


def hashtag_example(prompt: Prompt, note: Note, rng: random.Random) -> Example:
    """Return an example that shows a note without its hashtags and predicts j of them. A note without any, or with
    nothing else, is only embedded.

    j is uniform in 1..min(MAX_HASHTAGS, n), and the j hashtags are drawn at random.
    """
    if not note.hashtags or not (note.title or note.content):
        return embedding_example(prompt, note)
    count = rng.randint(1, min(MAX_HASHTAGS, len(note.hashtags)))
    drawn = rng.sample(note.hashtags, count)
    note_ids = prompt.note(replace(note, hashtags=()), count)
    task_ids = (*note_ids, *prompt.hashtag_task(count))
    ids = (*task_ids, *prompt.hashtag_output(drawn))
    return Example(note, ids, len(note_ids) - 1, tuple(range(len(task_ids), len(ids))))


def category_example(prompt: Prompt, note: Note, input_hashtags: bool = False) -> Example:
    """Return an example that shows the note with its hashtags and predicts its category; without one, only embedded."""
    embedded = embedding_example(prompt, note, input_hashtags)
    if note.category is None:
        return embedded
    task_ids = (*embedded.ids, *prompt.category_task())
    (output,) = prompt.category_outputs([note.category])
    ids = (*task_ids, *output)
    return replace(embedded, ids=ids, targets=(*embedded.targets, *range(len(task_ids), len(ids))))


def embedding_example(prompt: Prompt, note: Note, input_hashtags: bool = False) -> Example:
    """Return an example that is only embedded, with the prompt of the category task.

    `input_hashtags`: the note's hashtags are targets, as in `draw_example`.
    """
    ids = prompt.note(note)
    targets = tuple(prompt.input_hashtags(note)) if input_hashtags else ()
    return Example(note, tuple(ids), len(ids) - 1, targets)


class PairCounts(NamedTuple):
    """Counts of the lines of a pairs file: all, those between notes of the split, and those with a note that is missing
    from the notes file."""

    read: int = 0
    in_split: int = 0
    unknown: int = 0


class PairedNotes:
    """One split of one data set: its notes by id, its related pairs, and everything known to be related.

    A pair and its reverse are one pair, with the higher of their scores: the loss is symmetric. `scores`: scores of all
    pairs, by (smaller id, larger id). `pairs`: pairs with a score of at least `min_score`, to train on.

    Without a pairs file `has_pairs` is False, and `pairs` groups the notes with hashtags or a category two by two, in
    the order of their ids: such batches train CSFT alone. Raises DatasetError, PairsError, FileNotFoundError.
    """

    def __init__(
        self,
        notes: Path,
        pairs: Path | None,
        *,
        split: Split = "train",
        min_score: float = 0.0,
        progress: Callable[[str], None] = lambda message: None,
    ) -> None:
        all_notes = read_notes(notes, progress)
        self.notes = {note_id: note for note_id, note in all_notes.items() if split_of(note_id) == split}
        self._related: dict[str, set[str]] = defaultdict(set)
        self.scores: dict[tuple[str, str], float] = {}
        self.counts = self._read_pairs(pairs, all_notes) if pairs else PairCounts()
        self.pairs = sorted(ids for ids, score in self.scores.items() if score >= min_score)
        if pairs and not self.pairs:
            name = "validation_min_score" if split == "validation" else "min_score"
            highest = f"the highest is {max(self.scores.values()):.3g}" if self.scores else "there are no pairs at all"
            if self.counts.unknown:
                highest += f"; of {self.counts.read:,} pairs {self.counts.unknown:,} name a note that is not in {notes}"
            raise DatasetError(
                f"{pairs} has no pair of {split} notes of {notes} with a score of {min_score} or more ({name}): "
                f"{highest}"
            )
        self.has_pairs = bool(pairs)
        if not pairs:
            trainable = sorted(i for i, note in self.notes.items() if note.hashtags or note.category is not None)
            self.pairs = list(zip(trainable[::2], trainable[1::2], strict=False))
            if not self.pairs:
                raise DatasetError(
                    f"{notes} has nothing to train on: fewer than two {split} notes have hashtags or a category"
                )

    def _read_pairs(self, path: Path, all_notes: Mapping[str, Note]) -> PairCounts:
        """Store the pairs of a file that are between notes of the split, and count its lines."""
        read = in_split = unknown = 0
        for pair in read_pairs(path):
            read += 1
            if pair.note in self.notes and pair.related in self.notes:
                in_split += 1
                # Use the notes' own id objects, not the pair's: otherwise each of a million pairs would hold two
                # strings of its own.
                note, related = self.notes[pair.note].id, self.notes[pair.related].id
                ids = (min(note, related), max(note, related))
                self.scores[ids] = max(pair.score, self.scores.get(ids, -math.inf))
                self._related[note].add(related)
                self._related[related].add(note)
            elif pair.note not in all_notes or pair.related not in all_notes:
                unknown += 1
        return PairCounts(read, in_split, unknown)

    def batches(self, size: int, seed: int) -> Iterator[list[Note]]:
        """Yield batches of 2 * `size` notes without end; rows 2i and 2i + 1 are a pair, and a batch has no note twice.

        An epoch is a new shuffle of all pairs. A pair that shares a note with the batch is deferred to the next one. If
        the deferred pairs cannot fill a batch, as when they are all of a few popular notes, the batch is completed from
        the next shuffle, and only the first 2 * `size` deferred pairs are kept; the others return in later shuffles. A
        batch is smaller only where a whole shuffle cannot fill it.
        """
        rng = random.Random(seed)
        waiting: deque[tuple[str, str]] = deque()
        while True:
            while len(waiting) < 2 * size:
                waiting += rng.sample(self.pairs, len(self.pairs))
            taken = _take_disjoint(waiting, size)
            if len(taken) < size:
                waiting = deque(islice(waiting, 2 * size))
                waiting += rng.sample(self.pairs, len(self.pairs))
                taken += _take_disjoint(waiting, size - len(taken), taken)
            yield [self.notes[note_id] for pair in taken for note_id in pair]

    @cached_property
    def _copies(self) -> dict[PromptText, list[str]]:
        """Ids of the notes with the same text, by that text, where there are several."""
        ids: dict[PromptText, list[str]] = defaultdict(list)
        for note_id, note in self.notes.items():
            ids[note.prompt_text].append(note_id)
        return {text: copies for text, copies in ids.items() if len(copies) > 1}

    def _copies_of(self, note: Note) -> Sequence[str]:
        """Return the ids of the notes with the text of `note`."""
        return self._copies.get(note.prompt_text, (note.id,))

    def sample(self, size: int, seed: int) -> tuple[list[Note], list[tuple[str, str]]]:
        """Draw an evaluation pool of at most `size` notes; returns it and all pairs among its notes.

        Half of the pool are notes of random pairs; the others are drawn from all notes, as in a search.
        """
        rng = random.Random(seed)
        chosen: dict[str, Note] = {}
        for pair in rng.sample(self.pairs, len(self.pairs)):
            if len(chosen) + 2 > size / 2:
                break
            chosen |= {note_id: self.notes[note_id] for note_id in pair}
        others = sorted(self.notes.keys() - chosen.keys())
        drawn = rng.sample(others, min(len(others), size - len(chosen)))
        chosen |= {note_id: self.notes[note_id] for note_id in drawn}
        return list(chosen.values()), [pair for pair in self.pairs if chosen.keys() >= set(pair)]

    def known_related(self, notes: Sequence[Note], among: Sequence[Note]) -> Tensor:
        """Mark false negatives, (len(notes), len(among)) bool: True where two notes are related or have the same text.
        Notes with the same text count as one, so what is related to one of them is related to all.

        Pairs below `min_score` count as related too.
        """
        columns: dict[str, list[int]] = defaultdict(list)
        same_text: dict[PromptText, list[int]] = defaultdict(list)
        for column, note in enumerate(among):
            for copy in self._copies_of(note):
                columns[copy].append(column)
            same_text[note.prompt_text].append(column)
        known = torch.zeros(len(notes), len(among), dtype=torch.bool)
        for row, note in enumerate(notes):
            ids = {related for copy in self._copies_of(note) for related in self._related.get(copy, ())}
            related = [column for i in ids if i in columns for column in columns[i]]
            known[row, [*related, *same_text[note.prompt_text]]] = True
        return known


def _take_disjoint(
    waiting: deque[tuple[str, str]], size: int, batch: Sequence[tuple[str, str]] = ()
) -> list[tuple[str, str]]:
    """Remove and return the first pairs that share no note with each other or with `batch`, at most `size`.

    Skipped pairs keep their place at the front.
    """
    taken: list[tuple[str, str]] = []
    skipped: list[tuple[str, str]] = []
    seen = {note_id for pair in batch for note_id in pair}
    while waiting and len(taken) < size:
        pair = waiting.popleft()
        if seen.isdisjoint(pair):
            taken.append(pair)
            seen.update(pair)
        else:
            skipped.append(pair)
    waiting.extendleft(reversed(skipped))
    return taken
