"""Lines of GET /notes/export, and the notes among them as POST /notes/import takes them."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal, Self

import numpy as np
import orjson
from pydantic import BaseModel, Field, StringConstraints

from model.generation import CategoryProbability, Hashtag
from service.api.schemas.collection import VectorForm, encode_vector
from service.api.schemas.common import MAX_HASHTAGS, LogPosition, Name, NoteId, Wire
from service.api.schemas.notes import EarlierNoteIn, note_fields
from service.api.schemas.problem import Problem
from service.collection.export import Change, Export
from service.collection.importing import NoteToImport, Outcome
from service.errors import FieldError, InvalidInput
from service.records import Generated, StoredNote, Vector

VERSION = 1
"""Version of the lines. Raise it when older readers would misread them."""
MAX_VECTOR = 16_384
"""Bound on the numbers of a vector that is imported."""
MAX_VECTOR_BYTES = 24 * MAX_VECTOR
"""Bound on the bytes of such a vector as JSON: a number has up to 17 digits, signs, a point, an exponent, a comma."""
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class ExportQuery(Wire):
    """GET /notes/export."""

    after: LogPosition | None = Field(
        None, description="log position after which to export changes; default: all notes"
    )
    begin: LogPosition | None = Field(
        None,
        description="to resume an export that broke off: its `begin`; send the log position of its last line as "
        "`after`",
    )
    vectors: VectorForm | None = Field(
        None,
        description="add `vector` to each note. float: numbers; base64: little-endian 32-bit floats",
    )


def first_line(export: Export, tenant: str, form: VectorForm | None, space: str, dimension: int, about: int) -> bytes:
    """Return the line that begins an export. `about`: how many notes the tenant has, about."""
    head = {"export": VERSION, "tenant": tenant, "after": export.after, "begin": export.begin, "vectors": form}
    return _line(head | {"space": space, "dimension": dimension, "notes_about": about})


def change_line(change: Change, form: VectorForm | None) -> bytes:
    """Return the line of a note that was written or removed."""
    if not isinstance(change, StoredNote):
        return _line({"removed": change.id, "log_position": change.position})
    line = note_fields(change.note) | {
        "revision": change.revision,
        "log_position": change.position,
        "generated": _generated(change.generated),
        "space": change.space,
    }
    if form is not None and change.vector is not None:
        line["vector"] = encode_vector(change.vector, form)
    return _line(line)


def last_line(export: Export, unreadable: int) -> bytes:
    """Return the line that ends an export. An export without it was broken off."""
    counts = {"notes": export.notes, "removed": export.removals, "unreadable": unreadable}
    return _line({"end": export.end} | counts)


def _line(fields: dict[str, Any]) -> bytes:
    return orjson.dumps(fields, option=orjson.OPT_UTC_Z) + b"\n"


def _generated(generated: Generated) -> dict[str, Any] | None:
    if generated.hashtags is None and generated.category is None:
        return None
    hashtags = generated.hashtags
    return {
        "hashtags": None if hashtags is None else [{"text": h.text, "score": h.score} for h in hashtags],
        "category": generated.category
        and {
            "name": generated.category.name,
            "probability": generated.category.probability,
        },
    }


class ImportedHashtag(Wire):
    """A generated hashtag of an exported note."""

    text: Name = Field(description="text of the hashtag")
    score: Annotated[float, Field(allow_inf_nan=False)] = Field(description="score with which it was generated")


class ImportedCategory(Wire):
    """The generated category of an exported note."""

    name: Name = Field(description="name of the category")
    probability: Probability = Field(description="probability with which it was chosen")


class ImportedGenerated(Wire):
    """Hashtags and category that the model generated for the note."""

    hashtags: list[ImportedHashtag] | None = Field(
        None, max_length=MAX_HASHTAGS, description="generated hashtags, best first; null if not generated"
    )
    category: ImportedCategory | None = Field(None, description="generated category; null if not generated")


class ImportIn(EarlierNoteIn):
    """A note as exported by GET /notes/export."""

    id: NoteId
    revision: int | None = Field(None, description="ignored: the imported note gets a new one")
    log_position: LogPosition | None = Field(None, description="ignored: the imported note gets a new one")
    generated: ImportedGenerated | None = Field(None, description="what the model generated; null if nothing")
    space: Annotated[str, StringConstraints(max_length=200)] | None = Field(
        None, description="vector space of `vector`; if the serving model has another one, it reads the note again"
    )
    vector: (
        Annotated[list[float], Field(max_length=MAX_VECTOR)]
        | Annotated[str, StringConstraints(max_length=8 * MAX_VECTOR)]
        | None
    ) = Field(
        None,
        description="vector of unit length, as numbers or as little-endian 32-bit floats in base64; null: the model "
        "reads the note",
    )

    def as_import(self) -> NoteToImport:
        """Return the note for the importer. Raises InvalidInput."""
        generated = Generated()
        if self.generated is not None:
            hashtags, category = self.generated.hashtags, self.generated.category
            generated = Generated(
                None if hashtags is None else tuple(Hashtag(h.text, h.score) for h in hashtags),
                None if category is None else CategoryProbability(category.name, category.probability),
            )
        return NoteToImport(self.as_note(), generated, self.space or "", _vector(self.vector))


class ImportItem(BaseModel):
    """Result of one note."""

    id: str | None = Field(description="id of the note; null if a rejected note has none")
    status: Literal["created", "updated", "unchanged", "exists", "expired", "rejected"] = Field(
        description="exists: a note with this id exists and was not replaced; expired: `expires_at` has passed, and "
        "nothing was stored; rejected: see `problem`"
    )
    vector: Literal["kept", "read"] | None = Field(
        None,
        description="kept: the vector of the export, or of the note that is stored with the same text, is used; read: "
        "the model read the note again; null if the note is not stored, or was not replaced",
    )
    problem: Problem | None = Field(None, description="why the note was rejected; null if it was not")

    @classmethod
    def of(cls, outcome: Outcome) -> Self:
        vector = None if outcome.read is None else "read" if outcome.read else "kept"
        return cls.model_validate({"id": outcome.id, "status": outcome.status, "vector": vector})


class ImportOut(BaseModel):
    """Results of an import."""

    results: list[ImportItem] = Field(description="one result for each note, in order")


def _vector(value: list[float] | str | None) -> Vector | None:
    if value is None:
        return None
    if not isinstance(value, str):
        with np.errstate(over="ignore"):  # the importer refuses a vector that is not of unit length
            return np.array(value, np.float32)
    try:
        return np.frombuffer(base64.b64decode(value, validate=True), "<f4").astype(np.float32)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput([FieldError("/vector", "must be 32-bit floats in base64")]) from error
