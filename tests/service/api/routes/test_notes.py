"""POST /notes in its three forms, and GET, PUT, PATCH, DELETE /notes/{id}."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest

from service.errors import NoteContended
from service.records import position_key
from tests.service.api.conftest import Serve

NOTE: dict[str, Any] = {
    "id": "kyoto",
    "title": "Kyoto in three days",
    "content": "Temples before eight.",
    "hashtags": ["kyoto", "travel"],
    "category": "Travel",
    "author": "tom",
    "created_at": "2026-05-01T09:30:00Z",
    "attributes": {"likes": 12, "city": "Kyoto"},
}


JSON = {"Content-Type": "application/json"}


def post(client: httpx2.Client, note: Any, **params: Any) -> httpx2.Response:
    return client.post("/notes", json=note, params=params)


def test_a_created_note_is_returned_as_it_was_given(client: httpx2.Client) -> None:
    created = post(client, NOTE | {"id": "as-given"})
    assert (created.status_code, created.json()["status"], created.json()["revision"]) == (201, "indexed", 1)
    stored = client.get("/notes/as-given")
    assert {name: stored.json()[name] for name in NOTE} == NOTE | {"id": "as-given"}
    assert stored.headers["etag"] == f'"{created.json()["log_position"]}"'


@pytest.mark.parametrize("note_id", ["-NabcFirebase", "--", "~", "a" * 128])
def test_a_note_keeps_the_id_that_another_system_gave_it(client: httpx2.Client, note_id: str) -> None:
    assert client.put(f"/notes/{note_id}", json={"title": "tea"}).json()["id"] == note_id
    assert client.get(f"/notes/{note_id}/similar?exclude={note_id}").status_code == 200
    assert client.get(f"/notes/{note_id}").json()["id"] == note_id
    assert client.delete(f"/notes/{note_id}").status_code == 200


def test_a_note_without_an_id_gets_one(client: httpx2.Client) -> None:
    answer = post(client, {"title": "No id"})
    assert client.get(answer.headers["location"]).json()["title"] == "No id"


def test_a_note_is_found_as_soon_as_post_answers(client: httpx2.Client) -> None:
    for i in range(20):
        text = {"title": f"Read your writes {i}", "content": f"number {i * 7919}"}
        note_id = post(client, text).json()["id"]
        found = client.post("/similar", json={**text, "k": 1}).json()["items"]
        assert [item["id"] for item in found] == [note_id]


def test_upsert_counts_revisions_and_same_text_costs_no_tokens(client: httpx2.Client) -> None:
    note = NOTE | {"id": "revised"}
    assert post(client, note).json()["usage"]["prompt_tokens"] > 0
    again = post(client, note)
    assert (again.status_code, again.json()["revision"]) == (200, 1)
    assert again.json()["usage"] == {"prompt_tokens": 0, "generated_tokens": 0}
    moved = post(client, note | {"author": "ann"}).json()
    assert (moved["revision"], moved["usage"]["prompt_tokens"]) == (2, 0)
    assert post(client, note | {"title": "Another title"}).json()["usage"]["prompt_tokens"] > 0


def test_generate_fills_only_what_was_left_out_from_one_prefill(client: httpx2.Client) -> None:
    alone = post(client, {"id": "alone", "title": "A bowl of noodles"}).json()["usage"]["prompt_tokens"]
    both = post(client, {"id": "both", "title": "A bowl of noodles"}, generate="hashtags,category").json()
    named = NOTE | {"id": "named"}
    kept = post(client, named, generate="hashtags,category").json()
    assert both["category"] == both["generated"]["category"]["name"]
    assert both["generated"]["hashtags"] is not None
    suffixes = client.post("/generate", json={"title": "A bowl of noodles"}).json()["usage"]["prompt_tokens"] - alone
    assert alone < both["usage"]["prompt_tokens"] < 2 * alone + suffixes  # a second prefill would add `alone` tokens
    assert (kept["hashtags"], kept["category"], kept["generated"]) == (NOTE["hashtags"], "Travel", None)


def test_improbable_category_is_not_given_to_a_note_and_the_answer_says_which(serve: Serve) -> None:
    note, generate = {"id": "a", "title": "A bowl of noodles"}, {"generate": "category"}
    with serve(min_category_probability=0.0) as url, httpx2.Client(base_url=url, timeout=30) as client:
        given = client.post("/notes", json=note, params=generate).json()
    probability = given["generated"]["category"]["probability"]
    assert 0 < probability < 1
    with (
        serve(min_category_probability=min(1.0, probability + 0.001)) as url,
        httpx2.Client(base_url=url, timeout=30) as client,
    ):
        key = {"Idempotency-Key": "improbable"}
        first, repeated = (client.post("/notes", json=note, params=generate, headers=key).json() for _ in range(2))
        again = client.post("/notes", json=note, params=generate)
        assert (again.status_code, again.json()["revision"]) == (200, 1)
        assert again.headers["etag"] == client.get("/notes/a").headers["etag"]
        (listed,) = client.post("/notes", json=[note], params=generate).json()["results"]
        for answer in (first, repeated, listed):
            assert answer.get("category") is None
            assert answer["generated"]["below_min"]["category"] == given["generated"]["category"]
        assert client.get("/notes/a").json()["generated"] is None
        assert client.get("/limits").json()["min_category_probability"] > probability
        assert (
            client.post("/similar", json={"title": "noodles", "filter": {"category": given["category"]}}).json()[
                "items"
            ]
            == []
        )


def test_hashtags_below_the_least_score_are_not_given_to_a_note_and_the_answer_says_which(serve: Serve) -> None:
    note, generate = {"id": "few", "title": "A bowl of noodles"}, {"generate": "hashtags"}
    with (
        serve(hashtag_policy="open", min_hashtag_score=1.0) as url,
        httpx2.Client(base_url=url, timeout=30) as client,
    ):
        every = post(client, note | {"id": "many"}, min_score=0, **generate).json()
        scores = [hashtag["score"] for hashtag in every["generated"]["hashtags"]]
        assert scores[0] > scores[-1]
        assert "below_min" not in every["generated"]
        none = post(client, note, **generate).json()
        assert (none["hashtags"], none["generated"]["hashtags"]) == ([], None)
        assert none["generated"]["hashtags_reason"] == "no hashtag has a score of min_score or more"
        assert [hashtag["score"] for hashtag in none["generated"]["below_min"]["hashtags"]] == scores
        few = client.put("/notes/few", json=note, params=generate | {"min_score": scores[0]}).json()
        below = [hashtag["text"] for hashtag in few["generated"]["below_min"]["hashtags"]]
        assert [*few["hashtags"], *below] == every["hashtags"]
        assert client.get("/notes/few").json()["hashtags"] == few["hashtags"] != []
        assert client.get("/limits").json()["min_hashtag_score"] == 1
        kept = post(client, note | {"id": "many"}, **generate).json()
        assert (kept["hashtags"], kept["outcome"]) == (every["hashtags"], "unchanged")
        fewer = post(client, note | {"id": "many"}, min_score=scores[0], **generate).json()
        assert fewer["hashtags"] == few["hashtags"]


@pytest.mark.parametrize("query", [{"min_score": 0.5}, {"min_score": 0.5, "generate": "category"}])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_least_score_of_hashtags_that_are_not_generated_is_refused(
    client: httpx2.Client, method: str, query: dict[str, Any]
) -> None:
    post(client, NOTE | {"id": "scored"})
    path = "/notes" if method == "POST" else "/notes/scored"
    refused = client.request(method, path, json={"title": "a"}, params=query)
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/query/min_score")
    wrong = client.request(method, path, json={"title": "a"}, params={"generate": "hashtags", "min_score": 2})
    assert (wrong.status_code, wrong.json()["errors"][0]["pointer"]) == (422, "/query/min_score")


def test_put_creates_and_replaces_the_whole_note(client: httpx2.Client) -> None:
    assert client.put("/notes/put", json={"title": "a", "author": "tom"}).status_code == 201
    assert client.put("/notes/put", json={"title": "b"}).status_code == 200
    assert client.get("/notes/put").json()["author"] is None
    assert client.put("/notes/put", json={"id": "other", "title": "b"}).json()["errors"][0]["pointer"] == "/id"


def test_patch_embeds_again_only_when_the_prompt_changes(client: httpx2.Client) -> None:
    post(client, NOTE | {"id": "patched"})
    moved = client.patch("/notes/patched", json={"author": None, "category": "Food"}).json()
    assert (moved["category"], moved["usage"]["prompt_tokens"]) == ("Food", 0)
    assert client.patch("/notes/patched", json={"content": "Noodles."}).json()["usage"]["prompt_tokens"] > 0
    stored = client.get("/notes/patched").json()
    assert (stored["author"], stored["content"], stored["title"]) == (None, "Noodles.", NOTE["title"])
    assert client.patch("/notes/patched", json={"title": "", "content": " "}).status_code == 422


def test_patch_generates_what_the_author_left_out_for_the_text_as_it_is_now(client: httpx2.Client) -> None:
    generate = {"generate": "hashtags,category"}
    post(client, {"id": "edited", "title": "A bowl of noodles"}, **generate)
    assert client.patch("/notes/edited", json={"content": "Eaten alone."}).json()["generated"] is None
    patched = client.patch("/notes/edited", json={"content": "Eaten at midnight."}, params=generate).json()
    twin = post(
        client, {"id": "twin", "title": "A bowl of noodles", "content": "Eaten at midnight."}, **generate
    ).json()
    assert patched["generated"]["category"]["name"] == twin["generated"]["category"]["name"]
    assert patched["generated"]["hashtags"] is not None
    assert client.get("/notes/edited").json()["category"] == patched["category"]
    kept = client.patch("/notes/edited", json={"author": "tom"}, params=generate).json()
    assert (kept["generated"]["category"], kept["usage"]["prompt_tokens"]) == (patched["generated"]["category"], 0)
    own = client.patch("/notes/edited", json={"category": "Food", "hashtags": ["noodles"]}, params=generate).json()
    assert (own["category"], own["hashtags"], own["generated"]) == ("Food", ["noodles"], None)
    refused = client.patch("/notes/edited", json={"author": "tom"}, params={"generate": "summary"})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/query/generate")


def test_a_deleted_note_is_nowhere(client: httpx2.Client) -> None:
    post(client, {"id": "gone", "title": "Soon to be gone"})
    assert client.delete("/notes/gone").status_code == 200
    assert [client.request(m, "/notes/gone").status_code for m in ("GET", "DELETE")] == [404, 404]
    assert client.patch("/notes/gone", json={"author": "x"}).status_code == 404
    assert client.get("/notes/gone/similar").status_code == 404
    found = client.post("/similar", json={"title": "Soon to be gone", "k": 50}).json()["items"]
    assert "gone" not in [item["id"] for item in found]


def test_removal_answers_a_receipt_of_place_and_time(client: httpx2.Client) -> None:
    position = post(client, {"id": "erased", "title": "Soon to be gone"}).json()["log_position"]
    before = datetime.now(UTC).replace(microsecond=0)
    receipt = client.delete("/notes/erased").json()
    assert receipt.keys() == {"id", "log_position", "removed_at"}
    assert receipt["id"] == "erased"
    assert position_key(receipt["log_position"]) > position_key(position)
    assert before <= datetime.fromisoformat(receipt["removed_at"]) <= datetime.now(UTC)


def test_if_match_protects_from_a_lost_update(client: httpx2.Client) -> None:
    first = post(client, {"id": "matched", "title": "one"}).headers["etag"]
    second = client.put("/notes/matched", json={"title": "two"}, headers={"if-match": first})
    assert second.status_code == 200
    for method, body in (("PUT", {"title": "three"}), ("PATCH", {"title": "three"}), ("DELETE", None)):
        stale = client.request(method, "/notes/matched", json=body, headers={"if-match": first})
        assert stale.status_code == 412
    assert client.delete("/notes/matched", headers={"if-match": second.headers["etag"]}).status_code == 200


def test_hashtags_are_normalised(client: httpx2.Client) -> None:
    given = ["#Street Food", "  street   food ", "STREETFOOD", "##", "night\u3000market", "东京"]
    post(client, {"id": "tags", "title": "tags", "hashtags": given})
    assert client.get("/notes/tags").json()["hashtags"] == ["Street Food", "night market", "东京"]


def test_hostile_text_is_stored_and_read_back_whole(client: httpx2.Client) -> None:
    text = '<|im_end|>"}\n[EMB]" \\ \u202e\u0000 👩‍👩‍👧 ' + "长" * 30_000
    assert post(client, {"id": "hostile", "title": text[:40], "content": text}, generate="hashtags,category").is_success
    assert client.get("/notes/hostile").json()["content"] == text


PAST = (datetime.now(UTC) - timedelta(seconds=5)).isoformat()


@pytest.mark.parametrize(
    ("body", "status", "pointer"),
    [
        (b"{nope", 400, None),
        (b'{"title": "\xff"}', 400, None),
        (b'{"title": "\\ud800"}', 400, None),
        (b'{"title": "a", "attributes": {"x": NaN}}', 400, None),
        (b"[" * 100_000, 400, None),
        (b"3", 422, ""),
        (b"{}", 422, "/content"),
        (b'{"title": " ", "content": "\\n"}', 422, "/content"),
        (b'{"title": 5}', 422, "/title"),
        (b'{"title": "a", "hashtags": "b"}', 422, "/hashtags"),
        (b'{"title": "a", "hashtags": [1]}', 422, "/hashtags/0"),
        (b'{"title": "a", "colour": "red"}', 422, "/colour"),
        (b'{"title": "a", "id": "a/b"}', 422, "/id"),
        (b'{"title": "a", "id": ".."}', 422, "/id"),
        (b'{"title": "a", "created_at": "yesterday"}', 422, "/created_at"),
        (b'{"title": "a", "created_at": "2026-05-01T09:30:00"}', 422, "/created_at"),
        (b'{"title": "a", "created_at": "0001-01-01T00:00:00+14:00"}', 422, "/created_at"),
        pytest.param(b'{"title": "a", "expires_at": "%s"}' % PAST.encode(), 422, "/expires_at", id="expired"),
    ],
)
def test_bad_input_is_refused_with_a_pointer(
    client: httpx2.Client, body: bytes, status: int, pointer: str | None
) -> None:
    answer = client.post("/notes", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    if pointer is not None:
        assert pointer in [error["pointer"] for error in answer.json()["errors"]]


@pytest.mark.parametrize(
    ("field", "how"),
    [("title", '""'), ("content", '""'), ("hashtags", "[]"), ("attributes", "{}"), ("created_at", "omit it")],
)
def test_patch_with_null_for_a_field_it_does_not_clear_says_how_to(client: httpx2.Client, field: str, how: str) -> None:
    post(client, NOTE)
    answer = client.patch(f"/notes/{NOTE['id']}", json={field: None})
    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    assert error["pointer"] == f"/{field}"
    assert error["detail"].startswith("null clears only category, author and expires_at")
    assert how in error["detail"]


def test_patch_empties_what_null_does_not(client: httpx2.Client) -> None:
    post(client, NOTE | {"id": "emptied"})
    patch = {"content": "", "hashtags": [], "attributes": {}, "category": None}
    assert client.patch("/notes/emptied", json=patch).status_code == 200
    note = client.get("/notes/emptied").json()
    assert {name: note[name] for name in patch} == patch


@pytest.mark.parametrize("value", [[1, 2], {"b": 1}, None, "x" * 1025])
def test_attribute_of_no_type_that_is_kept_is_one_error(client: httpx2.Client, value: Any) -> None:
    answer = post(client, {"title": "a", "attributes": {"a": value, "b": 1}})
    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    assert error["pointer"] == "/attributes/a"
    assert error["detail"] == "must be a string of at most 1024 characters, a boolean, or a finite number"


@pytest.mark.parametrize("number", ["18446744073709551616", "18446744073709551617", "-9223372036854775809", "1e20"])
def test_attribute_that_is_a_number_beyond_what_is_kept_exactly_is_refused(client: httpx2.Client, number: str) -> None:
    body = b'{"title": "a", "attributes": {"seq": %s}}' % number.encode()
    for method, path in (("POST", "/notes"), ("PUT", "/notes/exact"), ("PATCH", "/notes/exact")):
        answer = client.request(method, path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 422, answer.text
        (error,) = answer.json()["errors"]
        assert error["pointer"] == "/attributes/seq"
        assert error["detail"].endswith("send it as a string")


def test_attributes_that_are_the_largest_numbers_are_kept_exactly(client: httpx2.Client) -> None:
    attributes = {"most": 2**64 - 1, "least": -(2**63), "text": "18446744073709551617", "part": 1e19}
    post(client, {"id": "largest", "title": "a", "attributes": attributes})
    assert client.get("/notes/largest").json()["attributes"] == attributes


def test_attributes_whose_names_differ_in_spaces_alone_are_refused(client: httpx2.Client) -> None:
    answer = client.put("/notes/twice", json={"title": "t", "attributes": {"a": 1, " a ": 2}})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/attributes")
    assert "'a' twice" in answer.json()["errors"][0]["detail"]


def test_patch_replaces_the_attributes_as_a_whole(client: httpx2.Client) -> None:
    post(client, NOTE | {"id": "attributed"})
    client.patch("/notes/attributed", json={"attributes": {"likes": 13}})
    assert client.get("/notes/attributed").json()["attributes"] == {"likes": 13}


def test_patch_takes_back_what_was_generated(serve: Serve) -> None:
    with (
        serve(hashtag_policy="open", min_hashtag_score=0) as url,
        httpx2.Client(base_url=url, timeout=30) as client,
    ):
        made = post(client, {"id": "made", "title": "A bowl of noodles"}, generate="hashtags,category").json()
        category, hashtags = made["category"], made["hashtags"]
        assert category
        assert hashtags

        def found(**filter: Any) -> list[str]:
            return [
                item["id"] for item in client.post("/similar", json={"title": "x", "filter": filter}).json()["items"]
            ]

        assert [found(category=category), found(hashtag=hashtags[0])] == [["made"], ["made"]]
        for patch, left in (({"category": None}, (None, hashtags)), ({"hashtags": []}, (None, []))):
            changed = client.patch("/notes/made", json=patch).json()
            assert (changed["outcome"], changed["category"], changed["hashtags"]) == ("updated", *left)
            assert changed["usage"]["prompt_tokens"] == 0
            again = client.patch("/notes/made", json=patch).json()
            assert (again["outcome"], again["log_position"]) == ("unchanged", changed["log_position"])
            assert found(category=category) == []
            assert found(hashtag=hashtags[0]) == (["made"] if left[1] else [])
        assert client.get("/notes/made").json()["generated"] is None
        anew = client.patch("/notes/made", json={"category": None}, params={"generate": "category"}).json()
        assert (anew["category"], anew["hashtags"]) == (category, [])
        kept = client.put("/notes/made", json={"title": "A bowl of noodles", "category": None}).json()
        assert (kept["outcome"], kept["category"]) == ("unchanged", category)


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_change_that_would_expire_a_note_is_refused(client: httpx2.Client, method: str) -> None:
    post(client, {"id": "expiring", "title": "a"})
    answer = client.request(method, "/notes/expiring", json={"title": "b", "expires_at": PAST})
    assert (answer.status_code, [error["pointer"] for error in answer.json()["errors"]]) == (422, ["/expires_at"])
    assert client.get("/notes/expiring").json()["title"] == "a"


@pytest.mark.parametrize(
    ("bound", "body"),
    [
        ("max_body_bytes", b"[" + b" " * 2**20 + b"]"),
        ("max_note_bytes", b'{"title": "%s"}' % (b"a" * 2**18)),
        ("max_batch_notes", json.dumps([{"title": "a"}] * 51).encode()),
    ],
)
def test_over_a_bound_the_answer_names_it(client: httpx2.Client, bound: str, body: bytes) -> None:
    answer = client.post("/notes", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert f"{bound} = {client.get('/limits').json()[bound]}" in answer.json()["detail"]


def test_patch_whose_whole_note_is_over_the_bound_changes_nothing(client: httpx2.Client) -> None:
    bound = client.get("/limits").json()["max_note_bytes"]
    half = "a" * (bound // 2)
    path = client.post("/notes", json={"title": "soup", "content": half}).headers["location"]
    refused = client.patch(path, json={"title": half})
    assert refused.status_code == 413
    assert f"max_note_bytes = {bound}" in refused.json()["detail"]
    assert client.get(path).json()["title"] == "soup"
    assert client.patch(path, json={"title": half[:-200]}).status_code == 200


def test_patch_that_makes_a_note_no_longer_is_taken_where_it_is_over_the_bound(client: httpx2.Client) -> None:
    bound = client.get("/limits").json()["max_note_bytes"]
    note = {"title": "soup", "author": "ann", "content": ""}
    note["content"] = "a" * (bound - len(json.dumps(note, separators=(",", ":"))))
    added = client.post("/notes", content=json.dumps(note, separators=(",", ":")), headers=JSON)
    assert added.status_code == 201  # with its id and its time it is longer than the bound
    path = added.headers["location"]
    assert client.patch(path, json={"author": "bob"}).status_code == 200
    refused = client.patch(path, json={"author": "bobby"})
    assert (refused.status_code, "The changed note" in refused.json()["detail"]) == (413, True)
    assert client.patch(path, json={"author": None}).status_code == 200


def test_patch_with_what_the_note_has_writes_nothing(client: httpx2.Client) -> None:
    for number in range(5):  # several, since the rounding of their times of arrival differs
        added = client.post("/notes", json={"title": "soup", "author": f"a{number}"})
        patched = client.patch(added.headers["location"], json={"author": f"a{number}"})
        assert patched.headers["etag"] == added.headers["etag"]


def test_change_of_a_contended_note_is_409_and_says_when_to_try_again(
    client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def contended(recommender: Any, note_id: str, *arguments: Any, **options: Any) -> None:
        raise NoteContended(note_id)

    monkeypatch.setattr("service.recommender.Recommender.change", contended)
    answer = client.patch("/notes/kyoto", json={"title": "soup"})
    assert (answer.status_code, answer.headers["retry-after"]) == (409, "1")
    assert (answer.json()["type"].rpartition("/")[2], answer.json()["retry_after"]) == ("note-contended", 1)


def test_outcome_of_a_write_says_what_became_of_the_note(client: httpx2.Client) -> None:
    note = {"id": "outcome", "title": "soup"}
    outcomes = [client.post("/notes", json=note | change).json()["outcome"] for change in ({}, {}, {"author": "tom"})]
    assert outcomes == ["created", "unchanged", "updated"]
