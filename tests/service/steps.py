"""Steps that the tests of the use cases share: adding notes, and searching related ones."""

from __future__ import annotations

from collections.abc import Sequence

from model.note import Note
from service.adding import Added, Generate
from service.admission import PATIENT
from service.filters import Filter
from service.recommender import Recommender
from service.records import Similar
from service.search.request import Example, SearchRequest
from service.search.search import NoteSearch
from tests.service.conftest import note_vector

NOTHING = Generate()
ANY = Filter()


async def add(recommender: Recommender, *notes: Note, generate: Generate = NOTHING) -> list[Added]:
    added = await recommender.add(notes, generate, PATIENT)
    assert None not in added, "a note has expired"
    return [one for one in added if one]


async def add_one(recommender: Recommender, note: Note, generate: Generate = NOTHING) -> Added:
    return (await add(recommender, note, generate=generate))[0]


async def related(
    search: NoteSearch, note_id: str, k: int = 10, where: Filter = ANY, min_score: float | None = None
) -> Similar:
    return await search.related(SearchRequest((Example(note_id),), k=k, where=where, min_score=min_score))


def ids(found: Similar) -> list[str]:
    return [item.stored.note.id for item in found.items]


async def similar_ids(
    search: NoteSearch, note_id: str, k: int = 10, where: Filter = ANY, min_score: float | None = None
) -> list[str]:
    found = await related(search, note_id, k, where, min_score)
    assert found.complete
    return ids(found)


def soup(count: int) -> list[Note]:
    """Return notes that share words: n0 is nearest to n1, then to n2, and so on."""
    words = [f"word{n}" for n in range(count)]
    return [Note(id=f"n{n}", title=" ".join(words[n:] + ["soup"] * 9)) for n in range(count)]


def ranking(notes: Sequence[Note], of: Note) -> list[str]:
    """Return the ids of `notes` by their scores for `of`, computed by brute force, best first, without `of` itself."""
    scores = {n.id: float(note_vector(n) @ note_vector(of)) for n in notes if n.id != of.id}
    return sorted(scores, key=lambda i: (-scores[i], i))
