"""The OpenAPI description of the app, beyond what FastAPI knows: our problems, who may call what, example bodies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from starlette.routing import BaseRoute

from service.api.access import needed_scopes
from service.api.bodies import JSON
from service.api.examples import EXAMPLES
from service.api.problems import documented
from service.api.schemas.events import EventIn, EventOut, EventsOut
from service.api.schemas.export import ImportIn
from service.api.schemas.notes import BatchOut, NoteIn
from service.api.schemas.problem import Problem
from service.api.strict_route import StrictRoute

SECURITY_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "nlm_<prefix>_<secret>",
    "description": "An API key, where the service has any; see docs/guides/keys.md. Each address names the scopes of "
    "which the key needs one.",
}

REFUSALS = (400, 401, 403, 422, 429)
"""Statuses of the problems with which StrictRoute refuses a request to any address that needs a key: a condition that
cannot be honoured, no key, no scope, an unknown query parameter, a used-up quota."""


def describe(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Extend the description of the app, which has these routes."""
    describe_routes = app.openapi

    def openapi() -> dict[str, object]:
        if app.openapi_schema is None:
            schema = describe_routes()
            _describe_problems(schema["components"]["schemas"])
            schema["components"]["securitySchemes"] = {"key": SECURITY_SCHEME}
            for route in routes:
                if isinstance(route, StrictRoute) and route.include_in_schema:
                    _describe_access(schema["paths"][route.path_format], route)
            for (method, path), example in EXAMPLES.items():
                schema["paths"][path][method]["requestBody"]["content"][JSON]["example"] = example
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI documents this way to change the description


def _describe_problems(components: dict[str, Any]) -> None:
    """Describe our Problem wherever FastAPI would describe its own validation error."""
    for unused in ("HTTPValidationError", "ValidationError"):
        components.pop(unused, None)
    for model in (Problem, NoteIn, BatchOut, EventIn, EventOut, EventsOut, ImportIn):
        described = model.model_json_schema(ref_template="#/components/schemas/{model}")
        components.update(described.pop("$defs", {}))
        components[model.__name__] = described


def _describe_access(methods: dict[str, Any], route: StrictRoute) -> None:
    """Describe which scopes open a route. Of several, any one does."""
    for method in route.methods or ():
        operation = methods[method.lower()]
        scopes = sorted(needed_scopes(route.endpoint))
        operation["security"] = [{"key": [scope]} for scope in scopes]
        if scopes:
            refusals = {str(status): problem for status, problem in documented(*REFUSALS).items()}
            operation["responses"] = dict(sorted((refusals | operation["responses"]).items()))
