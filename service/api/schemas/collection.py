"""GET /notes, POST /notes/get, POST /notes/delete and GET /changes."""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, Field, StringConstraints, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from service.api.schemas.common import LogPosition, NoteId, Time, Wire
from service.api.schemas.filter import FilterIn, FlatFilterIn, check_order
from service.api.schemas.notes import NoteOut
from service.collection.change_feed import MAX_CHANGE_SECONDS, MAX_CHANGES, Changes
from service.collection.listing import MAX_IDS, MAX_PAGE, Page
from service.collection.removal import MAX_REMOVED_IDS, Receipt
from service.filters import Bounds, Filter, TimeRange
from service.records import LogEntry, StoredNote, Vector, position_seconds

VectorForm = Literal["float", "base64"]
"""Form of a vector in an answer: numbers, or base64 of 32-bit floats, the lowest byte first."""


class ListQuery(FlatFilterIn):
    """GET /notes. Several conditions all have to hold."""

    cursor: Annotated[str, StringConstraints(max_length=200)] | None = Field(
        None, description="`next_cursor` of the previous page; send it with the same filters"
    )
    limit: int = Field(100, ge=1, le=MAX_PAGE, description="maximum number of notes on the page")
    updated_after: Time | None = Field(
        None, description="only notes whose last write was after this time, by the store's clock"
    )
    updated_before: Time | None = Field(
        None, description="only notes whose last write was before this time, by the store's clock"
    )

    @field_validator("updated_before")
    @classmethod
    def _check_updated(cls, before: Time | None, info: ValidationInfo) -> Time | None:
        check_order(info.data.get("updated_after"), before, "updated_after", "updated_before")
        return before

    def as_filter(self) -> Filter:
        where = super().as_filter()
        if self.updated_before is None:
            return where
        return replace(where, clause=TimeRange("updated", Bounds(lt=self.updated_before.timestamp())))

    @property
    def after(self) -> str:
        """Log position after which the list begins."""
        milliseconds = int(self.updated_after.timestamp() * 1000) if self.updated_after else 0
        return f"{milliseconds}-{2**63 - 1 if milliseconds else 0}"


class ListOut(BaseModel):
    """A page of notes."""

    notes: list[NoteOut] = Field(
        description="notes in the order of their last writes; fewer than `limit`, or none, if the page ends early at "
        "`max_read_bytes`"
    )
    next_cursor: str | None = Field(description="`cursor` of the next page; null on the last page")
    log_position: str = Field(description="this page and the previous ones include every write up to this log position")

    @classmethod
    def of(cls, page: Page) -> Self:
        return cls(
            notes=[NoteOut.of(stored) for stored in page.notes], next_cursor=page.cursor, log_position=page.position
        )


class GetIn(Wire):
    """Notes to read."""

    ids: list[NoteId] = Field(min_length=1, max_length=MAX_IDS, description="ids of the notes")
    vectors: VectorForm | None = Field(
        None,
        description="add `space` and `vector` to each note. float: numbers; base64: little-endian 32-bit floats",
    )


class NoteWithVector(NoteOut):
    """A stored note with its vector."""

    space: str | None = Field(
        None,
        description="name of the vector space; only vectors of the same space can be compared; null if `vectors` was "
        "not given",
    )
    vector: list[float] | str | None = Field(
        None, description="vector of unit length, in the form that `vectors` requests; null if `vectors` was not given"
    )

    @classmethod
    def with_vector(cls, stored: StoredNote, form: VectorForm | None) -> Self:
        note = cls.of(stored)
        if form is not None and stored.vector is not None:
            note.space, note.vector = stored.space, encode_vector(stored.vector, form)
        return note


class GetOut(BaseModel):
    """Notes requested by their ids."""

    notes: list[NoteWithVector] = Field(description="notes in the order of the requested ids")
    missing: list[str] = Field(description="ids for which there is no note")
    unreadable: list[str] = Field(
        description="ids of notes whose stored form cannot be read; to repair one, write or delete the note"
    )
    unread: list[str] = Field(
        description="last ids of the request, not read because the notes exceed `max_read_bytes` in total; "
        "request them again"
    )


class RemoveIn(Wire):
    """Notes to remove: either `ids` or `filter`."""

    ids: list[NoteId] | None = Field(
        None, min_length=1, max_length=MAX_REMOVED_IDS, description="ids of the notes to remove"
    )
    filter: FilterIn | None = Field(None, description="filter for the notes to remove, with at least one condition")
    dry_run: bool = Field(False, description="true: return the receipt without removing anything")

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.ids is None) == (self.filter is None):
            raise PydanticCustomError("one_of", "must have either ids or filter")
        if self.filter is not None and not self.filter.as_filter().narrows:
            raise PydanticCustomError("no_condition", "the filter must have at least one condition")
        return self


class ReceiptOut(BaseModel):
    """Receipt of a durable removal; for a dry run, the receipt that the removal would have."""

    dry_run: bool = Field(description="true: nothing was removed")
    count: int = Field(description="number of removed notes")
    ids: list[str] | None = Field(description="ids in the order of removal; null if there are more than `max_ids`")
    ids_sha256: str = Field(description="SHA-256 of all ids in this order, each followed by a line feed")
    log_position: str | None = Field(
        description="log position of the last removal: a replica that has reached it has none of the notes; null if "
        "nothing was removed"
    )
    matched_position: str | None = Field(
        description="log position up to which notes were tested: of those written at or before it, none that matched "
        "the filter is left after a removal; null if the notes were given by `ids`"
    )
    missing: list[str] = Field(description="ids for which there is no note")
    unreadable: int = Field(description="number of stored notes known to be unreadable, so that no filter matches them")

    @classmethod
    def of(cls, receipt: Receipt) -> Self:
        return cls(
            dry_run=receipt.dry_run,
            count=receipt.count,
            ids=receipt.ids,
            ids_sha256=receipt.ids_sha256,
            log_position=receipt.position,
            matched_position=receipt.matched_position,
            missing=receipt.missing,
            unreadable=receipt.unreadable,
        )


class ChangesQuery(Wire):
    """GET /changes."""

    after: LogPosition | None = Field(
        None,
        description="log position after which to list changes; default: now, so that only later changes are listed",
    )
    limit: int = Field(100, ge=1, le=MAX_CHANGES, description="maximum number of changes")
    wait: float = Field(
        0.0,
        ge=0,
        le=MAX_CHANGE_SECONDS,
        description="seconds to wait for a change if there is none yet; less if the request's deadline comes first",
        allow_inf_nan=False,
    )


class ChangeOut(BaseModel):
    """A write or a removal of a note."""

    id: str = Field(description="id of the note")
    op: Literal["put", "delete"] = Field(description="put: the note was written; delete: it was removed")
    log_position: str = Field(description="log position of the change")
    at: datetime = Field(description="time of the change, by the store's clock")

    @classmethod
    def of(cls, entry: LogEntry) -> Self:
        at = datetime.fromtimestamp(position_seconds(entry.position), UTC)
        return cls(id=entry.id, op="delete" if entry.removed else "put", log_position=entry.position, at=at)


class ChangesOut(BaseModel):
    """Changes after a log position."""

    changes: list[ChangeOut] = Field(description="changes in the order of their log positions")
    log_position: str = Field(description="log position to send as `after` of the next request")
    more: bool = Field(description="true if there are later changes already")

    @classmethod
    def of(cls, changes: Changes) -> Self:
        return cls(
            changes=[ChangeOut.of(entry) for entry in changes.entries],
            log_position=changes.position,
            more=changes.more,
        )


def encode_vector(vector: Vector, form: VectorForm) -> list[float] | str:
    """Write a vector in a form of VectorForm."""
    if form == "float":
        numbers: list[float] = vector.tolist()
        return numbers
    return base64.b64encode(np.ascontiguousarray(vector, "<f4").tobytes()).decode()
