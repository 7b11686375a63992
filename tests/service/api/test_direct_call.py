"""direct_call: what FastAPI makes of a handler's signature is read without FastAPI, and answered as FastAPI answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field

from service.api.direct_call import Handler, direct_handler
from service.errors import MalformedHeader

pytestmark = pytest.mark.anyio

read_by_fastapi: list[str] = []


class DirectRoute(APIRoute):
    """A route that notes which requests FastAPI reads."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def note(request: Request) -> Response:
            read_by_fastapi.append(request.url.path)
            return await handle(request)

        return direct_handler(self, note)


class In(BaseModel):
    title: str = Field(min_length=1)


class Out(BaseModel):
    text: str = Field(serialization_alias="words")
    left_out: int | None = None


async def get_length(x_length: Annotated[float, Header(gt=0)] = 1.0) -> float:
    return x_length


async def get_area(
    length: Annotated[float, Depends(get_length)], x_breadth: Annotated[float | None, Header()] = None
) -> float:
    if x_breadth == 0:
        raise MalformedHeader("X-Breadth", "must not be 0")
    return length * (x_breadth or 1.0)


async def change(
    note_id: Annotated[str, Field(pattern="^[a-z]+$")],
    body: In,
    request: Request,
    response: Response,
    length: Annotated[float, Depends(get_length)],
    area: Annotated[float, Depends(get_area)],
    times: int = 1,
) -> Out:
    response.headers["X-Area"] = str(area)
    if times > 2:
        response.status_code = 202
    return Out(text=f"{request.method} {note_id} {body.title * times} {length}")


async def ask(times: Annotated[list[int], Query()]) -> Response:
    return Response(str(times))


async def remove() -> None:
    """Do nothing."""


@asynccontextmanager
async def client_of(route_class: type[APIRoute]) -> AsyncIterator[httpx2.AsyncClient]:
    router, app = APIRouter(route_class=route_class), FastAPI()
    router.add_api_route("/{note_id}", change, methods=["PUT"], response_model_exclude_unset=True, status_code=201)
    router.add_api_route("/times", ask, methods=["GET"])
    router.add_api_route("/all", remove, methods=["DELETE"], status_code=204)
    app.include_router(router)

    async def answer(request: Request, error: Exception) -> Response:
        return Response(str(error), 400)

    app.add_exception_handler(MalformedHeader, answer)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as client:
        yield client


def part_seen(answer: httpx2.Response) -> tuple[int, bytes, dict[str, str]]:
    return answer.status_code, answer.content, dict(answer.headers)


async def answers(**request: Any) -> tuple[httpx2.Response, httpx2.Response]:
    """Return FastAPI's answer to a request, and that of a DirectRoute."""
    read_by_fastapi.clear()
    async with client_of(APIRoute) as usual, client_of(DirectRoute) as direct:
        return await usual.request(**request), await direct.request(**request)


VALID: dict[str, dict[str, Any]] = {
    "defaults": {},
    "headers": {"headers": {"X-Length": "2.5", "x-breadth": "2"}},
    "query": {"params": {"times": "2"}},
    "status": {"params": {"times": "3"}},
    "repeated": {"params": [("times", "1"), ("times", "2")]},
}
INVALID: dict[str, dict[str, Any]] = {
    "path": {"url": "/A"},
    "header": {"headers": {"X-Length": "-1"}},
    "two-headers": {"headers": {"X-Length": "a", "X-Breadth": "b"}},
    "query": {"params": {"times": "many"}},
    "field": {"json": {"title": ""}},
    "missing-field": {"json": {}},
    "type-of-body": {"json": ["title"]},
    "json": {"content": b'{"title"', "json": None},
    "no-body": {"json": None},
    "all": {"url": "/A", "headers": {"X-Length": "0"}, "params": {"times": ""}, "json": {}},
    "header-beside-refusal": {"headers": {"X-Length": "0", "X-Breadth": "0"}},
    "json-beside-refusal": {"content": b"{", "json": None, "headers": {"X-Breadth": "0"}},
}


@pytest.mark.parametrize("request_", VALID.values(), ids=VALID)
async def test_valid_request_is_answered_as_by_fastapi_without_it(request_: dict[str, Any]) -> None:
    usual, direct = await answers(**{"method": "PUT", "url": "/a", "json": {"title": "x"}} | request_)
    assert usual.is_success
    assert part_seen(direct) == part_seen(usual)
    assert read_by_fastapi == []


@pytest.mark.parametrize("request_", INVALID.values(), ids=INVALID)
async def test_invalid_request_is_refused_in_the_words_of_fastapi(request_: dict[str, Any]) -> None:
    usual, direct = await answers(**{"method": "PUT", "url": "/a", "json": {"title": "x"}} | request_)
    assert usual.status_code in (400, 422)
    assert part_seen(direct) == part_seen(usual)


async def test_error_of_a_dependency_is_raised() -> None:
    usual, direct = await answers(method="PUT", url="/a", json={"title": "x"}, headers={"X-Breadth": "0"})
    assert direct.status_code == 400
    assert part_seen(direct) == part_seen(usual)


async def test_answer_without_a_body_is_left_to_fastapi() -> None:
    usual, direct = await answers(method="DELETE", url="/all")
    assert (direct.status_code, direct.content) == (204, b"")
    assert part_seen(direct) == part_seen(usual)
    assert read_by_fastapi == ["/all"]


async def test_handler_with_a_list_of_values_is_left_to_fastapi() -> None:
    usual, direct = await answers(method="GET", url="/times", params={"times": [1, 2]})
    assert direct.text == "[1, 2]"
    assert part_seen(direct) == part_seen(usual)
    assert read_by_fastapi == ["/times"]
