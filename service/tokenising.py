"""Parts of a list of notes that are tokenised together, so that a long list does not hold up other callers' notes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from model.generation import GenerationRequest
from model.note import Note

TOKENISED_CHARS = 16_384
"""Characters of the notes of a list that are tokenised together, which takes some milliseconds. Between two such parts,
notes of other callers are tokenised."""


def parts_to_tokenise(
    notes: Sequence[tuple[Note, GenerationRequest]],
) -> Iterator[list[tuple[Note, GenerationRequest]]]:
    """Yield consecutive parts of a list: as many notes as have at most TOKENISED_CHARS characters together, or one."""
    part: list[tuple[Note, GenerationRequest]] = []
    chars = 0
    for note, request in notes:
        length = len(note.title) + len(note.content) + sum(map(len, note.hashtags))
        if part and chars + length > TOKENISED_CHARS:
            yield part
            part, chars = [], 0
        part.append((note, request))
        chars += length
    yield part
