"""Data of a training run: checks before the first step, the report on its pairs, and the categories it trains on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from model.data.dataset import PairedNotes, shown_categories
from model.training.recipe import Recipe, RecipeError
from model.training.teacher import known_share
from model.weights import Progress


def check_unpaired_notes(recipe: Recipe, data: Sequence[PairedNotes], ranks: int) -> None:
    """Raise RecipeError where processes cannot share the unpaired notes evenly, or a data set has too few notes."""
    if recipe.unpaired_notes % ranks:
        raise RecipeError(f"unpaired_notes must be a multiple of the number of processes, {ranks}")
    fewest = min((len(paired.notes) for paired in data if paired.has_pairs), default=0)
    if recipe.unpaired_notes and recipe.unpaired_notes + 2 * recipe.batch_pairs > fewest:
        raise RecipeError(
            f"unpaired_notes: a data set has {fewest} notes, too few for the pairs and unpaired notes of a step"
        )


def taught_categories(recipe: Recipe, data: Sequence[PairedNotes]) -> tuple[str, ...]:
    """Return the category names that training shows: a single empty name where no note gets the category task. Notes
    outside of pairs are excluded, since they are never given a task."""
    drawn = [
        ([paired.notes[note_id] for note_id in set(chain.from_iterable(paired.pairs))], row.category_names)
        for row, paired in zip(recipe.data, data, strict=True)
        if row.share > 0
    ]
    return shown_categories(drawn if recipe.teaches_categories else [])


def validation_notes(recipe: Recipe) -> PairedNotes | None:
    """Return the validation split of the first data set that has pairs."""
    for row in recipe.data:
        if row.pairs:
            return PairedNotes(row.notes, row.pairs, split="validation", min_score=recipe.validation_min_score)
    return None


def report_pairs(
    recipe: Recipe, data: Sequence[PairedNotes], validation: PairedNotes | None, progress: Progress
) -> None:
    """Report the number of pairs of each file between notes of a split, the number that name a note missing from the
    notes file, and the share of notes that a teacher knows if it is below 1. Raises DatasetError."""
    for row, paired in zip(recipe.data, data, strict=True):
        if row.pairs:
            counts = paired.counts
            between = f"{counts.in_split:,} between training notes"
            left_out = (
                f", {counts.unknown:,} left out, since a note of theirs is not in {row.notes}" if counts.unknown else ""
            )
            progress(f"{row.pairs}: {counts.read:,} pairs, {between}{left_out}")
        if row.teacher and (known := known_share(row.teacher, paired.notes)) < 1:
            progress(f"{row.teacher}: has vectors for {100 * known:.1f}% of the training notes")
    if validation:
        progress(f"{validation.counts.in_split:,} pairs between validation notes")
