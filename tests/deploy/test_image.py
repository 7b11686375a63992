"""Tests of the image: what its Dockerfile installs, copies and sets, and its bill of materials."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from deploy.image_packages import image_packages
from service.settings import Settings
from tests.deploy.chart import ROOT


class Alive(BaseHTTPRequestHandler):
    """Answers only the liveness probe."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/livez" else 404)
        self.end_headers()


DOCKERFILE = (ROOT / "Dockerfile").read_text()
LOCKS = {path.stem: path.read_text() for path in (ROOT / "locks").glob("*.txt")}


def locked(lock: str) -> set[str]:
    """Pinned packages of a lock file, as name==version."""
    return set(re.findall(r"^([\w.-]+==[\w.]+)", LOCKS[lock], re.MULTILINE))


def test_serving_packages_are_those_that_are_tested_without_torch():
    assert locked("serve") < locked("cpu") < locked("dev")
    names = {package.split("==")[0] for package in locked("serve")}
    assert not names & {"torch", "accelerate", "gguf", "peft", "sympy", "networkx", "triton"}


def stages() -> dict[str, str]:
    """Text of each stage of the Dockerfile."""
    parts = re.split(r"^FROM (\S+) AS (\w+)$", DOCKERFILE, flags=re.MULTILINE)[1:]
    return {
        name: re.sub("^#.*\n", "", text, flags=re.MULTILINE)
        for name, text in zip(parts[1::3], parts[2::3], strict=True)
    }


def test_image_of_the_cpu_holds_no_torch():
    cpu = stages()["cpu"]
    assert list(stages())[-1] == "cpu"  # the last stage is the default target
    assert "locks/serve.txt" in cpu
    assert "TORCH" not in cpu
    assert "COPY --from=export /model /model" in cpu


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_image_runs_as_a_user_without_rights(target: str):
    assert stages()[target].rstrip().endswith("USER 10001:10001")


def test_versions_of_the_image_are_full():
    assert set(re.findall(r"TORCH_VERSION=(\S+)", DOCKERFILE)) == {"2.13.0"}
    assert locked("build") == {package for package in locked("cpu") if package.startswith("setuptools==")}
    without_hashes = re.findall(r"pip install (?!--require-hashes|--no-deps /wheels/)(\S+)", DOCKERFILE)
    assert {package.split("==")[0] for package in without_hashes} == {'"torch'}, "its build depends on the machine"
    assert "pip install notellm" not in DOCKERFILE


def test_variables_of_the_image_are_settings():
    names = {name.lower() for name in re.findall(r"\bNOTELLM_(\w+)=", DOCKERFILE)}
    assert names
    assert names <= set(Settings.model_fields)


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", ""])
def test_health_check_asks_the_port_and_address_of_the_settings(host: str):
    (text,) = re.findall(r"^HEALTHCHECK .*?CMD (\[.*?\])$", DOCKERFILE.replace("\\\n", ""), re.MULTILINE)
    command = [sys.executable, *json.loads(text)[1:]]
    with HTTPServer(("127.0.0.1", 0), Alive) as server:
        variables = {"NOTELLM_HOST": host, "NOTELLM_PORT": str(server.server_port), "PYTHONPATH": str(ROOT)}
        threading.Thread(target=server.serve_forever, daemon=True).start()
        subprocess.run(command, env=variables, check=True)
        server.shutdown()
    assert subprocess.run(command, env=variables, check=False, capture_output=True).returncode != 0


def test_files_that_the_image_copies_are_sent():
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [word for line in re.findall(r"^COPY ([^-].*)$", DOCKERFILE, re.MULTILINE) for word in line.split()[:-1]]
    assert copied
    for name in copied:
        assert (ROOT / name).exists()
        assert Path(name).parts[0] in sent


def test_packages_of_the_image_are_those_for_its_system_and_python():
    packages = list(image_packages(LOCKS["serve"]))
    names = [package.partition("==")[0] for package in packages]
    assert len(names) == len(set(names))
    assert {"numpy", "uvloop"} <= set(names) < {package.partition("==")[0] for package in locked("serve")}
    assert not {"colorama", "httpx2-jsfetch"} & set(names)  # for Windows and for browsers
    assert all("--hash=sha256:" in package and ";" not in package for package in packages)


def test_bill_of_materials_names_every_package_of_the_image(tmp_path: Path):
    command = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "cyclonedx-py" in line)
    command = command.replace("$(BIN)", str(Path(sys.executable).parent)).replace("sbom.json", f"{tmp_path}/sbom.json")
    command = command.replace(".venv/image.txt", f"{tmp_path}/image.txt")
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, shell=True)
    bill = json.loads((tmp_path / "sbom.json").read_text())
    components = bill["components"]
    packages = {package.partition(" ")[0] for package in image_packages(LOCKS["serve"])}
    assert {f"{part['name']}=={part['version']}" for part in components} == packages
    assert all(part["purl"].startswith("pkg:pypi/") for part in components)
    assert bill["metadata"]["component"]["name"] == "notellm"
