"""The app's OpenAPI description: equal to the one in docs/, and complete for concurrent callers."""

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


def test_openapi_says_no_more_than_is_sent() -> None:
    described = build_app(Settings()).openapi()
    operations = [operation for methods in described["paths"].values() for operation in methods.values()]
    parameters = [parameter for operation in operations for parameter in operation.get("parameters", ())]
    assert all("null" not in json.dumps(parameter["schema"]) for parameter in parameters)
    fields = described["components"]["schemas"]["Problem"]["properties"]
    assert {"errors", "retry_after"} <= fields.keys()
    assert all("default" not in field for field in fields.values()), "an answer may lack it"
    assert "default" not in described["components"]["schemas"]["HashtagOut"]["properties"]["notes"]
    assert described["components"]["schemas"]["SimilarIn"]["properties"]["k"]["description"]
    assert described["components"]["schemas"]["HashtagsIn"]["properties"]["count"]["default"] == 5
    assert "itemSchema" not in json.dumps(described), "it is of OpenAPI 3.2"


def test_openapi_is_whole_for_whoever_asks_while_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    settled = threading.Event()  # set once the second thread waits for the whole description, or has an answer already
    described: list[str] = []

    class AnnouncedLock:
        """Lock that announces that the second thread is about to wait for it."""

        def __init__(self) -> None:
            self._lock = threading.Lock()

        def __enter__(self) -> None:
            if threading.current_thread() is second:
                settled.set()
            self._lock.acquire()

        def __exit__(self, *exception: object) -> None:
            self._lock.release()

    def describe() -> None:
        try:
            described.append(json.dumps(app.openapi()))
        finally:
            settled.set()

    monkeypatch.setattr(openapi, "Lock", AnnouncedLock)
    app, second = build_app(Settings()), threading.Thread(target=describe)
    describe_problems = openapi._describe_problems

    def describe_beside_another(components: dict[str, Any]) -> None:
        second.start()
        assert settled.wait(60)
        describe_problems(components)

    monkeypatch.setattr(openapi, "_describe_problems", describe_beside_another)
    whole = json.dumps(app.openapi())
    second.join()
    assert described == [whole]
