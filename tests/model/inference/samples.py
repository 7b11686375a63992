"""Notes, hashtags and closed sets that the tests of inference share."""

from __future__ import annotations

from model.note import Note
from tests.conftest import FOODS

WORDS = [
    "coffee",
    "river",
    "cat",
    "train",
    "garden",
    "lamp",
    "paint",
    "salt",
    "winter",
    "song",
    "bread",
    "mirror",
    "cloud",
    "boat",
    "pepper",
    "stone",
]
NOTES = [
    Note(
        title=" ".join(WORDS[i % 7 : i % 7 + i % 4]),
        content=" ".join(WORDS[(i * 5 + j * (i + 1)) % 16] for j in range((i * i) % 97)),
        hashtags=tuple(WORDS[i % 11 : i % 11 + i % 3]),
    )
    for i in range(30)
]
"""Notes of all lengths, from an empty one to one whose content is cut."""
FEW_NOTES = [NOTES[i] for i in (0, 7, 2, 19, 11)]
HASHTAGS = ("coffee", "coffee bread", "river!", "train garden", ".song")
CLOSED_SETS = [FOODS, ("Music", "Film"), (), ("Only",), ("Travel by Train", "Travel", *FOODS[:3], "旅行", "🍜")]
