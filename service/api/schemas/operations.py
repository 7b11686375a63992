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
    MAX_HEADERS,
    MAX_QUERY_PARAMETERS,
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
from service.search.sources import MAX_DEPTH, MIN_DEPTH
from service.verify import KINDS, Kind, Report

MAX_REPORTED_IDS = 20
"""Bound on the ids of each kind that the answer of POST /verify names."""


STARTING = "null if the process has not started"
NO_TENANT = "null if the process has not started, if the caller lacks a required key, or if its tenant is not open"


class LimitsOut(BaseModel):
    """Limits of the service, except those of single fields of a body. A request over a limit gets 413 with its name,
    or 422 with its value, unless another status is stated."""

    max_head_bytes: int = Field(MAX_HEAD_BYTES, description="maximum bytes of request line and headers; 431 beyond")
    max_headers: int = Field(MAX_HEADERS, description="maximum header fields of a request; 431 beyond")
    max_query_parameters: int = Field(MAX_QUERY_PARAMETERS, description="maximum parameters of a query; 414 beyond")
    max_body_bytes: int = Field(description="maximum bytes of one body; a stream of notes is not limited")
    max_bodies_bytes: int = Field(
        description="maximum bytes of memory for all request bodies together; 429 beyond. Of a stream of notes, only "
        "the incomplete last line counts"
    )
    max_note_bytes: int = Field(description="maximum bytes of one note, and of every JSON body that is not a list")
    max_import_bytes: int = Field(description="maximum bytes of one note of POST /notes/import, including its vector")
    max_batch_notes: int = Field(description="maximum notes of one list or import; a stream is not limited")
    max_batch_events: int = Field(description="maximum events of one list")
    max_event_bytes: int = Field(MAX_EVENT_BYTES, description="maximum bytes of one event as JSON")
    max_event_lines: int = Field(MAX_EVENT_LINES, description="maximum lines of one NDJSON body of events")
    max_event_ahead_seconds: float = Field(
        MAX_AHEAD_SECONDS,
        description="maximum seconds by which the time of an event may lie in the future; such an event counts as now",
    )
    max_event_position: int = Field(MAX_POSITION, description="maximum `position` of an event")
    event_types: list[str] = Field(description="allowed values of `type` of an event")
    event_seconds: float = Field(description="seconds for which an event is kept and counts; an older event is refused")
    event_bytes: int = Field(
        description="maximum bytes of memory for a tenant's events; beyond it the oldest are removed"
    )
    event_id_seconds: float = Field(description="seconds for which an event id is remembered to detect duplicates")
    event_ids: int = Field(
        description="maximum event ids remembered to detect duplicates; beyond it the older half is forgotten"
    )
    max_k: int = Field(description="maximum `k`: notes of one answer or page of a search")
    max_hashtags: int = Field(MAX_HASHTAGS, description="maximum hashtags of a note, and of a filter")
    max_generated_hashtags: int = Field(MAX_GENERATED, description="maximum `count` of POST /generate/hashtags")
    min_hashtag_score: float = Field(
        description="minimum score of hashtags that `?generate` gives a note, unless the request sends `min_score`. "
        "Independent of `min_hashtag_score` in the checkpoint's notellm.json, which drops hashtags that the model is "
        "unlikely to write"
    )
    min_category_probability: float = Field(
        description="minimum probability of a category that `?generate` gives a note"
    )
    max_categories: int = Field(MAX_CATEGORIES, description="maximum names of a request's closed set of categories")
    max_category_tokens: int = Field(
        MAX_CATEGORY_TOKENS, description="maximum tokens of all names of a closed set together"
    )
    max_blocked_hashtags: int = Field(MAX_BLOCKED, description="maximum hashtags in `blocked` of a request")
    max_embedded: int = Field(MAX_EMBEDDED, description="maximum texts of one POST /v1/embeddings")
    max_excluded: int = Field(
        MAX_EXCLUDED, description="maximum ids in `exclude` of a query string, and of a body (outside of `filter`)"
    )
    max_filter_excluded: int = Field(MAX_FILTER_EXCLUDED, description="maximum ids in `exclude` of a `filter`")
    max_filter_depth: int = Field(
        MAX_FILTER_DEPTH, description="maximum nesting depth of groups of a filter, including the outermost"
    )
    max_filter_conditions: int = Field(
        MAX_FILTER_CONDITIONS,
        description="maximum conditions of a filter: fields and attributes in all groups together",
    )
    max_filter_values: int = Field(MAX_FILTER_VALUES, description="maximum values of one condition")
    max_attributes: int = Field(MAX_ATTRIBUTES, description="maximum attributes of a note, and of a filter")
    filter_attributes: list[str] = Field(description="attributes that filters may use")
    max_examples: int = Field(
        MAX_EXAMPLES, description="maximum positive examples of one search, and maximum negative ones"
    )
    max_boosts: int = Field(MAX_BOOSTS, description="maximum boosts of one search")
    max_weight: float = Field(MAX_WEIGHT, description="maximum weight of an example, a boost or a source")
    max_cap: int = Field(MAX_CAP, description="maximum value of `max_per_author` and `max_per_category`")
    max_searches: int = Field(MAX_SEARCHES, description="maximum searches of one POST /similar/batch")
    max_candidates: int = Field(
        MAX_DEPTH,
        description="maximum candidates among which diversity, boosts, `max_per_author`, `max_per_category`, "
        "`collapse_above` and the strategy `best_score` select; the last looks at this many for all its examples "
        f"together, but at {MIN_DEPTH:,} for each",
    )
    max_list_notes: int = Field(MAX_LIST_NOTES, description="maximum notes of a list that is kept for paging")
    max_list_bytes: int = Field(description="maximum bytes of such a list as stored; a longer list is cut off")
    max_lists: int = Field(description="maximum lists kept for a tenant; beyond it the oldest is removed")
    page_seconds: float = Field(description="seconds for which a list is kept")
    scenarios: list[str] = Field(description="allowed values of `scenario` of a search")
    max_containers: int = Field(
        MAX_CONTAINERS, description="maximum lists and objects within one note or body, including itself"
    )
    max_search_containers: int = Field(
        MAX_SEARCH_CONTAINERS, description="maximum lists and objects within a search or a filter, including itself"
    )
    max_ids: int = Field(MAX_IDS, description="maximum ids of one request to read notes, and of a receipt")
    max_removed_ids: int = Field(MAX_REMOVED_IDS, description="maximum ids of one request to remove notes")
    max_page: int = Field(MAX_PAGE, description="maximum notes on a page of GET /notes")
    max_read_bytes: int = Field(
        MAX_READ_BYTES,
        description="maximum bytes of the notes on a page of GET /notes and in an answer of POST /notes/get, as "
        "stored (a single note may have more); and of the `include` fields in the answer to one request, as JSON",
    )
    max_changes: int = Field(MAX_CHANGES, description="maximum changes in one answer of GET /changes")
    max_change_seconds: float = Field(
        MAX_CHANGE_SECONDS,
        description="maximum `wait` of GET /changes, in seconds; the wait ends a second before the request's "
        "deadline, or after half of the remaining time if less than two seconds remain",
    )
    max_change_waiters: int = Field(
        MAX_CHANGE_WAITERS, description="maximum requests of a tenant that wait for changes in one process; 429 beyond"
    )
    max_exports: int = Field(MAX_EXPORTS, description="maximum exports of a tenant that run in one process; 429 beyond")
    max_reader_exports: int = Field(
        MAX_READER_EXPORTS,
        description="maximum answers with the events of a user or session that one process sends at a time for a "
        "tenant; 429 beyond",
    )
    max_event_bodies: int = Field(
        MAX_EVENT_BODIES,
        description="maximum NDJSON bodies of events that one process reads at a time for a tenant; 429 beyond",
    )
    max_erasures: int = Field(
        MAX_ERASURES,
        description="maximum removals of the events of a user or session that run in one process for a tenant; 429 "
        "beyond",
    )
    log_seconds: float = Field(
        description="seconds for which GET /changes reaches back, up to about a million changes, and at most to the "
        "last purge"
    )
    queue_notes: int = Field(
        description="maximum notes that may wait for the model; 429 beyond. With several tenants, each may take half "
        "of the places that the others leave"
    )
    queue_seconds: float = Field(
        description="maximum seconds that a note may have to wait for the model in the interactive lane; 429 beyond"
    )
    interactive_seconds: float = Field(
        description="default deadline, in seconds, of a request with one note or text; that of a list is "
        "`request_seconds`"
    )
    request_seconds: float = Field(
        description="maximum deadline of a request (X-Request-Timeout), in seconds, and default deadline of a list; "
        "504 beyond"
    )
    head_seconds: float = Field(
        HEAD_SECONDS, description="maximum seconds until the head of a request is complete; 408 beyond"
    )
    body_seconds: float = Field(BODY_SECONDS, description="maximum seconds of a pause within a body; 408 beyond")
    min_body_rate: int = Field(
        MIN_BODY_RATE, description="minimum average rate at which a body arrives, in bytes per second; 408 below"
    )
    idle_seconds: float = Field(
        IDLE_SECONDS, description="seconds for which an idle connection is kept between two requests"
    )
    answer_seconds: float = Field(
        ANSWER_SECONDS,
        description="maximum seconds for which a client may read nothing of an answer; then its connection is closed",
    )
    min_answer_rate: int = Field(
        MIN_ANSWER_RATE,
        description="minimum average rate at which a client must read an answer, in bytes per second; below it the "
        "connection is closed. A client whose receive buffer has grown to megabytes reads in steps of up to 400 KB, "
        "and needs up to 16 KiB per second",
    )
    max_unsent_bytes: int = Field(
        MAX_UNSENT_BYTES,
        description="maximum bytes of unsent answers of a process, not counting the first 128 KiB of each "
        "connection; beyond it, connections are closed that have had more than 128 KiB unsent for a second",
    )
    max_tenants: int = Field(
        description="maximum tenants of the whole service, including the default one; a key of a further tenant gets "
        "403"
    )
    max_connections: int = Field(description="maximum connections of one process; 503 beyond")
    max_keys: int = Field(MAX_KEYS, description="maximum API keys of all tenants together")
    max_keys_of_tenant: int = Field(
        MAX_KEYS_OF_TENANT, description="maximum API keys of a tenant; a key with the scope admin can create more"
    )
    idempotency_seconds: float = Field(description="seconds for which a write is remembered by its Idempotency-Key")
    read_title_tokens: int = Field(
        description="maximum tokens of a title that the model reads; a token is about 0.8 words. The rest is stored "
        "but not read, and the answer has `truncated: true`"
    )
    read_hashtag_tokens: int = Field(description="maximum tokens of a note's hashtags that the model reads")
    read_content_tokens: int = Field(description="maximum tokens of a content that the model reads")


class Check(BaseModel):
    """State of one part of the service."""

    ok: bool = Field(description="true if this part is ready; if it is not, the process is not ready either")
    detail: str = Field(description="description of the state")


class StartOut(BaseModel):
    """Startup state of a process."""

    started: bool = Field(description="true if the process has started; until then, all requests except probes get 503")
    detail: str = Field(description="current step of the start; callers of the default tenant also see its progress")


class ReadyOut(BaseModel):
    """Readiness of a process. Numbers of notes and the log position are those of the caller's tenant."""

    ready: bool = Field(description="true if every check is ok")
    checks: dict[Literal["store", "index", "engine", "readers", "start", "drain"], Check] = Field(
        description="checks by part; only `start` before the process has started, plus `drain` once it was told to stop"
    )
    durable: bool | None = Field(
        None,
        description=f"true if an acknowledged note survives a crash of Redis; {STARTING}, or if the store does not "
        "answer",
    )
    model: str | None = Field(None, description=f"name of the serving model; {STARTING}")
    space: str | None = Field(None, description=f"name of the model's vector space; {STARTING}")
    log_position: str | None = Field(None, description=f"log position that the index has reached; {NO_TENANT}")
    notes: int | None = Field(None, description=f"number of notes in the index; {NO_TENANT}")
    notes_of_another_model: int | None = Field(
        None, description=f"number of notes embedded by another model, which no search finds; {NO_TENANT}"
    )


class Differing(BaseModel):
    """Notes with one kind of difference."""

    count: int = Field(description="number of notes")
    ids: list[str] = Field(description=f"first {MAX_REPORTED_IDS} of their ids")

    @classmethod
    def of(cls, ids: Sequence[str]) -> Self:
        return cls(count=len(ids), ids=list(ids[:MAX_REPORTED_IDS]))


class VerifyOut(BaseModel):
    """Result of a comparison of the index with the store."""

    well: bool = Field(description="true if nothing differs, or if all differences were repaired")
    repaired: bool = Field(description="true if differences were found and, as far as the store allows, repaired")
    notes: int = Field(description="number of notes in the store")
    rows: int = Field(description="number of notes in the index")
    notes_of_another_model: int = Field(
        description="number of notes in the store that were embedded by another model, and so must not be in the index"
    )
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
