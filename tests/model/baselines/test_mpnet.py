"""Tests of fetching all-mpnet-base-v2: once, and only the expected file. MiniLM stands in for it."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.baselines import mpnet
from model.baselines.encoder import SentenceEncoder
from model.config import CheckpointError
from model.note import Note
from model.parted_file import PartedFile
from model.weights import file_digest, silent


@pytest.fixture
def archive(encoder: SentenceEncoder, tmp_path: Path) -> Path:
    """An archive like the packaged one, with MiniLM's files."""
    encoder.save(tmp_path / mpnet.NAME)
    path = tmp_path / mpnet.FILE.name
    with zipfile.ZipFile(path, "w") as whole:
        for file in (tmp_path / mpnet.NAME).iterdir():
            whole.write(file, f"{mpnet.NAME}/{file.name}")
    return path


@pytest.fixture
def fetched(archive: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders that the archive's packages were unpacked into; each package has one part of the archive."""
    folders: list[Path] = []

    def install(_: PartedFile, folder: Path) -> None:
        folders.append(folder)
        content = archive.read_bytes()
        size = -(-len(content) // mpnet.PARTS)
        for number, part in enumerate(mpnet.FILE.parts):
            (folder / part).parent.mkdir(parents=True)
            (folder / part).write_bytes(content[number * size : (number + 1) * size])

    monkeypatch.setattr(PartedFile, "install", install)
    return folders


def test_encoder_is_fetched_once_and_loaded_as_it_is(
    archive: Path, fetched: list[Path], encoder: SentenceEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mpnet, "FILE", replace(mpnet.FILE, sha256=file_digest(archive)))
    cache = tmp_path / "cache"
    mpnet.main(["--cache", str(cache)])
    loaded = mpnet.load(cache, silent)
    assert len(fetched) == 1
    assert [path.name for path in cache.iterdir()] == [mpnet.NAME]
    notes = [Note(title="bread in paris"), Note(title="a horse", hashtags=("pets",))]
    np.testing.assert_allclose(loaded.embed(notes), encoder.embed(notes), atol=1e-6)


def test_unexpected_archive_leaves_nothing_in_the_cache(fetched: list[Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="SHA-256"):
        mpnet.load(tmp_path / "cache", silent)
    assert len(fetched) == 1
    assert list((tmp_path / "cache").iterdir()) == []
