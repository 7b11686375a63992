"""The search of files for texts that must not be in them."""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.erasure.search import CHUNK_BYTES, Needle, search_folders

NOBODY = 65_534
"""Id of the user `nobody`."""
TEXT = 'Rest the dough for an hour; then say "Ü" twice.\nThe lemon waits.'


@pytest.mark.parametrize("written", [TEXT, json.dumps(TEXT), json.dumps(TEXT, ensure_ascii=False)])
@pytest.mark.parametrize("before", [0, 1, CHUNK_BYTES - 20, CHUNK_BYTES - 1, CHUNK_BYTES])
def test_text_is_found_however_it_is_written_and_wherever(tmp_path: Path, written: str, before: int) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(b"\0" * before + written.encode() + b"\0" * 100)
    (finding,) = search_folders([tmp_path], [Needle.of_text("text", TEXT)]).findings
    assert (finding.needle, finding.file) == ("text", str(tmp_path / "deep" / "file"))
    assert before <= finding.offset <= before + 1


@pytest.mark.parametrize("stored", ["Rest the dough.\r\nThe lemon waits.", "Rest the dough.\nThe lemon waits."])
@pytest.mark.parametrize("named", ["Rest the dough.\r\nThe lemon waits.", "Rest the dough.\nThe lemon waits."])
def test_text_is_found_with_ends_of_lines_of_another_system(tmp_path: Path, stored: str, named: str) -> None:
    for written in (stored, json.dumps(stored)):
        (tmp_path / "file").write_bytes(written.encode())
        assert search_folders([tmp_path], [Needle.of_text("text", named)]).findings


@pytest.mark.parametrize("length", [70, 1000, 50_000])
def test_remnant_of_a_text_is_found_wherever_it_begins(tmp_path: Path, length: int) -> None:
    rng = random.Random(length)
    text = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz ", k=length))
    remnant = 2 * max(32, -(-length // 64))
    for begin in rng.sample(range(length - remnant), min(20, length - remnant)):
        (tmp_path / "file").write_bytes(b"..." + text[begin : begin + remnant].encode() + b"...")
        assert search_folders([tmp_path], [Needle.of_text("text", text)]).findings


def test_search_counts_what_it_read_and_finds_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * (CHUNK_BYTES + 5))
    (tmp_path / "b").write_bytes(b"01H9-other-id")
    (tmp_path / "link").symlink_to(tmp_path / "b")
    search = search_folders([tmp_path, tmp_path], [Needle.of_id("01H9-removed"), Needle.of_text("text", TEXT)])
    assert (search.files, search.bytes, search.findings) == (2, CHUNK_BYTES + 18, ())


def test_search_follows_links_and_ends_where_they_go_round(tmp_path: Path) -> None:
    elsewhere, folder = tmp_path / "disk", tmp_path / "data"
    elsewhere.mkdir()
    folder.mkdir()
    (elsewhere / "store.aof").write_text("a secret text")
    (folder / "appendonlydir").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)
    search = search_folders([folder], [Needle.of_text("text", "secret")])
    assert [finding.file for finding in search.findings] == [str(folder / "appendonlydir" / "store.aof")]


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Give up the rights of root, who can list every folder, while the block lasts."""
    own = os.geteuid()
    os.seteuid(own or NOBODY)
    try:
        yield
    finally:
        os.seteuid(own)


@contextlib.contextmanager
def closed_to_all(folder: Path, *names: str) -> Iterator[None]:
    """Make folders that no user may list while the block lasts, beside a file with TEXT."""
    folder.chmod(0o755)
    (folder / "open").write_text(TEXT)
    for name in names:
        (folder / name).mkdir(mode=0)
    try:
        yield
    finally:
        for name in names:
            (folder / name).chmod(0o700)


def test_places_that_cannot_be_read_are_reported_and_the_others_searched(short_folder: Path) -> None:
    (short_folder / "itself").symlink_to(short_folder / "itself")
    (short_folder / "nothing").symlink_to(short_folder / "none")
    with closed_to_all(short_folder, "appendonlydir", "lost+found"):
        (short_folder / "closed").touch(mode=0)
        with as_nobody():
            search = search_folders([short_folder], [Needle.of_text("text", TEXT)])
    assert [Path(finding.file).name for finding in search.findings] == ["open"]
    unread = sorted(Path(reason.rpartition(": ")[0]).name for reason in search.unread)
    assert unread == ["appendonlydir", "closed", "itself", "lost+found"]


def test_lost_and_found_of_a_volume_that_root_alone_can_list_is_passed_over(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda path: path == short_folder.resolve())
    with closed_to_all(short_folder, "lost+found"), as_nobody():
        search = search_folders([short_folder], [Needle.of_text("text", TEXT)])
    assert (len(search.findings), search.unread) == (1, ())
