"""SnapshotFolder: what is loaded is what was saved, or nothing is, whatever happened to the files or to the process."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.errors import SnapshotRefused
from service.index import snapshot_files
from service.index.backend import Arrays, Part
from service.index.snapshot_files import LOCK, MANIFEST, VERSION, SharedSnapshots, SnapshotFolder, SnapshotOrigin

ORIGIN = SnapshotOrigin("store-1", "space-1")
FIRST = {"rows": {"a": np.arange(5), "b": np.zeros((2, 3), np.float32)}, "empty": {"c": np.zeros(0, np.uint8)}}


def parts(contents: Mapping[str, Arrays], immutable: str = "") -> list[Part]:
    return [Part(name, partial(dict, arrays), immutable=name == immutable) for name, arrays in contents.items()]


def check(folder: SnapshotFolder, position: str, contents: Mapping[str, Arrays]) -> None:
    snapshot = folder.load(ORIGIN)
    assert snapshot is not None
    assert snapshot.position == position
    for name, arrays in contents.items():
        read = snapshot.read(name)
        assert read.keys() == arrays.keys()
        for key, values in arrays.items():
            np.testing.assert_array_equal(read[key], values, strict=True)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.npz"))


def check_again(folder: SnapshotFolder, path: Path, position: str, contents: Mapping[str, Arrays]) -> None:
    """Check the snapshot as the next process loads it."""
    folder.close()
    with closing(SnapshotFolder(path)) as next_folder:
        check(next_folder, position, contents)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[SnapshotFolder]:
    folder = SnapshotFolder(tmp_path / "0")
    yield folder
    folder.close()


def test_load_returns_last_snapshot_and_older_files_are_gone(folder: SnapshotFolder, tmp_path: Path) -> None:
    assert folder.load(ORIGIN) is None
    folder.save(ORIGIN, "1-0", parts(FIRST))
    check(folder, "1-0", FIRST)
    second = {"rows": {"a": np.arange(9)}}
    folder.save(ORIGIN, "2-0", parts(second))
    check_again(folder, tmp_path / "0", "2-0", second)
    assert len(files(tmp_path / "0")) == 1


def test_save_immutable_part_is_written_once(folder: SnapshotFolder, tmp_path: Path) -> None:
    folder.save(ORIGIN, "1-0", parts(FIRST, immutable="rows"))
    (kept,) = [name for name in files(tmp_path / "0") if name.startswith("rows")]
    folder.save(ORIGIN, "2-0", parts(FIRST, immutable="rows"))
    assert kept in files(tmp_path / "0")
    folder.close()
    with closing(SnapshotFolder(tmp_path / "0")) as next_folder:
        check(next_folder, "2-0", FIRST)
        next_folder.save(ORIGIN, "3-0", parts(FIRST, immutable="rows"))
        assert kept in files(tmp_path / "0")
        check(next_folder, "3-0", FIRST)


@given(st.data())
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_load_with_any_byte_changed_is_refused(tmp_path: Path, data: st.DataObject) -> None:
    shutil.rmtree(tmp_path / "0", ignore_errors=True)
    folder = SnapshotFolder(tmp_path / "0")
    folder.save(ORIGIN, "1-0", parts(FIRST))
    path = data.draw(st.sampled_from([tmp_path / "0" / name for name in [MANIFEST, *files(tmp_path / "0")]]))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(data.draw(st.sampled_from([content, content[: len(content) // 2]])))
    with pytest.raises(SnapshotRefused):
        check(folder, "1-0", FIRST)
    folder.close()


@pytest.mark.parametrize(
    ("origin", "reason"),
    [(SnapshotOrigin("store-2", "space-1"), "another store"), (SnapshotOrigin("store-1", "other"), "another space")],
)
def test_load_of_other_origin_is_refused_with_reason(
    folder: SnapshotFolder, origin: SnapshotOrigin, reason: str
) -> None:
    folder.save(ORIGIN, "1-0", parts(FIRST))
    with pytest.raises(SnapshotRefused, match=reason):
        folder.load(origin)


def test_load_of_other_version_is_refused(folder: SnapshotFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.save(ORIGIN, "1-0", parts(FIRST))
    monkeypatch.setattr("service.index.snapshot_files.VERSION", 99)
    with pytest.raises(SnapshotRefused, match=f"version {VERSION}, but this service reads version 99"):
        folder.load(ORIGIN)


@pytest.mark.parametrize("step", ["make", "fsync", "rename"])
def test_save_unfinished_leaves_previous_snapshot(
    folder: SnapshotFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*arguments: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    folder.save(ORIGIN, "1-0", parts(FIRST))
    before = files(tmp_path / "0")
    more = parts({"rows": {"a": np.arange(9)}})
    with monkeypatch.context() as patch:
        if step == "make":
            more.append(Part("never", full))
        else:
            patch.setattr(os, step, full)
        with pytest.raises(OSError, match="No space left"):
            folder.save(ORIGIN, "2-0", more)
    assert files(tmp_path / "0") == before
    check_again(folder, tmp_path / "0", "1-0", FIRST)


def test_claim_gives_each_process_its_own_folder_again(tmp_path: Path) -> None:
    first, second = SnapshotFolder.claim(tmp_path), SnapshotFolder.claim(tmp_path)
    assert first.replica != second.replica
    first.save(ORIGIN, "1-0", parts(FIRST))
    assert second.load(ORIGIN) is None
    first.close()
    third = SnapshotFolder.claim(tmp_path)
    assert third.replica == first.replica
    check(third, "1-0", FIRST)
    second.close()
    third.close()


def test_claim_of_unwritable_folder_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        SnapshotFolder.claim(tmp_path / "file")


def test_load_of_malformed_manifest_is_refused(folder: SnapshotFolder, tmp_path: Path) -> None:
    for content in (b"", b"[]", orjson.dumps({"body": {}, "sha256": ""})):
        (tmp_path / "0" / MANIFEST).write_bytes(content)
        with pytest.raises(SnapshotRefused):
            folder.load(ORIGIN)
    assert (tmp_path / "0" / LOCK).exists()


def test_snapshot_of_others_is_mapped_and_outlives_its_files(folder: SnapshotFolder, tmp_path: Path) -> None:
    """A reader process maps the newest snapshot, while the process that saved it goes on and replaces it."""
    others = SharedSnapshots(tmp_path)
    assert others.load(ORIGIN) is None
    contents = {**FIRST, "columns": {"c": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "flag": np.array(True)}}
    folder.save(ORIGIN, "1-0", parts(contents))
    with closing(SnapshotFolder(tmp_path / "1")) as older:
        older.save(ORIGIN, "0-9", parts({}))
        snapshot = others.load(ORIGIN)
    assert snapshot is not None
    folder.save(ORIGIN, "2-0", parts({}))
    assert files(tmp_path / "0") == []
    assert snapshot.position == "1-0"
    for name, arrays in contents.items():
        mapped = snapshot.read(name)
        for key, values in arrays.items():
            np.testing.assert_array_equal(mapped[key], values, strict=True)
            assert not mapped[key].flags.writeable
            assert mapped[key].ctypes.data % 64 == 0 or not mapped[key].size
    newer = others.load(ORIGIN)
    assert newer is not None
    assert newer.position == "2-0"
    assert others.load(SnapshotOrigin("store-2", "space-1")) is None


def test_damaged_snapshot_of_others_is_refused(folder: SnapshotFolder, tmp_path: Path) -> None:
    folder.save(ORIGIN, "1-0", parts(FIRST))
    (damaged,) = [name for name in files(tmp_path / "0") if name.startswith("rows")]
    content = bytearray((tmp_path / "0" / damaged).read_bytes())
    content[-200] ^= 1
    (tmp_path / "0" / damaged).write_bytes(content)
    snapshot = SharedSnapshots(tmp_path).load(ORIGIN)
    assert snapshot is not None
    with pytest.raises(SnapshotRefused, match="damaged"):
        snapshot.read("rows")


def test_claim_of_a_folder_that_is_removed_as_it_is_made_takes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = Path.chmod

    def change_late(folder: Path, mode: int) -> None:
        monkeypatch.setattr(Path, "chmod", change)
        folder.rmdir()
        change(folder, mode)

    monkeypatch.setattr(Path, "chmod", change_late)
    with closing(SnapshotFolder.claim(tmp_path)) as claimed:
        claimed.save(ORIGIN, "1-0", parts(FIRST))
    assert [folder.name for folder in tmp_path.glob("*/")] == ["1"]


@pytest.mark.parametrize("claimed_anew", [False, True])
def test_claim_of_a_folder_that_is_removed_before_it_is_locked_takes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claimed_anew: bool
) -> None:
    others: list[SnapshotFolder] = []
    lock = snapshot_files.fcntl.flock

    def lock_late(file: Any, operation: int) -> None:
        monkeypatch.setattr("service.index.snapshot_files.fcntl.flock", lock)
        snapshot_files.remove_unused_snapshots(tmp_path)
        if claimed_anew:
            others.append(SnapshotFolder.claim(tmp_path))
        lock(file, operation)

    monkeypatch.setattr("service.index.snapshot_files.fcntl.flock", lock_late)
    with closing(SnapshotFolder.claim(tmp_path)) as claimed:
        claimed.save(ORIGIN, "1-0", parts(FIRST))
        for other in others:
            assert other.replica != claimed.replica
            other.close()
        assert [folder.name for folder in tmp_path.glob("*/") if (folder / MANIFEST).exists()] == ["1"]
