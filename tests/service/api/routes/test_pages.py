"""Pages of one ranked list: a cursor, on any replica, with every option."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.records import position_key
from service.store.embedded_redis import EmbeddedRedis
from service.store.purge import purge_store
from tests.service.api.conftest import Serve

pytestmark = pytest.mark.slow
COUNT = 60
REPLICAS = 3
MAX_K = 100


@pytest.fixture(scope="module")
def replicas(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[httpx2.Client]]:
    """Three replicas on one store, whose ranking takes blocks of 8 candidates, so that a list has several blocks."""
    patch = pytest.MonkeyPatch()
    patch.setattr("service.search.ranker.BLOCK_SIZE", 8)
    folder = tmp_path_factory.mktemp("p")
    server = EmbeddedRedis(folder / "data")
    server.start()
    options = {"redis_url": server.url, "filter_attributes": ("seats",), "max_k": MAX_K}
    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(serve(**options)) for _ in range(REPLICAS)]
        clients = [stack.enter_context(httpx2.Client(base_url=url, timeout=60)) for url in urls]
        words = ("soup", "trains", "hills", "chess")
        notes = [
            {
                "id": f"p{i}",
                # Sixteen texts, so that many notes have equal scores.
                "title": f"{words[i % 4]} {words[i // 7 % 4]}",
                "category": f"c{i % 5}",
                "author": f"a{i % 7}" if i % 9 else None,
                "hashtags": [words[i % 3]],
                "attributes": {"seats": i},
            }
            for i in range(COUNT)
        ]
        answer = clients[0].post("/notes", json=notes)
        assert answer.status_code == 207
        position = max((result["log_position"] for result in answer.json()["results"]), key=position_key)
        params = {"min_log_position": position}
        for client in clients:
            answer = client.get("/notes/p0/similar", params=params, headers={"x-request-timeout": "30"})
            assert answer.status_code == 200
        yield clients
    server.stop()
    patch.undo()


def post(client: httpx2.Client, **body: Any) -> Any:
    answer = client.post("/similar", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def pages(clients: list[httpx2.Client], k: int, **body: Any) -> list[Any]:
    """Return all pages of one list, each from the next replica."""
    answers, cursor = [], "*"
    while cursor is not None:
        client = clients[len(answers) % len(clients)]
        answers.append(post(client, **body, k=k, cursor=cursor))
        cursor = answers[-1]["next_cursor"]
    return answers


note_ids = st.integers(0, COUNT - 1).map(lambda i: {"note_id": f"p{i}"})
boosts = st.lists(
    st.one_of(
        st.builds(
            lambda weight, curve, target, scale: {
                "weight": weight,
                "decay": {"curve": curve, "attribute": "seats", "target": target, "scale": scale},
            },
            st.floats(-1, 1),
            st.sampled_from(["exp", "gauss", "linear"]),
            st.integers(0, COUNT),
            st.floats(0.5, 50),
        ),
        st.builds(
            lambda weight, c: {"weight": weight, "match": {"category": f"c{c}"}}, st.floats(-1, 1), st.integers(0, 4)
        ),
    ),
    max_size=3,
)
options = st.fixed_dictionaries(
    {
        "positive": st.lists(note_ids, min_size=1, max_size=3, unique_by=lambda one: one["note_id"]),
        "strategy": st.sampled_from(["average", "best_score", "sum_scores"]),
    },
    optional={
        "diversity": st.floats(0, 1),
        "max_per_author": st.integers(1, 4),
        "max_per_category": st.integers(1, 20),
        "collapse_above": st.floats(0.8, 1),
        "boost": boosts,
        "min_score": st.floats(-1, 0.9),
        "explain": st.booleans(),
        "filter": st.sampled_from([{"not": {"category": "c1"}}, {"attribute": {"seats": {"gte": 20}}}]),
        "sources": st.sampled_from(["content", "auto", {"words": 1}]),
        "exclude": st.lists(st.integers(0, COUNT - 1).map(lambda i: f"p{i}"), max_size=5),
    },
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=options, negative=st.lists(note_ids, max_size=2), k=st.integers(1, 30), short=st.integers(1, MAX_K))
def test_pages_put_together_are_the_long_list_and_a_short_one_its_beginning(
    replicas: list[httpx2.Client], body: dict[str, Any], negative: list[dict[str, str]], k: int, short: int
) -> None:
    named = {one["note_id"] for one in body["positive"]}
    body = body | {"negative": [one for one in negative if one["note_id"] not in named]}
    answer = replicas[0].post("/similar", json={**body, "k": MAX_K})
    if answer.status_code == 422:  # the examples cancel out
        assert [error["pointer"] for error in answer.json()["errors"]] == ["/positive"]
        return
    whole = answer.json()
    assert whole["complete"]
    answers = pages(replicas, k, **body)
    assert [item for page in answers for item in page["items"]] == whole["items"]
    assert all(len(page["items"]) == k for page in answers[:-1])
    assert len({page["recommendation_id"] for page in answers}) == 1
    assert all(page["complete"] for page in answers)
    assert post(replicas[1], **body, k=short)["items"] == whole["items"][:short]


def test_pages_explain_what_the_long_list_explains(replicas: list[httpx2.Client]) -> None:
    body = {"positive": [{"note_id": "p1"}], "sources": {"words": 1}, "explain": True}
    whole = post(replicas[0], **body, k=12)["items"]
    assert [item for page in pages(replicas, 6, **body)[:2] for item in page["items"]] == whole
    explained = [item["explanation"] for item in whole]
    assert any(one["shared_words"] for one in explained)
    assert any(one["shared_hashtags"] for one in explained)


def test_pages_go_through_a_query_string_too(replicas: list[httpx2.Client]) -> None:
    client = replicas[0]
    whole = client.get("/notes/p0/similar", params={"k": 20}).json()
    first = client.get("/notes/p0/similar", params={"k": 10, "cursor": "*"}).json()
    second = replicas[1].get("/notes/p0/similar", params={"k": 10, "cursor": first["next_cursor"]}).json()
    assert first["items"] + second["items"] == whole["items"]
    assert "next_cursor" not in whole


def test_list_survives_writes_and_leaves_out_deleted_notes(replicas: list[httpx2.Client]) -> None:
    client = replicas[0]
    twins = [{"id": f"gone{i}", "title": "soup soup 0"} for i in range(8)]
    assert client.post("/notes", json=twins).status_code == 207
    first = post(
        client, title="soup soup 0", k=4, cursor="*", filter={"not": {"category": [f"c{i}" for i in range(5)]}}
    )
    assert len(first["items"]) == 4
    rest = sorted({one["id"] for one in twins} - {item["id"] for item in first["items"]})
    assert client.delete(f"/notes/{rest[0]}").status_code == 200
    assert client.post("/notes", json={"id": "newcomer", "title": "soup soup 0"}).status_code == 201
    body = {"title": "soup soup 0", "filter": {"not": {"category": [f"c{i}" for i in range(5)]}}}
    second = post(client, **body, k=3, cursor=first["next_cursor"])
    assert [item["id"] for item in second["items"]] == rest[1:]
    assert second["complete"]
    for one in [*twins, {"id": "newcomer"}]:
        client.delete(f"/notes/{one['id']}")


def problem(client: httpx2.Client, status: int, **body: Any) -> Any:
    answer = client.post("/similar", json=body)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.json()


@pytest.mark.parametrize("change", [{"diversity": 0.5}, {"positive": [{"note_id": "p2"}]}, {"exact": True}])
def test_cursor_of_another_request_is_refused(replicas: list[httpx2.Client], change: dict[str, Any]) -> None:
    body: dict[str, Any] = {"positive": [{"note_id": "p1"}]}
    cursor = post(replicas[0], **body, k=2, cursor="*")["next_cursor"]
    refused = problem(replicas[0], 422, **(body | change), k=2, cursor=cursor)
    assert [error["pointer"] for error in refused["errors"]] == ["/cursor"]
    assert len(post(replicas[0], **body, k=7, cursor=cursor)["items"]) == 7  # another k is the same request


def test_cursor_of_no_answer_is_refused_at_the_query_parameter(replicas: list[httpx2.Client]) -> None:
    refused = replicas[0].get("/notes/p0/similar", params={"cursor": "next"})
    assert refused.status_code == 422
    assert [error["pointer"] for error in refused.json()["errors"]] == ["/query/cursor"]


def test_unknown_list_is_410_and_says_to_begin_again(replicas: list[httpx2.Client]) -> None:
    gone = problem(replicas[0], 410, title="soup", cursor="01KAZ00000000000000000000Z.5")
    assert 'cursor "*"' in gone["detail"]


def test_next_page_costs_no_model_call(replicas: list[httpx2.Client]) -> None:
    def tokens() -> float:
        lines = replicas[0].get("/metrics").text.splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith("notellm_prompt_tokens_total")))

    first = post(replicas[0], title="soup trains", k=3, cursor="*")
    before = tokens()
    post(replicas[0], title="soup trains", k=3, cursor=first["next_cursor"])
    assert tokens() == before


def test_lists_end_and_are_bounded_in_number(
    serve: Serve, embedded: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    max_lists = 20
    monkeypatch.setattr("service.store.ranked_lists.MAX_LISTS", max_lists)
    with (
        serve(redis_url=embedded.url, page_seconds=1000) as url,
        httpx2.Client(base_url=url, timeout=60) as client,
        redis.Redis.from_url(embedded.url, decode_responses=True) as admin,
    ):
        assert client.post("/notes", json=[{"id": f"n{i}", "title": f"note {i}"} for i in range(3)]).status_code == 207
        first = post(client, positive=[{"note_id": "n0"}], k=1, cursor="*")
        (key,) = admin.keys("{notes}:list:*")
        assert 0 < admin.ttl(key) <= 1000
        for _ in range(max_lists):
            post(client, positive=[{"note_id": "n0"}], k=1, cursor="*")
        assert len(admin.keys("{notes}:list:*")) == max_lists
        problem(client, 410, positive=[{"note_id": "n0"}], k=1, cursor=first["next_cursor"])


def test_list_is_not_kept_where_memory_is_full(serve: Serve, embedded: EmbeddedRedis) -> None:
    with (
        serve(redis_url=embedded.url) as url,
        httpx2.Client(base_url=url, timeout=60) as client,
        redis.Redis.from_url(embedded.url, decode_responses=True) as admin,
    ):
        assert client.post("/notes", json=[{"id": f"n{i}", "title": f"note {i}"} for i in range(3)]).status_code == 207
        admin.config_set("maxmemory", 1)
        full = post(client, positive=[{"note_id": "n0"}], k=1, cursor="*")
        assert (len(full["items"]), full["degraded"], full["next_cursor"]) == (1, True, None)
        assert admin.keys("{notes}:list*") == []
        admin.config_set("maxmemory", 0)
        assert post(client, positive=[{"note_id": "n0"}], k=1, cursor="*")["next_cursor"]


def test_ordinary_search_keeps_no_list(serve: Serve, embedded: EmbeddedRedis) -> None:
    with (
        serve(redis_url=embedded.url) as url,
        httpx2.Client(base_url=url, timeout=60) as client,
        redis.Redis.from_url(embedded.url, decode_responses=True) as admin,
    ):
        assert client.post("/notes", json={"id": "n0", "title": "note"}).status_code == 201
        client.get("/notes/n0/similar", params={"diversity": 0.5, "max_per_author": 1})
        assert admin.keys("{notes}:list*") == []


def test_purge_removes_lists(serve: Serve, embedded: EmbeddedRedis) -> None:
    with (
        serve(redis_url=embedded.url) as url,
        httpx2.Client(base_url=url, timeout=60) as client,
        redis.Redis.from_url(embedded.url, decode_responses=True) as admin,
    ):
        assert client.post("/notes", json=[{"id": f"n{i}", "title": f"note {i}"} for i in range(3)]).status_code == 207
        first = post(client, title="note", k=1, cursor="*")
        purge_store(embedded.url)
        assert admin.keys("{notes}:list:*") == []
        problem(client, 410, title="note", k=1, cursor=first["next_cursor"])
