"""Input of the benchmarks: notes of one prompt length, and any number of vectors that are spread like real notes'."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from model.inference.engine import Engine
from model.note import Note
from service import SAMPLES

Vectors = npt.NDArray[np.float32]
PROMPT_TOKENS = 100
DIMENSION = 352
"""Dimension of the shipped checkpoint's vectors."""
BASE_NOTES = 2000
"""Real notes from whose vectors all other vectors are made."""
NOISE = 0.6
"""Length of the noise added to a vector of length 1: the result has a cosine of 0.86 to its base."""
STRIDE = 17
"""Words between the beginnings of two notes that are cut from one text."""


def notes_of_one_length(engine: Engine, count: int) -> list[Note]:
    """Cut `count` notes, whose prompts have PROMPT_TOKENS tokens or one more, from the texts of our sample notes."""
    texts = [json.loads(line)["content"] for line in SAMPLES.read_text("utf-8").splitlines()]
    words = " ".join(text for text in texts if text.isascii()).split()
    notes: list[Note] = []
    begin = 0
    while len(notes) < count:
        end = begin + 1
        while len(engine.prompt.note(Note(content=" ".join(words[begin:end])))) < PROMPT_TOKENS:
            end += 1
        notes.append(Note(content=" ".join(words[begin:end])))
        begin = (begin + STRIDE) % (len(words) - 2 * PROMPT_TOKENS)
    return notes


def base_vectors(engine: Engine, notes: Iterable[Note]) -> Vectors:
    """Embed the first notes and project them on their principal directions: (BASE_NOTES, DIMENSION), of unit length."""
    vectors = engine.embed(list(islice(notes, BASE_NOTES)))
    centred = vectors - vectors.mean(0)
    principal = np.linalg.svd(centred, full_matrices=False)[2][:DIMENSION]
    return normalise(centred @ principal.T)


def noisy_copies(bases: Vectors, rows: int, seed: int) -> Vectors:
    """Draw `rows` of the base vectors with replacement and add noise to each: (rows, DIMENSION), of unit length."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((rows, DIMENSION), np.float32)
    return normalise(bases[rng.integers(len(bases), size=rows)] + NOISE * normalise(noise))


def normalise(vectors: npt.NDArray[np.floating[Any]]) -> Vectors:
    """Scale each row to length 1."""
    normalised: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return normalised
