"""Tests of generated notes: parsing of generated lines, drawing of topics, and resuming of the command."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from model.data import generated_notes
from model.data.dataset import read_notes
from model.data.generated_notes import (
    Assignment,
    count_whole_lines,
    draw_assignment,
    example_text,
    examples_context,
    generate_notes,
    parse_note,
)
from model.data.sampler import Sampler
from model.inference.engine import Engine
from model.note import Note
from model.weights import BACKBONE_FOLDER


def test_line_is_read_as_title_content_and_hashtags() -> None:
    note = parse_note('"Soup for five" | Leeks, butter, patience and salt. | #leek soup #food ')
    assert note == Note(
        title="Soup for five", content="Leeks, butter, patience and salt.", hashtags=("leek soup", "food")
    )
    assert parse_note("Soup again, my dear friends | #soup") == Note(
        title="Soup again, my dear friends", hashtags=("soup",)
    )


def test_incomplete_line_loses_its_last_word_or_hashtag() -> None:
    note = parse_note("Soup for five | Leeks and butt", complete=False)
    assert note is not None
    assert note.content == "Leeks and"
    note = parse_note("Soup for five | Leeks | #soup #foo", complete=False)
    assert note is not None
    assert note.hashtags == ("soup",)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Soup",
        "Soup | yes",
        "As an AI I cook nothing | at all",
        "Look: https://soup",
        "A soup | " + "very good " * 9,
    ],
)
def test_text_that_is_no_note_is_dropped(text: str) -> None:
    assert parse_note(text) is None


def test_example_reads_back_as_the_note() -> None:
    note = Note(title="Soup for five", content="Leeks,\nbutter and salt", hashtags=("leek soup",))
    assert parse_note(example_text(note)) == Note(
        title=note.title, content="Leeks, butter and salt", hashtags=note.hashtags
    )


def test_prompt_ends_before_the_space_that_begins_the_note() -> None:
    assert Assignment("leek soup", "Food").prompt() == "Food | leek soup\nNote:"
    context = examples_context(random.Random(0), [Note(title="A note on lamps", hashtags=("lamps",))], max_words=20)
    assert context == "Other | lamps\nNote: A note on lamps |  | #lamps\n\n"


def test_assignments_are_of_our_topics_and_of_things() -> None:
    rng = random.Random(0)
    assignments = [draw_assignment(rng, ["waffle iron"]) for _ in range(200)]
    assert 40 < sum(assignment.topic == "waffle iron" for assignment in assignments) < 120
    assert len({assignment.category for assignment in assignments}) > 15


def test_generated_notes_come_without_an_id(tiny_engine: Engine) -> None:
    sampler = Sampler(tiny_engine.runtime.model)
    examples = [Note(title=f"A note on {n} lamps", content="They glow.", hashtags=("lamps",)) for n in range(9)]
    notes = generate_notes(sampler, examples, ["waffle iron"], batch_size=8, seed=0)
    assert all(note.id == "" and note.title for note, _ in zip(notes, range(3), strict=False))


def test_command_appends_up_to_the_number_of_notes(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generated_notes, "everyday_things", lambda folder: ["waffle iron"])
    monkeypatch.setattr(generated_notes, "LENGTHS", ((30, 12, 1.0),))
    samples = tmp_path / "samples.jsonl"
    samples.write_text("".join(f'{{"id": "sample-en-{n}", "title": "A note on {n} lamps"}}\n' for n in range(9)))
    out = tmp_path / "generated.jsonl"
    for count in (3, 5):
        options = ["--samples", str(samples), "--wordnet", str(tmp_path), "--out", str(out)]
        options += ["--notes", str(count), "--batch", "8", "--cache", str(tmp_path)]
        generated_notes.main([*options, "--backbone", str(tiny_checkpoint / BACKBONE_FOLDER)])
        assert list(read_notes(out)) == [str(n) for n in range(1, count + 1)]


def test_line_that_was_cut_off_is_removed_before_more_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    assert (count_whole_lines(path), path.read_bytes()) == (0, b"")
    path.write_bytes(b'{"id": "1"}\n{"id": "2"}\n{"id": "')
    assert count_whole_lines(path) == 2
    assert path.read_bytes() == b'{"id": "1"}\n{"id": "2"}\n'
    assert count_whole_lines(path) == 2


def test_command_with_a_backbone_that_cannot_be_loaded_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = tmp_path / "samples.jsonl"
    samples.write_text('{"id": "sample-en-1", "title": "A note on lamps"}\n')
    (tmp_path / "none").mkdir()
    options = ["--samples", str(samples), "--out", str(tmp_path / "out.jsonl"), "--cache", str(tmp_path)]
    with pytest.raises(SystemExit) as end:
        generated_notes.main([*options, "--backbone", str(tmp_path / "none")])
    assert end.value.code == 1
    assert f"{tmp_path / 'none'} has no .safetensors file" in capsys.readouterr().err


def test_examples_of_the_command_have_the_categories_of_the_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Note] = []
    samples = tmp_path / "samples.jsonl"
    samples.write_text('{"id": "sample-en-1", "title": "a", "category": "Food"}\n{"id": "sample-zh-1", "title": "b"}\n')
    monkeypatch.setattr(generated_notes, "append_notes", lambda options, examples, things: given.extend(examples))
    generated_notes.main(["--samples", str(samples), "--out", str(tmp_path / "notes.jsonl")])
    assert [(note.title, note.category) for note in given] == [("a", "Food")]
