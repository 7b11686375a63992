"""Adding notes: the plan and the result of adding one, and the batches of a long list."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

from model.dedup_key import dedup_key
from model.generation import GenerationOutput, GenerationRequest, Hashtag, Usage
from model.note import Note
from service.errors import FieldError, InvalidInput
from service.records import Generated, GeneratedField, StoredNote

STORE_BATCH_SIZE = 32
"""Notes of a long list that are computed and written as one batch. If a deadline or a failure interrupts the list, at
most this many are computed again when the caller repeats it."""
GENERATED_HASHTAGS = 5
"""Hashtags to generate where a request gives no count."""


@dataclass(frozen=True, slots=True)
class Generate:
    """Fields to generate where the author left them out: the number of hashtags (0: none), and the category.
    `min_score`: least score of a generated hashtag; None for the deployment's. `drops`: generated fields of the stored
    note that this write discards."""

    hashtags: int = 0
    category: bool = False
    min_score: float | None = None
    drops: frozenset[GeneratedField] = frozenset()

    def kept_of(self, stored: Generated, categories: Collection[str], blocked: Collection[str]) -> Generated:
        """Return the generated fields of a stored note that this write keeps. A field to generate is generated anew,
        and not kept, where the stored category is not in the closed set `categories`, or any of the stored hashtags is
        blocked or scores less than `min_score`. `blocked`: keys (`dedup_key`)."""
        outdated: set[GeneratedField] = set()
        if self.category and stored.category and categories and stored.category.name not in categories:
            outdated.add("category")
        least = self.min_score or 0.0
        unwanted = (h.score < least or dedup_key(h.text) in blocked for h in stored.hashtags or ())
        if self.hashtags and any(unwanted):
            outdated.add("hashtags")
        return stored.without(self.drops | outdated)


GENERATE_NOTHING = Generate()


@dataclass(frozen=True, slots=True)
class Added:
    """Result of adding one note.

    `status`: created, updated, or unchanged (nothing was written); empty before the write. If no model was needed,
    `usage` is zero, and `truncated` and `language_supported`, as in GenerationOutput, are None. `below_min`: what the
    model generated now but the note does not get, because its score or probability is too low. `replayed`: the result
    is that of an earlier attempt at the same write; nothing was done now.
    """

    stored: StoredNote
    status: str
    usage: Usage
    hashtags_reason: str | None = None
    truncated: bool | None = None
    language_supported: bool | None = None
    below_min: Generated = field(default_factory=Generated)
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """Plan for adding one note.

    `old`: the stored note that it replaces. `reused`: stored generations that are kept, since the text is the same.
    `request`: what the model generates besides the vector; None if the stored vector and generations suffice.
    """

    note: Note
    old: StoredNote | None
    reused: Generated
    request: GenerationRequest | None

    def finish(self, output: GenerationOutput | None, space: str, min_category_probability: float) -> Added:
        """Return the note to store, still with the revision and position of the old one. `output`: the model's output;
        None if the plan has no request. A category with a probability below `min_category_probability` is left out:
        filters would find the note by it."""
        if output is None:
            assert self.old is not None
            return Added(replace(self.old, note=self.note, generated=self.reused), "", Usage())
        # Three results are not stored. Two depend on other notes, which change: the ids of the notes that have a
        # hashtag, and, under the policy "known", that no known hashtag fits a text that the model reads. The third
        # depends on the request: that all hashtags score below its minimum.
        hashtags = _without_notes(output.hashtags)
        none_known = self.request is not None and self.request.vocabulary is not None and output.language_supported
        if not hashtags and (none_known or output.hashtags_below_min):
            hashtags = None
        category, improbable = self.reused.category, None
        if output.categories:
            category = output.categories[0]
            if category.probability < min_category_probability:
                category, improbable = None, category
        asked = self.request is not None and self.request.hashtags > 0
        generated = Generated(hashtags if asked else self.reused.hashtags, category)
        old = self.old or StoredNote(self.note, space)
        return Added(
            replace(old, note=self.note, space=space, vector=output.vector, generated=generated),
            "",
            output.usage,
            output.hashtags_reason,
            output.truncated,
            output.language_supported,
            Generated(_without_notes(output.hashtags_below_min) or None, improbable),
        )

    def changes(self, added: Added) -> bool:
        """Whether `added` differs from what is stored, so that it must be written."""
        if self.old is None:
            return True
        old, new = self.old, added.stored
        return not old.note.is_same(new.note) or (old.space, old.generated) != (new.space, new.generated)


def expired_error(pointer: str = "") -> InvalidInput:
    """Return the error for a note that expired before it was written. `pointer`: JSON pointer to the note in its
    body."""
    return InvalidInput([FieldError(f"{pointer}/expires_at", "must be in the future")])


def _without_notes(hashtags: tuple[Hashtag, ...] | None) -> tuple[Hashtag, ...] | None:
    return hashtags and tuple(replace(hashtag, notes=()) for hashtag in hashtags)


def batches_with_unique_ids(notes: Sequence[Note], next_size: Callable[[], int]) -> Iterator[list[int]]:
    """Yield batches of positions in `notes`. No batch has an id twice, and notes with the same id keep their order.
    `next_size` is called before each batch and returns its maximum size."""
    left = list(range(len(notes)))
    while left:
        size = next_size()
        seen: set[str] = set()
        batch: list[int] = []
        later: list[int] = []
        for i in left:
            if notes[i].id in seen or len(batch) == size:
                later.append(i)
            else:
                batch.append(i)
            seen.add(notes[i].id)
        yield batch
        left = later
