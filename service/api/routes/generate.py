"""POST /generate, /generate/hashtags (also as a stream), /generate/category: for a text that is not stored."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, NamedTuple

from fastapi import APIRouter, Depends, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

from model.generation import GenerationRequest, Hashtag
from model.note import Note
from service.access.principal import Scope
from service.adding import GENERATED_HASHTAGS
from service.admission import Urgency
from service.api.access import needs, needs_engine
from service.api.connection import seconds_left, while_connected
from service.api.dependencies import ServiceDep, UrgencyDep
from service.api.json_route import StrictJsonRoute
from service.api.problems import documented, inner_problem
from service.api.schemas.generate import (
    CategoryIn,
    CategoryPrediction,
    GenerateIn,
    GenerateOut,
    HashtagOut,
    HashtagRules,
    HashtagsIn,
    HashtagsOut,
)
from service.container import Service
from service.errors import DeadlineExceeded, FieldError, InvalidInput, NoteLLMError

router = APIRouter(
    tags=["generate"],
    route_class=StrictJsonRoute,
    responses=documented(400, 413, 415, 422, 429, 503, 504),
)


@router.post("/generate/hashtags", summary="Generate hashtags of a text")
@needs(Scope.GENERATE)
@needs_engine
async def hashtags(body: HashtagsIn, request: Request, service: ServiceDep, urgency: UrgencyDep) -> HashtagsOut:
    """Generate up to `count` hashtags for a text."""
    generation = requested_hashtags(body, service)
    work = service.generator.generate(body.as_note(), generation, urgency)
    output = await while_connected(request, urgency, work)
    return HashtagsOut.of(output, service.engine.name)


class StreamedHashtags(NamedTuple):
    """A valid request for a stream of hashtags."""

    note: Note
    generation: GenerationRequest
    urgency: Urgency


async def get_streamed_hashtags(body: HashtagsIn, service: ServiceDep, urgency: UrgencyDep) -> StreamedHashtags:
    """Return what a stream is to generate. A request is refused here, before the answer begins. Raises InvalidInput,
    QueueFull."""
    generation = requested_hashtags(body, service)
    if refusal := service.batcher.refusal(urgency, service.tenant):
        raise refusal
    return StreamedHashtags(body.as_note(), generation, urgency)


@router.post("/generate/hashtags/stream", summary="Stream hashtags of a text", response_class=EventSourceResponse)
@needs(Scope.GENERATE)
@needs_engine
async def stream_hashtags(
    service: ServiceDep, streamed: Annotated[StreamedHashtags, Depends(get_streamed_hashtags)]
) -> AsyncIterator[ServerSentEvent]:
    """Stream the hashtags of a text as server-sent events: a `hashtag` as soon as no later one can rank above it, then
    `done` with the whole answer (in which scores may be higher), or `problem`. Closing the connection cancels the
    work."""
    try:
        async with (
            asyncio.timeout(seconds_left(streamed.urgency)),
            aclosing(service.generator.stream_hashtags(*streamed)) as answers,
        ):
            async for answer in answers:
                if isinstance(answer, Hashtag):
                    yield ServerSentEvent(event="hashtag", data=HashtagOut.of(answer))
                else:
                    yield ServerSentEvent(event="done", data=HashtagsOut.of(answer, service.engine.name))
    except TimeoutError:
        yield ServerSentEvent(event="problem", data=inner_problem(DeadlineExceeded(streamed.urgency.seconds)))
    except NoteLLMError as error:
        yield ServerSentEvent(event="problem", data=inner_problem(error))


@router.post("/generate/category", summary="Choose the category of a text")
@needs(Scope.GENERATE)
@needs_engine
async def category(body: CategoryIn, request: Request, service: ServiceDep, urgency: UrgencyDep) -> CategoryPrediction:
    """Choose the category of a text from a closed set, with the probability of each scored name."""
    generation = service.generator.request(categories=closed_set(body, service), all_categories=body.all_categories)
    work = service.generator.generate(body.as_note(), generation, urgency)
    output = await while_connected(request, urgency, work)
    return CategoryPrediction.of(output, body.chosen(output), service.engine.name)


@router.post("/generate", summary="Generate vector, hashtags and category of a text")
@needs(Scope.GENERATE)
@needs_engine
async def generate(body: GenerateIn, request: Request, service: ServiceDep, urgency: UrgencyDep) -> GenerateOut:
    """Generate vector, hashtags and category of a text from one prefill. To set the number of hashtags, use `count` of
    POST /generate/hashtags."""
    check_language(body, service)
    generation = service.generator.request(
        GENERATED_HASHTAGS, closed_set(body, service), body.policy, body.blocked, body.min_score, body.all_categories
    )
    work = service.generator.generate(body.as_note(), generation, urgency)
    output = await while_connected(request, urgency, work)
    return GenerateOut.of(output, body.chosen(output), service.engine.name)


def check_language(rules: HashtagRules, service: Service) -> None:
    """Refuse a language that the model does not write. Raises InvalidInput."""
    languages = service.engine.languages
    if rules.language is not None and rules.language not in languages:
        written = f"in {', '.join(languages)}" if languages else "in languages that its checkpoint does not declare"
        raise InvalidInput([FieldError("/language", f"the serving model writes hashtags {written}; omit the field")])


def requested_hashtags(body: HashtagsIn, service: Service) -> GenerationRequest:
    check_language(body, service)
    return service.generator.request(body.count, policy=body.policy, blocked=body.blocked, min_score=body.min_score)


def closed_set(body: CategoryIn, service: Service) -> tuple[str, ...]:
    """Return the categories to choose from: the caller's, or else the deployment's."""
    return tuple(dict.fromkeys(body.categories)) or service.generator.categories
