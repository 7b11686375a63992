"""A list of searches: each gets its own answer or problem, in order. The model reads the texts of all of them
together."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fastapi import Request
from pydantic import ValidationError

from model.note import Note
from service.admission import Urgency
from service.api.access import count_items
from service.api.bodies import MAX_SEARCH_CONTAINERS, TimeSlices, count_list, parse_json, read_list
from service.api.bounds import check_note_size
from service.api.included import IncludedFields
from service.api.problems import inner_problem, invalid_value
from service.api.schemas.search import MAX_SEARCHES, SearchResult, SimilarIn
from service.api.schemas.similar import IncludedField, SimilarOut
from service.api.search_options import read_options
from service.api.waiting import wait_for_position
from service.container import Service
from service.errors import MalformedBody, NoteLLMError, TryLater
from service.read_time import READ_SECONDS, ReadTime
from service.records import Vector
from service.search.examples import check_examples
from service.search.request import FIRST_PAGE, SearchRequest

MAX_PARSED_BYTES = 4096
"""Bytes of a search above which its list holds it as it was sent: parsed, it takes about twenty times as much memory
if its ids are short (calculated)."""


@dataclass(frozen=True, slots=True)
class ListedSearch:
    """A valid search of a list, the log position that it waits for, the variant of its scenario, and the additional
    fields of its items."""

    request: SearchRequest
    position: str | None
    variant: str | None
    include: Sequence[IncludedField]

    @property
    def texts(self) -> list[Note]:
        """Texts that the model has to read; none for a later page of a list."""
        return self.request.texts if self.request.cursor in (None, FIRST_PAGE) else []


@dataclass(frozen=True, slots=True)
class LargeSearch:
    """A valid search of more than MAX_PARSED_BYTES, as it was sent. It is parsed again when it is answered: a hundred
    searches that exclude 10,000 ids each are a million objects, and the garbage collector took 80 ms to visit them."""

    raw: bytes
    texts: list[Note]


async def answer_list(body: bytes, request: Request, service: Service, urgency: Urgency) -> bytes:
    """Answer the searches of a JSON list; return the answer's JSON. Raises MalformedBody, LimitExceeded, QuotaExceeded,
    InvalidInput, and what reading the texts raises if each search has texts."""

    def parse(raw: bytes) -> ListedSearch:
        return _parse_search(raw, request, service)

    def read(raw: bytes, pointer: str) -> ListedSearch | LargeSearch | SearchResult:
        try:
            search = parse(raw)
            return search if len(raw) <= MAX_PARSED_BYTES else LargeSearch(raw, search.texts)
        except MalformedBody:
            raise
        except NoteLLMError as error:
            return _failed(error)

    slices, limit = TimeSlices(), ("max_searches", MAX_SEARCHES)
    await count_items(request, await count_list(body, slices, limit))  # validating them takes seconds in all
    searches = await read_list(body, slices, limit, read, _failed)
    valid = [one for one in searches if not isinstance(one, SearchResult)]
    vectors, failure = await _read_texts(valid, service, urgency)
    included = IncludedFields(service.store)
    waits_until = time.monotonic() + min(READ_SECONDS, urgency.seconds)  # deadline of all waits for positions together
    time_left, results = ReadTime(), []
    for one in searches:
        time_left = time_left.for_next_read()
        if isinstance(one, SearchResult):
            result = one
        elif failure and one.texts:
            result = _failed(failure)
        else:
            one = parse(one.raw) if isinstance(one, LargeSearch) else one
            result = await _answer(one, vectors, included, service, urgency, waits_until, time_left)
        answered = result.answer is not None
        results.append(result.model_dump_json(exclude_unset=answered, exclude_none=not answered).encode())
        await slices.check()
    return b'{"results":[%s]}' % b",".join(results)


def _parse_search(raw: bytes, request: Request, service: Service) -> ListedSearch:
    """Parse and validate one search. Raises MalformedBody, InvalidInput, LimitExceeded, Forbidden."""
    check_note_size(len(raw), service.settings)
    try:
        body = SimilarIn.model_validate(parse_json(raw, max_containers=MAX_SEARCH_CONTAINERS))
    except ValidationError as error:
        raise invalid_value(error) from error
    options = read_options(body, request, service, "")
    search = options.as_request(body.positives(), body.negatives())
    check_examples(search)
    return ListedSearch(search, options.min_log_position, options.variant, options.include)


async def _read_texts(
    searches: Sequence[ListedSearch | LargeSearch], service: Service, urgency: Urgency
) -> tuple[Iterator[Vector], TryLater | None]:
    """Return the vectors of all texts, in order, and None; or no vectors, and why the model could not read the texts.
    Raises that error if each search has texts, since none would have an answer."""
    texts = [note for one in searches for note in one.texts]
    try:
        return iter(await service.search.read_texts(texts, urgency) if texts else ()), None
    except TryLater as error:
        if all(one.texts for one in searches):
            raise
        return iter(()), error


async def _answer(
    one: ListedSearch,
    vectors: Iterator[Vector],
    included: IncludedFields,
    service: Service,
    urgency: Urgency,
    waits_until: float,
    time_left: ReadTime,
) -> SearchResult:
    texts = [next(vectors) for _ in one.texts]
    try:
        if one.position:
            await wait_for_position(one.position, "", service, time_left, max(0.0, waits_until - time.monotonic()))
        similar = await service.search.related(one.request, urgency, texts, time_left)
    except NoteLLMError as error:
        return _failed(error)
    answer = SimilarOut.of(similar, None, service.engine.name, one.variant)
    await included.add(answer, similar, one.include, time_left)
    return SearchResult(status=200, answer=answer)


def _failed(error: NoteLLMError) -> SearchResult:
    problem = inner_problem(error)
    return SearchResult(status=problem.status, problem=problem)
