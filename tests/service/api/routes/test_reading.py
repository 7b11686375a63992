"""Answers about notes that the model reads only in part, or whose script it does not read."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from model.config import NoteLLMConfig
from tests.service.api.conftest import Serve

SHORT = {"title": "Sourdough", "content": "Flour, water, salt and two days."}
LONG = {"title": "Sourdough", "content": "flour water salt and days " * 60}
CHINESE = {"title": "京都三日游", "content": "春天的寺庙与面条"}


@pytest.fixture(scope="module")
def reader(serve: Serve, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """A client of a service whose model reads 4 windows of 50 tokens, and only Latin script."""
    folder = tmp_path_factory.mktemp("reader") / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    config = replace(NoteLLMConfig.load(folder), max_content_tokens=50, max_content_windows=4, scripts=("LATIN",))
    config = replace(config, languages=("en", "de"))
    config.save(folder)
    with serve(checkpoint=str(folder)) as url, httpx2.Client(base_url=url, timeout=60) as client:
        yield client


def test_limits_say_how_much_of_a_note_is_read(reader: httpx2.Client) -> None:
    limits = reader.get("/limits").json()
    read = (limits["read_title_tokens"], limits["read_hashtag_tokens"], limits["read_content_tokens"])
    assert read == (32, 40, 200)


@pytest.mark.parametrize("route", ["/notes", "/generate", "/generate/hashtags", "/generate/category"])
def test_every_answer_says_what_was_not_read(reader: httpx2.Client, route: str) -> None:
    answers = [reader.post(route, json=body).json() for body in (SHORT, LONG, CHINESE)]
    assert [answer["truncated"] for answer in answers] == [False, True, False]
    assert [answer["language_supported"] for answer in answers] == [True, True, False]


def test_items_of_a_list_say_what_was_not_read(reader: httpx2.Client) -> None:
    answer = reader.post("/notes", json=[SHORT, LONG, CHINESE]).json()
    assert [item["truncated"] for item in answer["results"]] == [False, True, False]
    assert [item["language_supported"] for item in answer["results"]] == [True, True, False]


def test_note_that_is_unchanged_was_not_read(reader: httpx2.Client) -> None:
    for expected in (True, None):
        answer = reader.put("/notes/long", json=LONG).json()
        assert answer["truncated"] is expected


def test_text_in_an_unread_script_gets_no_category(reader: httpx2.Client) -> None:
    answer = reader.post("/generate/category", json=CHINESE).json()
    assert (answer["category"], answer["abstain"], answer["alternatives"]) == (None, True, [])
    whole = reader.post("/generate", json=CHINESE).json()
    assert (whole["hashtags"], whole["category"]) == ([], None)
    assert "script" in whole["reason"]


def test_note_in_an_unread_script_is_stored_and_found(reader: httpx2.Client) -> None:
    created = reader.post("/notes?generate=hashtags,category", json=CHINESE | {"id": "kyoto"})
    assert created.status_code == 201
    assert (created.json()["hashtags"], created.json()["category"]) == ([], None)
    found = reader.post("/similar", json=CHINESE).json()
    assert "kyoto" in [item["id"] for item in found["items"]]


@pytest.mark.parametrize("route", ["/generate", "/generate/hashtags", "/generate/hashtags/stream"])
def test_language_that_the_model_does_not_write_is_refused(
    reader: httpx2.Client, client: httpx2.Client, route: str
) -> None:
    for language in ("en", "de"):
        answer = reader.post(route, json=SHORT | {"language": language})
        assert answer.status_code == 200
        assert "problem" not in answer.text
    refused = reader.post(route, json=SHORT | {"language": "zh"})
    assert refused.status_code == 422
    assert "the serving model writes hashtags in en, de; omit the field" in refused.text
    assert "does not declare" in client.post(route, json=SHORT | {"language": "en"}).text
    assert reader.post(route, json=SHORT | {"language": "English"}).status_code == 422
