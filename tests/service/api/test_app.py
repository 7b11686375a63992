"""The app: its description is the one in docs/."""

from __future__ import annotations

import json
from pathlib import Path

from service.settings import Settings
from service.wiring import build_app


def test_openapi_equals_the_documented_one() -> None:
    documented = json.loads(Path("docs/openapi.json").read_text())
    real = json.loads(json.dumps(build_app(Settings()).openapi()))
    assert documented == real, "run `make openapi`"
