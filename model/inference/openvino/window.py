"""Sliding attention windows: the graphs compute full attention, which equals that of the backbone only while no text is
longer than its window."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model.config import CheckpointError
from model.prompt import Prompt

WINDOW = "window.json"
"""Name of the file beside the graphs with the backbone's window in tokens, or null."""
AFTER_NOTE = 64
"""Tokens of room for a task and its output after a note's prompt: an attention window must cover them too. At the end
of a longer output the graphs see more of the note than the backbone would."""


def check_window(window: int | None, prompt: Prompt) -> None:
    """Raise CheckpointError where a note's prompt may be longer than the attention `window`; None is no window."""
    if window is not None and window < prompt.max_note_tokens() + AFTER_NOTE:
        raise CheckpointError(
            f"OpenVINO cannot run a sliding window of {window} tokens, which is shorter than a note's prompt"
        )


def stored_window(graphs: Path, backbone: Path) -> int | None:
    """Return the window of the graphs in a folder. Where an earlier version exported them without WINDOW, it is what
    config.json in the folder `backbone` states.

    Raises OSError and ValueError for a broken file.
    """
    stored = graphs / WINDOW
    if stored.is_file():
        window: int | None = json.loads(stored.read_text("utf-8"))
        return window
    config: dict[str, Any] = json.loads((backbone / "config.json").read_text("utf-8"))
    config = config.get("text_config", config)
    return config.get("sliding_window") if config.get("use_sliding_window", True) else None
