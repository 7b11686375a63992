"""OpenAIRoute: problems that clients of OpenAI's API can also read."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError

from service.api.json_route import StrictJsonRoute
from service.api.problems import error_response, validation_response
from service.errors import NoteLLMError


class OpenAIRoute(StrictJsonRoute):
    """A StrictJsonRoute whose problems have a member `error`, in the form of OpenAI's errors. RFC 9457 allows extension
    members, so that the answer is valid as both."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_with_error(request: Request) -> Response:
            try:
                response = await handle(request)
            except NoteLLMError as error:
                response = error_response(error)
            except RequestValidationError as error:
                response = validation_response(error)
            return response if response.status_code < 400 else _with_error(response)

        return handle_with_error


def _with_error(response: Response) -> Response:
    """Return a problem with a member `error`: its detail and field errors as one message, its type without the
    URL before it."""
    problem = orjson.loads(bytes(response.body))
    fields = problem.get("errors", [])
    reasons = [f"{field['pointer']} {field['detail']}" for field in fields[1:]]  # `detail` has the first one
    problem["error"] = {
        "message": " ".join([problem["detail"], *reasons]),
        "type": problem["type"].rpartition("/")[2],
        "param": fields[0]["pointer"] if fields else None,
        "code": None,
    }
    headers = {name: value for name, value in response.headers.items() if name != "content-length"}
    return Response(orjson.dumps(problem), response.status_code, headers)
