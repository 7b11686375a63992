"""Training examples for writing: a note's prompt, and the tree of tokens to predict after it.

Shapes: S tokens of a tree.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from model.data.dataset import with_category_synonym
from model.hashtags.vocabulary import most_frequent
from model.note import Note, hashtag_key
from model.prompt import Prompt

RANK_DECAY = 0.85
"""Ratio of the loss weights of a hashtag and the hashtag before it."""
MAX_TARGET_HASHTAGS = 5
REQUESTED_HASHTAGS = range(1, 11)
"""Numbers of hashtags in the task, drawn at random: the output must not depend on the requested number."""


@dataclass(frozen=True, slots=True)
class Target:
    """A token to predict from the state at place `at` of the tree, which holds the token before it. `weight`: weight in
    the note's loss."""

    at: int
    token: int
    weight: float


@dataclass(slots=True)
class Tree:
    """The tokens after a note's read-out position, as a tree that is processed in one forward.

    `parents`: place of each token's predecessor, -1 for one that follows the note.
    """

    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)

    def append(self, ids: Sequence[int], parent: int) -> int:
        """Add a chain of tokens after `parent`; returns the place of the last one."""
        for token in ids:
            self.ids.append(token)
            self.parents.append(parent)
            parent = len(self.ids) - 1
        return parent

    def add_output(self, output: Sequence[int], parent: int, weight: float) -> None:
        """Add an output after the place `parent`, with each of its tokens as a target."""
        for token, next_token in zip(output, (*output[1:], None), strict=True):
            self.targets.append(Target(parent, token, weight))
            if next_token is not None:
                parent = self.append([token], parent)

    def depths_and_mask(self) -> tuple[list[int], Tensor]:
        """Return each token's depth, its distance from the read-out position minus 1, and the attention mask (S, S)."""
        mask = torch.eye(len(self.ids), dtype=torch.bool)
        depths: list[int] = []
        for place, parent in enumerate(self.parents):
            if parent >= 0:
                mask[place] |= mask[parent]
            depths.append(depths[parent] + 1 if parent >= 0 else 0)
        return depths, mask


@dataclass(frozen=True, slots=True)
class WritingExample:
    """A note's prompt ids, the last of which is the read-out position, and the tree of outputs after it."""

    ids: list[int]
    tree: Tree


def common_spellings(notes: Iterable[Note]) -> dict[str, str]:
    """Return the most frequent spelling of each hashtag in `notes`, by its `hashtag_key` (ties as in `most_frequent`).
    With a single spelling, a target is learnt from all of its notes (docs/log/writing.md)."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for note in notes:
        for hashtag in note.hashtags:
            counts[hashtag_key(hashtag)][hashtag] += 1
    return {key: most_frequent(spellings, spellings) for key, spellings in counts.items()}


def respelled(note: Note, spellings: Mapping[str, str]) -> Note:
    """Return the note with its hashtags in the spelling of `spellings`."""
    return replace(note, hashtags=tuple(spellings.get(hashtag_key(tag), tag) for tag in note.hashtags))


def writing_example(
    prompt: Prompt,
    note: Note,
    names: Mapping[str, Sequence[str]],
    rng: random.Random,
    *,
    shown_hashtags: float,
    subject_names: float,
) -> WritingExample:
    """Draw which hashtags a note shows and which name its category gets, and build its tree.

    `names`: synonyms of categories. `shown_hashtags`, `subject_names`: shares as in GenerationRecipe. The target for a
    note without hashtags is to write none.
    """
    shown: tuple[str, ...] = ()
    targets = note.hashtags[:MAX_TARGET_HASHTAGS]
    if len(targets) > 1 and rng.random() < shown_hashtags:
        drawn = set(rng.sample(targets, rng.randint(1, len(targets) - 1)))
        shown = tuple(tag for tag in targets if tag in drawn)
        targets = tuple(tag for tag in targets if tag not in drawn)
    tree = Tree()
    task = tree.append(prompt.hashtag_task(rng.choice(REQUESTED_HASHTAGS)), -1)
    weights = [RANK_DECAY**rank for rank in range(len(targets))]
    for hashtag, weight in zip(targets, weights, strict=True):
        tree.add_output(prompt.hashtag_output([hashtag]), task, weight / sum(weights))
    if not targets:
        tree.add_output([prompt.end_id], task, 1.0)
    categories = []
    if note.category:
        categories.append(with_category_synonym(note, names, rng).category or "")
    if note.hashtags and rng.random() < subject_names:
        categories.append(note.hashtags[0].capitalize())
    if categories:
        task = tree.append(prompt.category_task(), -1)
        for output in prompt.category_outputs(categories):
            tree.add_output(output, task, 1 / len(categories))
    return WritingExample(prompt.note(replace(note, hashtags=shown)), tree)
