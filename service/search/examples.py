"""Vectors of the examples of a search. A stored note's vector comes from the index, or else from the store; a text's
from the model, which reads all texts of a search in order, in batches. A centre, a share of the mean vector of the
notes (of titles, for a text that is only a title), is subtracted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from model.note import Note
from service.errors import (
    ExamplesNotFound,
    FieldError,
    InvalidInput,
    NoteLLMError,
    NoteNotFound,
    OtherSpace,
    StoredNoteUnreadable,
)
from service.interfaces import Engine, NoteIndex, NoteStore
from service.ranking.strategies import Query, Weighted
from service.read_time import ReadTime
from service.records import StoredNote, Unreadable, Vector
from service.search.request import Example, SearchRequest
from service.search.title_centre import TitleCentre

UnusableExample = StoredNote | Unreadable | None
"""Content of the store under the id of an example that a search cannot use: a note whose vector is from another model,
a note that cannot be decoded, or nothing."""
OTHER_MODEL = "has a vector from another model"
FEW_IDS = 4
"""Maximum number of vectors that are looked up one by one; more are faster together."""


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Examples of a search that have a vector, (D,), in their order. `missing`: ids of those that were left out."""

    positive: Sequence[tuple[Example, Vector]]
    negative: Sequence[tuple[Example, Vector]]
    missing: tuple[str, ...]

    @property
    def ids(self) -> list[str]:
        """Ids of the examples that are stored notes, each once."""
        pairs = [*self.positive, *self.negative]
        return list(dict.fromkeys(example.note_id for example, _ in pairs if example.note_id))


def check_examples(request: SearchRequest) -> None:
    """Refuse examples that contradict each other. Raises InvalidInput."""
    if not request.examples:
        raise InvalidInput([FieldError("/positive", "must not be empty if `negative` is empty")])
    if request.strategy == "average" and not request.positive:
        detail = "average requires a positive example; best_score and sum_scores also work with only negative ones"
        raise InvalidInput([FieldError("/strategy", detail)])
    for name, examples in (("positive", request.positive), ("negative", request.negative)):
        if examples and not any(example.weight for example in examples):
            raise InvalidInput([FieldError(f"/{name}", "must have an example with a weight other than 0")])
    positive = {(example.note_id, example.text) for example in request.positive}
    wrong = [example for example in request.negative if (example.note_id, example.text) in positive]
    if wrong:
        detail = "is also a positive example; remove one of them"
        raise InvalidInput([FieldError(example.pointer, detail) for example in wrong])


async def read_examples(
    request: SearchRequest,
    texts: Sequence[Vector],
    missing: Mapping[str, UnusableExample],
    index: NoteIndex,
    store: NoteStore,
    titles: TitleCentre,
    engine: Engine,
    time_left: ReadTime,
) -> Examples:
    """Return the vectors of a request's examples. `texts`: the vectors of its texts. `missing`: examples that are known
    to be unusable, by their ids. `titles`: the centre for texts that are only a title. `engine`: the serving model.
    Raises ExamplesNotFound, NoteNotFound, StoredNoteUnreadable, OtherSpace, StoreUnavailable."""
    ids = list(dict.fromkeys(example.note_id for example in request.examples if example.note_id))
    ids = [note_id for note_id in ids if note_id not in missing]
    vectors = await _vectors(index, ids)
    missing = dict(missing)
    if unknown := [note_id for note_id in ids if note_id not in vectors]:
        for note_id, stored in zip(unknown, await time_left.wait(store.get(unknown, with_vectors=True)), strict=True):
            if stored is None or isinstance(stored, Unreadable) or stored.space != engine.space:
                missing[note_id] = stored
            elif stored.vector is not None:
                vectors[note_id] = stored.vector
    if missing and request.on_missing == "error":
        raise _refusal(request, missing, engine.name)
    text_vectors = iter(texts)
    vectors_of_examples = [
        vectors.get(example.note_id) if example.note_id else next(text_vectors) for example in request.examples
    ]
    queries = [
        None if vector is None else (titles.current() if is_title(example.note) else index.centre).query(vector)
        for example, vector in zip(request.examples, vectors_of_examples, strict=True)
    ]
    pairs = list(zip(request.examples, queries, strict=True))
    positive, negative = _present(pairs[: len(request.positive)]), _present(pairs[len(request.positive) :])
    needed = positive if request.strategy == "average" else positive + negative
    if not any(example.weight for example, _ in needed):
        raise _refusal(request, missing, engine.name)
    return Examples(positive, negative, tuple(missing))


def is_title(text: Note | None) -> bool:
    """Return whether a text is only a title, as a user types it."""
    return text is not None and not text.content and not text.hashtags


def _present(pairs: Sequence[tuple[Example, Vector | None]]) -> list[tuple[Example, Vector]]:
    return [(example, vector) for example, vector in pairs if vector is not None]


async def _vectors(index: NoteIndex, ids: Sequence[str]) -> dict[str, Vector]:
    """Return the vectors of those notes that the index has, by id."""
    if len(ids) > FEW_IDS:
        return (await index.rows(ids)).vector_by_id
    vectors = {note_id: index.vector(note_id) for note_id in ids}
    return {note_id: vector for note_id, vector in vectors.items() if vector is not None}


def _refusal(request: SearchRequest, missing: Mapping[str, UnusableExample], model: str) -> NoteLLMError:
    """Return the error of a search that fails because of its `missing` examples: on_missing requires all of them, or
    too few others are left to rank by. Where only the note in the URL is unusable, the error is about that note.
    `model`: name of the serving model."""
    unusable = [
        (example, note_id, missing[note_id])
        for example in request.examples
        if (note_id := example.note_id) is not None and note_id in missing
    ]
    only_url_note = len(unusable) == 1 and not unusable[0][0].pointer
    if only_url_note or request.on_missing == "error":
        if others := [(example, note_id) for example, note_id, stored in unusable if isinstance(stored, StoredNote)]:
            fields = [FieldError(example.pointer, OTHER_MODEL) for example, _ in others if example.pointer]
            return OtherSpace(others[0][1], model, fields)
        for _, note_id, stored in unusable:
            if isinstance(stored, Unreadable):
                return StoredNoteUnreadable(note_id, stored.reason)
        if only_url_note:
            return NoteNotFound(unusable[0][1])
    errors = [
        FieldError(example.pointer or "/path/note_id", _what_is_wrong(note_id, stored))
        for example, note_id, stored in unusable
    ]
    return ExamplesNotFound(errors, skipped=request.on_missing == "skip")


def _what_is_wrong(note_id: str, stored: UnusableExample) -> str:
    if stored is None:
        return f"there is no note {note_id!r}"
    return f"the note {note_id!r} " + ("cannot be decoded" if isinstance(stored, Unreadable) else OTHER_MODEL)


def query_of(request: SearchRequest, examples: Examples) -> Query:
    """Return the query of a request; examples of weight 0 are left out."""
    return Query(request.strategy, _weighted(examples.positive), _weighted(examples.negative))


def _weighted(pairs: Sequence[tuple[Example, Vector]]) -> Weighted:
    weighty = [(example.weight, vector) for example, vector in pairs if example.weight]
    vectors = np.stack([vector for _, vector in weighty]) if weighty else np.zeros((0, 0), np.float32)
    return Weighted(vectors, np.array([weight for weight, _ in weighty], np.float64))
