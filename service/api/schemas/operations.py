"""GET /startupz, GET /readyz, GET /limits and POST /verify."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import BaseModel, Field

from model.generation import MAX_CATEGORY_TOKENS
from service.access.api_key import MAX_KEYS, MAX_KEYS_OF_TENANT
from service.api.bodies import MAX_CONTAINERS, MAX_SEARCH_CONTAINERS
from service.api.protocol import (
    BODY_SECONDS,
    HEAD_SECONDS,
    IDLE_SECONDS,
    MAX_HEAD_BYTES,
    MIN_BODY_RATE,
)
from service.api.schemas.common import MAX_ATTRIBUTES, MAX_HASHTAGS
from service.api.schemas.embeddings import MAX_EMBEDDED
from service.api.schemas.events import MAX_AHEAD_SECONDS, MAX_EVENT_BYTES, MAX_EVENT_LINES, MAX_POSITION
from service.api.schemas.filter import (
    MAX_FILTER_CONDITIONS,
    MAX_FILTER_DEPTH,
    MAX_FILTER_EXCLUDED,
    MAX_FILTER_VALUES,
)
from service.api.schemas.generate import MAX_BLOCKED, MAX_CATEGORIES, MAX_GENERATED
from service.api.schemas.search import MAX_BOOSTS, MAX_SEARCHES, MAX_WEIGHT
from service.api.schemas.similar import MAX_CAP, MAX_EXAMPLES, MAX_EXCLUDED
from service.api.unsent_answers import ANSWER_SECONDS, MAX_UNSENT_BYTES, MIN_ANSWER_RATE
from service.behaviour.live import MAX_ERASURES, MAX_EVENT_BODIES, MAX_READER_EXPORTS
from service.collection.change_feed import MAX_CHANGE_SECONDS, MAX_CHANGE_WAITERS, MAX_CHANGES
from service.collection.export import MAX_EXPORTS
from service.collection.listing import MAX_IDS, MAX_PAGE
from service.collection.removal import MAX_REMOVED_IDS
from service.interfaces import MAX_READ_BYTES
from service.search.pages import MAX_LIST_NOTES
from service.search.sources import MAX_DEPTH
from service.verify import KINDS, Kind, Report

MAX_REPORTED_IDS = 20
"""Bound on the ids of each kind that the answer of POST /verify names."""


class LimitsOut(BaseModel):
    """The bounds, but for those of single fields of a body. Over one a request gets 413 or 422, which names it, or the
    status that the field names."""

    max_head_bytes: int = Field(MAX_HEAD_BYTES, description="request line and headers; 431 beyond")
    max_body_bytes: int
    max_bodies_bytes: int = Field(
        description="bodies of all requests under way together, a stream of notes with its unfinished line alone; 429 "
        "beyond"
    )
    max_note_bytes: int
    max_import_bytes: int = Field(description="one note of POST /notes/import, its vector included")
    max_batch_notes: int
    max_batch_events: int
    max_event_bytes: int = MAX_EVENT_BYTES
    max_event_lines: int = Field(MAX_EVENT_LINES, description="lines of events in one body of NDJSON")
    max_event_ahead_seconds: float = Field(MAX_AHEAD_SECONDS, description="by which the time of an event may be ahead")
    max_event_position: int = Field(MAX_POSITION, description="`position` of an event")
    event_types: list[str] = Field(description="names that `type` of an event may have")
    event_seconds: float = Field(description="how long an event is kept and counts; an older one is refused")
    event_bytes: int = Field(description="memory for a tenant's events; beyond it the oldest go")
    event_id_seconds: float = Field(description="how long an event is known by its event_id")
    event_ids: int = Field(description="ids of events that are known; half of them for sure")
    max_k: int
    max_hashtags: int = MAX_HASHTAGS
    max_generated_hashtags: int = MAX_GENERATED
    min_hashtag_score: float = Field(description="of hashtags that `?generate` gives a note, without `min_score`")
    min_category_probability: float = Field(description="of a category that `?generate` gives a note")
    max_categories: int = MAX_CATEGORIES
    max_category_tokens: int = MAX_CATEGORY_TOKENS
    max_blocked_hashtags: int = MAX_BLOCKED
    max_embedded: int = Field(MAX_EMBEDDED, description="texts of one POST /v1/embeddings")
    max_excluded: int = Field(MAX_EXCLUDED, description="ids in `exclude` of a query string, and beside `filter`")
    max_filter_excluded: int = Field(MAX_FILTER_EXCLUDED, description="ids in `exclude` of a `filter`")
    max_filter_depth: int = Field(MAX_FILTER_DEPTH, description="groups within each other, the outermost included")
    max_filter_conditions: int = Field(MAX_FILTER_CONDITIONS, description="fields and attributes that all groups test")
    max_filter_values: int = Field(MAX_FILTER_VALUES, description="values of one condition")
    max_attributes: int = MAX_ATTRIBUTES
    filter_attributes: list[str] = Field(description="attributes that filters may ask about")
    max_examples: int = Field(MAX_EXAMPLES, description="positive, and as many negative ones, of one search")
    max_boosts: int = MAX_BOOSTS
    max_weight: float = Field(MAX_WEIGHT, description="of an example, a boost or a source")
    max_cap: int = Field(MAX_CAP, description="max_per_author and max_per_category")
    max_searches: int = Field(MAX_SEARCHES, description="of one POST /similar/batch")
    max_candidates: int = Field(MAX_DEPTH, description="that diversity, caps, collapse and boosts choose among")
    max_list_notes: int = Field(MAX_LIST_NOTES, description="of a list that is kept for its pages")
    max_list_bytes: int = Field(description="of such a list as it is kept; a larger one is cut")
    max_lists: int = Field(description="kept of one tenant; beyond it the oldest one goes")
    page_seconds: float = Field(description="for which a list is kept")
    scenarios: list[str] = Field(description="names that `scenario` of a search may have")
    max_containers: int = Field(MAX_CONTAINERS, description="lists and objects of one note or body, itself included")
    max_search_containers: int = Field(MAX_SEARCH_CONTAINERS, description="the same of a search, and of a filter")
    max_ids: int = Field(MAX_IDS, description="ids of one request to read notes, and of a receipt")
    max_removed_ids: int = Field(MAX_REMOVED_IDS, description="ids of one request to remove notes")
    max_page: int = Field(MAX_PAGE, description="notes of a page of GET /notes")
    max_read_bytes: int = Field(
        MAX_READ_BYTES,
        description="of the notes of a page of GET /notes, and of an answer of POST /notes/get, as they are stored; "
        "one note alone may have more; and of the fields that searches of one request `include`, as JSON",
    )
    max_changes: int = Field(MAX_CHANGES, description="changes of one answer of GET /changes")
    max_change_seconds: float = Field(
        MAX_CHANGE_SECONDS,
        description="`wait` of GET /changes; the wait ends a second before the request's deadline, or after half of "
        "the time left where less than two seconds are left",
    )
    max_change_waiters: int = Field(
        MAX_CHANGE_WAITERS, description="requests of a tenant that wait for changes at one process; 429 beyond"
    )
    max_exports: int = Field(MAX_EXPORTS, description="exports of a tenant that run at one process; 429 beyond")
    max_reader_exports: int = Field(
        MAX_READER_EXPORTS, description="answers with a reader's events that one process sends for a tenant; 429 beyond"
    )
    max_event_bodies: int = Field(
        MAX_EVENT_BODIES, description="bodies of events as NDJSON that one process takes in for a tenant; 429 beyond"
    )
    max_erasures: int = Field(
        MAX_ERASURES, description="removals of a reader's events that run at one process for a tenant; 429 beyond"
    )
    log_seconds: float = Field(description="how long GET /changes reaches back, up to about a million changes")
    queue_notes: int
    queue_seconds: float = Field(description="engine's time for the notes that may wait in the interactive lane")
    interactive_seconds: float = Field(description="deadline without X-Request-Timeout; that of lists is the next")
    request_seconds: float
    head_seconds: float = Field(HEAD_SECONDS, description="for the head of a request; 408 beyond")
    body_seconds: float = Field(BODY_SECONDS, description="for a pause within a body; 408 beyond")
    min_body_rate: int = Field(MIN_BODY_RATE, description="bytes a second of a body, on average; 408 below")
    idle_seconds: float = Field(IDLE_SECONDS, description="for which a connection is kept between two requests")
    answer_seconds: float = Field(ANSWER_SECONDS, description="for which a caller may take nothing of an answer")
    min_answer_rate: int = Field(
        MIN_ANSWER_RATE,
        description="bytes a second at which a caller must take an answer, on average; its connection ends below. A "
        "caller whose receive buffer grew to megabytes takes them in steps of up to 400 KB, and needs up to 16 KiB a "
        "second",
    )
    max_unsent_bytes: int = Field(
        MAX_UNSENT_BYTES,
        description="bytes of answers that wait for the callers of a process, without the first 128 KiB of each "
        "connection; over it connections end on which more than 128 KiB have waited for a second",
    )
    max_tenants: int = Field(description="of the whole service, the default one included; a key of one more gets 403")
    max_connections: int = Field(description="of one process; 503 beyond")
    max_keys: int = Field(MAX_KEYS, description="API keys of all tenants together")
    max_keys_of_tenant: int = Field(
        MAX_KEYS_OF_TENANT, description="API keys of a tenant; a key with the scope admin can make more"
    )
    idempotency_seconds: float = Field(description="how long a write is remembered by its Idempotency-Key")
    read_title_tokens: int = Field(description="of a title, the model reads so many tokens; about 0.8 words each")
    read_hashtag_tokens: int
    read_content_tokens: int = Field(description="more is stored, but not read; such an answer says truncated: true")


class Check(BaseModel):
    ok: bool
    detail: str


class StartOut(BaseModel):
    """`detail`: the present step of the start, and for a caller of the default tenant how far it is."""

    started: bool
    detail: str


class ReadyOut(BaseModel):
    """`checks` has `start` alone before the process has started, and also `drain` after it was asked to end.

    `durable`: whether an acknowledged note survives the death of Redis. It and what follows are null during a start;
    log_position and what follows are those of the caller's tenant, and null for a caller without a key where keys are
    needed.
    """

    ready: bool
    checks: dict[Literal["store", "index", "engine", "readers", "start", "drain"], Check]
    durable: bool | None = None
    model: str | None = None
    space: str | None = None
    log_position: str | None = None
    notes: int | None = None
    notes_of_another_model: int | None = None


class Differing(BaseModel):
    """`count`: how many notes differ so. `ids`: the first 20 of them."""

    count: int
    ids: list[str]

    @classmethod
    def of(cls, ids: Sequence[str]) -> Self:
        return cls(count=len(ids), ids=list(ids[:MAX_REPORTED_IDS]))


class VerifyOut(BaseModel):
    """`well`: nothing differs, or all that did was `repaired`."""

    well: bool
    repaired: bool
    notes: int
    rows: int
    notes_of_another_model: int
    differing: dict[Kind, Differing] = Field(description="; ".join(f"{kind}: {what}" for kind, what in KINDS.items()))

    @classmethod
    def of(cls, report: Report) -> Self:
        return cls(
            well=report.well,
            repaired=report.repaired,
            notes=report.notes,
            rows=report.rows,
            notes_of_another_model=report.other_space,
            differing={kind: Differing.of(ids) for kind, ids in report.differing.items()},
        )
