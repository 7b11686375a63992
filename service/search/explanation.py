"""Explanations of why notes are at their places in an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from model.note import hashtag_key
from service.interfaces import NoteIndex
from service.ranking.selection import Chosen, SelectionOptions
from service.ranking.strategies import cosines
from service.records import Explanation, IndexRows, StoredNote, Vector, Vectors
from service.search.behaviour import BehaviourEvidence
from service.search.examples import Examples
from service.search.request import Example, SearchRequest
from service.search.verified import VerifiedNotes
from service.search.words import WordEvidence


async def explain(
    request: SearchRequest,
    examples: Examples,
    chosen: Sequence[Chosen],
    options: SelectionOptions,
    index: NoteIndex,
    notes: VerifiedNotes,
) -> dict[str, Explanation]:
    """Return the explanation of each chosen note by its id. Notes that left the index meanwhile have none; those that
    were not read from the store have no shared hashtags."""
    chosen_by_id = {one.id: one for one in chosen}
    rows = await index.rows(list(chosen_by_id))
    # In a thread: a list of 1,000 notes and 200 examples would hold the event loop for 60 ms.
    return await asyncio.to_thread(_explain_rows, request, examples, chosen_by_id, options, rows, notes)


def _explain_rows(
    request: SearchRequest,
    examples: Examples,
    chosen_by_id: Mapping[str, Chosen],
    options: SelectionOptions,
    rows: IndexRows,
    notes: VerifiedNotes,
) -> dict[str, Explanation]:
    """Return the explanations of the chosen notes that the index has, given their rows."""
    positive = _cosines_by_row(request.positive, examples.positive, rows.vectors)
    negative = _cosines_by_row(request.negative, examples.negative, rows.vectors)
    keys = _hashtag_keys(examples, notes)
    return {
        one.id: Explanation(
            to_positive,
            to_negative,
            one.boosts,
            one.score * options.relevance_unit + sum(one.boosts),
            _shared_hashtags(notes.known.get(one.id), keys),
        )
        for one, to_positive, to_negative in zip(
            map(chosen_by_id.__getitem__, rows.ids), positive, negative, strict=True
        )
    }


async def explain_words(
    explained: Mapping[str, Explanation], words: WordEvidence, notes: VerifiedNotes
) -> dict[str, Explanation]:
    """Return the explanations, with what words added to each score."""
    known = {note_id: stored.note for note_id in explained if (stored := notes.known.get(note_id))}
    shared = dict(zip(known, await words.shared(list(known.values())), strict=True))
    return {
        note_id: replace(one, words=words.added(note_id), shared_words=shared.get(note_id, ()))
        for note_id, one in explained.items()
    }


def explain_behaviour(explained: Mapping[str, Explanation], behaviour: BehaviourEvidence) -> dict[str, Explanation]:
    """Return the explanations, with what behaviour added to each score."""
    return {
        note_id: replace(one, behaviour=behaviour.added(note_id), co_readers=behaviour.readers(note_id))
        for note_id, one in explained.items()
    }


def _hashtag_keys(examples: Examples, notes: VerifiedNotes) -> frozenset[str]:
    """Return the keys of the hashtags of the positive examples that have a weight."""
    keys = set[str]()
    for example, _ in examples.positive:
        stored = notes.example(example.note_id)
        hashtags = example.note.hashtags if example.note else stored.hashtags if stored else ()
        if example.weight:
            keys.update(map(hashtag_key, hashtags))
    return frozenset(keys)


def _shared_hashtags(stored: StoredNote | None, keys: Collection[str]) -> tuple[str, ...]:
    """Return the hashtags of a note that have one of the keys."""
    return tuple(tag for tag in stored.hashtags if hashtag_key(tag) in keys) if stored else ()


def _cosines_by_row(
    examples: Sequence[Example], read: Sequence[tuple[Example, Vector]], vectors: Vectors
) -> list[tuple[float | None, ...]]:
    """Return, for each of `vectors` (N, D), its cosine to each example of the request; None for an example that is
    missing."""
    if not read:
        return [(None,) * len(examples)] * len(vectors)
    values = cosines(vectors, np.stack([vector for _, vector in read])).tolist()
    column_of = {example.pointer: column for column, (example, _) in enumerate(read)}
    return [
        tuple(row[column_of[example.pointer]] if example.pointer in column_of else None for example in examples)
        for row in values
    ]
