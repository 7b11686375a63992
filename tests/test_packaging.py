"""Tests of the wheel: its contents, and that it runs outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel of this checkout, without its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    # Build from a copy, since the build writes into its source folder.
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", folder / "source"], check=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(folder / "source")], check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_two_packages_and_their_data(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"model", "service"}
    adapters = [f"{folder}/adapter_model.safetensors" for folder in ("adapter", "generation")]
    for data in (*adapters, "notellm.json", "head.safetensors", "categories.safetensors"):
        assert f"model/checkpoints/notellm-generalist/{data}" in names
    assert "model/training/recipes/7b.toml" in names
    assert any(name.endswith("sample_notes.jsonl") for name in names)


def test_installed_wheel_describes_the_same_api(wheel: Path, tmp_path: Path):
    target = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True)
    run = "import service.cli.main as cli, sys; sys.stderr.write(cli.__file__); cli.main()"
    environment = os.environ | {"PYTHONPATH": str(target)}
    result = subprocess.run(
        [sys.executable, "-c", run, "openapi"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stderr.startswith(str(target))  # not from the checkout, which the environment can import as well
    assert result.stdout == (ROOT / "docs" / "openapi.json").read_text()
