"""Claims on idempotency keys, held while a request makes the writes it sent under them."""

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
"""Least seconds for which a claim outlasts its request: the write itself may take the store that long. If a process
dies, the key stays claimed until then."""


class Claims:
    """Claims of one process. `remembered_seconds`: how long a completed write is remembered under its key."""

    def __init__(self, store: NoteStore, remembered_seconds: float) -> None:
        self._store = store
        self._remembered_seconds = remembered_seconds

    @contextlib.asynccontextmanager
    async def hold(self, attempts: Sequence[Attempt], urgency: Urgency) -> AsyncIterator[list[Claim]]:
        """Claim the writes of some attempts for the block, and yield the claims in their order; [] without attempts. If
        the block fails, release the claims on writes that it has not made. Raises KeyInUse, KeyReused,
        StoreUnavailable."""
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
        """Release claims on writes that will not be made; if that fails, they expire by themselves."""
        with contextlib.suppress(NoteLLMError):
            await self._store.release(claims)

    async def _release(self, claiming: asyncio.Future[list[Claim]]) -> None:
        """Release the claims that `claiming` returns, once it is done."""
        with contextlib.suppress(NoteLLMError):
            await self.give_up(await claiming)
