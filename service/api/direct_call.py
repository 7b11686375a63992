"""Calls of handlers without FastAPI's reading of their parameters, which takes longer than to change a note.

The signature of a handler stays the only description of its parameters: FastAPI makes of it the OpenAPI and the tree of
dependencies that is followed here. Where a parameter or the body is not valid, FastAPI reads the request itself and
says what is wrong.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from inspect import iscoroutinefunction
from json import JSONDecodeError
from typing import Any, TypeAlias, cast, get_origin, get_type_hints

from fastapi import Request, Response
from fastapi._compat import ModelField
from fastapi.datastructures import DefaultPlaceholder as Default
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, serialize_response

from service.api.bodies import JSON

Handler: TypeAlias = Callable[[Request], Coroutine[Any, Any, Response]]


class NotValid(Exception):
    """A parameter or the body of a request is not valid; nothing has been done."""


def dependants_of(dependant: Dependant) -> Iterator[Dependant]:
    """Yield a handler's parameters, and those of all its dependencies."""
    yield dependant
    for dependency in dependant.dependencies:
        yield from dependants_of(dependency)


def direct_handler(route: APIRoute, handle: Handler) -> Handler:
    """Return a handler of requests to `route` that does what FastAPI's own one, `handle`, does; that one itself where
    the route uses more of FastAPI than is known here."""
    if not all(map(_is_plain, dependants_of(route.dependant))) or not _answers_plainly(route):
        return handle

    async def handle_directly(request: Request) -> Response:
        try:
            call = _Call(request, await request.json() if route.body_field else None)
            values = await call.read(route.dependant)
        except (NotValid, JSONDecodeError):
            return await handle(request)
        answer = await cast(Coroutine[Any, Any, Any], route.endpoint(**values))
        if isinstance(answer, Response):
            return answer
        content = await serialize_response(
            field=route.response_field,
            response_content=answer,
            by_alias=route.response_model_by_alias,
            exclude_unset=route.response_model_exclude_unset,
            exclude_none=route.response_model_exclude_none,
            dump_json=True,
        )
        response = Response(content, route.status_code or 200, media_type=JSON)
        if call.response:
            response.status_code = call.response.status_code or response.status_code
            response.headers.raw.extend(call.response.headers.raw)
        return response

    return handle_directly


def _is_plain(dependant: Dependant) -> bool:
    """Whether a handler or a dependency is a coroutine whose parameters are single values, or one body."""
    fields = (*dependant.path_params, *dependant.query_params, *dependant.header_params)
    single = not any(get_origin(field.field_info.annotation) is list for field in fields)
    return iscoroutinefunction(dependant.call) and dependant.use_cache and single and len(dependant.body_params) <= 1


def _answers_plainly(route: APIRoute) -> bool:
    """Whether a handler returns what is sent as JSON by its model, or a whole response."""
    if not isinstance(route.response_class, Default):
        return False
    returned = get_type_hints(route.endpoint).get("return")
    return route.response_field is not None or (isinstance(returned, type) and issubclass(returned, Response))


class _Call:
    """Reads the parameters of a handler for one request, those of each dependency once. `body`: that of the request,
    parsed. `response`: where the handler takes one, its headers and status are those of the answer."""

    def __init__(self, request: Request, body: Any) -> None:
        self._request = request
        self._body = body
        self._solved: dict[object, Any] = {}
        """Results of dependencies, by what was called for them."""
        self.response: Response | None = None

    async def read(self, dependant: Dependant) -> dict[str, Any]:
        """Return the arguments of a handler or a dependency. Raises NotValid, and what dependencies raise."""
        request, arguments = self._request, dict[str, Any]()
        for dependency in dependant.dependencies:
            call = cast(Callable[..., Awaitable[Any]], dependency.call)
            if call not in self._solved:
                self._solved[call] = await call(**await self.read(dependency))
            arguments[dependency.name or ""] = self._solved[call]
        for field in dependant.path_params:
            arguments[field.name] = _value(field, request.path_params)
        for field in dependant.query_params:
            arguments[field.name] = _value(field, request.query_params)
        for field in dependant.header_params:
            arguments[field.name] = _value(field, request.headers)
        for field in dependant.body_params:
            arguments[field.name] = _validated(field, self._body)
        if dependant.request_param_name:
            arguments[dependant.request_param_name] = request
        if dependant.response_param_name:
            arguments[dependant.response_param_name] = self.response = self.response or _empty_response()
        return arguments


def _empty_response() -> Response:
    response = Response(status_code=0)
    del response.headers["content-length"]
    return response


def _value(field: ModelField, given: Mapping[str, Any]) -> Any:
    """Return the value of a parameter, or its default."""
    value = given.get(field.alias)
    if value is not None:
        return _validated(field, value)
    if field.field_info.is_required():
        raise NotValid
    return field.default


def _validated(field: ModelField, value: Any) -> Any:
    validated, errors = field.validate(value)
    if errors:
        raise NotValid
    return validated
