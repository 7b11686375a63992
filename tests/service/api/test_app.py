"""The app: its description is the one in docs/."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from service.api import openapi
from service.settings import Settings
from service.wiring import build_app


def test_openapi_equals_the_documented_one() -> None:
    documented = json.loads(Path("docs/openapi.json").read_text())
    real = json.loads(json.dumps(build_app(Settings()).openapi()))
    assert documented == real, "run `make openapi`"


def test_openapi_is_whole_for_whoever_asks_while_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    app, described = build_app(Settings()), list[str]()
    second = threading.Thread(target=lambda: described.append(json.dumps(app.openapi())))
    describe_problems = openapi._describe_problems

    def describe_beside_another(components: dict[str, Any]) -> None:
        second.start()
        second.join(1.0)  # it has its answer by then, unless it waits for the whole
        describe_problems(components)

    monkeypatch.setattr(openapi, "_describe_problems", describe_beside_another)
    whole = json.dumps(app.openapi())
    second.join()
    assert described == [whole]
