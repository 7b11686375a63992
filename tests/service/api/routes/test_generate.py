"""POST /generate, /generate/hashtags, /generate/category."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from model.category_head import MIN_NOTES_PER_CATEGORY, CategoryHead
from model.config import NoteLLMConfig
from model.generation import CATEGORY_SHORTLIST
from model.inference.engine import Engine
from model.note import Note, hashtag_key
from tests.service.api.conftest import Serve, eventually_true

TEXT = {"title": "Sourdough for beginners", "content": "Flour, water, salt and two days."}


def test_hashtags_are_bounded_and_scored_or_a_reason_is_given(client: httpx2.Client) -> None:
    for count in (1, 10):
        answer = client.post("/generate/hashtags", json=TEXT | {"count": count, "policy": "open"}).json()
        assert len(answer["hashtags"]) <= count
        assert bool(answer["hashtags"]) != ("reason" in answer and answer["reason"] is not None)
        scores = [h["score"] for h in answer["hashtags"]]
        assert all(0 < score <= 1 for score in scores)
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) <= 1 + 1e-5


def test_hashtags_keep_to_the_policy_of_the_request(client: httpx2.Client) -> None:
    def told(**rules: object) -> dict[str, list[str] | None]:
        answer = client.post("/generate/hashtags", json=TEXT | {"count": 10} | rules)
        assert answer.status_code == 200
        return {hashtag["text"]: hashtag.get("notes") for hashtag in answer.json()["hashtags"]}

    written = told(policy="open")
    assert set(written.values()) == {None}
    used, *_ = written
    assert client.post("/notes", json=TEXT | {"id": "tagged", "hashtags": [used]}).status_code == 201
    assert "tagged" in (told(policy="grounded")[used] or [])
    assert used in told(policy="known")
    for policy in ("open", "known", "grounded"):
        assert used not in told(policy=policy, blocked=[f"# {used.upper()}"])
    assert client.delete("/notes/tagged").status_code == 200
    assert used not in told(policy="known")
    assert client.post("/generate/hashtags", json=TEXT | {"policy": "loud"}).status_code == 422


@pytest.mark.parametrize(("hashtag", "content"), [("zanzibar", "ten days on Zanzibar"), ("hip-hop", "Hip-Hop all day")])
def test_hashtag_that_a_note_names_comes_before_others_of_the_same_neighbour(
    client: httpx2.Client, hashtag: str, content: str
) -> None:
    note = {"id": "names", "title": "An island", "hashtags": [hashtag, "quokka"]}
    assert client.post("/notes", json=note).status_code == 201
    text = {"title": "Our island", "content": content}
    answer = client.post("/generate/hashtags", json=text | {"count": 10, "policy": "grounded"}).json()
    scores = {told["text"]: told["score"] for told in answer["hashtags"]}
    assert scores[hashtag] > scores["quokka"]
    assert client.delete("/notes/names").status_code == 200


def test_hashtags_that_differ_in_hyphens_are_told_once(client: httpx2.Client) -> None:
    spellings = {"note-taking", "note taking", "Note_Taking", "notetaking"}
    notes = [TEXT | {"id": f"hyphen-{i}", "hashtags": [tag]} for i, tag in enumerate(sorted(spellings))]
    for note in notes:
        assert client.post("/notes", json=note).status_code == 201
        assert client.get(f"/notes/{note['id']}").json()["hashtags"] == note["hashtags"]
    answer = client.post("/generate/hashtags", json=TEXT | {"count": 10, "policy": "grounded"}).json()
    (told,) = (hashtag for hashtag in answer["hashtags"] if hashtag["text"] in spellings)
    assert set(told["notes"]) == {note["id"] for note in notes}
    for note in notes:
        assert client.delete(f"/notes/{note['id']}").status_code == 200


@pytest.mark.parametrize("policy", ["open", "known", "grounded"])
@pytest.mark.parametrize("path", ["/generate/hashtags", "/generate"])
def test_hashtags_of_the_text_are_continued_and_not_repeated(client: httpx2.Client, policy: str, path: str) -> None:
    def told(hashtags: list[str]) -> list[str]:
        answer = client.post(path, json=TEXT | {"policy": policy, "hashtags": hashtags})
        assert answer.status_code == 200
        return [hashtag_key(hashtag["text"]) for hashtag in answer.json()["hashtags"]]

    for hashtags in (["bread"], ["Bread", "#baking"]):
        first = told(hashtags)
        assert first
        own = [*hashtags, f" #{first[0].upper()}"]
        again = told(own)
        assert {hashtag_key(hashtag) for hashtag in own}.isdisjoint(again)


def test_hashtags_below_min_score_are_left_out(client: httpx2.Client) -> None:
    body = TEXT | {"count": 10, "policy": "open"}
    scores = [hashtag["score"] for hashtag in client.post("/generate/hashtags", json=body).json()["hashtags"]]
    assert len(scores) > 1
    few = client.post("/generate/hashtags", json=body | {"min_score": scores[1]}).json()
    assert [hashtag["score"] for hashtag in few["hashtags"]] == [score for score in scores if score >= scores[1]]
    assert [hashtag["score"] for hashtag in few["below_min"]["hashtags"]] == [s for s in scores if s < scores[1]]
    none = client.post("/generate/hashtags", json=body | {"min_score": 1}).json()
    assert [hashtag["score"] for hashtag in none["below_min"]["hashtags"]] == scores
    assert "below_min" not in client.post("/generate/hashtags", json=body).json()
    assert (none["hashtags"], none["reason"]) == ([], "no hashtag has a score of min_score or more")
    stream = client.post("/generate/hashtags/stream", json=body | {"min_score": 1}).text
    assert [line for line in stream.splitlines() if line.startswith("event")] == ["event: done"]
    assert client.post("/generate", json=TEXT | {"policy": "open", "min_score": 1}).json()["hashtags"] == []
    for wrong in (-0.1, 1.1, "high"):
        assert client.post("/generate/hashtags", json=body | {"min_score": wrong}).status_code == 422


def test_a_stream_tells_each_hashtag_and_then_the_whole_answer(client: httpx2.Client) -> None:
    body = TEXT | {"count": 4}
    answer = client.post("/generate/hashtags/stream", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [dict(line.split(": ", 1) for line in event.splitlines()) for event in answer.text.split("\n\n") if event]
    *told, done = [(event["event"], json.loads(event["data"])) for event in events]
    whole = client.post("/generate/hashtags", json=body).json()
    assert {event for event, _ in told} == {"hashtag"}
    assert [hashtag["text"] for _, hashtag in told] == [hashtag["text"] for hashtag in whole["hashtags"]]
    assert done == ("done", whole)


def test_a_stream_whose_time_is_over_ends_with_a_problem(serve: Serve) -> None:
    with serve(request_seconds=1e-6) as url:
        answer = httpx2.post(f"{url}/generate/hashtags/stream", json=TEXT)
        within = 'notellm_answers_with_problems_total{method="POST",route="/generate/hashtags/stream",status="504"}'
        with httpx2.Client(base_url=url) as client:  # a streamed answer is counted after its last byte
            eventually_true(lambda: f"{within} 1.0" in client.get("/metrics").text)
    (event, data), *_ = (line.split(": ", 1) for line in answer.text.splitlines() if line)
    assert (event, data) == ("event", "problem")
    (problem,) = (json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if "data" in line[:4])
    assert (problem["status"], problem.keys()) == (504, {"type", "title", "status", "detail", "retry_after"})


def test_a_bad_body_is_refused_before_a_stream_begins(client: httpx2.Client) -> None:
    answer = client.post("/generate/hashtags/stream", json={"count": 2})
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")


def test_category_below_the_asked_probability_abstains(client: httpx2.Client) -> None:
    sure = client.post("/generate/category", json=TEXT | {"categories": ["Food"], "min_probability": 1}).json()
    assert (sure["category"], sure["abstain"]) == ("Food", False)
    unsure = client.post(
        "/generate/category", json=TEXT | {"categories": ["Food", "Pets"], "min_probability": 1}
    ).json()
    assert (unsure["category"], unsure["probability"], unsure["abstain"]) == (None, None, True)
    assert {c["name"] for c in unsure["alternatives"]} == {"Food", "Pets"}
    everything = client.post("/generate", json=TEXT | {"categories": ["Food", "Pets"], "min_probability": 1}).json()
    assert everything["category"] is None
    likeliest = max(unsure["alternatives"], key=lambda one: one["probability"])
    assert everything["below_min"]["category"]["name"] == likeliest["name"]
    # Both requests run in forwards of different sizes, whose last bits differ on some CPUs.
    assert everything["below_min"]["category"]["probability"] == pytest.approx(likeliest["probability"], rel=1e-6)


def test_category_probabilities_of_a_closed_set_sum_to_one(client: httpx2.Client) -> None:
    names = ["Food", "Food and Drink", "Pets", "旅行"]
    answer = client.post("/generate/category", json=TEXT | {"categories": names}).json()
    probabilities = {c["name"]: c["probability"] for c in answer["alternatives"]}
    probabilities[answer["category"]] = answer["probability"]
    assert set(probabilities) == set(names)
    assert math.isclose(sum(probabilities.values()), 1, rel_tol=1e-4)
    assert answer["probability"] == max(probabilities.values())


def test_the_callers_set_holds_for_all_three_too(client: httpx2.Client) -> None:
    answer = client.post("/generate", json=TEXT | {"categories": ["Soups", "Trains"]}).json()
    assert answer["category"]["name"] in ("Soups", "Trains")
    assert len(answer["embedding"]) > 0


def test_one_call_gives_all_three_for_less_than_three(client: httpx2.Client) -> None:
    everything = client.post("/generate", json=TEXT).json()
    hashtags = client.post("/generate/hashtags", json=TEXT).json()
    category = client.post("/generate/category", json=TEXT).json()
    assert math.isclose(math.hypot(*everything["embedding"]), 1, rel_tol=1e-5)
    assert [h["text"] for h in everything["hashtags"]] == [h["text"] for h in hashtags["hashtags"]]
    assert everything["category"]["name"] == category["category"]
    apart = hashtags["usage"]["prompt_tokens"] + category["usage"]["prompt_tokens"]
    assert everything["usage"]["prompt_tokens"] < apart


def test_large_closed_set_is_read_in_part_unless_all_names_are_asked_for(
    serve: Serve, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    names = [f"{first} {second}" for first in ("Soup", "Train", "Garden", "Film", "Tea") for second in range(14)]
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "trained")
    replace(NoteLLMConfig.load(folder), trained_categories=("Food", "Travel")).save(folder)
    with serve(checkpoint=str(folder)) as url, httpx2.Client(base_url=url, timeout=60) as client:

        def told(path: str, **asked: object) -> Any:
            return client.post(path, json=TEXT | {"categories": names} | asked).raise_for_status().json()

        first = told("/generate/category")  # it also reads the names, which its usage counts
        some, every = told("/generate/category"), told("/generate/category", all_categories=True)
        assert first["usage"]["prompt_tokens"] > 10 * some["usage"]["prompt_tokens"]
        assert [1 + len(answer["alternatives"]) for answer in (some, every)] == [CATEGORY_SHORTLIST, len(names)]
        some_of_all, every_of_all = told("/generate"), told("/generate", all_categories=True)
        assert (some_of_all["category"]["name"], every_of_all["category"]["name"]) == (
            some["category"],
            every["category"],
        )
        for shortened, whole in ((some, every), (some_of_all, every_of_all)):
            assert shortened["usage"]["prompt_tokens"] < whole["usage"]["prompt_tokens"]


def test_stored_note_gets_its_category_out_of_a_large_closed_set(
    serve: Serve, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    names = tuple(f"{thing} {number}" for thing in ("Soup", "Train", "Garden") for number in range(30))
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "trained")
    replace(NoteLLMConfig.load(folder), trained_categories=("Food", "Travel")).save(folder)
    with (
        serve(checkpoint=str(folder), categories=names, min_category_probability=0) as url,
        httpx2.Client(base_url=url, timeout=60) as client,
    ):
        stored = client.post("/notes", params={"generate": "hashtags,category"}, json=TEXT).raise_for_status().json()
        assert stored["category"] in names
        told = client.post("/generate/category", json=TEXT).json()
        assert (stored["category"], 1 + len(told["alternatives"])) == (told["category"], CATEGORY_SHORTLIST)


def test_words_tell_the_category_where_a_head_has_learnt_them(
    serve: Serve, tiny_checkpoint: Path, tiny_engine: Engine, tmp_path: Path
) -> None:
    """The head was fitted to zero vectors, so that the words decide."""
    names = [f"{kind} {number}" for kind in ("Soups", "Trains") for number in range(35)]
    titles = [name.lower() for name in names]
    notes = [Note(title) for title in titles for _ in range(MIN_NOTES_PER_CATEGORY)]
    truth = [name for name in names for _ in range(MIN_NOTES_PER_CATEGORY)]
    head = CategoryHead.fit(np.zeros((len(notes), tiny_engine.dimension)), truth, notes)
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "fitted")
    head.with_pool_weights(names, np.array([0.0, 1.0, 5.0])).save(folder, tiny_engine.space)
    with serve(checkpoint=str(folder)) as url, httpx2.Client(base_url=url, timeout=60) as client:

        def told(path: str, **fields: object) -> Any:
            body = {"title": "", "content": "", "categories": names} | fields
            return client.post(path, json=body).raise_for_status().json()

        for every in (False, True):
            for name, title in ((names[3], titles[3]), (names[-1], titles[-1])):
                assert told("/generate/category", title=title, all_categories=every)["category"] == name
                assert told("/generate", title=title, all_categories=every)["category"]["name"] == name
        nothing = told("/generate/category", title="🙂", all_categories=True)
        assert {round(other["probability"], 3) for other in nothing["alternatives"]} == {round(1 / len(names), 3)}
        assert told("/generate/category", title="soups 3", content="soup " * 2000)["category"] == "Soups 3"


@pytest.mark.parametrize("path", ["/generate", "/generate/category"])
def test_category_names_over_the_token_bound_are_413(client: httpx2.Client, path: str) -> None:
    limits = client.get("/limits").json()
    long = [" ".join(f"{i * 30 + j}" for j in range(20)) for i in range(limits["max_categories"])]
    answer = client.post(path, json=TEXT | {"categories": long})
    assert answer.status_code == 413
    assert f"max_category_tokens = {limits['max_category_tokens']}" in answer.json()["detail"]
    assert client.post(path, json=TEXT | {"categories": long[:5]}).status_code == 200


@pytest.mark.parametrize("path", ["/generate", "/generate/hashtags", "/generate/category", "/similar"])
def test_bad_bodies_are_refused(client: httpx2.Client, path: str) -> None:
    def status(body: bytes, content_type: str = "application/json") -> int:
        answer = client.post(path, content=body, headers={"content-type": content_type})
        assert answer.headers["content-type"] == "application/problem+json"
        return answer.status_code

    assert status(b"{nope") == 400
    assert status(b"\xff\xfe") == 400
    assert status(b"title=a", "application/x-www-form-urlencoded") == 415
    assert status(b"{}") == 422
    assert status(b'{"title": "\\ud800"}') in (400, 422)
    assert status(b'{"title": "%s"}' % (b"a" * 2**18)) == 413
