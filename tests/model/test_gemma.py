"""Tests of fetching Gemma: nothing without accepted terms, and only the expected file enters the cache."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from model import gemma, weights
from model.config import GEMMA_BACKBONE, CheckpointError
from model.parted_file import PartedFile
from model.weights import Progress, converted_folder, file_digest, packaged_gguf, resolve

ACCEPTED = "--accept-gemma-terms"


def unpack(folder: Path, content: bytes, parts: int = gemma.PARTS) -> None:
    """Write `content` in parts, laid out like the installed packages."""
    size = -(-len(content) // gemma.PARTS)
    for part in range(parts):
        data = folder / f"{gemma.PACKAGE}_part{part + 1}" / "data"
        data.mkdir(parents=True)
        (data / f"{gemma.GEMMA_GGUF}.gguf.part{part:02}").write_bytes(content[part * size : (part + 1) * size])
    texts = folder / gemma.PACKAGE / "data"
    texts.mkdir(parents=True)
    for name in gemma.TERMS_FILES:
        (texts / name).write_text("terms")


def run(cache: Path, *options: str) -> int:
    """Run the command and return its exit status."""
    with pytest.raises(SystemExit) as end:
        sys.exit(gemma.main(["--cache", str(cache), *options]))
    return int(end.value.code or 0)


def test_without_the_flag_terms_are_named_and_nothing_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(PartedFile, "install", lambda *_: pytest.fail("packages were fetched"))
    assert run(tmp_path / "cache") == 2
    output = capsys.readouterr()
    assert "https://ai.google.dev/gemma/terms" in output.out
    assert ACCEPTED in output.err
    assert not (tmp_path / "cache").exists()


def test_failure_of_pip_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setattr(gemma, "FILE", replace(gemma.FILE, packages=["no-such-package-here"]))
    assert run(tmp_path / "cache", ACCEPTED) == 1
    assert "no-such-package-here" in capsys.readouterr().err
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(("parts", "reason"), [(gemma.PARTS, "SHA-256"), (2, "lacks")])
def test_unexpected_file_leaves_nothing_in_the_cache(
    parts: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(PartedFile, "install", lambda _, folder: unpack(folder, b"GGUF of another model", parts))
    assert run(tmp_path / "cache", ACCEPTED) == 1
    assert reason in capsys.readouterr().err
    assert list((tmp_path / "cache").iterdir()) == []


def test_backbone_that_was_not_fetched_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"python -m model\.gemma"):
        resolve(GEMMA_BACKBONE, tmp_path)


def test_fetched_weights_are_a_backbone_with_their_terms(
    tmp_path: Path, backbone_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The packaged model's file stands in for Gemma's, and is not converted anew, which takes half a minute."""
    digest = file_digest(packaged_gguf())
    monkeypatch.setattr(weights, "GEMMA_SHA256", digest)
    monkeypatch.setattr(gemma, "FILE", replace(gemma.FILE, sha256=digest))
    fetched: list[Path] = []

    def install(_: PartedFile, folder: Path) -> None:
        fetched.append(folder)
        unpack(folder, packaged_gguf().read_bytes())

    def convert(gguf: Path, cache: Path, _: Progress) -> Path:
        return Path(shutil.copytree(backbone_folder, converted_folder(gguf, cache)))

    monkeypatch.setattr(PartedFile, "install", install)
    monkeypatch.setattr(gemma, "convert_gguf", convert)
    assert run(tmp_path, ACCEPTED) == run(tmp_path, ACCEPTED) == 0
    assert len(fetched) == 1
    (folder,) = tmp_path.iterdir()
    assert resolve(GEMMA_BACKBONE, tmp_path) == folder
    assert {*gemma.TERMS_FILES, "model.safetensors"} <= {path.name for path in folder.iterdir()}
