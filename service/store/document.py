"""Encoding of a note as the store holds it, a hash of five fields, and decoding that validates everything.

The document is JSON with a version; without one it is of version 1. Unknown fields are dropped. The reason why a note
cannot be decoded never quotes the note.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from operator import itemgetter
from typing import Any

import numpy as np
import orjson

from model.generation import CategoryProbability, Hashtag
from model.note import Note
from service.records import Generated, StoredNote, Vector

FIRST_VERSION, VERSION = 1, 1
"""Oldest and newest version that is read; VERSION is written. Raise it when older readers would misread a document."""
FIELDS = ("document", "space", "revision", "position", "vector")
"""Fields of the hash, in the order that `decode` takes them."""
FLOAT_BYTES = 4
MAX_REVISION_DIGITS = 15
"""Bound on the digits of a revision: Lua counts in doubles, which are exact up to here."""
POSITION = re.compile(rb"\d{1,20}-\d{1,20}")
FIRST_SECOND, END_SECOND = -62_135_596_800, 253_402_300_800
"""Seconds since the epoch of the years 1 to 9999, the range of datetime."""

TEXT, LIST, OBJECT = frozenset({str}), frozenset({list}), frozenset({dict})
NUMBER, SCALAR = frozenset({int, float}), frozenset({str, int, float, bool})
NOTHING = frozenset({type(None)})
DOCUMENT: Mapping[str, frozenset[type]] = {
    "title": TEXT,
    "content": TEXT,
    "hashtags": LIST,
    "category": TEXT | NOTHING,
    "author": TEXT | NOTHING,
    "created_at": NUMBER | NOTHING,
    "expires_at": NUMBER | NOTHING,
    "attributes": OBJECT,
    "generated": OBJECT,
}
"""Exact types of a document's fields: a bool is not a number."""
VALUES = itemgetter(*DOCUMENT)
SHAPES = frozenset(product(*DOCUMENT.values()))
"""Every valid combination of the types of a document's values: one look-up in place of nine."""
NONE_GENERATED = Generated()


class UndecodableNote(ValueError):
    """The stored form of a note is not one that `encode` writes. The message is the reason."""


def encode(stored: StoredNote) -> tuple[bytes, bytes]:
    """Encode document and vector. Raises ValueError when the note has no vector."""
    note = stored.note
    if stored.vector is None:
        raise ValueError(f"note {note.id!r} has no vector")
    hashtags = stored.generated.hashtags
    document = {
        "version": VERSION,
        "title": note.title,
        "content": note.content,
        "hashtags": note.hashtags,
        "category": note.category,
        "author": note.author,
        "created_at": note.created_at,
        "expires_at": note.expires_at,
        "attributes": dict(note.attributes),
        "generated": {
            "hashtags": None if hashtags is None else [{"text": h.text, "score": h.score} for h in hashtags],
            "category": stored.generated.category,
        },
    }
    return orjson.dumps(document), np.ascontiguousarray(stored.vector, "<f4").tobytes()


def decode(note_id: str, row: Sequence[Any], dimensions: Mapping[str, int]) -> StoredNote | None:
    """Decode a note; None where there is no hash. Raises UndecodableNote.

    `row`: the hash's FIELDS, empty where the key is not a hash; its vector may be just the length in bytes.
    `dimensions`: dimension of the vectors of a space, by its name; vectors of other spaces may have any.
    """
    if None in row or not row:
        if row and all(value is None for value in row):
            return None
        raise UndecodableNote(_incomplete(row))
    document, space, revision, position, vector = row
    if not revision.isdigit() or len(revision) > MAX_REVISION_DIGITS:
        raise UndecodableNote("its revision is not a number")
    if not POSITION.fullmatch(position):
        raise UndecodableNote("its position is not a log position")
    try:
        space_name = space.decode()
    except UnicodeDecodeError:
        raise UndecodableNote("the name of its space is not UTF-8") from None
    array = _vector(vector, dimensions.get(space_name))
    note, generated = _read(note_id, document)
    return StoredNote(note, space_name, array, generated, int(revision), position.decode())


def _incomplete(row: Sequence[Any]) -> str:
    """Return the reason why a row is not complete."""
    if not row:
        return "its key is not a hash"
    return f"it has no {' and no '.join(name for name, value in zip(FIELDS, row, strict=True) if value is None)}"


def _vector(vector: bytes | int, dimension: int | None) -> Vector | None:
    """Decode a vector (dimension,); None where only its length in bytes is known."""
    size = vector if isinstance(vector, int) else len(vector)
    if dimension is not None and size != dimension * FLOAT_BYTES:
        raise UndecodableNote(f"its vector has {size} bytes, but its space requires {dimension * FLOAT_BYTES}")
    if not size or size % FLOAT_BYTES:
        raise UndecodableNote(f"its vector has {size} bytes, not a positive multiple of {FLOAT_BYTES}")
    return None if isinstance(vector, int) else np.frombuffer(vector, "<f4")


def _read(note_id: str, document: bytes) -> tuple[Note, Generated]:
    try:
        fields = orjson.loads(document)
    except orjson.JSONDecodeError:
        raise UndecodableNote("its document is not JSON") from None
    if type(fields) is not dict:
        raise UndecodableNote("its document is not a JSON object")
    version = fields.get("version", FIRST_VERSION)
    if type(version) is not int or not FIRST_VERSION <= version <= VERSION:
        raise UndecodableNote(_other_version(version))
    try:
        values = VALUES(fields)
        if tuple(map(type, values)) not in SHAPES:
            raise UndecodableNote(_wrong_type(fields))
        return _note(note_id, values), _generated(values[-1])
    except KeyError as error:
        raise UndecodableNote(f"its document has no field {error}") from None


def _other_version(version: object) -> str:
    if type(version) is int and version > VERSION:
        return f"its document has version {version}, but this service reads versions up to {VERSION}"
    return "the version of its document is not valid"


def _wrong_type(fields: Mapping[str, Any]) -> str:
    wrong = next(name for name, types in DOCUMENT.items() if type(fields[name]) not in types)
    return f"its {wrong} has the wrong type"


def _note(note_id: str, values: tuple[Any, ...]) -> Note:
    title, content, hashtags, category, author, created_at, expires_at, attributes, _ = values
    if hashtags and not TEXT.issuperset(map(type, hashtags)):
        raise UndecodableNote("one of its hashtags is not a string")
    if attributes and not SCALAR.issuperset(map(type, attributes.values())):
        raise UndecodableNote("one of its attributes has the wrong type")
    created, expires = created_at or 0, expires_at or 0
    if not (FIRST_SECOND <= created < END_SECOND and FIRST_SECOND <= expires < END_SECOND):
        raise UndecodableNote("one of its times is not a valid date")
    return Note(title, content, tuple(hashtags), category, note_id, author, created_at, expires_at, attributes)


def _generated(fields: Mapping[str, Any]) -> Generated:
    hashtags, category = fields["hashtags"], fields["category"]
    if hashtags is None and category is None:
        return NONE_GENERATED
    if hashtags is not None and type(hashtags) is not list:
        raise UndecodableNote("its generated hashtags or category have the wrong type")
    return Generated(
        None if hashtags is None else tuple(Hashtag(*_scored(h, "text", "score")) for h in hashtags),
        None if category is None else CategoryProbability(*_scored(category, "name", "probability")),
    )


def _scored(entry: Any, name: str, number: str) -> tuple[str, float]:
    """Return name and number of a generated hashtag or category."""
    if type(entry) is not dict or type(entry[name]) is not str or type(entry[number]) not in NUMBER:
        raise UndecodableNote("its generated hashtags or category have the wrong type")
    return entry[name], entry[number]
