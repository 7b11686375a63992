"""Answers of GET /notes/{id}/similar, assembled from JSON that is rendered once for each note.

Rendering ten items takes longer than finding them (docs/log/reads.md). The bytes equal those of SimilarOut: each part
is cut out of pydantic's output.
"""

from __future__ import annotations

from functools import lru_cache

from pydantic_core import to_json
from ulid import ULID

from service.api.schemas.similar import SimilarItem, SimilarOut
from service.records import RelatedNote, Similar, StoredNote
from service.search.item_cache import RenderedItem
from service.search.nearest import Nearest

PLACE = b',"score":0.0,"position":1,'
"""Part of an item that differs between answers. No JSON string contains it, since quotes are escaped there."""
ITEMS, EMPTY = b'"items":[]', b'""'
MAX_CACHED_ENVELOPES = 16
"""Number of log positions for which the parts around the items are cached: they stay the same while nothing is
written."""


def render_item(stored: StoredNote) -> RenderedItem:
    """Render a note as an item of SimilarOut."""
    item = SimilarItem.of(RelatedNote(stored, 0.0, 1), degraded=False)
    before, after = item.model_dump_json(exclude_unset=True).encode().split(PLACE, 1)
    return RenderedItem(before, after, stored.note.expires_at)


def render_nearest(nearest: Nearest, note_id: str, model: str) -> bytes:
    """Render the notes nearest to `note_id` as SimilarOut."""
    head, middle, before, after = _around_items(model, nearest.log_position)
    items = [
        b'%b,"score":%b,"position":%d,%b' % (item.before, to_json(score), position, item.after)
        for position, (item, score) in enumerate(nearest.hits, 1)
    ]
    return b'%b%b%b"%b"%b"items":[%b]%b' % (
        *(head, to_json(note_id), middle, str(ULID()).encode()),
        *(before, b",".join(items), after),
    )


@lru_cache(MAX_CACHED_ENVELOPES)
def _around_items(model: str, log_position: str) -> tuple[bytes, bytes, bytes, bytes]:
    """Return the constant parts of SimilarOut as JSON: before `note_id`, between it and `recommendation_id`, between
    that and the items, and after the items."""
    answer = SimilarOut.of(Similar("", [], True, log_position), "", model).model_dump_json(exclude_unset=True)
    head, middle, rest = answer.encode().split(EMPTY, 2)
    before, after = rest.split(ITEMS, 1)
    return head, middle, before, after
