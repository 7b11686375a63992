"""BehaviourEvidence on a real index: which notes it proposes."""

from __future__ import annotations

import time

import pytest

from service.behaviour.co_occurrence import Related
from service.filters import Filter
from service.index.live import LiveIndex
from service.interfaces import Clock
from service.records import Write
from service.search.behaviour import BehaviourEvidence
from tests.service.conftest import GatedStore, stored_note

pytestmark = pytest.mark.anyio


async def test_note_that_has_expired_is_not_proposed(
    embedded_store: GatedStore, live_index: LiveIndex, clock: Clock
) -> None:
    """While the store is unavailable nothing else leaves it out of a degraded answer."""
    notes = [stored_note("soup"), stored_note("bread", expires_at=time.time() + 60)]
    written = await embedded_store.put([Write(note) for note in notes])
    assert written[-1]
    await live_index.wait_for(written[-1].position, 5)
    related = [Related(note_id, 1.0, 1.0) for note_id in ("bread", "never stored", "soup")]
    evidence = BehaviourEvidence(related, live_index, weight=1.0, kappa=1.0, unit=1.0)
    assert await evidence.candidates(10, Filter(), []) == ["bread", "soup"]
    assert await evidence.candidates(1, Filter(), []) == ["bread"]
    clock.offset = 61.0
    assert await evidence.candidates(10, Filter(), []) == ["soup"]
