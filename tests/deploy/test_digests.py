"""Tests of third-party images: each is pinned by full version and digest, the same digest everywhere."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import yaml

from tests.deploy.chart import ROOT, VALUES, documents, pods

PINNED = re.compile(r"(?P<tag>[a-z0-9./-]+:v?\d+\.\d+\.\d+(-[a-z]+)*)@sha256:(?P<digest>[0-9a-f]{64})")
COMPOSE = ("docker-compose.yml", "deploy/compose/compose.yaml")


def images() -> Iterator[tuple[str, str]]:
    """Yield the file that names it and the reference of each image that is not built here."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", dockerfile, re.MULTILINE))
    yield from (
        ("Dockerfile", image)
        for image in re.findall(r"^(?:FROM |COPY --from=|RUN --mount=from=)([^\s,]+)", dockerfile, re.MULTILINE)
        if image not in stages
    )
    for path in COMPOSE:
        services = yaml.safe_load((ROOT / path).read_text())["services"].values()
        yield from ((path, service["image"]) for service in services if "image" in service)
    for pod in pods(documents(VALUES["valkey"])):
        containers = [*pod["spec"]["containers"], *pod["spec"].get("initContainers", ())]
        yield from (("chart", c["image"]) for c in containers if not c["image"].startswith("notellm:"))


IMAGES = sorted(set(images()))


@pytest.mark.parametrize(("place", "image"), IMAGES, ids=[f"{place}-{image.split('@')[0]}" for place, image in IMAGES])
def test_image_has_a_full_tag_and_a_digest(place: str, image: str):
    assert PINNED.fullmatch(image)


def test_every_file_names_an_image():
    assert {place for place, _ in IMAGES} == {"Dockerfile", *COMPOSE, "chart"}


def test_tag_has_one_digest_everywhere():
    digests: dict[str, set[str]] = {}
    for _, image in IMAGES:
        tag, _, digest = image.partition("@")
        digests.setdefault(tag, set()).add(digest)
    assert {tag: found for tag, found in digests.items() if len(found) > 1} == {}
