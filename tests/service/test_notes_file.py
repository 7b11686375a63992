"""Files of notes: which lines are notes, why others are not, and where reading resumes."""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from service import SAMPLES
from service.api.schemas.notes import NoteIn
from service.notes_file import STDIN, Line, NotesFile

GOOD = {"id": "a", "title": "京都 🚌", "hashtags": ["x"], "created_at": "2026-05-01T09:30:00Z"}


def jsonl(*lines: object) -> bytes:
    """Return each line as JSON; bytes are taken as they are."""
    return b"".join((one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in lines)


def write_plain(folder: Path, content: bytes) -> Path:
    path = folder / "notes.jsonl"
    path.write_bytes(content)
    return path


def write_packed(folder: Path, content: bytes) -> Path:
    path = folder / "notes.jsonl.gz"
    path.write_bytes(gzip.compress(content))
    return path


@pytest.fixture(params=[write_plain, write_packed], ids=["plain", "gz"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[bytes], Path]:
    return lambda content: request.param(tmp_path, content)


def lines(path: Path, after: int = 0) -> list[Line]:
    return list(NotesFile(path).lines(after))


def only(path: Path) -> Line:
    (line,) = lines(path)
    return line


def test_a_line_is_a_note_as_the_wire_wants_it(write: Callable[[bytes], Path]) -> None:
    line = only(write(jsonl(GOOD)))
    assert (line.number, line.note, line.reason) == (1, GOOD, None)
    assert NoteIn.model_validate(line.note).as_note().title == "京都 🚌"


def test_blank_lines_are_passed_over_and_counted(write: Callable[[bytes], Path]) -> None:
    found = lines(write(jsonl(b"", GOOD, b" \t\r", {"title": "b"}, b"")))
    assert [(line.number, line.reason) for line in found] == [(2, None), (4, None)]


def test_last_line_without_newline_and_crlf_are_read(write: Callable[[bytes], Path]) -> None:
    found = lines(write(b'{"title": "a"}\r\n{"title": "b"}'))
    assert [line.note for line in found] == [{"title": "a"}, {"title": "b"}]


def test_byte_order_mark_before_the_first_line_is_passed_over(write: Callable[[bytes], Path]) -> None:
    lines = list(NotesFile(write(b'\xef\xbb\xbf{"title": "Hue"}\n{"title": "Hoi An"}\n')).lines())
    assert [line.note for line in lines] == [{"title": "Hue"}, {"title": "Hoi An"}]


def test_after_goes_on_behind_a_line(write: Callable[[bytes], Path]) -> None:
    path = write(jsonl(*({"title": str(n)} for n in range(1, 11))))
    assert [(line.number, line.note) for line in lines(path, after=8)] == [(9, {"title": "9"}), (10, {"title": "10"})]
    assert lines(path, after=10) == []


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"{", "not JSON"),
        (b'{"title": "\xff"}', "not JSON"),
        (b'{"title": "\\ud800"}', "not JSON"),
        (b'{"title": NaN}', "not JSON"),
        (b"[]", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"null", "not a JSON object"),
        ({}, "empty"),
        ({"title": " "}, "empty"),
        ({"title": 5}, "title:"),
        ({"title": "a", "id": "no spaces"}, "id:"),
        ({"title": "a", "hashtags": ["x", None]}, "hashtags.1:"),
        ({"title": "a", "created_at": "yesterday"}, "created_at:"),
        ({"title": "a", "expires_at": "2001-01-01T00:00:00"}, "expires_at:"),
        ({"title": "a", "attributes": {"x": []}}, "attributes.x"),
    ],
)
def test_bad_line_has_number_and_reason_and_the_rest_is_read(tmp_path: Path, bad: object, reason: str) -> None:
    before, wrong, behind = lines(write_plain(tmp_path, jsonl(GOOD, bad, GOOD)))
    assert (before.note, behind.note) == (GOOD, GOOD)
    assert (wrong.number, wrong.note, wrong.raw) == (2, None, jsonl(bad))
    assert reason in (wrong.reason or "")


def test_line_that_has_expired_is_left_to_the_service(tmp_path: Path) -> None:
    (line,) = NotesFile(write_plain(tmp_path, jsonl(GOOD | {"expires_at": "2020-01-01T00:00:00Z"}))).lines()
    assert line.note is not None


def test_all_reasons_of_a_line_are_told(tmp_path: Path) -> None:
    reason = only(write_plain(tmp_path, jsonl({"title": 5, "author": []}))).reason or ""
    assert "title:" in reason
    assert "author:" in reason


def test_unknown_fields_are_left_out_and_counted(tmp_path: Path) -> None:
    extra = [{**GOOD, "likes": 3}, {**GOOD, "likes": 4, "url": "x"}, GOOD]
    notes = NotesFile(write_plain(tmp_path, jsonl(*extra)))
    assert [line.note for line in notes.lines()] == [GOOD] * 3
    assert notes.ignored == {"likes": 2, "url": 1}


def test_line_without_an_end_is_cut_and_those_behind_it_are_read(
    write: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.notes_file.MAX_LINE_BYTES", 2000)
    before, long, behind = lines(write(jsonl(GOOD, {"title": "x" * 9000}, GOOD)))
    assert (before.note, behind.note) == (GOOD, GOOD)
    assert (long.number, len(long.raw), long.reason) == (2, 1000, "longer than 2,000 bytes")


def test_packed_line_of_any_length_takes_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.notes_file.MAX_LINE_BYTES", 2**20)
    path = write_packed(tmp_path, b"x" * 2**25)
    tracemalloc.start()
    (line,) = NotesFile(path).lines()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert line.note is None
    assert peak < 2**23


def test_position_ends_at_the_size_of_the_file(write: Callable[[bytes], Path]) -> None:
    notes = NotesFile(write(jsonl(*({"title": f"{n}"} for n in range(500)))))
    seen = [notes.position for _ in notes.lines()]
    assert seen == sorted(seen)
    assert seen[-1] == notes.size
    assert notes.size == notes.path.stat().st_size


def test_standard_input_is_read_and_has_no_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(jsonl(GOOD, b"{"))))
    notes = NotesFile(STDIN)
    assert notes.size is None
    assert [line.note for line in notes.lines()] == [GOOD, None]


def test_compressed_notes_are_known_by_their_first_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = gzip.compress(jsonl(GOOD))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(packed)))
    assert [line.note for line in NotesFile(STDIN).lines()] == [GOOD]
    (tmp_path / "notes.GZ").write_bytes(packed)
    assert [line.note for line in lines(tmp_path / "notes.GZ")] == [GOOD]
    (tmp_path / "plain.gz").write_bytes(jsonl(GOOD))
    assert [line.note for line in lines(tmp_path / "plain.gz")] == [GOOD]


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        lines(tmp_path / "missing.jsonl")


def broken(path: Path, how: str) -> None:
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "cut off": whole[:middle],
            "no deflate stream": whole[:10] + b"\xff" * 64 + whole[74:],
            "another checksum": whole[:-8] + bytes(4) + whole[-4:],
        }[how]
    )


@pytest.mark.parametrize("how", ["cut off", "no deflate stream", "another checksum"])
def test_a_broken_archive_is_an_os_error(tmp_path: Path, how: str) -> None:
    path = write_packed(tmp_path, jsonl(*({"title": f"note {n}"} for n in range(500))))
    broken(path, how)
    with pytest.raises(OSError, match=path.name):
        lines(path)


def test_every_sample_note_is_a_note_with_an_id_of_its_own() -> None:
    found = lines(SAMPLES)
    assert [line.reason for line in found if line.note is None] == []
    ids = [line.note["id"] for line in found if line.note]
    assert len(ids) == len(set(ids)) > 100
