"""Routes that read their JSON body strictly, and bound it before it is parsed."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response

from service.api.bodies import (
    MAX_CONTAINERS,
    MAX_SEARCH_CONTAINERS,
    check_containers,
    check_media_type,
    check_members,
    check_not_empty,
    load_json,
)
from service.api.bounds import check_note_size
from service.api.strict_route import StrictRoute


class StrictJsonRequest(Request):
    """A request whose JSON orjson parses, as in bodies.parse_json; the standard library would accept NaN and
    surrogates."""

    async def json(self) -> Any:
        return load_json(await self.body())


class StrictJsonRoute(StrictRoute):
    """A StrictRoute that gives its handler a StrictJsonRequest. If the handler declares a body, it must be JSON, and no
    larger than a note may be."""

    max_containers = MAX_CONTAINERS
    """Bound on the lists and objects of a body."""

    def get_body_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_body_handler()
        takes_json = self.body_field is not None

        async def read_strictly(request: Request) -> Response:
            strict = StrictJsonRequest(request.scope, request.receive)
            if takes_json:  # checked here: FastAPI answers 400 to any error while it reads a body
                check_media_type(strict.headers)
                body = await strict.body()
                check_not_empty(body)
                check_note_size(len(body), strict.app.state.settings)  # no tenant is opened for it
                check_containers(body, max_containers=self.max_containers)
                check_members(body)
            return await handle(strict)

        return read_strictly


class SearchRoute(StrictJsonRoute):
    """A StrictJsonRoute whose body may hold as many lists and objects as a search, even if it is only a filter."""

    max_containers = MAX_SEARCH_CONTAINERS
