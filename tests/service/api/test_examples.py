"""Example bodies of the OpenAPI description: a service with its sample notes accepts each."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from model.config import NoteLLMConfig
from model.weights import SHIPPED_CHECKPOINT
from service.api.examples import EXAMPLES
from tests.service.api.conftest import SAMPLES, Serve


@pytest.fixture(scope="module")
def fresh(serve: Serve, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """Yield a client of a service with sample notes, whose model has the name of the shipped checkpoint."""
    checkpoint = tmp_path_factory.mktemp("named") / "copy"
    shutil.copytree(tiny_checkpoint, checkpoint)
    replace(NoteLLMConfig.load(checkpoint), name=SHIPPED_CHECKPOINT.name).save(checkpoint)
    with serve(checkpoint=str(checkpoint), sample_notes=SAMPLES) as url, httpx2.Client(base_url=url) as client:
        yield client


@pytest.mark.parametrize(("method", "path"), EXAMPLES, ids=[f"{method} {path}" for method, path in EXAMPLES])
def test_example_body_of_the_description_is_accepted(fresh: httpx2.Client, method: str, path: str) -> None:
    operation = fresh.get("/openapi.json").json()["paths"][path][method]
    example = operation["requestBody"]["content"]["application/json"]["example"]
    answer = fresh.request(method, path.format(note_id="sample-en-001"), json=example, timeout=60)
    assert answer.is_success, answer.text
    results = answer.json().get("results", []) if answer.status_code == 207 else []
    assert [result for result in results if result["status"] != 200] == []
