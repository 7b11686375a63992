"""GET /startupz, GET /readyz, GET /limits and POST /verify."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import BaseModel, Field

from model.generation import MAX_CATEGORY_TOKENS
from service.access.api_key import MAX_KEYS, MAX_KEYS_OF_TENANT
from service.api.bodies import MAX_CONTAINERS, MAX_SEARCH_CONTAINERS
from service.api.connection_bounds import (
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


STARTING = "null: the process has not started"
NO_TENANT = "null: the process has not started, the caller has no key where keys are needed, or its tenant is not open"


class LimitsOut(BaseModel):
    """The bounds, but for those of single fields of a body. A request beyond one gets 413 or 422, which names it, or
    the status that is said here."""

    max_head_bytes: int = Field(MAX_HEAD_BYTES, description="request line and headers; 431 beyond")
    max_body_bytes: int = Field(description="bytes of one body; a stream of notes has no such bound")
    max_bodies_bytes: int = Field(
        description="memory for all request bodies together, 429 beyond; of a note stream only the line not yet "
        "complete counts"
    )
    max_note_bytes: int = Field(description="bytes of one note, and of every JSON body that is not a list")
    max_import_bytes: int = Field(description="bytes of one note of POST /notes/import, its vector included")
    max_batch_notes: int = Field(description="notes of one list or import; a stream has no such bound")
    max_batch_events: int = Field(description="events of one list")
    max_event_bytes: int = Field(MAX_EVENT_BYTES, description="bytes of one event as JSON")
    max_event_lines: int = Field(MAX_EVENT_LINES, description="lines of events in one body of NDJSON")
    max_event_ahead_seconds: float = Field(
        MAX_AHEAD_SECONDS, description="how far the time of an event may lie ahead; then it counts as now"
    )
    max_event_position: int = Field(MAX_POSITION, description="`position` of an event")
    event_types: list[str] = Field(description="names that `type` of an event may have")
    event_seconds: float = Field(description="how long an event is kept and counts; an older one is refused")
    event_bytes: int = Field(description="memory for a tenant's events; beyond it the oldest go")
    event_id_seconds: float = Field(description="how long an event id is remembered to detect duplicates")
    event_ids: int = Field(
        description="event ids remembered to detect duplicates; the newest half is always remembered"
    )
    max_k: int = Field(description="`k`: notes of one answer or page of a search")
    max_hashtags: int = Field(MAX_HASHTAGS, description="hashtags of a note, and of a filter")
    max_generated_hashtags: int = Field(MAX_GENERATED, description="`count` of POST /generate/hashtags")
    min_hashtag_score: float = Field(
        description="least score of hashtags that `?generate` gives a note, without `min_score`"
    )
    min_category_probability: float = Field(description="least probability of a category that `?generate` gives a note")
    max_categories: int = Field(MAX_CATEGORIES, description="names of a request's closed set")
    max_category_tokens: int = Field(MAX_CATEGORY_TOKENS, description="tokens of all names of a closed set together")
    max_blocked_hashtags: int = Field(MAX_BLOCKED, description="`blocked` of a request")
    max_embedded: int = Field(MAX_EMBEDDED, description="texts of one POST /v1/embeddings")
    max_excluded: int = Field(
        MAX_EXCLUDED, description="ids in `exclude` of a query string, and of a body beside `filter`"
    )
    max_filter_excluded: int = Field(MAX_FILTER_EXCLUDED, description="ids in `exclude` of a `filter`")
    max_filter_depth: int = Field(MAX_FILTER_DEPTH, description="groups within each other, the outermost included")
    max_filter_conditions: int = Field(MAX_FILTER_CONDITIONS, description="fields and attributes that all groups test")
    max_filter_values: int = Field(MAX_FILTER_VALUES, description="values of one condition")
    max_attributes: int = Field(MAX_ATTRIBUTES, description="attributes of a note, and of a filter")
    filter_attributes: list[str] = Field(description="attributes that filters may ask about")
    max_examples: int = Field(MAX_EXAMPLES, description="positive examples of one search, and as many negative ones")
    max_boosts: int = Field(MAX_BOOSTS, description="boosts of one search")
    max_weight: float = Field(MAX_WEIGHT, description="weight of an example, a boost or a source")
    max_cap: int = Field(MAX_CAP, description="`max_per_author` and `max_per_category`")
    max_searches: int = Field(MAX_SEARCHES, description="searches of one POST /similar/batch")
    max_candidates: int = Field(MAX_DEPTH, description="notes that diversity, caps, collapse and boosts choose among")
    max_list_notes: int = Field(MAX_LIST_NOTES, description="notes of a list that is kept for its pages")
    max_list_bytes: int = Field(description="bytes of such a list as it is kept; a larger one is cut")
    max_lists: int = Field(description="lists kept of one tenant; beyond it the oldest one goes")
    page_seconds: float = Field(description="how long a list is kept")
    scenarios: list[str] = Field(description="names that `scenario` of a search may have")
    max_containers: int = Field(MAX_CONTAINERS, description="lists and objects of one note or body, itself included")
    max_search_containers: int = Field(MAX_SEARCH_CONTAINERS, description="the same of a search, and of a filter")
    max_ids: int = Field(MAX_IDS, description="ids of one request to read notes, and of a receipt")
    max_removed_ids: int = Field(MAX_REMOVED_IDS, description="ids of one request to remove notes")
    max_page: int = Field(MAX_PAGE, description="notes of a page of GET /notes")
    max_read_bytes: int = Field(
        MAX_READ_BYTES,
        description="bytes of the notes of a page of GET /notes, and of an answer of POST /notes/get, as they are "
        "stored (one note alone may have more); and of the fields that searches of one request `include`, as JSON",
    )
    max_changes: int = Field(MAX_CHANGES, description="changes of one answer of GET /changes")
    max_change_seconds: float = Field(
        MAX_CHANGE_SECONDS,
        description="`wait` of GET /changes, in seconds; the wait ends a second before the request's deadline, or "
        "after half of the time left where less than two seconds are left",
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
    queue_notes: int = Field(
        description="notes that may wait for the model; 429 beyond. Of several tenants each has half of what is left"
    )
    queue_seconds: float = Field(
        description="seconds of the model's work that may wait in the interactive lane; 429 beyond"
    )
    interactive_seconds: float = Field(
        description="deadline of one note or text without X-Request-Timeout; lists have `request_seconds`"
    )
    request_seconds: float = Field(
        description="longest deadline of a request, and that of a list without X-Request-Timeout; 504 beyond"
    )
    head_seconds: float = Field(HEAD_SECONDS, description="seconds for the head of a request; 408 beyond")
    body_seconds: float = Field(BODY_SECONDS, description="seconds of a pause within a body; 408 beyond")
    min_body_rate: int = Field(MIN_BODY_RATE, description="bytes a second of a body, on average; 408 below")
    idle_seconds: float = Field(IDLE_SECONDS, description="how long a connection is kept between two requests")
    answer_seconds: float = Field(
        ANSWER_SECONDS, description="how long a caller may take nothing of an answer; its connection ends then"
    )
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
    max_tenants: int = Field(
        description="tenants of the whole service, the default one included; a key of one more gets 403"
    )
    max_connections: int = Field(description="connections of one process; 503 beyond")
    max_keys: int = Field(MAX_KEYS, description="API keys of all tenants together")
    max_keys_of_tenant: int = Field(
        MAX_KEYS_OF_TENANT, description="API keys of a tenant; a key with the scope admin can make more"
    )
    idempotency_seconds: float = Field(description="how long a write is remembered by its Idempotency-Key")
    read_title_tokens: int = Field(
        description="tokens of a title that the model reads; a token is about 0.8 words. More is stored and not read; "
        "such an answer says `truncated: true`"
    )
    read_hashtag_tokens: int = Field(description="tokens of the hashtags of a note that the model reads")
    read_content_tokens: int = Field(description="tokens of a content that the model reads")


class Check(BaseModel):
    """State of one part of the service."""

    ok: bool = Field(description="false: because of this part the process is not ready")
    detail: str = Field(description="the state in words")


class StartOut(BaseModel):
    """State of the start of a process."""

    started: bool = Field(description="false: other requests than probes get 503")
    detail: str = Field(
        description="the present step of the start, and for a caller of the default tenant how far it is"
    )


class ReadyOut(BaseModel):
    """State of a process. Numbers of notes and the log position are those of the caller's tenant."""

    ready: bool = Field(description="true: each check is ok")
    checks: dict[Literal["store", "index", "engine", "readers", "start", "drain"], Check] = Field(
        description="by part; only `start` before the process has started, and `drain` after it was asked to end"
    )
    durable: bool | None = Field(
        None, description=f"an acknowledged note survives the death of Redis; {STARTING}, or the store does not answer"
    )
    model: str | None = Field(None, description=f"name of the model that serves; {STARTING}")
    space: str | None = Field(None, description=f"name of the model's vector space; {STARTING}")
    log_position: str | None = Field(None, description=f"log position that the index has reached; {NO_TENANT}")
    notes: int | None = Field(None, description=f"notes in the index; {NO_TENANT}")
    notes_of_another_model: int | None = Field(
        None, description=f"notes that another model embedded, so that no search finds them; {NO_TENANT}"
    )


class Differing(BaseModel):
    """Notes that differ in one way."""

    count: int = Field(description="number of the notes")
    ids: list[str] = Field(description=f"the first {MAX_REPORTED_IDS} of their ids")

    @classmethod
    def of(cls, ids: Sequence[str]) -> Self:
        return cls(count=len(ids), ids=list(ids[:MAX_REPORTED_IDS]))


class VerifyOut(BaseModel):
    """Result of a comparison of the index with the store."""

    well: bool = Field(description="nothing differs, or all that did is repaired")
    repaired: bool = Field(description="the index took what differed from the store")
    notes: int = Field(description="notes in the store")
    rows: int = Field(description="notes in the index")
    notes_of_another_model: int = Field(description="notes in the store that the index must not have")
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
