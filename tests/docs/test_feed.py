"""The walk-through of docs/guides/feed.md runs as it is printed, against a live service."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.service.process import running

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "feed.md"
MAX_LINES = 60


def block() -> str:
    (code,) = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return str(code)


def test_feed_has_sixty_lines_at_most() -> None:
    assert len(block().splitlines()) <= MAX_LINES


EXPIRY = """
read[:] = ["ramen-1"]
pages = feed()
first = next(pages)
store = redis.Redis(unix_socket_path=f"{os.environ['NOTELLM_DATA_DIR']}/redis.sock")
store.delete(*store.scan_iter("*list:*"))
second = next(pages)
assert second["recommendation_id"] != first["recommendation_id"]
assert second["items"] and not {item["id"] for item in first["items"]} & {item["id"] for item in second["items"]}
"""
"""Code that is run after the guide's block: it removes the list from the store between two pages."""


@pytest.mark.slow
def test_feed_runs_against_a_live_service(tiny_checkpoint: Path) -> None:
    code = f"{block()}\nimport redis\n{EXPIRY}"
    with running(tiny_checkpoint) as service:
        result = subprocess.run(
            [sys.executable, "-c", code], env=service.environment, capture_output=True, text=True, check=False
        )
    assert result.returncode == 0, result.stderr
    *items, last = result.stdout.splitlines()
    assert [line.split()[0] for line in items] == ["1", "2", "3", "4"]
    assert re.fullmatch(r"recommendation [0-9A-Z]{26}: 4 notes", last)
