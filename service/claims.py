"""Claims on writes that take place once under their idempotency keys, held while a request makes them."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Sequence

from service.admission import Urgency
from service.errors import NoteLLMError
from service.interfaces import NoteStore
from service.records import Attempt, Claim

CLAIM_SECONDS = 5.0
"""How much longer than its request a claim on a write lasts, at least: the write itself may take the store that long. A
process that dies holds the key until then."""


class Claims:
    """Claims of one process. `remembered_seconds`: how long a write that was made is remembered."""

    def __init__(self, store: NoteStore, remembered_seconds: float) -> None:
        self._store = store
        self._remembered_seconds = remembered_seconds

    @contextlib.asynccontextmanager
    async def hold(self, attempts: Sequence[Attempt], urgency: Urgency) -> AsyncIterator[list[Claim]]:
        """Claim the writes of some attempts; where the block fails, give up those that it has not made."""
        if not attempts:
            yield []
            return
        lease = CLAIM_SECONDS + (urgency.seconds if math.isfinite(urgency.seconds) else 0)
        claiming = asyncio.ensure_future(self._store.claim(attempts, lease, self._remembered_seconds))
        try:
            yield await asyncio.shield(claiming)
        except BaseException:
            await asyncio.shield(self._release(claiming))
            raise

    async def give_up(self, claims: Sequence[Claim]) -> None:
        """Give up claims on writes that are not made; where that fails, they end by themselves."""
        with contextlib.suppress(NoteLLMError):
            await self._store.release(claims)

    async def _release(self, claiming: asyncio.Future[list[Claim]]) -> None:
        """Give up claims, once they are there."""
        with contextlib.suppress(NoteLLMError):
            await self.give_up(await claiming)
