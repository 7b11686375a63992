"""Errors, named in the words of the layer that raises them. api/problems.py gives each its HTTP status code.

NoteLLMError
├── NoteNotFound          no such note: it was never added, was deleted or has expired
├── ExamplesNotFound      a search names notes that do not exist; carries pointers to them
├── ListExpired           the list of a cursor is no longer kept, or never existed
├── InvalidInput          the request is well-formed, but not valid; carries pointers to the fields
├── MalformedBody         the body is not JSON, or not UTF-8
├── UnsupportedMediaType  the address does not accept the body's type or encoding
├── LimitExceeded         a body, note or batch is over its published limit
├── MalformedHeader       a header has an invalid value, or asks for what the address does not support
├── KeyReused             the Idempotency-Key was already used for another request
├── TenantNotFound        no such tenant
├── TenantRemoved         the tenant was removed during the request
├── TooManyTenants        the service has reached its maximum number of tenants
├── PreconditionFailed    the note does not meet If-Match or If-None-Match, for example since it changed
├── OtherSpace            the vector of a note is from another model; carries pointers to examples
├── Unauthenticated       the request has no valid key
├── Forbidden             the key lacks the scope or tenant; without a key: another host, or a foreign page's change
├── ApiKeyNotFound        no such key, or not one of the caller's tenant
├── TooManyApiKeys        the maximum number of keys is reached
├── LogCut                the change log does not reach back to the requested position
├── StoredNoteUnreadable  the stored form of the note cannot be read
└── TryLater              a temporary state; carries the seconds to wait
    ├── KeyInUse          an earlier request with the same Idempotency-Key is still running
    ├── QuotaExceeded     the caller's key has used up its quota of requests or tokens
    ├── QueueFull         the model's queue is full, or too long for the caller's deadline
    ├── TooManyWaiting    the maximum number of requests of this kind is running or waiting
    ├── BodiesFull        the bodies of all requests take up all memory for bodies
    ├── VerifyRunning     a comparison of index and store is already running
    ├── DeadlineExceeded  the deadline of the request has passed
    ├── StoreUnavailable  Redis does not answer, or refuses to write
    ├── IndexBehind       the index did not reach a log position in time
    ├── NoteContended     others keep changing the note while the request changes it
    ├── BehaviourBehind   the events from before the start, or a purge, are still being read
    ├── EngineFailed      the model failed on this batch
    ├── TenantOpening     the caller's tenant is being opened, or could not be opened
    ├── Starting          the service is not ready for requests yet
    └── Stopping          the service is shutting down

SnapshotRefused is not one of them: the index answers it by rebuilding from the store, so that no caller sees it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
        more = f" {self.left_out} more errors are left out." if self.left_out else ""
        super().__init__(f"The request is well-formed, but some of its fields are not valid; see errors.{more}")

    def under(self, prefix: str) -> InvalidInput:
        """Return the same error with pointers below `prefix`."""
        return InvalidInput(_under(prefix, self.errors), self.left_out)

    def shortened(self, max_errors: int) -> InvalidInput:
        """Return the same error with at most `max_errors` field errors."""
        return InvalidInput(self.errors[:max_errors], self.left_out + len(self.errors[max_errors:]))


class ExamplesNotFound(NoteLLMError):
    """Examples of a search do not exist. `errors`: one for each. `skipped`: whether the search left them out, but had
    too few left to rank by."""

    def __init__(self, errors: Sequence[FieldError], skipped: bool = False) -> None:
        self.errors = tuple(errors)
        self.skipped = skipped
        super().__init__(
            "These examples were left out; see errors. Without them too few examples are left to rank by: add others "
            "(with the strategy average, a positive one)."
            if skipped
            else "There are no such notes: they were never added, were deleted, or have expired; see errors. "
            'With "on_missing": "skip" they are left out.'
        )

    def under(self, prefix: str) -> ExamplesNotFound:
        """Return the same error with pointers below `prefix`."""
        return ExamplesNotFound(_under(prefix, self.errors), self.skipped)


def _under(prefix: str, errors: Sequence[FieldError]) -> list[FieldError]:
    """Return the field errors with pointers below `prefix`."""
    return [FieldError(prefix + error.pointer, error.detail) for error in errors]


class ListExpired(NoteLLMError):
    def __init__(self) -> None:
        super().__init__(
            "The list of this cursor is no longer kept: lists are kept for page_seconds of GET /limits, and only the "
            'newest max_lists of them. Begin again with cursor "*".'
        )


class MalformedBody(NoteLLMError):
    def __init__(self, detail: str) -> None:
        super().__init__(f"The body could not be read as UTF-8 JSON: {detail}")
        self.detail = detail


class UnsupportedMediaType(NoteLLMError):
    """The body has a type or encoding that the address does not take. `header`: Content-Type or Content-Encoding;
    `accepted`: the values that it may have, in words."""

    def __init__(self, header: str, value: str, accepted: str) -> None:
        super().__init__(f"The body's {header} is {value[:100]!r}; this address takes {accepted}.")
        self.header = header
        self.accepted = accepted


class LimitExceeded(NoteLLMError):
    """A request is over a bound. `bound`: its name on GET /limits."""

    def __init__(self, bound: str, limit: int) -> None:
        super().__init__(f"The request is over the bound {bound} = {limit}; split or shorten it. See GET /limits.")
        self.bound = bound
        self.limit = limit


class MalformedHeader(NoteLLMError):
    def __init__(self, header: str, problem: str) -> None:
        super().__init__(f"The header {header} {problem}.")


class KeyReused(NoteLLMError):
    def __init__(self) -> None:
        super().__init__(
            "This Idempotency-Key was already used for another request: another method, address, query, If-Match or "
            "body. Use a new key for a new request."
        )


class SnapshotRefused(Exception):
    """A snapshot of the index cannot be used; the message is the reason."""


class PreconditionFailed(NoteLLMError):
    def __init__(self, note_id: str) -> None:
        super().__init__(
            f"Note {note_id!r} does not meet If-Match or If-None-Match; read it again and repeat the change."
        )


class TenantNotFound(NoteLLMError):
    def __init__(self, name: str) -> None:
        super().__init__(f"There is no tenant {name!r}: it was never used, or was removed.")


class TenantRemoved(NoteLLMError):
    def __init__(self) -> None:
        super().__init__(
            "All data of this key's tenant was removed, or the store was emptied, during this request. Nothing of "
            "the request is stored; if you repeat it, it finds an empty tenant, or its key is refused."
        )


class TooManyTenants(NoteLLMError):
    def __init__(self, limit: int) -> None:
        super().__init__(
            "This key's tenant is new, and the service has reached its maximum number of tenants: max_tenants = "
            f"{limit} of GET /limits. The operator can raise NOTELLM_MAX_TENANTS, or remove another tenant."
        )


class OtherSpace(NoteLLMError):
    """A search names notes whose vectors are from another model than `model`, which serves here. `note_id`: the first
    of these notes. `errors`: one for each of them that is an example in the request, not the note of the address."""

    def __init__(self, note_id: str, model: str, errors: Sequence[FieldError] = ()) -> None:
        self.note_id = note_id
        self.model = model
        self.errors = tuple(errors)
        all_examples = ' `errors` names all such examples; with "on_missing": "skip" they are left out.'
        # The message does not advise writing the note again: a replica of the old model would replace the new model's
        # vector.
        super().__init__(
            f"Note {note_id!r} was embedded by another model than {model!r}, which serves here, and vectors of two "
            "models cannot be compared. While the model is being changed, ask a replica with the other model, or try "
            f"again once the change is complete.{all_examples if errors else ''}"
        )

    def under(self, prefix: str) -> OtherSpace:
        """Return the same error with pointers below `prefix`."""
        return OtherSpace(self.note_id, self.model, _under(prefix, self.errors))


class LogCut(NoteLLMError):
    """The log cannot be followed from `position`: it begins later, at `first`, or ends earlier, at `last`; without
    either, it has no entry at `position`."""

    def __init__(self, position: str, *, first: str | None = None, last: str | None = None) -> None:
        if first is not None:
            reason = f"begins at {first} and does not reach back to {position}"
        else:
            lack = f"has no entry at {position}" if last is None else f"ends at {last}, before {position}"
            reason = f"{lack}: the store was restored or lost writes, or the position is of another store"
        super().__init__(
            f"The change log {reason}. Later changes cannot be listed one by one: read all notes again (GET "
            "/notes/export), and continue from the position where that ends."
        )


class StoredNoteUnreadable(NoteLLMError):
    def __init__(self, note_id: str, reason: str) -> None:
        super().__init__(
            f"Note {note_id!r} is stored but cannot be read: {reason}. It is left out of all answers until you POST "
            "or PUT it again, or DELETE it."
        )


class Unauthenticated(NoteLLMError):
    """No valid key was sent. `reason`: label for metrics. `offered`: whether the request has a key."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{detail} Send a valid key as Authorization: Bearer <key>.")
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
        super().__init__(f"There is no key {prefix!r} that you may see; GET /keys lists the existing ones.")


class TooManyApiKeys(NoteLLMError):
    def __init__(self, limit: int, name: str = "max_keys") -> None:
        super().__init__(f"The maximum number of keys is reached: {name} = {limit}. Revoke unused ones; see GET /keys.")


class TryLater(NoteLLMError):
    retry_after = 1
    """Seconds that the caller should wait."""


class KeyInUse(TryLater):
    """Another request holds the Idempotency-Key. `seconds`: time within which it has ended."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            "An earlier request with this Idempotency-Key is still running; repeat the request to get its answer. If "
            f"its process has died, the key is free again after {math.ceil(seconds)} s."
        )


class QuotaExceeded(TryLater):
    """The key's quota is used up. `seconds`: time until a request is allowed again."""

    def __init__(self, seconds: float) -> None:
        self.retry_after = max(1, math.ceil(seconds))
        super().__init__(
            f"Your key has used up its quota of requests or model tokens per minute; try again in {self.retry_after} "
            "s. The headers RateLimit and RateLimit-Policy have the details."
        )


class QueueFull(TryLater):
    """The queue has no room for this caller. `waiting`: notes of the caller's tenant that wait in its lane. `seconds`:
    expected wait until a note would start."""

    def __init__(self, waiting: int, seconds: float) -> None:
        self.retry_after = max(1, math.ceil(seconds))
        super().__init__(
            f"{waiting} of your notes already wait for the model in this lane, and the next one would wait for about "
            f"{seconds:.1f} s: too long for your deadline (X-Request-Timeout), or more than may wait (GET /limits); "
            f"try again in {self.retry_after} s."
        )


class TooManyWaiting(TryLater):
    """The maximum of requests of a kind is running or waiting. `bound`: the limit's name on GET /limits."""

    def __init__(self, bound: str, limit: int) -> None:
        super().__init__(
            f"The maximum number of such requests is running already, {bound} = {limit} of GET /limits; try again."
        )


class BodiesFull(TryLater):
    """The memory for bodies is used up. `free_bytes`: length up to which a body is not counted."""

    def __init__(self, free_bytes: int) -> None:
        super().__init__(
            "The bodies of all current requests take up all memory for bodies (max_bodies_bytes); try again, or send "
            f"fewer notes at a time: a body of {free_bytes} bytes is always accepted."
        )


class VerifyRunning(TryLater):
    retry_after = 10

    def __init__(self) -> None:
        super().__init__("Index and store are already being compared; one comparison runs at a time. Try again later.")


class DeadlineExceeded(TryLater):
    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"The answer was not ready after {seconds:g} s. What this request has stored stays stored; try again, "
            "with fewer notes at once, and with ids or an Idempotency-Key if it adds notes."
        )


class StoreUnavailable(TryLater):
    def __init__(self, detail: str) -> None:
        super().__init__(
            f"The store does not answer: {detail}. It is not certain whether this request took effect; try again."
        )


class IndexBehind(TryLater):
    def __init__(self, position: str, reached: str) -> None:
        super().__init__(
            f"The index is at log position {reached}, not yet at {position}. What this request has stored stays "
            "stored; repeat it, with ids or an Idempotency-Key if it adds notes."
        )


class NoteContended(TryLater):
    def __init__(self, note_id: str) -> None:
        super().__init__(
            f"Others kept changing note {note_id!r} while this request changed it, and nothing of the request was "
            "stored. Try again."
        )


class BehaviourBehind(TryLater):
    """The stream of events has not been read to its end yet. `reads`: number of reads taken in so far."""

    def __init__(self, reads: int) -> None:
        super().__init__(
            f"This replica is still reading the events from before its start or from before a purge ({reads} reads so "
            "far); try again."
        )


class EngineFailed(TryLater):
    def __init__(self, detail: str) -> None:
        super().__init__(
            f"The model failed: {detail}. What this request has stored stays stored; repeat it, with ids or an "
            "Idempotency-Key if it adds notes."
        )


class TenantOpening(TryLater):
    """The tenant is not open yet. `progress`: progress of its index, as a text. `seconds`: time after which it may be
    open."""

    def __init__(self, progress: str, seconds: float = 1.0) -> None:
        self.retry_after = max(1, math.ceil(seconds))
        super().__init__(f"The tenant of this key is not open yet ({progress}); try again.")


class Starting(TryLater):
    """The service has not started yet. `step`: the current step of the start, without numbers: not every caller may
    know how many notes there are."""

    def __init__(self, step: str) -> None:
        super().__init__(f"The service is starting ({step}); try again. GET /startupz tells when it has started.")


class Stopping(TryLater):
    def __init__(self) -> None:
        super().__init__("The service is shutting down; try again, another replica may answer.")
