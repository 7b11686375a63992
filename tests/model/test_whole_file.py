"""Tests of whole_file: a file gets its name only when it is complete."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model.whole_file import whole_file, whole_folder


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


def test_pipe_is_written_in_place(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with whole_file(path) as file:
        file.write(b"whole")
    assert os.read(reader, 10) == b"whole"
    os.close(reader)
    assert path.is_fifo()
    assert list(tmp_path.iterdir()) == [path]


def test_link_leads_to_the_new_file(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"earlier")
    link.symlink_to(target)
    with whole_file(link) as file:
        file.write(b"whole")
    assert link.is_symlink()
    assert target.read_bytes() == b"whole"


def test_full_disk_leaves_the_earlier_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"earlier")
    (tmp_path / "a.txt.unfinished").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"), whole_file(path) as file:
        file.write(b"half")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"earlier"


def test_files_of_a_whole_folder_are_readable_as_the_folder_is(tmp_path: Path) -> None:
    for folder_mode, file_mode in ((0o755, 0o644), (0o700, 0o600)):
        with whole_folder(tmp_path / oct(folder_mode)) as folder:
            (folder / "inner").mkdir(parents=True)
            folder.chmod(folder_mode)
            save_file({"a": torch.zeros(1)}, folder / "inner" / "weights.safetensors")
        written = tmp_path / oct(folder_mode) / "inner" / "weights.safetensors"
        assert written.stat().st_mode & 0o777 == file_mode
