"""What the commands write for people."""

from __future__ import annotations

import pytest

from service.cli.terminal import out, show


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("[/b] [red]x", "[/b] [red]x"),
        ("\x1b]0;title\x07\x1b[2J", r"\x1b]0;title\x07\x1b[2J"),
        ("two\nlines\r", r"two\nlines\r"),
        ("\u202eturned", r"\u202eturned"),
        ("brød 🍞 日本", "brød 🍞 日本"),
    ],
)
def test_table_shows_hostile_text_as_it_is(cell: str, shown: str) -> None:
    with out.capture() as captured:
        show({}, False, ("name", "other"), [(cell, None)])
    assert shown in captured.get()
