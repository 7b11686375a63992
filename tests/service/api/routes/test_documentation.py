"""The documentation for people, which loads nothing from the internet, and the API's description."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from service.api.bodies import NDJSON

Json = dict[str, Any]
TYPES = {"js": "text/javascript", "css": "text/css", "png": "image/png"}


def test_the_root_leads_to_the_documentation(client: httpx2.Client) -> None:
    answer = client.get("/", headers={"host": "somewhere.invalid"}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "/docs")


def test_the_documentation_names_no_other_host(client: httpx2.Client) -> None:
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert re.findall(r"""(?:src|href|url)\s*[=:]\s*["'](?:https?:)?//[^"']*""", page.text) == []
    assert '"validatorUrl": null' in page.text  # otherwise the page sends the API to another host for validation


def test_every_asset_of_the_documentation_is_served(client: httpx2.Client) -> None:
    page = client.get("/docs")
    assets = re.findall(r"""(?:src|href)=["']([^"']+)""", page.text)
    assert {asset.rsplit(".")[-1] for asset in assets} == set(TYPES)
    for asset in assets:
        answer = client.get(str(page.url.join(asset)))
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(TYPES[asset.rsplit(".")[-1]])
    (api,) = re.findall(r"""url:\s*["']([^"']+)""", page.text)
    assert client.get(str(page.url.join(api))).json()["openapi"].startswith("3.")


@pytest.mark.parametrize("path", ["/docs/swagger-ui-bundle.js", "/docs/favicon.png"])
def test_asset_that_a_browser_has_is_304(client: httpx2.Client, path: str) -> None:
    answer = client.get(path)
    etag = answer.headers["etag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}'):
        again = client.get(path, headers={"If-None-Match": known, "If-Modified-Since": "Sat, 01 Jan 2000 00:00:00 GMT"})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    changed = client.get(path, headers={"If-None-Match": '"of an earlier package"'})
    assert (changed.status_code, changed.content) == (200, answer.content)


@pytest.mark.parametrize("part", ["bytes=99999999-", "bytes=0-9"])
def test_part_of_an_asset_is_not_sent_alone(client: httpx2.Client, part: str) -> None:
    answer = client.get("/docs/swagger-ui.css", headers={"Range": part})
    assert (answer.status_code, answer.content) == (200, client.get("/docs/swagger-ui.css").content)


@pytest.mark.parametrize("path", ["/redoc", "/docs/nothing.js", "/docs/..__init__.py"])
def test_unknown_documentation_path_is_404(client: httpx2.Client, path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


def test_documentation_path_that_leaves_its_folder_is_refused(client: httpx2.Client) -> None:
    assert client.get("/docs/..%2f__init__.py").status_code == 400


@pytest.fixture
def described(client: httpx2.Client) -> Json:
    """The API's OpenAPI description."""
    document: Json = client.get("/openapi.json").json()
    return document


def operations(described: Json) -> dict[str, Json]:
    """Operations of a description by method and path."""
    return {
        f"{method.upper()} {path}": operation
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    }


def contents(operation: Json) -> Iterator[tuple[str, Json]]:
    """Yield media type and schema of each request and response body of an operation."""
    for body in (operation.get("requestBody", {}), *operation["responses"].values()):
        for media_type, content in body.get("content", {}).items():
            yield media_type, content.get("schema", {})


def parameters(operation: Json) -> dict[str, Json]:
    """Parameters of an operation by name."""
    return {parameter["name"]: parameter for parameter in operation.get("parameters", ())}


def test_each_endpoint_that_needs_a_key_documents_how_it_refuses(described: Json) -> None:
    guarded = [
        (name, operation["responses"])
        for name, operation in operations(described).items()
        if operation["security"] and {} not in operation["security"]
    ]
    assert guarded
    refusals = {"400", "401", "403", "409", "422", "429", "503"}
    assert [name for name, responses in guarded if not refusals <= responses.keys()] == []


def test_options_of_a_search_have_the_same_defaults_in_a_query_string_and_in_a_body(described: Json) -> None:
    default = re.compile(r"default: .+, unless a scenario sets another")
    body = described["components"]["schemas"]["SimilarIn"]["properties"]
    query = parameters(described["paths"]["/notes/{note_id}/similar"]["get"])
    stated = {name: default.findall(field.get("description", "")) for name, field in body.items()}
    named = {name: default.findall(query[name]["description"]) for name in query if stated.get(name)}
    assert {"k", "exact", "diversity", "strategy", "on_missing", "explain"} <= named.keys()
    assert named.pop("sources") == ['default: "content", unless a scenario sets another']  # a body also takes weights
    assert {name: stated[name] for name in named} == named


def test_every_body_of_lines_says_what_its_lines_are(described: Json) -> None:
    lines = [
        (name, schema.get("description"))
        for name, operation in operations(described).items()
        for media_type, schema in contents(operation)
        if media_type == NDJSON
    ]
    assert {"POST /notes", "POST /events", "GET /notes/export", "GET /events/reads"} <= dict(lines).keys()
    assert [name for name, description in lines if not description] == []


def test_requests_that_no_model_answers_have_a_timeout_and_no_priority(described: Json) -> None:
    headers = {name: parameters(operation).keys() for name, operation in operations(described).items()}
    timed = {name for name, names in headers.items() if "x-request-timeout" in names}
    prioritised = {name for name, names in headers.items() if "x-request-priority" in names}
    assert timed - prioritised == {"POST /notes/delete", "GET /changes", "GET /notes/{note_id}/similar"}


def test_description_suits_generated_clients(client: httpx2.Client, described: Json) -> None:
    names = [operation["operationId"] for operation in operations(described).values()]
    summaries = [operation["summary"] for operation in operations(described).values()]
    assert len(set(names)) == len(names)
    assert len(set(summaries)) == len(summaries)
    assert not set(summaries) & {
        name.replace("_", " ").title() for name in names
    }  # FastAPI's default for a route without a summary
    assert {"post_notes", "similar", "read_user_events", "generate", "list_notes", "get_notes_by_ids"} <= set(names)
    schemas = described["components"]["schemas"]
    assert set(schemas["LimitsOut"]["required"]) == set(client.get("/limits").json())
    for name in ("k", "diversity", "strategy"):  # a scenario may bind them
        assert "default" not in schemas["SimilarIn"]["properties"][name]
    assert "default" not in schemas["KeyPatch"]["properties"]["quota"]
    created = described["paths"]["/notes"]["post"]["responses"]["201"]["headers"]
    assert {"ETag", "Location", "Idempotent-Replayed"} <= created.keys()
    refused = described["paths"]["/notes"]["post"]["responses"]["429"]["headers"]
    assert refused["Retry-After"] == {"$ref": "#/components/headers/Retry-After"}
    assert refused.keys() == {"RateLimit", "RateLimit-Policy", "Retry-After", "X-Request-Id"}


def test_every_field_and_every_parameter_is_described(described: Json) -> None:
    schemas = described["components"]["schemas"]
    fields = [
        (f"{schema}.{field}", spec)
        for schema in schemas
        for field, spec in schemas[schema].get("properties", {}).items()
    ]
    referred = {f"#/components/schemas/{name}" for name, schema in schemas.items() if schema.get("description")}
    assert [name for name, spec in fields if not spec.get("description") and spec.get("$ref") not in referred] == []
    assert schemas.keys() - {name.rsplit("/", 1)[1] for name in referred} == set()
    given = [(name, one) for name, operation in operations(described).items() for one in parameters(operation).values()]
    assert [(name, parameter["name"]) for name, parameter in given if not parameter.get("description")] == []


def test_every_answer_is_described_with_its_request_id(described: Json) -> None:
    answers = [answer for operation in operations(described).values() for answer in operation["responses"].values()]
    assert [answer for answer in answers if "X-Request-Id" not in answer["headers"]] == []
    assert described["components"]["headers"]["X-Request-Id"]["description"]


def test_groups_of_operations_are_described(described: Json) -> None:
    used = {tag for operation in operations(described).values() for tag in operation["tags"]}
    assert {tag["name"] for tag in described["tags"] if tag["description"]} == used


@pytest.mark.parametrize("path", ["/", "/docs", "/docs/favicon.png"], ids=["root", "page", "asset"])
def test_documentation_refuses_a_query_parameter(client: httpx2.Client, path: str) -> None:
    answer = client.get(path, params={"theme": "dark"}, follow_redirects=False)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/query/theme")
