"""OpenAPI description of the app, beyond what FastAPI generates: problems, access and example bodies."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from threading import Lock
from typing import Any

from fastapi import FastAPI
from starlette.routing import BaseRoute

from service.access.principal import ADMIN_SCOPES
from service.api.access import needed_scopes
from service.api.bodies import JSON
from service.api.examples import EXAMPLES
from service.api.problems import documented
from service.api.schemas.events import EventIn, EventOut, EventsOut
from service.api.schemas.export import ImportIn
from service.api.schemas.notes import BatchOut, NoteIn
from service.api.schemas.problem import Problem
from service.api.schemas.search import SearchDefaults
from service.api.strict_route import StrictRoute

SECURITY_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "nlm_<prefix>_<secret>",
    "description": "API key, required if the service has any keys; see docs/guides/keys.md. Each operation lists the "
    "scopes of which the key needs one.",
}

REFUSALS = (400, 401, 403, 409, 422, 429, 503)
"""Statuses of the problems that any route with a key may answer, in this order: an unsupported condition, no key, no
scope, a tenant that is being removed, an unknown query parameter, a used-up quota, an unavailable store."""
ALWAYS_SENT = ("LimitsOut", "UsageOut", "AddedOut", "ReadyOut", "ImportItem", "EmbeddingsOut")
"""Components whose fields are all in each answer."""
HEADERS: dict[str, Any] = {
    name: {"description": description, "schema": {"type": "string"}}
    for name, description in {
        "ETag": "log position of the note in quotation marks, for If-Match and If-None-Match",
        "Idempotent-Replayed": "true if an earlier request with this Idempotency-Key had this answer; for a list, if "
        "earlier requests wrote all notes that are not rejected",
        "Location": "URL of the note",
        "RateLimit": "remaining quota of the key, if it has a quota",
        "RateLimit-Policy": "quota of the key, if it has one",
        "Retry-After": "seconds after which to try again, if that helps",
        "WWW-Authenticate": "says that a key is required, or which scope the key lacks",
        "X-Request-Id": "id of this request in the service's log: the one sent with the request, or a generated one",
    }.items()
}
SERVERS = [{"url": "/", "description": "this service"}]
TAGS = {
    "similar": "Find notes related to a stored note, to a text, or to several examples.",
    "notes": "Add, read, change and remove single notes. `POST /notes` also takes a list or a stream.",
    "collection": "Many notes at once: list, read and remove them, follow the change log, export and import.",
    "events": "Record what readers did with notes. Events affect which notes are related, and count in reports.",
    "generate": "Generate vector, hashtags and category of a text that is not stored.",
    "operations": "For operators: probes, metrics, limits, comparison of index and store, tenants.",
    "keys": "API keys, and the audit log of administrative acts.",
}
"""Descriptions of the groups of operations, in the order in which they are shown."""
HASHTAG_EVENTS = "events `hashtag` (a HashtagOut), then `done` (a HashtagsOut) or `problem` (a Problem)"
TRY_AGAIN = ("409", "429", "503", "504")
WRITTEN = ("200", "201")


def describe(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Extend the OpenAPI description of the app, which has these routes. It is built at the first call; calls in other
    threads wait for it."""
    describe_routes, making = app.openapi, Lock()

    def openapi() -> dict[str, object]:
        with making:
            if app.openapi_schema is None:
                schema, app.openapi_schema = describe_routes(), None  # FastAPI has stored the incomplete one
                _extend(schema, routes)
                app.openapi_schema = schema
            return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI documents this way to change the description


def _extend(schema: dict[str, Any], routes: Sequence[BaseRoute]) -> None:
    """Extend FastAPI's description of an app that has these routes."""
    schema["servers"], schema["tags"] = SERVERS, [{"name": n, "description": TAGS[n]} for n in TAGS]
    components = schema["components"]
    _describe_problems(components["schemas"])
    components["securitySchemes"] = {"key": SECURITY_SCHEME}
    components["headers"] = HEADERS
    for name in ALWAYS_SENT:
        components["schemas"][name]["required"] = list(components["schemas"][name]["properties"])
    _omit_scenario_defaults(components["schemas"]["SearchBody"]["properties"].items())
    _omit_scenario_defaults(components["schemas"]["SimilarIn"]["properties"].items())
    for route in routes:
        if isinstance(route, StrictRoute) and route.include_in_schema:
            _describe_access(schema["paths"][route.path_format], route)
    stream = schema["paths"]["/generate/hashtags/stream"]["post"]["responses"]
    stream["200"]["description"] = HASHTAG_EVENTS
    stream["200"]["content"] = {"text/event-stream": {}}  # FastAPI's `itemSchema` is not of OpenAPI 3.1
    stream.pop("504")  # a timeout is the event `problem` there
    nearest = schema["paths"]["/notes/{note_id}/similar"]["get"]["parameters"]
    _omit_scenario_defaults((parameter["name"], parameter["schema"]) for parameter in nearest)
    for parameter in nearest:  # a query parameter repeats the description of its schema
        if "description" in parameter["schema"]:
            parameter["description"] = parameter["schema"]["description"]
    for probe in ("/startupz", "/readyz"):  # with a key they answer with numbers too
        schema["paths"][probe]["get"]["security"] = [{}, {"key": []}]
    operations = [operation for methods in schema["paths"].values() for operation in methods.values()]
    received = [name for operation in operations for name in _references(operation.get("requestBody"))]
    _drop_unsent_defaults(components["schemas"], received)
    for parameter in (parameter for operation in operations for parameter in operation.get("parameters", ())):
        parameter["schema"] = _without_null(parameter["schema"])
    for (method, path), example in EXAMPLES.items():
        schema["paths"][path][method]["requestBody"]["content"][JSON]["example"] = example


def _describe_problems(components: dict[str, Any]) -> None:
    """Describe our Problem instead of FastAPI's own validation error."""
    for unused in ("HTTPValidationError", "ValidationError"):
        components.pop(unused, None)
    for model in (Problem, NoteIn, BatchOut, EventIn, EventOut, EventsOut, ImportIn):
        described = model.model_json_schema(ref_template="#/components/schemas/{model}")
        components.update(described.pop("$defs", {}))
        components[model.__name__] = described


def _omit_scenario_defaults(fields: Iterable[tuple[str, dict[str, Any]]]) -> None:
    """State the defaults of search options in words only. A client would send a default that it knows, and what a
    request sends overrides what a scenario binds."""
    for name, schema in fields:
        if name in SearchDefaults.model_fields and (default := schema.pop("default", None)) not in (None, []):
            words = f"default: {json.dumps(default)}, unless a scenario sets another"
            schema["description"] = f"{schema['description']}; {words}" if "description" in schema else words


def _drop_unsent_defaults(components: dict[str, Any], received: Sequence[str]) -> None:
    """Drop the defaults that client generators take for something that is always sent: null, and those of fields that
    an answer may lack. `received`: names of the components that bodies of requests refer to."""
    reached = list(received)
    for name in reached:  # the list grows
        reached += [inner for inner in _references(components[name]) if inner not in reached]
    for name, component in components.items():
        for field, described in component.get("properties", {}).items():
            may_lack = name not in reached and field not in component.get("required", ())
            if may_lack or described.get("default", ...) is None:
                described.pop("default", None)


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a query parameter or header without null, which neither can have."""
    rest = {name: value for name, value in schema.items() if name != "anyOf" and (name, value) != ("default", None)}
    kinds: list[dict[str, Any]] = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) == 1:
        return kinds[0] | rest
    return rest | {"anyOf": kinds} if kinds else rest


def _references(node: Any) -> Iterator[str]:
    """Yield the names of the components that a part of the description refers to."""
    if isinstance(node, dict):
        if isinstance(reference := node.get("$ref"), str):
            yield reference.rpartition("/")[2]
        node = list(node.values())
    if isinstance(node, list):
        for part in node:
            yield from _references(part)


def _describe_access(methods: dict[str, Any], route: StrictRoute) -> None:
    """Describe the scopes of a route, any one of which opens it, and the headers of its answers."""
    for method in route.methods or ():
        operation = methods[method.lower()]
        scopes = needed_scopes(route.endpoint)
        operation["security"] = [{"key": [scope]} for scope in sorted(scopes)]
        if scopes:
            elsewhere = (404,) if scopes <= ADMIN_SCOPES else ()  # on another port than the admin port
            refusals = {str(status): problem for status, problem in documented(*REFUSALS, *elsewhere).items()}
            operation["responses"] = dict(sorted((refusals | operation["responses"]).items()))
        for status, response in operation["responses"].items():
            names = _headers_of(operation, route, method, status)
            response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _headers_of(operation: dict[str, Any], route: StrictRoute, method: str, status: str) -> Iterator[str]:
    """Yield the names of the headers that an answer with this status may have."""
    yield "X-Request-Id"
    taken = {parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] == "header"}
    if "if-match" in taken and method != "DELETE" and status in (*WRITTEN, "304"):
        yield "ETag"
    if "idempotency-key" in taken and status in (*WRITTEN, "207"):
        yield "Idempotent-Replayed"
    if route.path_format == "/notes" and method == "POST" and status in WRITTEN:
        yield "Location"
    if operation["security"] and (status.startswith("2") or status == "429"):
        yield from ("RateLimit", "RateLimit-Policy")
    if status in TRY_AGAIN:
        yield "Retry-After"
    if status in ("401", "403"):
        yield "WWW-Authenticate"
