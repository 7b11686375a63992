"""Scenarios: names that a settings file binds to defaults of a search."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from service.api.scenarios import ScenariosUnusable, read_scenarios
from service.settings import Settings
from tests.service.api.conftest import Serve
from tests.service.process import NOTELLM

TOML = """
[home]
k = 3
max_per_author = 1
filter = {category = ["Food", "Travel"]}
boost = [{weight = 5, match = {author = "cat"}}]

[strict]
min_score = 0.99
strategy = "best_score"

[by_name]
sources = "auto"

[by_weights]
sources = {content = 1, words = 0.5, behaviour = 1}
"""


@pytest.fixture(scope="module")
def client(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    path = tmp_path_factory.mktemp("s") / "scenarios.toml"
    path.write_text(TOML)
    with serve(scenarios=path) as url, httpx2.Client(base_url=url, timeout=60) as opened:
        notes = [
            {
                "id": f"n{i}",
                "title": f"note {i}",
                "author": ("ann", "bob", "cat")[i % 3],
                "category": "Food" if i < 20 else "Pets",
            }
            for i in range(24)
        ]
        other_words = "quetzals seen at dawn by many people who had come from far away"
        notes.append({"id": "long", "title": f"7 {other_words}", "author": "dan", "category": "Pets"})
        assert opened.post("/notes", json=notes).status_code == 207
        yield opened


def similar(client: httpx2.Client, **params: Any) -> Any:
    answer = client.get("/notes/n0/similar", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_limits_name_the_scenarios(client: httpx2.Client) -> None:
    assert client.get("/limits").json()["scenarios"] == ["by_name", "by_weights", "home", "strict"]


def test_filter_of_seen_notes_alone_leaves_the_filter_of_the_scenario_in_force(client: httpx2.Client) -> None:
    seen = [f"n{i}" for i in range(18)]
    body = {"scenario": "home", "filter": {"exclude": seen}}
    items = client.post("/notes/n0/similar", json=body).json()["items"]
    assert {item["id"] for item in items} == {"n18", "n19"}
    body["filter"] = {"exclude": seen, "category": "Pets"}
    items = client.post("/notes/n0/similar", json=body).json()["items"]
    assert {item["category"] for item in items} == {"Pets"}


@pytest.mark.parametrize("own", [None, {}])
def test_filter_without_conditions_leaves_the_filter_of_the_scenario_in_force(
    client: httpx2.Client, own: dict[str, Any] | None
) -> None:
    body = {"scenario": "home", "filter": own, "k": 20, "max_per_author": 20}
    items = client.post("/notes/n0/similar", json=body).json()["items"]
    assert {item["category"] for item in items} == {"Food"}


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_scenario_sets_what_the_request_leaves_out(client: httpx2.Client, method: str) -> None:
    given: dict[str, Any] = {"params": {"scenario": "home"}} if method == "GET" else {"json": {"scenario": "home"}}
    items = client.request(method, "/notes/n0/similar", **given).json()["items"]
    assert sorted(item["author"] for item in items) == ["ann", "bob", "cat"]
    assert items[0]["author"] == "cat"
    assert {item["category"] for item in items} == {"Food"}


def test_field_of_the_request_wins(client: httpx2.Client) -> None:
    assert len(similar(client, scenario="home", k=2)["items"]) == 2
    assert len(similar(client, scenario="home", k=9, max_per_author=3)["items"]) == 9


@pytest.mark.parametrize(
    ("fields", "words_count"),
    [
        pytest.param({"scenario": "by_name"}, False, id="name"),
        pytest.param({"scenario": "by_weights"}, True, id="weights"),
        pytest.param({"scenario": "by_weights", "sources": "auto"}, False, id="name-for-weights"),
        pytest.param({"scenario": "by_name", "sources": "content"}, None, id="other-name"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_scenario_and_request_tell_the_name_of_sources_from_its_weights(
    client: httpx2.Client, method: str, fields: dict[str, str], words_count: bool | None
) -> None:
    """`auto` leaves words out for a note that shares only one of its fourteen words with another note."""
    options = {**fields, "explain": True}
    given: dict[str, Any] = {"params": options} if method == "GET" else {"json": options}
    answer = client.request(method, "/notes/long/similar", **given)
    assert answer.status_code == 200, answer.text
    added = [item["explanation"]["words"] for item in answer.json()["items"]]
    if words_count is None:
        assert set(added) == {None}
    else:
        assert any(added) is words_count


def test_unknown_scenario_is_refused_and_known_ones_are_named(client: httpx2.Client) -> None:
    answer = client.get("/notes/n0/similar", params={"scenario": "hom"})
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["pointer"] == "/query/scenario"
    assert error["detail"] == "must be one of by_name, by_weights, home, strict (NOTELLM_SCENARIOS)"


def test_page_of_a_scenario_goes_on(client: httpx2.Client) -> None:
    first = similar(client, scenario="home", k=2, cursor="*")
    second = similar(client, scenario="home", k=2, cursor=first["next_cursor"])
    assert len(first["items"]) + len(second["items"]) == 3
    assert second["next_cursor"] is None


def test_json_file_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "scenarios.json"
    path.write_text(json.dumps({"home": {"k": 3}}))
    assert read_scenarios(Settings(scenarios=path))["home"].defaults.k == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("home = 1", ["'home'"]),
        ("[home]\nk = 0", ["'home'", "/k"]),
        ("[home]\nk = 999", ["'home'", "/k"]),
        ("[home]\ncolour = 1", ["'home'", "/colour"]),
        ('[home]\ncursor = "*"', ["'home'", "/cursor"]),
        ('[home]\nattribute = ["nobody:declared"]', ["'home'", "/attribute"]),
        ("[home]\nfilter = {attribute = {colour = 'red'}}", ["'home'", "/filter/attribute/colour"]),
        ("[home", []),
        ('["' + "x" * 200 + '"]', ["name"]),
        pytest.param('["' + "x" * 65 + '"]', ["name", "64"], id="longer-than-events-take"),
        pytest.param(
            "[home.variants." + "x" * 65 + "]\nshare = 1", ["name", "64"], id="variant-longer-than-events-take"
        ),
    ],
)
def test_file_that_is_wrong_is_refused_in_one_line(tmp_path: Path, content: str, words: list[str]) -> None:
    path = tmp_path / "scenarios.toml"
    path.write_text(content)
    with pytest.raises(ScenariosUnusable) as caught:
        read_scenarios(Settings(scenarios=path))
    message = str(caught.value)
    assert message.startswith(f"NOTELLM_SCENARIOS: {path}")
    assert "\n" not in message
    assert all(word in message for word in words)


def test_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScenariosUnusable, match="No such file"):
        read_scenarios(Settings(scenarios=tmp_path / "missing.toml"))


def test_longest_name_of_a_scenario_is_taken_by_searches_and_events(serve: Serve, tmp_path: Path) -> None:
    path, name = tmp_path / "scenarios.json", "x" * 64
    path.write_text(json.dumps({name: {"k": 3}}))
    with serve(scenarios=path) as url, httpx2.Client(base_url=url, timeout=60) as client:
        client.post("/notes", json={"id": "n", "title": "note"})
        assert client.get("/notes/n/similar", params={"scenario": name}).status_code == 200
        event = {"event_id": "e", "type": "click", "note_id": "n", "user": "u", "scenario": name}
        assert client.post("/events", json=event).status_code == 200


@pytest.mark.slow
def test_service_with_wrong_scenarios_does_not_start(tmp_path: Path) -> None:
    path = tmp_path / "scenarios.toml"
    path.write_text("[home]\nk = 0")
    environment = os.environ | {"NOTELLM_SCENARIOS": str(path), "NOTELLM_PORT": "0"}
    ended = subprocess.run([NOTELLM, "serve"], env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert "scenario 'home': /k" in ended.stderr
    assert "Traceback" not in ended.stderr
