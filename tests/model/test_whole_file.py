"""Tests of whole_file: a file gets its name only when it is complete."""

from pathlib import Path

import pytest

from model.whole_file import whole_file


def test_file_appears_when_its_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with whole_file(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert list(path.parent.iterdir()) == [path]


def test_block_that_fails_leaves_the_earlier_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"earlier")
    with pytest.raises(KeyboardInterrupt), whole_file(path):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"earlier"


def test_full_disk_leaves_the_earlier_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"earlier")
    (tmp_path / "a.txt.unfinished").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"), whole_file(path) as file:
        file.write(b"half")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"earlier"
