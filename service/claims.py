"""Claims on idempotency keys, held while a request makes the writes it sent under them."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from uuid import uuid4

from service.admission import Urgency
from service.errors import NoteLLMError, StoreUnavailable
from service.interfaces import NoteStore
from service.records import Attempt, Claim

CLAIM_SECONDS = 5.0
"""Least seconds for which a claim outlasts its request: the write itself may take the store that long. If a process
dies, the key stays claimed until then."""
RELEASE_SECONDS = 60.0
"""How long claims are tried to be released while the store is unavailable; then they soon expire by themselves."""
RELEASE_PAUSE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Unreleased:
    """Claims to release by time.monotonic() `ends`. `again`: whether once more, since a claim that was not answered in
    time may reach the store after its release."""

    claims: Sequence[Claim]
    ends: float
    again: bool = True


class Claims:
    """Claims of one process. `remembered_seconds`: how long a completed write is remembered under its key."""

    def __init__(self, store: NoteStore, remembered_seconds: float) -> None:
        self._store = store
        self._remembered_seconds = remembered_seconds
        self._unreleased: list[Unreleased] = []
        self._releasing: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def hold(self, attempts: Sequence[Attempt], urgency: Urgency) -> AsyncIterator[list[Claim]]:
        """Claim the writes of some attempts for the block, and yield the claims in their order; [] without attempts. If
        the block fails, release the claims on writes that it has not made. Raises KeyInUse, KeyReused,
        StoreUnavailable."""
        if not attempts:
            yield []
            return
        token, seconds = uuid4().hex, self._remembered_seconds
        lease = CLAIM_SECONDS + (urgency.seconds if math.isfinite(urgency.seconds) else 0)
        claiming = asyncio.ensure_future(self._store.claim(attempts, token, lease, seconds))
        try:
            yield await asyncio.shield(claiming)
        except BaseException as error:
            possible = [Claim(attempt.key, token, seconds) for attempt in attempts]
            await asyncio.shield(self._undo(claiming, possible, error))
            raise

    async def give_up(self, claims: Sequence[Claim]) -> None:
        """Release claims on writes that will not be made; while the store is unavailable, in the background."""
        try:
            await self._store.release(claims)
        except StoreUnavailable:
            self._release_later(claims)
        except NoteLLMError:  # the tenant was removed, and its claims with it
            pass

    async def _undo(
        self, claiming: asyncio.Future[list[Claim]], possible: Sequence[Claim], error: BaseException
    ) -> None:
        """Release the claims that `claiming` returns, once it is done, after `error` ended their block. If the store is
        unavailable, it may have made the `possible` ones."""
        claims = possible
        try:
            claims = await claiming
        except StoreUnavailable:
            pass
        except NoteLLMError:
            return
        if isinstance(error, StoreUnavailable):
            self._release_later(claims)  # waiting for the store again would double the time of the answer
        else:
            await self.give_up(claims)

    def _release_later(self, claims: Sequence[Claim]) -> None:
        self._unreleased.append(Unreleased(claims, time.monotonic() + RELEASE_SECONDS))
        if self._releasing is None or self._releasing.done():
            self._releasing = asyncio.create_task(self._release_all())

    async def _release_all(self) -> None:
        """Release what is unreleased, one call after another, as soon as the store is available."""
        while self._unreleased:
            await asyncio.sleep(RELEASE_PAUSE_SECONDS)
            due, self._unreleased = self._unreleased, []
            for place, one in enumerate(due):
                if time.monotonic() > one.ends:
                    continue
                try:
                    await self._store.release(one.claims)
                except StoreUnavailable:
                    self._unreleased += due[place:]
                    break
                except NoteLLMError:
                    continue
                if one.again:
                    self._unreleased.append(Unreleased(one.claims, one.ends, again=False))
