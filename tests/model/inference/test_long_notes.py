"""Tests of notes that are longer than one window, and of notes in a script that the model does not read."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from model.category_head import MIN_NOTES_PER_CATEGORY, CategoryHead
from model.category_regressions import VectorRegression
from model.config import CheckpointError, NoteLLMConfig
from model.evaluation.system import EngineSystem
from model.generation import GenerationRequest
from model.inference.engine import UNSUPPORTED_LANGUAGE, Engine
from model.note import Note
from tests.models import in_torch

WORDS = [f"{thing} number {i}" for i in range(60) for thing in ("lake", "train", "soup", "novel")]
LONG = Note("All about it", " ".join(WORDS), ("daily",))
FOODS = ("Food", "Travel")


@pytest.fixture(scope="module")
def windowed(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """An Engine on the tiny checkpoint with 12 windows of 50 content tokens, which reads only Latin script."""
    folder = tmp_path_factory.mktemp("windowed") / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    config = replace(NoteLLMConfig.load(folder), prompt_version="note-first/2", max_content_tokens=50)
    replace(config, max_content_windows=12, scripts=("LATIN",)).save(folder)
    return in_torch(folder, tmp_path_factory.mktemp("cache"))


def test_more_windows_than_the_cache_has_room_for_are_refused(windowed: Engine) -> None:
    pool = windowed.runtime.pool
    most = pool.count // 2 // pool.blocks_for(windowed.prompt.max_note_tokens())
    config = windowed.runtime.config
    with (
        patch.object(windowed.runtime, "config", replace(config, max_content_windows=most + 1)),
        pytest.raises(CheckpointError, match=f"max_content_windows is {most + 1}.* has room for {most} "),
    ):
        Engine(windowed.runtime)
    with patch.object(windowed.runtime, "config", replace(config, max_content_windows=most)):
        Engine(windowed.runtime)


def test_vector_of_a_long_note_is_the_mean_of_its_windows(windowed: Engine) -> None:
    prompt = windowed.prompt.windows(LONG)
    assert len(prompt.windows) == 12
    texts = [windowed.prompt.decode(ids) for ids in prompt.windows]
    parts = [text.split("\n")[1] for text in texts]
    vectors = windowed.embed([replace(LONG, content=part) for part in parts])
    mean = (vectors * np.array(prompt.content_tokens)[:, None]).sum(0)
    np.testing.assert_allclose(windowed.embed([LONG])[0], mean / np.linalg.norm(mean), atol=1e-3)


def test_large_closed_set_is_chosen_by_the_vector_of_all_windows(
    windowed: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head separates the whole note's vector from that of its first window."""
    monkeypatch.setattr("model.inference.category_scoring.MAX_WHOLE_SET", 2)
    monkeypatch.setattr("model.inference.category_scoring.CATEGORY_SHORTLIST", 1)
    first_window = replace(
        LONG, content=windowed.prompt.decode(windowed.prompt.windows(LONG).windows[0]).split("\n")[1]
    )
    of_all, of_first = windowed.embed([LONG, first_window])
    weights = 100 * np.stack([of_all - of_first, of_first - of_all, 0 * of_all])
    names, counts = ("Whole", "First", "Neither"), np.full(3, MIN_NOTES_PER_CATEGORY)
    regression = VectorRegression(weights, np.zeros(3, np.float32))
    head = CategoryHead(names, counts, np.tile([0.5, 0.5], (3, 1)), regression)
    (output,) = Engine(windowed.runtime, head).generate([LONG], GenerationRequest(categories=names))
    assert [category.name for category in output.categories or ()] == ["Whole"]


def test_change_after_the_first_window_changes_the_vector(windowed: Engine, tiny_short: Engine) -> None:
    changed = replace(LONG, content=" ".join([*WORDS[:100], "volcano", *WORDS[101:]]))
    before, after = windowed.embed([LONG, changed])
    assert float(before @ after) < 1 - 1e-4
    one_window = tiny_short.embed([LONG, changed])
    assert np.array_equal(one_window[0], one_window[1])


def test_first_window_alone_decides_what_is_generated(windowed: Engine) -> None:
    request = GenerationRequest(3, FOODS)
    first = replace(LONG, content=" ".join(WORDS[:100]))
    long, short = windowed.generate([LONG, first], request)
    assert long.categories == short.categories
    assert [hashtag.text for hashtag in long.hashtags or ()] == [hashtag.text for hashtag in short.hashtags or ()]


def test_usage_counts_every_window(windowed: Engine) -> None:
    (output,) = windowed.generate([LONG])
    assert output.usage.prompt_tokens == sum(map(len, windowed.prompt.windows(LONG).windows))
    assert windowed.tokenize(LONG).tokens == output.usage.prompt_tokens


def test_blocks_of_windows_are_reserved_and_freed(windowed: Engine) -> None:
    pool = windowed.runtime.pool
    free = pool.free
    reserved = windowed.tokenize(LONG, GenerationRequest(3, FOODS))
    running = windowed.add_request(reserved)
    assert free - pool.free <= running.max_blocks
    while not windowed.step():
        assert free - pool.free <= running.max_blocks
    assert pool.free == free


def test_note_beyond_all_windows_is_truncated(windowed: Engine) -> None:
    longer = replace(LONG, content=LONG.content * 3)
    assert [output.truncated for output in windowed.generate([LONG, longer])] == [True, True]
    assert not windowed.generate([replace(LONG, content=" ".join(WORDS[:100]))])[0].truncated


def test_unread_script_gets_a_vector_and_nothing_generated(windowed: Engine) -> None:
    chinese = Note("京都三日游", "春天的寺庙与面条")
    (output,) = windowed.generate([chinese], GenerationRequest(3, FOODS))
    assert (output.hashtags, output.hashtags_reason, output.categories) == ((), UNSUPPORTED_LANGUAGE, ())
    assert not output.language_supported
    assert np.array_equal(output.vector, windowed.embed([chinese])[0])
    (vector_only,) = windowed.generate([chinese])
    assert (vector_only.hashtags, vector_only.hashtags_reason, vector_only.categories) == (None, None, None)


def test_unread_script_says_nothing_of_a_category(windowed: Engine) -> None:
    log_probs = EngineSystem(windowed).category_log_probs([Note("京都三日游"), Note("Kyoto")], FOODS)
    assert np.exp(log_probs[0]) == pytest.approx([0.5, 0.5])
    assert np.exp(log_probs[1]).sum() == pytest.approx(1, abs=1e-4)
