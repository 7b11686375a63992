"""Errors, named in the words of the layer that raises them. api/problems.py gives each its HTTP status code.

NoteLLMError
├── NoteNotFound          the note does not exist, was deleted or has expired
├── ExamplesNotFound      examples of a search are missing; `errors` points to them
├── ListExpired           the result list of a cursor has expired, or never existed
├── InvalidInput          well-formed, but fields are not valid; `errors` points to them
├── MalformedBody         the body is not valid UTF-8 JSON
├── BodyNotTaken          the request has a body that it would ignore
├── UnsupportedMediaType  the endpoint does not accept the body's media type or encoding
├── LimitExceeded         the body, note or batch exceeds a limit of GET /limits
├── MalformedHeader       a request header is not valid, or the endpoint does not support it
├── KeyReused             the Idempotency-Key was used for a different request
├── TenantNotFound        the tenant does not exist
├── TenantRemoved         the tenant was removed during the request
├── TooManyTenants        the maximum number of tenants is reached
├── PreconditionFailed    the note does not match If-Match or If-None-Match
├── OtherSpace            a note's vector is from another model; `errors` points to the examples
├── Unauthenticated       the API key is missing, invalid, expired or revoked
├── Forbidden             the key lacks a scope; or, without keys, the Host is not allowed, or the Origin of a change
├── ApiKeyNotFound        the API key does not exist, or belongs to another tenant
├── TooManyApiKeys        the maximum number of API keys is reached
├── LogCut                the change log does not contain all changes after the position
├── StoreReplaced         the store was restored, or lost writes, while its notes were read one after the other
├── StoredNoteUnreadable  the stored note cannot be decoded
└── TryLater              a temporary state; carries the seconds to wait
    ├── KeyInUse          an earlier request with the same Idempotency-Key is still running
    ├── QuotaExceeded     the API key's quota of requests or tokens is used up
    ├── QueueFull         the model's queue is full, or the wait would be too long for this request
    ├── TooManyWaiting    the maximum number of concurrent requests of this kind is reached
    ├── BodiesFull        the memory for request bodies is used up
    ├── VerifyRunning     a comparison of index and store is already running
    ├── DeadlineExceeded  the request took longer than its timeout
    ├── StoreUnavailable  Redis does not answer, or refuses to write
    ├── IndexBehind       the index did not reach a log position in time
    ├── NoteContended     concurrent requests kept changing the note
    ├── BehaviourBehind   events from before the start, or from before a purge, are still being read
    ├── EngineFailed      the model failed on this batch
    ├── TenantOpening     the caller's tenant is being opened, or opening it failed
    ├── Starting          the service is still starting
    └── Stopping          the service is shutting down

SnapshotRefused is not one of them: the index answers it by rebuilding from the store, so that no caller sees it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MAX_ERRORS = 20
"""Bound on the field errors of one problem; its detail gives the number of further ones."""


class NoteLLMError(Exception):
    """Base class of all errors that a caller sees. `str(error)` tells the caller what happened and what to do."""


class NoteNotFound(NoteLLMError):
    def __init__(self, note_id: str) -> None:
        super().__init__(f"There is no note {note_id!r}: it was never added, was deleted, or has expired.")
        self.note_id = note_id


@dataclass(frozen=True, slots=True)
class FieldError:
    """An invalid field. `pointer`: RFC 6901, into the body ("/title") or the query ("?k" as "/query/k")."""

    pointer: str
    detail: str


class InvalidInput(NoteLLMError):
    """The request is well-formed but not valid. `errors`: at most MAX_ERRORS; `left_out`: how many more there are."""

    def __init__(self, errors: Sequence[FieldError], left_out: int = 0) -> None:
        self.errors = tuple(errors[:MAX_ERRORS])
        self.left_out = left_out + len(errors) - len(self.errors)
        others = len(self.errors) - 1
        more = f" `errors` has {others} more." if others else ""
        more += f" {self.left_out} more are not listed." if self.left_out else ""
        first = self.errors[0]
        super().__init__(f"The request is not valid: {first.pointer} {first.detail}.{more}")

    def under(self, prefix: str) -> InvalidInput:
        """Return the same error with pointers below `prefix`."""
        return InvalidInput(_under(prefix, self.errors), self.left_out)

    def shortened(self, max_errors: int) -> InvalidInput:
        """Return the same error with at most `max_errors` field errors."""
        return InvalidInput(self.errors[:max_errors], self.left_out + len(self.errors[max_errors:]))


class ExamplesNotFound(NoteLLMError):
    """Examples of a search are missing (`OnMissing` in search/request.py). `errors`: one for each. `skipped`: whether
    the search left them out, but had too few left to rank by."""

    def __init__(self, errors: Sequence[FieldError], skipped: bool = False) -> None:
        self.errors = tuple(errors)
        self.skipped = skipped
        super().__init__(
            "The examples in `errors` were skipped, and too few are left to rank by. Send other examples (the strategy "
            "average needs a positive one)."
            if skipped
            else "Some examples do not exist: their notes were never added, were deleted, or have expired; see "
            '`errors`. Set "on_missing": "skip" to skip them.'
        )

    def under(self, prefix: str) -> ExamplesNotFound:
        """Return the same error with pointers below `prefix`."""
        return ExamplesNotFound(_under(prefix, self.errors), self.skipped)


def _under(prefix: str, errors: Sequence[FieldError]) -> list[FieldError]:
    """Return the field errors with pointers below `prefix`; one into the path stays."""
    return [
        error if error.pointer.startswith("/path/") else FieldError(prefix + error.pointer, error.detail)
        for error in errors
    ]


class ListExpired(NoteLLMError):
    def __init__(self) -> None:
        super().__init__(
            "The result list of this cursor has expired: the newest max_lists lists are kept, for page_seconds each "
            '(GET /limits). Start again with cursor "*".'
        )


class MalformedBody(NoteLLMError):
    def __init__(self, detail: str) -> None:
        super().__init__(f"The body could not be read as UTF-8 JSON: {detail}")
        self.detail = detail


class BodyNotTaken(NoteLLMError):
    def __init__(self) -> None:
        super().__init__("This request takes no body, and would ignore it; send none, or use another endpoint.")


class UnsupportedMediaType(NoteLLMError):
    """The body has a type or encoding that the endpoint does not accept. `header`: Content-Type or Content-Encoding;
    `accepted`: the values that it may have, in words."""

    def __init__(self, header: str, value: str, accepted: str) -> None:
        given = f"is {value[:100]!r}" if value else "is missing"
        super().__init__(f"The body's {header} {given}; this endpoint accepts {accepted}.")
        self.header = header
        self.accepted = accepted


class LimitExceeded(NoteLLMError):
    """A request is over a bound, or the note that it would make. `bound`: its name on GET /limits."""

    def __init__(self, bound: str, limit: int, subject: str = "The request") -> None:
        super().__init__(f"{subject} exceeds the limit {bound} = {limit}; split or shorten it. See GET /limits.")
        self.bound = bound
        self.limit = limit


class MalformedHeader(NoteLLMError):
    def __init__(self, header: str, problem: str) -> None:
        super().__init__(f"The header {header} {problem}.")


class KeyReused(NoteLLMError):
    def __init__(self) -> None:
        super().__init__(
            "This Idempotency-Key was used for a different request: the method, path, query, Content-Type, If-Match, "
            "If-None-Match or body differs. Use a new key for a new request."
        )


class SnapshotRefused(Exception):
    """A snapshot of the index cannot be used; the message is the reason."""


class PreconditionFailed(NoteLLMError):
    """The stored note does not meet the condition of a request. `failure`: `Condition.failure`."""

    def __init__(self, note_id: str, failure: str) -> None:
        super().__init__(
            f"The condition of this request (If-Match or If-None-Match) does not hold: note {note_id!r} {failure}. "
            "Read it again, then repeat the change if you still want it."
        )


class TenantNotFound(NoteLLMError):
    def __init__(self, name: str) -> None:
        super().__init__(f"There is no tenant {name!r}: none of its keys was ever used, or it was removed.")


class TenantRemoved(NoteLLMError):
    def __init__(self) -> None:
        super().__init__(
            "This key's tenant was removed, or the store was emptied, during this request, and nothing of the request "
            "is stored. If you repeat it, the tenant is empty, or the key is refused."
        )


class TooManyTenants(NoteLLMError):
    def __init__(self, limit: int) -> None:
        super().__init__(
            f"The tenant of this key cannot be created: the service has reached max_tenants = {limit} of GET /limits. "
            "Ask the operator to raise NOTELLM_MAX_TENANTS or to remove another tenant."
        )


class OtherSpace(NoteLLMError):
    """A search names notes whose vectors are from another model than `model`, which serves here. `note_id`: the first
    of these notes. `errors`: one for each of them that is an example in the request, not the note in the URL."""

    def __init__(self, note_id: str, model: str, errors: Sequence[FieldError] = ()) -> None:
        self.note_id = note_id
        self.model = model
        self.errors = tuple(errors)
        all_examples = ' `errors` lists all such examples; set "on_missing": "skip" to skip them.'
        # The message does not advise writing the note again: a replica of the old model would replace the new model's
        # vector.
        super().__init__(
            f"The vector of note {note_id!r} is from another model than {model!r}, the serving model, and vectors of "
            "two models cannot be compared. During a change of the model, use a replica that serves the other model, "
            f"or try again after the change.{all_examples if errors else ''}"
        )

    def under(self, prefix: str) -> OtherSpace:
        """Return the same error with pointers below `prefix`."""
        return OtherSpace(self.note_id, self.model, _under(prefix, self.errors))


class LogCut(NoteLLMError):
    """The log cannot be followed from `position`: it begins later, at `first`, or ends earlier, at `last`; without
    either, it has no entry at `position`."""

    def __init__(self, position: str, *, first: str | None = None, last: str | None = None) -> None:
        if first is not None:
            reason = f"starts at {first}, after {position}"
        else:
            lack = f"has no entry at {position}" if last is None else f"ends at {last}, before {position}"
            reason = f"{lack}: the store was restored or lost writes, or the position is from another store"
        super().__init__(
            f"The change log {reason}. Changes since {position} cannot be listed one by one: read all notes again (GET "
            "/notes/export), then continue from the position at the end of the export."
        )


class StoreReplaced(NoteLLMError):
    def __init__(self) -> None:
        super().__init__(
            "The store was restored, or has lost writes, since this reading of its notes began: what follows would "
            "lack notes that are back in an earlier version. Begin again: send a list without its cursor, and an "
            "export or a removal as the same request."
        )


class StoredNoteUnreadable(NoteLLMError):
    def __init__(self, note_id: str, reason: str) -> None:
        super().__init__(
            f"Note {note_id!r} is in the store but cannot be decoded: {reason}. Answers omit it until you write it "
            "again (POST or PUT) or DELETE it."
        )


class Unauthenticated(NoteLLMError):
    """No valid key was sent. `reason`: label for metrics. `offered`: whether the request has a key."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{detail} Send a valid key in the header Authorization: Bearer <key>.")
        self.reason = reason
        self.offered = reason != "no_key"


class Forbidden(NoteLLMError):
    """The caller may not do this. `scopes`: those of which one is needed, or all that are missing; empty if no key
    would help."""

    def __init__(self, detail: str, scopes: Sequence[str] = ()) -> None:
        super().__init__(detail)
        self.scopes = tuple(scopes)


class ApiKeyNotFound(NoteLLMError):
    def __init__(self, prefix: str) -> None:
        super().__init__(f"There is no key {prefix!r}, or your key may not see it; GET /keys lists the keys.")


class TooManyApiKeys(NoteLLMError):
    def __init__(self, limit: int, name: str = "max_keys") -> None:
        super().__init__(
            f"The maximum number of keys, {name} = {limit}, is reached; revoke unused keys (GET /keys lists them)."
        )


class TryLater(NoteLLMError):
    retry_after = 1
    """Seconds that the caller should wait."""


class KeyInUse(TryLater):
    """Another request holds the Idempotency-Key. `seconds`: time within which it has ended."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            "An earlier request with this Idempotency-Key is still running; repeat the request to get its answer. If "
            f"the process of the earlier request has died, the key is free again after {math.ceil(seconds)} s."
        )


class QuotaExceeded(TryLater):
    """The key's quota is used up. `waits`: seconds until a request like the refused one is allowed again, by what the
    quota is of."""

    def __init__(self, waits: Mapping[str, float]) -> None:
        self.retry_after = max(1, math.ceil(max(waits.values(), default=0)))
        used_up = " and ".join([name for name, seconds in waits.items() if seconds > 0] or waits)
        super().__init__(
            f"Your key has used up its quota of {used_up} per minute; try again in {self.retry_after} s. See the "
            "headers RateLimit and RateLimit-Policy."
        )


class QueueFull(TryLater):
    """The queue has no room for this caller. `waiting`: notes of the caller's tenant that wait in its lane. `seconds`:
    expected wait until a note would start."""

    def __init__(self, waiting: int, seconds: float) -> None:
        self.retry_after = max(1, math.ceil(seconds))
        super().__init__(
            f"{waiting} of your notes wait for the model in this lane, and the next one would wait for about "
            f"{seconds:.1f} s: the queue has no room for this request (queue_notes of GET /limits), or the wait is too "
            f"long for it (X-Request-Timeout, queue_seconds of GET /limits). Try again in {self.retry_after} s."
        )


class TooManyWaiting(TryLater):
    """The maximum of requests of a kind is running or waiting. `bound`: the limit's name on GET /limits."""

    def __init__(self, bound: str, limit: int) -> None:
        super().__init__(
            f"The maximum number of concurrent requests of this kind, {bound} = {limit}, is reached; try again."
        )


class BodiesFull(TryLater):
    """The memory for bodies is used up. `free_bytes`: length up to which a body is not counted."""

    def __init__(self, free_bytes: int) -> None:
        super().__init__(
            "The memory for the bodies of concurrent requests is used up (max_bodies_bytes of GET /limits); try again, "
            f"or send fewer notes at a time: a body of at most {free_bytes} bytes is always accepted."
        )


class VerifyRunning(TryLater):
    retry_after = 10

    def __init__(self) -> None:
        super().__init__(
            "A comparison of index and store is already running, and only one runs at a time; try again later."
        )


class DeadlineExceeded(TryLater):
    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"The answer was not ready after {seconds:g} s. What this request has stored or removed stays so. Try "
            "again, with fewer notes or with more time (X-Request-Timeout, at most request_seconds of GET /limits); to "
            "add notes, send ids or an Idempotency-Key, so that none is added twice."
        )


class StoreUnavailable(TryLater):
    def __init__(self, detail: str) -> None:
        super().__init__(
            f"The store is unavailable: {detail}. Try again. If this request is a write, it may or may not be stored."
        )


class IndexBehind(TryLater):
    def __init__(self, position: str, reached: str) -> None:
        super().__init__(
            f"The index has reached log position {reached}, but not yet {position}. What this request has stored stays "
            "stored. Try again; to add notes, send ids or an Idempotency-Key, so that none is added twice."
        )


class NoteContended(TryLater):
    def __init__(self, note_id: str) -> None:
        super().__init__(
            f"Concurrent requests kept changing note {note_id!r}, so this change was not stored. Try again."
        )


class BehaviourBehind(TryLater):
    """The stream of events has not been read to its end yet. `reads`: number of reads taken in so far."""

    def __init__(self, reads: int) -> None:
        super().__init__(
            "This replica is still reading the events from before its start or before a purge "
            f"({reads} reads of notes so far); try again."
        )


class EngineFailed(TryLater):
    def __init__(self, detail: str) -> None:
        super().__init__(
            f"The model failed: {detail}. What this request has stored stays stored. Try again; to add notes, send ids "
            "or an Idempotency-Key, so that none is added twice."
        )


class TenantOpening(TryLater):
    """The tenant is not open yet. `progress`: progress of its index, as a text. `seconds`: time after which it may be
    open."""

    def __init__(self, progress: str, seconds: float = 1.0) -> None:
        self.retry_after = max(1, math.ceil(seconds))
        super().__init__(f"The tenant of this key is not ready yet ({progress}); try again.")


class Starting(TryLater):
    """The service has not started yet. `step`: the current step of the start, without numbers: not every caller may
    know how many notes there are."""

    def __init__(self, step: str) -> None:
        super().__init__(f"The service is starting ({step}); try again when GET /startupz returns 200.")


class Stopping(TryLater):
    def __init__(self) -> None:
        super().__init__("This process is shutting down; try again, another replica may answer.")
