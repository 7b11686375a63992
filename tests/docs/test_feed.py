"""Tests that the walk-through of docs/guides/feed.md runs as printed, against a live service."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.service.process import running

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "feed.md"
MAX_LINES = 60
KEY = "the-bootstrap-key-of-these-tests"


def block() -> str:
    (code,) = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return str(code)


def test_feed_has_sixty_lines_at_most() -> None:
    assert len(block().splitlines()) <= MAX_LINES


REFUSAL = """
import httpx
post, refusals = httpx.Client.post, [503, 429]


def refuse_at_first(client, path, **options):
    if path == "/similar" and refusals:
        return httpx.Response(refusals.pop(), headers={"Retry-After": "0"})
    return post(client, path, **options)


httpx.Client.post = refuse_at_first
"""
"""Code run before the guide's block: the first searches are refused."""
EXPIRY = """
import redis
store = redis.Redis(unix_socket_path=f"{os.environ['NOTELLM_DATA_DIR']}/redis.sock")


def pages_around_an_expiry(size):
    pages = feed(size)
    first = next(pages)
    assert first["next_cursor"] and not first["degraded"]
    store.delete(*store.scan_iter("*list:*"))
    second = next(pages)
    assert second["recommendation_id"] != first["recommendation_id"]
    shown = {note_id for item in first["items"] for note_id in (item["id"], *item.get("duplicates", []))}
    assert second["items"] and not shown & {item["id"] for item in second["items"]}
    return shown


read[:] = ["ramen-1"]
pages_around_an_expiry(2)
"""
"""Code run after the guide's block: it removes the ranked list from the store between two pages."""
LONG_HISTORY = """
titles = [f"Ramen at midnight in Fukuoka, bowl {i}" for i in range(120)]
old = [{"id": f"old-{i}", "title": title, "author": f"reader-{i}"} for i, title in enumerate(titles)]
twins = [{"id": f"twin-{i}", "title": titles[-1]} for i in range(9)]
service.post("/notes", json=old).raise_for_status()
service.post("/notes", json=twins).raise_for_status()
read[:] = [note["id"] for note in old]
hidden[:] = ["ad-1", "old-119"]
store.client_pause(1500)
shown = pages_around_an_expiry(1)
assert len(shown) > 1 and not shown & {*read, *hidden}
assert not refusals
"""
"""Code run after EXPIRY: a feed for a reader of more notes than a search accepts, who has hidden one of them. The
nearest note represents duplicates, and the store does not answer at first."""


@pytest.mark.slow
def test_feed_runs_against_a_live_service(tiny_checkpoint: Path) -> None:
    code = f"{REFUSAL}\n{block()}\n{EXPIRY}\n{LONG_HISTORY}"
    with running(tiny_checkpoint, NOTELLM_BOOTSTRAP_KEY=KEY, NOTELLM_API_KEY=KEY) as service:
        result = subprocess.run(
            [sys.executable, "-c", code], env=service.environment, capture_output=True, text=True, check=False
        )
    assert result.returncode == 0, result.stderr
    *items, last = result.stdout.splitlines()
    assert [line.split()[0] for line in items] == ["1", "2", "3", "4"]
    assert re.fullmatch(r"recommendation [0-9A-Z]{26}: 4 notes", last)
