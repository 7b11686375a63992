"""What the routes share: the running service, the model's name, and work that ends with its caller.

Dependencies are coroutines though they wait for nothing: FastAPI gives the others to a thread each, and a request to
several of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import cache
from typing import Annotated, Any, TypeVar, cast, get_origin

import orjson
from fastapi import Depends, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from service.api.bodies import check_containers, check_media_type
from service.api.schemas import SearchOptions
from service.container import Service
from service.errors import DeadlineExceeded, FieldError, InvalidInput, LimitExceeded
from service.recommender import Generate, Recommender

T = TypeVar("T")
Q = TypeVar("Q", bound=BaseModel)
GENERATED_HASHTAGS = 5
"""How many `?generate=hashtags` writes."""


class CallerLeft(Exception):
    """The connection was closed before the answer was ready; nobody reads one."""


async def get_service(request: Request) -> Service:
    return cast(Service, request.app.state.service)


async def get_recommender(request: Request) -> Recommender:
    return (await get_service(request)).recommender


async def get_generate(generate: str = "") -> Generate:
    """`?generate=hashtags,category`."""
    asked = {part.strip() for part in generate.split(",")} - {""}
    if unknown := asked - {"hashtags", "category"}:
        raise InvalidInput([FieldError("/query/generate", f"knows hashtags and category, not {sorted(unknown)}")])
    return Generate(GENERATED_HASHTAGS if "hashtags" in asked else 0, "category" in asked)


async def get_if_match(
    if_match: Annotated[str | None, Header(description='"<log_position>", or *')] = None,
) -> str | None:
    """The log position that the note must be at; None for any."""
    return None if if_match is None or if_match.strip() == "*" else if_match.strip().removeprefix("W/").strip('"')


ServiceDep = Annotated[Service, Depends(get_service)]
RecommenderDep = Annotated[Recommender, Depends(get_recommender)]
GenerateDep = Annotated[Generate, Depends(get_generate)]
IfMatch = Annotated[str | None, Depends(get_if_match)]


class StrictJsonRequest(Request):
    """A request whose JSON is read as bodies.parse_json does; the standard library's would take NaN and surrogates."""

    async def json(self) -> Any:
        return orjson.loads(await self.body())


class StrictJsonRoute(APIRoute):
    """A route that gives its handler a StrictJsonRequest. A body that it declares is JSON, and no larger than a note
    may be."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        takes_json = self.body_field is not None

        async def strictly(request: Request) -> Response:
            strict = StrictJsonRequest(request.scope, request.receive)
            if takes_json:  # here, since FastAPI makes a 400 of whatever goes wrong while it reads a body
                check_media_type(strict.headers)
                body = await strict.body()
                check_note_size(len(body), await get_service(strict))
                check_containers(body)
            return await handle(strict)

        return strictly


def read_query(model: type[Q], request: Request) -> Q:
    """The query string as a `model`. FastAPI reads one too, field by field, but that takes a quarter of all the time
    that related notes take (docs/experiments.md). Raises RequestValidationError, as FastAPI does."""
    given: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        if name in list_fields(model):
            given.setdefault(name, []).append(value)
        else:
            given[name] = value
    try:
        return model.model_validate(given)
    except ValidationError as error:
        errors = [{**each, "loc": ("query", *each["loc"])} for each in error.errors()]
        raise RequestValidationError(errors) from error


@cache
def list_fields(model: type[BaseModel]) -> frozenset[str]:
    """Those that a query string may name several times."""
    return frozenset(name for name, field in model.model_fields.items() if get_origin(field.annotation) is list)


def query_parameters(model: type[BaseModel]) -> dict[str, Any]:
    """What the API's description says of a query string that is read by `read_query`."""
    properties = model.model_json_schema()["properties"]
    said = [
        {"name": name, "in": "query", "required": False, "schema": of} | {k: of[k] for k in ("description",) if k in of}
        for name, of in properties.items()
    ]
    return {"parameters": said}


def check_note_size(size: int, service: Service) -> None:
    limit = service.settings.max_note_bytes
    if size > limit:
        raise LimitExceeded("max_note_bytes", limit)


def check_policy(policy: SearchOptions, pointer: str, service: Service) -> None:
    limit = service.settings.max_k
    if policy.k > limit:
        raise InvalidInput([FieldError(f"{pointer}/k", f"Input should be less than or equal to {limit}")])
    known = service.settings.filter_attributes
    if unknown := sorted({name for name, _ in policy.as_filter().attributes} - set(known)):
        problem = f"filters may ask about {list(known)} (NOTELLM_FILTER_ATTRIBUTES), not {unknown}"
        raise InvalidInput([FieldError(f"{pointer}/attribute", problem)])


async def while_connected(request: Request, service: Service, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the caller leaves (CallerLeft) or its time is over.

    Raises DeadlineExceeded after NOTELLM_REQUEST_SECONDS.
    """
    seconds = service.settings.request_seconds
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, left}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise CallerLeft if left.done() else DeadlineExceeded(seconds)
    finally:
        left.cancel()
        task.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
