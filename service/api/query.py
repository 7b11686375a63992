"""Query strings that are read and documented as one pydantic model."""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import Any, TypeVar, cast, get_origin

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.datastructures import QueryParams

M = TypeVar("M", bound=BaseModel)
MAX_CACHED_QUERIES, MAX_KEPT_BYTES = 1024, 256
"""Number of query strings whose parsed models are cached, and maximum length in bytes of such a query string."""
NAMES_READER = re.compile(rb"(^|&)(user|[^=&]*%[^=&]*)=")
"""Query strings with the parameter `user`, or with one whose name is percent-encoded."""


def read_query(model: type[M], request: Request) -> M:
    """Validate the query string as a `model`, which must not be changed: requests with the same query string share it.
    Raises RequestValidationError, as FastAPI does.

    FastAPI could do this too, field by field, but that takes a quarter of the total time of GET /notes/{id}/similar
    (docs/log/reads.md).
    """
    try:
        return parse_query(model, request.scope["query_string"])
    except ValidationError as error:
        errors = [{**failure, "loc": ("query", *failure["loc"])} for failure in error.errors()]
        raise RequestValidationError(errors) from error


def parse_query(model: type[M], query: bytes) -> M:
    """Validate a query string like read_query. Raises ValidationError."""
    parse = _parse_kept if may_be_kept(query) else _parse
    return cast(M, parse(model, query))


def may_be_kept(query: bytes) -> bool:
    """Return whether the values of a query string may stay in memory: it is short, and names no reader."""
    return len(query) <= MAX_KEPT_BYTES and not NAMES_READER.search(query)


def _parse(model: type[BaseModel], query: bytes) -> BaseModel:
    values: dict[str, Any] = {}
    for name, value in QueryParams(query).multi_items():
        if name in list_fields(model):
            values.setdefault(name, []).append(value)
        else:
            values[name] = value
    return model.model_validate(values)


_parse_kept = lru_cache(MAX_CACHED_QUERIES)(_parse)


@cache
def list_fields(model: type[BaseModel]) -> frozenset[str]:
    """Return the fields that a query string may name several times."""
    return frozenset(name for name, field in model.model_fields.items() if get_origin(field.annotation) is list)


def query_parameters(model: type[BaseModel]) -> list[dict[str, Any]]:
    """OpenAPI descriptions of the parameters of a query string that `read_query` reads."""
    parameters: list[dict[str, Any]] = []
    for name, schema in model.model_json_schema()["properties"].items():
        parameter = {"name": name, "in": "query", "required": False, "schema": schema}
        if "description" in schema:
            parameter["description"] = schema["description"]
        parameters.append(parameter)
    return parameters
