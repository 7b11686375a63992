"""GET /notes, POST /notes/get, POST /notes/delete and GET /changes: many notes at once."""

from __future__ import annotations

import orjson
from fastapi import APIRouter, Request, Response

from service.access.principal import Scope
from service.api.access import check_option, needs
from service.api.bodies import TimeSlices
from service.api.bounds import check_filter, check_flat_filter
from service.api.connection import seconds_left, while_connected
from service.api.dependencies import LifecycleDep, ListUrgencyDep, ServiceDep
from service.api.idempotency import IdempotencyKeyDep, replay_headers
from service.api.json_route import SearchRoute
from service.api.problems import documented
from service.api.query import query_parameters, read_query
from service.api.schemas.collection import (
    ChangesOut,
    ChangesQuery,
    GetIn,
    GetOut,
    ListOut,
    ListQuery,
    NoteWithVector,
    ReceiptOut,
    RemoveIn,
)
from service.api.waiting import time_to_wait
from service.collection import listing

router = APIRouter(tags=["collection"], route_class=SearchRoute)


@router.get(
    "/notes",
    summary="List notes page by page",
    responses=documented(410, 422, 503),
    openapi_extra={"parameters": query_parameters(ListQuery)},
)
@needs(Scope.NOTES_READ)
async def list_notes(request: Request, service: ServiceDep) -> ListOut:
    """List notes page by page, in the order of their last writes.

    A note that is not written while you page is on exactly one page. A note that is written again meanwhile may appear
    again on a later page; a removed note no longer appears. 410 if the store was restored, or lost writes, since the
    page before: begin again without a cursor.
    """
    query = read_query(ListQuery, request)
    check_flat_filter(query, "/query", service.settings)
    return ListOut.of(
        await listing.list_notes(
            service.store, service.index, query.as_filter(), query.after, query.limit, query.cursor
        )
    )


@router.post(
    "/notes/get", summary="Get notes by their ids", responses=documented(400, 413, 415, 422, 503), response_model=GetOut
)
@needs(Scope.NOTES_READ)
async def get_notes_by_ids(body: GetIn, service: ServiceDep) -> Response:
    """Get notes by their ids, with their vectors if you ask for them.

    If the notes have more than `max_read_bytes` in total, they do not fit into one answer: `unread` lists the remaining
    ids, to request next.
    """
    answer = await listing.get_notes(service.store, body.ids, with_vectors=body.vectors is not None)
    slices, notes = TimeSlices(), list[bytes]()
    for stored in answer.notes:  # not a GetOut: serialising a thousand vectors at once holds the event loop for 0.1 s
        notes.append(NoteWithVector.with_vector(stored, body.vectors).model_dump_json().encode())
        await slices.check()
    others = orjson.dumps({"missing": answer.missing, "unreadable": answer.unreadable, "unread": answer.unread})
    return Response(b'{"notes":[%s],%s' % (b",".join(notes), others[1:]), media_type="application/json")


@router.post(
    "/notes/delete",
    summary="Remove notes by their ids or by a filter",
    responses=documented(400, 409, 410, 413, 415, 422, 503, 504),
)
@needs(Scope.NOTES_WRITE)
async def remove_notes(
    body: RemoveIn,
    request: Request,
    response: Response,
    service: ServiceDep,
    key: IdempotencyKeyDep,
    urgency: ListUrgencyDep,
) -> ReceiptOut:
    """Remove notes by their ids, or all that match a filter: `{"filter": {"author": "tom"}}` removes all notes of an
    author.

    After the 200, no answer of any replica contains them. The answer is a receipt. A dry run with a filter also
    requires the scope `notes.read`, since its receipt names the notes. If a deadline or a failure ends the request
    early, the notes removed so far stay removed; repeat the request to continue.
    """
    if body.filter is not None:
        if body.dry_run:  # its receipt says which notes match, and leaves them: that is reading
            check_option(request, Scope.NOTES_READ, "a dry run with a filter")
        check_filter(body.filter, service.settings)
    what = body.ids if body.filter is None else body.filter.as_filter()
    assert what is not None
    if body.dry_run:
        return ReceiptOut.of(await while_connected(request, urgency, service.remover.dry_run(what)))
    attempts = key.attempts(await request.body())
    receipt, replayed = await while_connected(request, urgency, service.remover.remove(what, urgency, attempts))
    response.headers.update(replay_headers(replayed))
    return ReceiptOut.of(receipt)


@router.get(
    "/changes",
    summary="List changes after a log position",
    responses=documented(410, 422, 429, 503, 504),
    openapi_extra={"parameters": query_parameters(ChangesQuery)},
)
@needs(Scope.NOTES_READ)
async def get_changes(
    request: Request, service: ServiceDep, lifecycle: LifecycleDep, urgency: ListUrgencyDep
) -> ChangesOut:
    """List the notes that were written or removed after a log position, for other systems to follow. With `wait`, the
    request waits for a change (long polling); if none comes, it is answered without one before its deadline
    (X-Request-Timeout). A note that expires is no change.

    410 if the log does not have `after` and all changes since, because it was trimmed, restored or has lost writes:
    read all notes again with GET /notes/export.
    """
    query = read_query(ChangesQuery, request)
    wait = min(query.wait, time_to_wait(seconds_left(urgency)))
    reading = service.changes.read(query.after, query.limit, wait, lambda: lifecycle.draining)
    return ChangesOut.of(await while_connected(request, urgency, reading))
