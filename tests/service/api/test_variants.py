"""Variants of a scenario: each gets a stable share of the users, and answers name the variant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from service.api.scenarios import ScenariosUnusable, read_scenarios
from service.api.schemas.search import SearchDefaults
from service.api.variants import Variant, choose_variant
from service.settings import Settings
from tests.service.api.conftest import Serve

TOML = """
[feed]
k = 4

[feed.variants.short]
share = 0.3
k = 1

[feed.variants.long]
share = 0.3
k = 6
max_per_author = 1
"""
SIZES = {"short": 1, "long": 6, None: 4}
USERS = [f"u{number}" for number in range(60)]


@pytest.fixture(scope="module")
def client(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    path = tmp_path_factory.mktemp("s") / "scenarios.toml"
    path.write_text(TOML)
    with serve(scenarios=path) as url, httpx2.Client(base_url=url, timeout=60) as opened:
        opened.post("/notes", json=[{"id": f"n{i}", "title": f"note {i}", "author": f"a{i}"} for i in range(9)])
        yield opened


def similar(client: httpx2.Client, **params: Any) -> Any:
    answer = client.get("/notes/n0/similar", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def variants(*shares: float) -> list[Variant]:
    return [Variant(f"v{place}", share, SearchDefaults()) for place, share in enumerate(shares)]


def chosen(scenario: str, user: str, *shares: float) -> str | None:
    variant = choose_variant(scenario, variants(*shares), user)
    return variant.name if variant else None


def test_a_user_gets_the_variant_that_the_answer_names(client: httpx2.Client) -> None:
    answers = {user: similar(client, scenario="feed", user=user) for user in USERS}
    assert {answer.get("variant") for answer in answers.values()} == set(SIZES)
    assert all(len(answer["items"]) == SIZES[answer.get("variant")] for answer in answers.values())
    again = {user: similar(client, scenario="feed", user=user).get("variant") for user in USERS}
    assert again == {user: answer.get("variant") for user, answer in answers.items()}


def test_bodies_and_batches_choose_as_queries_do(client: httpx2.Client) -> None:
    body = {"scenario": "feed", "positive": [{"note_id": "n0"}]}
    searches = [body | {"user": user} for user in USERS]
    batch = client.post("/similar/batch", json=searches).json()["results"]
    for user, search, result in zip(USERS, searches, batch, strict=True):
        expected = similar(client, scenario="feed", user=user).get("variant")
        assert client.post("/similar", json=search).json().get("variant") == expected
        assert result["answer"].get("variant") == expected


def test_a_request_without_a_user_gets_the_scenario_itself(client: httpx2.Client) -> None:
    answer = similar(client, scenario="feed")
    assert (len(answer["items"]), "variant" in answer) == (4, False)


def test_a_user_without_a_scenario_is_refused(client: httpx2.Client) -> None:
    answer = client.post("/similar", json={"title": "note", "user": "u1"})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/user")


def test_shares_are_those_of_the_users() -> None:
    counts = Counter(chosen("feed", f"u{number}", 0.5, 0.2) for number in range(10_000))
    assert counts["v0"] == pytest.approx(5000, abs=200)
    assert counts["v1"] == pytest.approx(2000, abs=200)
    assert counts[None] == pytest.approx(3000, abs=200)


def test_a_variant_behind_the_others_moves_nobody_from_them() -> None:
    for number in range(500):
        before, after = chosen("feed", f"u{number}", 0.3), chosen("feed", f"u{number}", 0.3, 0.3)
        assert after == before or before is None


def test_two_scenarios_split_users_differently() -> None:
    same = sum(chosen("feed", f"u{n}", 0.5) == chosen("home", f"u{n}", 0.5) for n in range(2000))
    assert 850 < same < 1150


def test_the_choice_of_a_user_is_for_ever() -> None:
    assert [chosen("feed", user, 0.5) for user in ("u0", "u1", "u2", "u3")] == [None, "v0", None, None]


def test_variant_has_its_name_without_spaces_around_it(tmp_path: Path) -> None:
    path = tmp_path / "scenarios.toml"
    path.write_text("[' feed '.variants.' v1 ']\nshare = 1")
    (variant,) = read_scenarios(Settings(scenarios=path))["feed"].variants
    assert variant.name == "v1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("[feed.variants.a]\nk = 2", "share: must be a number above 0", id="no-share"),
        pytest.param("[feed.variants.a]\nshare = 1.5", "at most 1", id="share-above-one"),
        pytest.param("[feed.variants.a]\nshare = true", "must be a number", id="share-no-number"),
        pytest.param(
            "[feed.variants.a]\nshare = 0.6\n[feed.variants.b]\nshare = 0.6", "more than 1", id="shares-above-one"
        ),
        pytest.param("[feed.variants.a]\nshare = 0.5\ncolour = 1", "'feed.variants.a': /colour", id="unknown-field"),
        pytest.param("[feed.variants.a]\nshare = 0.5\nuser = 'u'", "belongs to a single request", id="user"),
        pytest.param("[feed]\nvariants = 3", "variants: must be", id="no-table"),
        pytest.param("[feed.variants.a]\nshare = 0.1\n[feed.variants.' a']\nshare = 0.1", "'a' twice", id="same-name"),
        pytest.param("[feed]\nk = 2\n[' feed']\nk = 3", "'feed' twice", id="same-scenario"),
    ],
)
def test_variants_that_cannot_be_are_refused_at_the_start(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "scenarios.toml"
    path.write_text(text)
    with pytest.raises(ScenariosUnusable, match=said):
        read_scenarios(Settings(scenarios=path, data_dir=tmp_path))
