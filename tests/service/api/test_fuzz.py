"""Generated requests, valid and not, over the whole documented API."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
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
MAX_WAIT = 0.01
"""Seconds that a request may wait for a change: under the bound of the service the test would take an hour."""
description = build_app(Settings()).openapi()
for operation in (one for methods in description["paths"].values() for one in methods.values()):
    operation.pop("security", None)  # each request has KEY, so generated keys would never be sent
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


@pytest.fixture(scope="module")
def fuzzed_url(serve: Serve) -> Iterator[str]:
    """Address of a separate service, since these requests may remove anything that is stored."""
    with serve(sample_notes=3, bootstrap_key=KEY) as address:
        yield address


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@schema.parametrize()
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_generated_request_gets_a_documented_answer(case: Case, fuzzed_url: str) -> None:
    if case.path == "/changes" and case.query and isinstance(case.query.get("wait"), int | float):
        case.query["wait"] = min(case.query["wait"], MAX_WAIT)
    case.call_and_validate(base_url=fuzzed_url, checks=CHECKS, headers={"Authorization": f"Bearer {KEY}"})
