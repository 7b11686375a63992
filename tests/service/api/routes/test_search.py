"""Searches of several examples and with options: POST /similar, POST and GET /notes/{id}/similar."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import redis

from model import note
from tests.service.api.conftest import Serve, eventually_true

AUTHORS = ("ann", "bob", "cat")
COUNT = 45


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, timeout=60) as opened:
        notes = [
            {
                "id": f"s{i}",
                "title": f"searched note {i} about {'soup' if i % 2 else 'trains'} {i * i}",
                "category": f"S-{i % 4}",
                "author": f"s-{AUTHORS[i % 3]}",
                "hashtags": [f"s tag {i % 5}"],
                "attributes": {"seats": i, "language": "sx"},
                "created_at": f"2024-01-{i % 28 + 1:02}T00:00:00Z",
            }
            for i in range(COUNT)
        ]
        notes += [{"id": f"twin{i}", "title": "the very same text", "author": f"s-t{i}"} for i in range(3)]
        assert opened.post("/notes", json=notes).status_code == 207
        yield opened


def post(client: httpx2.Client, path: str = "/similar", **body: Any) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_empty_fields_of_the_other_form_change_nothing(client: httpx2.Client) -> None:
    by_examples, by_text = {"positive": [{"note_id": "s1"}]}, {"title": "soup"}
    for own, other in ((by_examples, {"title": "", "content": "", "hashtags": []}), (by_text, {"positive": []})):
        assert post(client, **own, **other)["items"] == post(client, **own)["items"]
    assert refused(client, **by_examples, **by_text) == [""]
    assert refused(client, positive=[], title="") == refused(client, positive=[])


def test_blank_content_of_a_text_counts_as_empty(client: httpx2.Client) -> None:
    title, blank = {"title": "soup"}, {"title": "soup", "content": " \n\n \u200b"}
    assert post(client, **blank)["items"] == post(client, **title)["items"]
    assert post(client, positive=[blank])["items"] == post(client, positive=[title])["items"]
    assert post(client, **title, content="trains")["items"] != post(client, **title)["items"]


def refused(client: httpx2.Client, status: int = 422, path: str = "/similar", **body: Any) -> list[str]:
    """Return the pointers of the problem with which a body is refused."""
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return [error["pointer"] for error in answer.json()["errors"]]


def ids(answer: Any) -> list[str]:
    return [item["id"] for item in answer["items"]]


def examples(*names: str) -> list[dict[str, Any]]:
    return [{"note_id": name} for name in names]


def test_one_positive_answers_as_the_note_itself(client: httpx2.Client) -> None:
    by_query = client.get("/notes/s1/similar", params={"k": 7}).json()
    by_example = post(client, positive=examples("s1"), k=7)
    by_body = post(client, "/notes/s1/similar", k=7)
    assert by_query["items"] == by_example["items"] == by_body["items"]
    assert (by_query["note_id"], by_example["note_id"], by_body["note_id"]) == ("s1", None, "s1")


def test_explanation_counts_what_the_filter_left_out(client: httpx2.Client) -> None:
    def left_out(**options: Any) -> int:
        return post(client, positive=examples("s1"), explain=True, **options)["removed"]["filter"]

    everything = left_out(author="nobody at all")
    assert left_out() == 0
    assert left_out(author="s-ann") == everything - COUNT // 3
    assert left_out(filter={"category": ["S-0", "S-1"]}, author="s-ann", exclude=["s0", "nobody"]) == everything - 6
    assert left_out(exclude=["s0", "s1", "nobody"]) == 2


def test_query_string_takes_examples_and_their_strategy_as_a_body_does(client: httpx2.Client) -> None:
    for strategy in ("average", "best_score", "sum_scores"):
        query = {"positive": ["s2", "s3"], "negative": "s4", "strategy": strategy, "k": 9}
        body = {"positive": examples("s1", "s2", "s3"), "negative": examples("s4"), "strategy": strategy, "k": 9}
        answer = client.get("/notes/s1/similar", params=query)
        assert answer.status_code == 200, answer.text
        assert answer.json()["items"] == post(client, **body)["items"]


def test_bad_examples_of_a_query_string_are_refused_with_a_pointer(client: httpx2.Client) -> None:
    def answer(**query: Any) -> tuple[int, list[str]]:
        response = client.get("/notes/s1/similar", params=query)
        return response.status_code, [error["pointer"] for error in response.json()["errors"]]

    assert answer(positive=["s2", "nobody"]) == (404, ["/query/positive/1"])
    unknown = client.get("/notes/no/similar", params={"positive": "nobody"})
    assert [error["pointer"] for error in unknown.json()["errors"]] == ["/path/note_id", "/query/positive/0"]
    assert answer(negative=["s2", "s1"]) == (422, ["/query/negative/1"])
    assert answer(positive=["n"] * 101) == (422, ["/query/positive"])
    assert answer(strategy="worst") == (422, ["/query/strategy"])
    skipped = client.get("/notes/s1/similar", params={"positive": "nobody", "on_missing": "skip"}).json()
    assert skipped["missing"] == ["nobody"]


def test_every_answer_has_an_id_of_its_own_and_positions(client: httpx2.Client) -> None:
    first, second = (client.get("/notes/s1/similar", params={"k": 5}).json() for _ in range(2))
    assert first["recommendation_id"] != second["recommendation_id"]
    assert [item["position"] for item in first["items"]] == [1, 2, 3, 4, 5]


def test_fields_that_say_nothing_are_left_out(client: httpx2.Client) -> None:
    answer = client.get("/notes/s1/similar", params={"k": 1}).json()
    assert list(answer) == [
        *("note_id", "recommendation_id", "items", "complete", "degraded", "model", "log_position"),
    ]
    assert list(answer["items"][0]) == ["id", "score", "position", "title", "hashtags", "category", "author"]


def test_examples_are_never_in_the_answer(client: httpx2.Client) -> None:
    answer = post(client, positive=examples("s1", "s2"), negative=examples("s3"), k=50)
    assert {"s1", "s2", "s3"}.isdisjoint(ids(answer))


def test_texts_and_ids_stand_beside_each_other(client: httpx2.Client) -> None:
    twice = post(client, positive=[{"title": "the very same text"}, {"note_id": "twin0"}], k=3)
    assert set(ids(twice)[:2]) == {"twin1", "twin2"}
    assert twice["items"][0]["score"] == pytest.approx(1, abs=1e-4)


def test_weight_zero_has_no_say(client: httpx2.Client) -> None:
    weighted = post(client, positive=[{"note_id": "s1"}, {"note_id": "s2", "weight": 0}], k=50)
    alone = post(client, positive=examples("s1"), exclude=["s2"], k=50)
    assert weighted["items"] == alone["items"]


def cosines_to(client: httpx2.Client, note_id: str) -> dict[str, float]:
    answer = client.get(f"/notes/{note_id}/similar", params={"k": 50, "attribute": "language:sx"})
    return {item["id"]: item["score"] for item in answer.json()["items"]}


def test_sum_scores_adds_cosines(client: httpx2.Client) -> None:
    options = {"k": 50, "strategy": "sum_scores", "attribute": ["language:sx"]}
    body = post(client, positive=examples("s1", "s2"), negative=[{"note_id": "s3", "weight": 0.5}], **options)
    one, two, three = (cosines_to(client, name) for name in ("s1", "s2", "s3"))
    assert len(body["items"]) == COUNT - 3
    for item in body["items"]:
        expected = one[item["id"]] + two[item["id"]] - 0.5 * three[item["id"]]
        assert item["score"] == pytest.approx(expected, abs=1e-4)


def sigmoid(value: float) -> float:
    return 0.5 * (1 + value / (1 + abs(value)))


@pytest.mark.parametrize(("positive", "negative"), [(("s1", "s2"), ("s3",)), ((), ("s4", "s9")), (("s5",), ())])
def test_best_score_compares_nearest_positive_with_nearest_negative(
    client: httpx2.Client, positive: tuple[str, ...], negative: tuple[str, ...]
) -> None:
    options = {"k": 50, "strategy": "best_score", "attribute": ["language:sx"]}
    body = post(client, positive=examples(*positive), negative=examples(*negative), **options)
    near = [cosines_to(client, name) for name in positive]
    far = [cosines_to(client, name) for name in negative]
    scores = [item["score"] for item in body["items"]]
    assert len(scores) == COUNT - len(positive) - len(negative)
    assert scores == sorted(scores, reverse=True)
    for item in body["items"]:
        best = max((c[item["id"]] for c in near), default=-math.inf)
        worst = max((c[item["id"]] for c in far), default=-math.inf)
        expected = sigmoid(best) if best > worst else -sigmoid(worst)
        assert item["score"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ({"positive": [], "negative": []}, ["/positive"]),
        ({}, ["/content"]),
        ({"title": " "}, ["/content"]),
        ({"title": "x", "positive": [{"note_id": "s1"}]}, [""]),
        ({"negative": [{"note_id": "s1"}]}, ["/strategy"]),
        ({"positive": [{"note_id": "s1"}], "negative": [{"title": "x"}, {"note_id": "s1"}]}, ["/negative/1"]),
        ({"positive": [{"title": "x"}], "negative": [{"title": "x"}]}, ["/negative/0"]),
        ({"positive": [{"note_id": "s1", "weight": 0}]}, ["/positive"]),
        ({"positive": [{"note_id": "s1", "weight": -1}]}, ["/positive/0/weight"]),
        ({"positive": [{"note_id": "s1", "weight": 1e-320}]}, ["/positive/0/weight"]),
        ({"positive": [{"note_id": "s1", "title": "x"}]}, ["/positive/0"]),
        ({"positive": [{"weight": 1}]}, ["/positive/0"]),
        ({"positive": [{"weight": 1}] * 2, "negative": [{"no field": 1}] * 2}, ["/positive/0", "/negative/0/no field"]),
        ({"positive": [{"note_id": "s1"}] * 101}, ["/positive"]),
        (
            {"positive": [{"note_id": "twin0"}], "negative": [{"note_id": "twin1"}], "strategy": "sum_scores"},
            ["/positive"],
        ),
        ({"title": "x", "diversity": 1.5}, ["/diversity"]),
        ({"title": "x", "max_per_author": 0}, ["/max_per_author"]),
        ({"title": "x", "collapse_above": 2}, ["/collapse_above"]),
        ({"title": "x", "scenario": "nobody bound this"}, ["/scenario"]),
        ({"title": "x", "cursor": "next"}, ["/cursor"]),
        ({"title": "x", "boost": [{"weight": 1}]}, ["/boost/0"]),
        ({"title": "x", "boost": [{"weight": 1, "match": {}}]}, ["/boost/0/match"]),
        ({"title": "x", "boost": [{"weight": 1, "decay": {"curve": "exp", "scale": 0}}]}, ["/boost/0/decay/scale"]),
        ({"title": "x", "boost": [{"weight": 1, "match": {"category": "a"}}] * 21}, ["/boost"]),
        ({"title": "x", "sources": {"clicks": 1}}, ["/sources/clicks"]),
        ({"title": "x", "sources": {"content": 0}}, ["/sources/content"]),
        ({"title": "x", "sources": {"content": 5e-324, "behaviour": 1}}, ["/sources/content"]),
        ({"title": "x", "sources": "all"}, ["/sources"]),
        (
            {"title": "x", "boost": [{"weight": 1, "decay": {"curve": "exp", "scale": 1, "target": "soon"}}]},
            ["/boost/0/decay/target"],
        ),
        (
            {"title": "x", "boost": [{"weight": 1, "decay": {"curve": "exp", "scale": 1, "target": 2026}}]},
            ["/boost/0/decay/target"],
        ),
        (
            {
                "title": "x",
                "boost": [{"weight": 1, "decay": {"curve": "exp", "scale": 1, "target": True, "attribute": "seats"}}],
            },
            ["/boost/0/decay/target"],
        ),
        ({"title": "x", "filter": {"attribute": {"kind": "a"}}}, ["/filter/attribute/kind"]),
        ({"title": "x", "min_log_position": "464106481412082-0"}, ["/min_log_position"]),
        ({"title": "x", "k": 51}, ["/k"]),
        ({"title": "x", "strategy": "worst"}, ["/strategy"]),
    ],
)
def test_bad_search_is_refused_with_a_pointer(client: httpx2.Client, body: dict[str, Any], pointers: list[str]) -> None:
    assert refused(client, **body) == pointers


@pytest.mark.parametrize("weight", [b"NaN", b"Infinity", b"1e400"])
def test_weight_that_is_not_finite_is_refused(client: httpx2.Client, weight: bytes) -> None:
    body = b'{"positive": [{"note_id": "s1", "weight": %s}]}' % weight
    answer = client.post("/similar", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)


def test_unknown_examples_are_all_named(client: httpx2.Client) -> None:
    body = {"positive": examples("nobody", "s1"), "negative": examples("none")}
    assert refused(client, 404, **body) == ["/positive/0", "/negative/0"]
    assert refused(client, 404, "/notes/s1/similar", positive=examples("nobody")) == ["/positive/0"]
    assert client.post("/notes/nobody/similar", json={}).status_code == 404


def test_unknown_examples_are_skipped_and_named(client: httpx2.Client) -> None:
    skipped = post(client, positive=examples("nobody", "s1"), negative=examples("none"), on_missing="skip", k=5)
    assert skipped["missing"] == ["nobody", "none"]
    assert skipped["items"] == post(client, positive=examples("s1"), k=5)["items"]


def test_search_with_too_few_examples_left_says_so(client: httpx2.Client) -> None:
    too_few = "too few are left to rank by. Send other examples (the strategy average needs a positive one)."
    for negative in ([], examples("s1")):
        for on_missing, remedy in (("skip", too_few), ("error", "to skip them.")):
            body = {"positive": examples("nobody"), "negative": negative, "on_missing": on_missing}
            answer = client.post("/similar", json=body)
            assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (404, "/positive/0")
            assert answer.json()["detail"].endswith(remedy)


@pytest.fixture
def aliens(client: httpx2.Client, serve: Serve, guarded_redis: Any) -> Iterator[httpx2.Client]:
    """Client of a service with the notes a, b and c, and with x and y, whose vectors are of another model."""
    with serve(redis_url=guarded_redis.url) as url, httpx2.Client(base_url=url, timeout=60) as opened:
        for note_id in "abcxy":
            assert opened.post("/notes", json={"id": note_id, "title": f"note {note_id}"}).status_code == 201
        with redis.Redis.from_url(guarded_redis.url) as store:
            for note_id in "xy":
                store.hset(f"{{notes}}:note:{note_id}", "space", "another")
                store.xadd("{notes}:log", {"id": note_id, "op": "put", "by": "another"})
        eventually_true(lambda: opened.get("/readyz").json()["notes_of_another_model"] == 2)
        yield opened


def test_examples_of_another_model_are_skipped_or_refused_with_pointers(aliens: httpx2.Client) -> None:
    body = {"positive": examples("a", "x"), "negative": examples("y", "b", "nobody")}
    skipped = post(aliens, **body, on_missing="skip")
    assert set(skipped["missing"]) == {"x", "y", "nobody"}
    assert skipped["items"] == post(aliens, positive=examples("a"), negative=examples("b"), exclude=["x", "y"])["items"]
    refusal = aliens.post("/similar", json=body)
    assert (refusal.status_code, refusal.json()["type"].rpartition("/")[2]) == (409, "other-space")
    assert [error["pointer"] for error in refusal.json()["errors"]] == ["/positive/1", "/negative/0"]
    model, detail = skipped["model"], refusal.json()["detail"]
    assert f"another model than {model!r}" in detail
    assert "reread" not in detail, "at a replica of the old model that takes a note from the new one"
    assert "POST" not in detail
    by_query = aliens.get("/notes/a/similar", params={"positive": ["b", "x"]})
    assert [error["pointer"] for error in by_query.json()["errors"]] == ["/query/positive/1"]


def test_search_left_with_examples_of_another_model_alone_says_so(aliens: httpx2.Client) -> None:
    answer = aliens.post("/similar", json={"positive": examples("x", "nobody"), "on_missing": "skip"})
    assert answer.status_code == 404
    details = [error["detail"] for error in answer.json()["errors"]]
    assert details == ["the note 'x' has a vector from another model", "there is no note 'nobody'"]
    for on_missing in ("error", "skip"):
        own = aliens.get("/notes/x/similar", params={"on_missing": on_missing})
        assert (own.status_code, own.json()["type"].rpartition("/")[2]) == (409, "other-space")
        assert "errors" not in own.json()


def test_note_in_the_url_that_is_a_negative_too_is_refused(client: httpx2.Client) -> None:
    assert refused(client, path="/notes/s1/similar", negative=examples("s1")) == ["/negative/0"]


@pytest.mark.parametrize("option", [{"max_per_author": 2}, {"max_per_category": 1}])
def test_cap_holds_and_the_best_come(client: httpx2.Client, option: dict[str, int]) -> None:
    ((name, cap),) = option.items()
    field = name.removeprefix("max_per_")
    everything = client.get("/notes/s1/similar", params={"k": 50, "attribute": "language:sx"}).json()["items"]
    answer = client.get("/notes/s1/similar", params={"k": 50, "attribute": "language:sx", **option}).json()
    counts: Counter[str] = Counter()
    expected = []
    for item in everything:
        counts[item[field]] += 1
        if counts[item[field]] <= cap:
            expected.append(item["id"])
    assert ids(answer) == expected
    assert answer["complete"]


def test_twins_collapse_into_the_best(client: httpx2.Client) -> None:
    answer = post(client, title="the very same text", collapse_above=0.99, k=3, explain=True)
    first = answer["items"][0]
    assert {first["id"], *first["duplicates"]} == {"twin0", "twin1", "twin2"}
    assert answer["removed"]["collapse_above"] >= 2
    assert "duplicates" not in post(client, title="the very same text", k=3)["items"][0]


def test_diversity_changes_the_order_and_not_the_scores(client: httpx2.Client) -> None:
    own = {"any": [{"attribute": {"language": "sx"}}, {"author": ["s-t0", "s-t1", "s-t2"]}]}
    body = {"title": "the very same text", "filter": own}
    plain = {item["id"]: item["score"] for item in post(client, **body, k=50)["items"]}
    diverse = post(client, **body, diversity=0.7, k=10)["items"]
    assert len(diverse) == 10
    assert diverse[0]["id"].startswith("twin")
    assert not diverse[1]["id"].startswith("twin")
    assert all(item["score"] == pytest.approx(plain[item["id"]], abs=1e-5) for item in diverse)
    assert [item["score"] for item in diverse] != sorted((item["score"] for item in diverse), reverse=True)


def test_diversity_one_still_begins_with_the_nearest(client: httpx2.Client) -> None:
    nearest = client.get("/notes/s1/similar", params={"k": 1}).json()["items"][0]
    assert client.get("/notes/s1/similar", params={"diversity": 1}).json()["items"][0] == nearest


def test_boosts_reorder_and_are_explained(client: httpx2.Client) -> None:
    near = {"curve": "linear", "attribute": "seats", "target": 30, "scale": 5}
    boosts = [{"weight": 5, "match": {"author": "s-bob"}}, {"weight": 3, "decay": near}]
    answer = post(client, "/notes/s1/similar", boost=boosts, k=20, explain=True)
    best = answer["items"][0]
    assert best["id"] == "s31"
    assert best["explanation"]["boosts"] == [5, pytest.approx(3 * 0.9)]
    assert best["explanation"]["positive"] == [pytest.approx(best["score"], abs=1e-5)]
    assert best["explanation"]["relevance"] == pytest.approx(best["score"] + 7.7, abs=1e-5)
    relevances = [item["explanation"]["relevance"] for item in answer["items"]]
    assert relevances == sorted(relevances, reverse=True)


@pytest.mark.parametrize("target", ["2024-01-10T00:00:00Z", 1_704_844_800, 1_704_844_800_000, "1704844800000"])
def test_time_decay_prefers_what_is_near_its_target(client: httpx2.Client, target: str | int) -> None:
    decay = {"curve": "gauss", "target": target, "scale": 86400}
    answer = post(client, positive=examples("s1"), boost=[{"weight": 9, "decay": decay}], k=2)
    assert set(ids(answer)) == {"s9", "s37"}


def test_explanation_has_a_cosine_for_each_example(client: httpx2.Client) -> None:
    body = {"positive": examples("s1", "nobody"), "negative": examples("s2"), "on_missing": "skip", "explain": True}
    answer = post(client, **body, attribute=["language:sx"], k=50)
    one, two = cosines_to(client, "s1"), cosines_to(client, "s2")
    assert len(answer["items"]) == COUNT - 2
    for item in answer["items"]:
        explanation = item["explanation"]
        assert explanation["positive"] == [pytest.approx(one[item["id"]], abs=1e-4), None]
        assert explanation["negative"] == [pytest.approx(two[item["id"]], abs=1e-4)]


def test_explanation_names_the_hashtags_that_a_note_shares_with_positive_examples(client: httpx2.Client) -> None:
    notes = [
        {"id": "h1", "title": "a market", "author": "hal", "hashtags": ["Street Food", "night"]},
        {"id": "h2", "title": "the market", "author": "hal", "hashtags": ["streetfood", "day"]},
    ]
    assert client.post("/notes", json=notes).status_code == 207

    def shared(**body: Any) -> dict[str, list[str]]:
        items = post(client, author="hal", explain=True, **body)["items"]
        return {item["id"]: item["explanation"]["shared_hashtags"] for item in items}

    assert shared(positive=examples("h1"), negative=examples("s2")) == {"h2": ["streetfood"]}
    text = {"title": "a market", "hashtags": ["day", "NIGHT"]}
    assert shared(positive=[text]) == {"h1": ["night"], "h2": ["day"]}
    assert shared(positive=[text | {"weight": 0}, {"title": "hills"}]) == {"h1": [], "h2": []}


def test_min_score_holds_beside_options(client: httpx2.Client) -> None:
    scores = [item["score"] for item in post(client, positive=examples("s1"), k=20)["items"]]
    bound = (scores[6] + scores[7]) / 2
    answer = post(client, positive=examples("s1"), k=20, min_score=bound, diversity=0.5)
    assert sorted((item["score"] for item in answer["items"]), reverse=True) == pytest.approx(scores[:7], abs=1e-5)
    assert answer["complete"]


def test_min_score_may_lie_beyond_a_cosine_where_scores_do(client: httpx2.Client) -> None:
    body = {"positive": examples("s1", "s3", "s5"), "strategy": "sum_scores", "k": 40}
    scores = [item["score"] for item in post(client, **body)["items"]]
    assert scores[0] > 1
    bound = max(1.01, (scores[2] + scores[3]) / 2)
    found = [item["score"] for item in post(client, **body, min_score=bound)["items"]]
    assert found == [score for score in scores if score >= bound]
    assert post(client, **body, min_score=3.01)["items"] == []
    assert post(client, positive=examples("s1"), sources="auto", min_score=1.5, k=5)["complete"]
    assert refused(client, positive=examples("s1"), min_score=1.5) == ["/min_score"]
    assert refused(client, positive=examples("s1"), sources={"content": 2}, min_score=1.5) == ["/min_score"]
    answer = client.get("/notes/s1/similar", params={"min_score": -1.01})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/query/min_score")


def test_a_hundred_examples_are_taken(client: httpx2.Client) -> None:
    many = [{"note_id": f"s{i % COUNT}", "hashtags": []} for i in range(100)]
    assert len(post(client, positive=many, k=3)["items"]) == 3


def test_keys_of_a_notes_hashtags_are_made_once_for_all_conditions(
    client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    own = note.hashtag_key

    def recorded(text: str) -> str:
        made.append(text)
        return own(text)

    put = client.put("/notes/keyed", json={"title": "soup", "hashtags": ["kept once", "second"]})
    assert put.status_code in (200, 201)
    note.hashtag_keys.cache_clear()
    monkeypatch.setattr(note, "hashtag_key", recorded)
    groups = [{"all_hashtag": ["kept once"] * 100} for _ in range(49)]
    found = post(client, title="soup", k=50, filter={"all": groups})
    assert "keyed" in {item["id"] for item in found["items"]}
    assert made.count("second") == 1
    client.delete("/notes/keyed")
