"""Tests of loading systems by name and by folder: a saved encoder loads as the class that saved it."""

import json
from pathlib import Path

import numpy as np
import pytest

from model.baselines.encoder import MAX_TOKENS, CategoryEncoder, SentenceEncoder
from model.baselines.loading import load_system
from model.config import CheckpointError
from model.note import Note
from model.weights import silent

NOTES = [
    Note(title="bread in paris", hashtags=("baking",)),
    Note(title="paris by night"),
    Note(title="bread bread bread", content="and butter"),
    Note(title="a horse"),
]


def test_saved_encoder_is_loaded_as_it_was(encoder: SentenceEncoder, tmp_path: Path):
    encoder.save(tmp_path)
    loaded = load_system(str(tmp_path), (), tmp_path, "auto", silent)
    assert type(loaded) is SentenceEncoder
    np.testing.assert_allclose(loaded.embed(NOTES), encoder.embed(NOTES), atol=1e-6)


def test_encoder_is_named_after_its_folder_or_after_the_run_that_it_is_the_best_of(
    encoder: SentenceEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for folder in ("encoders/small", "runs/fine-tuned/best"):
        encoder.save(tmp_path / folder)
    monkeypatch.chdir(tmp_path / "encoders")
    names = ["small", str(tmp_path / "runs/fine-tuned/best")]
    assert [load_system(name, (), tmp_path, "auto", silent).name for name in names] == ["small", "fine-tuned"]


def test_published_folder_is_read_to_the_length_that_it_names(encoder: SentenceEncoder, tmp_path: Path):
    for length in (None, 384):
        encoder.save(tmp_path)
        if length:
            (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}))
        loaded = load_system(str(tmp_path), (), tmp_path, "auto", silent)
        assert isinstance(loaded, SentenceEncoder)
        assert loaded.max_tokens == (length or MAX_TOKENS)


def test_saved_head_is_loaded_as_it_was(tmp_path: Path):
    head = CategoryEncoder(["Küche", "b"])
    head.save(tmp_path)
    loaded = load_system(str(tmp_path), (), tmp_path, "auto", silent)
    assert isinstance(loaded, CategoryEncoder)
    expected = head.category_log_probs(NOTES, ["b", "Küche"])
    np.testing.assert_allclose(loaded.category_log_probs(NOTES, ["b", "Küche"]), expected, atol=1e-6)


def test_encoder_reads_as_much_of_a_note_in_training_as_its_published_folder_says(encoder: SentenceEncoder):
    for words, alike in ((250, False), (260, True)):
        one, other = encoder.embed([Note(content=words * "word " + end) for end in ("soup", "bridge")])
        assert np.allclose(one, other, atol=1e-6) == alike


def test_folder_with_a_broken_configuration_is_named(tmp_path: Path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=f"{tmp_path} could not be loaded"):
        load_system(str(tmp_path), (), tmp_path, "auto", silent)
