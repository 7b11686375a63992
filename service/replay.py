"""Answers of writes in the form in which they are recorded under an idempotency key."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import orjson
from pydantic import TypeAdapter

from model.generation import Usage
from model.note import Note
from service.adding import Added
from service.records import EarlierWrite, Generated, StoredNote

REMOVED = b"removed"
"""Answer of a removal."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Recorded fields of Added and of its note; `status` is empty if it follows from the revision."""

    id: str
    hashtags: tuple[str, ...]
    category: str | None
    space: str
    generated: Generated
    status: str
    usage: Usage
    hashtags_reason: str | None
    truncated: bool | None
    language_supported: bool | None
    below_min: Generated = field(default_factory=Generated)


ANSWER = TypeAdapter(Answer)


def encode_added(added: Added) -> bytes:
    """Encode the result of a write that is about to be made; its revision and position are recorded separately."""
    stored = added.stored
    return orjson.dumps(
        Answer(
            id=stored.note.id,
            hashtags=stored.note.hashtags,
            category=stored.note.category,
            space=stored.space,
            generated=stored.generated,
            status=added.status,
            usage=added.usage,
            hashtags_reason=added.hashtags_reason,
            truncated=added.truncated,
            language_supported=added.language_supported,
            below_min=added.below_min,
        )
    )


def decode_added(earlier: EarlierWrite) -> Added:
    """Return the result of an earlier attempt. Its note has no texts."""
    answer = ANSWER.validate_json(earlier.answer)
    note = Note(id=answer.id, hashtags=answer.hashtags, category=answer.category)
    stored = StoredNote(note, answer.space, None, answer.generated)
    return Added(
        replace(stored, revision=earlier.revision, position=earlier.position),
        answer.status or written_status(earlier.revision),
        answer.usage,
        answer.hashtags_reason,
        answer.truncated,
        answer.language_supported,
        answer.below_min,
        replayed=True,
    )


def written_status(revision: int) -> str:
    """Return the status of a write that made this revision."""
    return "created" if revision == 1 else "updated"
