"""Generated requests, valid and not, over the whole documented API."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.settings import Settings
from service.wiring import build_app
from tests.service.api.conftest import Serve

KEY = "the-bootstrap-key-of-these-tests"
"""Sent with every request: otherwise the first key that a request creates would close the service to the next."""
GROUPS = ("all", "any", "not")
"""Fields of a filter that hold groups of conditions."""
MAX_WAIT = 0.01
"""Seconds that a request may wait for a change: under the bound of the service the test would take an hour."""
FLATTENED = {"/similar/batch": "SimilarIn", "/notes/{note_id}/similar": "SearchBody"}
"""Paths whose filters are flattened, and the schema of their body that refers to a filter."""
NESTED = {("POST", "/similar"), ("POST", "/notes/delete")}
"""Operations that get filters of any depth."""


def referring(part: Any, schema: str, other: str) -> Any:
    """Return a copy of a part of the API's description that refers to another schema."""
    return json.loads(json.dumps(part).replace(f'"#/components/schemas/{schema}"', f'"#/components/schemas/{other}"'))


def flatten_filters(description: dict[str, Any]) -> None:
    """Let the groups of a filter have no groups themselves, except in the operations NESTED. Schemathesis tries each
    value of each field at each of the first levels, which is some 3,700 requests for one recursive filter. One class
    parses the filters of all operations, so two of them suffice for the deeper levels."""
    schemas, paths = description["components"]["schemas"], description["paths"]
    schemas["FlatConditions"] = copy.deepcopy(schemas["ConditionsIn"])
    for name in GROUPS:
        del schemas["FlatConditions"]["properties"][name]
    schemas["ShallowFilter"] = referring(schemas["FilterIn"], "ConditionsIn", "FlatConditions")
    for path, name in FLATTENED.items():
        schemas[f"Shallow{name}"] = referring(schemas[name], "FilterIn", "ShallowFilter")
        paths[path]["post"] = referring(paths[path]["post"], name, f"Shallow{name}")


description = build_app(Settings()).openapi()
for operation in (one for methods in description["paths"].values() for one in methods.values()):
    operation.pop("security", None)  # each request has KEY, so generated keys would never be sent
whole = copy.deepcopy(description)
flatten_filters(description)
schema = schemathesis.openapi.from_dict(description)


def no_server_error_but_an_asked_deadline(context: Any, response: Any, case: Case) -> bool | None:
    """Accept 504 if the request itself set a deadline, which may be tiny."""
    if response.status_code == 504 and "x-request-timeout" in {name.lower() for name in case.headers or {}}:
        return None
    return not_a_server_error(context, response, case)


# No check that every valid request is accepted: the schema does not express "title and content are not both empty".
CHECKS = [
    no_server_error_but_an_asked_deadline,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


def schemas_of(description: dict[str, Any], path: str, method: str) -> dict[str, Any]:
    """Return the schemas that an operation refers to, itself and through other schemas, by name."""
    schemas, parts = dict[str, Any](), [description["paths"][path][method]]
    while parts:
        for name in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(parts.pop())):
            if name not in schemas:
                schemas[name] = description["components"]["schemas"][name]
                parts.append(schemas[name])
    return schemas


def test_flattened_filters_keep_every_field_and_two_operations_every_level() -> None:
    copies = {"FlatConditions": "ConditionsIn", "ShallowFilter": "FilterIn"}
    copies |= {f"Shallow{name}": name for name in FLATTENED.values()}
    nested = set[tuple[str, str]]()
    for path, method in [(path, method) for path, methods in whole["paths"].items() for method in methods]:
        before, after = (schemas_of(one, path, method) for one in (whole, description))
        if "ConditionsIn" in after:
            nested.add((method.upper(), path))
        for flattened in copies.keys() & after.keys():
            after = referring(after, flattened, copies[flattened])
        if "FlatConditions" in after:
            groups = {name: before["ConditionsIn"]["properties"][name] for name in GROUPS}
            after["FlatConditions"]["properties"] |= groups
        assert {copies.get(name, name): after[name] for name in after} == before
    assert nested == NESTED


@pytest.fixture(scope="module")
def fuzzed_url(serve: Serve) -> Iterator[str]:
    """Address of a separate service, since these requests may remove anything that is stored."""
    with serve(sample_notes=3, bootstrap_key=KEY) as address:
        yield address


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    """Session that keeps its connection from one request to the next, and adds nothing of its own to them."""
    with requests.Session() as opened:
        opened.headers.clear()
        opened.trust_env = False
        yield opened


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@schema.parametrize()
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_generated_request_gets_a_documented_answer(case: Case, fuzzed_url: str, session: requests.Session) -> None:
    if case.path == "/changes" and case.query and isinstance(case.query.get("wait"), int | float):
        case.query["wait"] = min(case.query["wait"], MAX_WAIT)
    own = {"Authorization": f"Bearer {KEY}"}
    case.call_and_validate(base_url=fuzzed_url, checks=CHECKS, headers=own, session=session)
