"""Generator: vectors, hashtags and categories of texts, with the defaults of the deployment."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

from model.generation import (
    MAX_CATEGORY_TOKENS,
    CategoriesTooLong,
    GenerationOutput,
    GenerationRequest,
    Hashtag,
    HashtagPolicy,
)
from model.note import Note, hashtag_key, hashtag_keys
from service.access.principal import DEFAULT_TENANT
from service.admission import PATIENT, Urgency
from service.batcher import Batcher
from service.errors import LimitExceeded, StoreUnavailable
from service.interfaces import Engine, NoteIndex, NoteStore
from service.read_time import ReadTime
from service.records import StoredNote


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Defaults of a deployment for generation requests.

    `categories`: the closed set; () for the model's own. `hashtag_policy`: the policy for requests that name none.
    `blocked_hashtags`: never generated. `min_category_probability`, `min_hashtag_score`: least probability of a
    category and least score of a hashtag for a note to get it.
    """

    categories: tuple[str, ...] = ()
    hashtag_policy: HashtagPolicy = "grounded"
    blocked_hashtags: tuple[str, ...] = ()
    min_category_probability: float = 0.0
    min_hashtag_score: float = 0.0


class Generator:
    """Generates for the texts of one tenant in one process. `categories`: the closed set that a note's category is
    chosen from."""

    def __init__(
        self,
        engine: Engine,
        batcher: Batcher,
        store: NoteStore,
        index: NoteIndex,
        defaults: GenerationDefaults = GenerationDefaults(),
        tenant: str = DEFAULT_TENANT,
    ) -> None:
        self.engine = engine
        self.categories = defaults.categories or engine.categories
        self.defaults = defaults
        self._batcher = batcher
        self._store = store
        self._index = index
        self._tenant = tenant

    def request(
        self,
        hashtags: int = 0,
        categories: tuple[str, ...] = (),
        policy: HashtagPolicy | None = None,
        blocked: Sequence[str] = (),
        min_score: float = 0.0,
        all_categories: bool = False,
    ) -> GenerationRequest:
        """Build the model's request from the deployment's defaults and the caller's options. `blocked`: hashtags that
        are blocked besides the deployment's. `min_score`: hashtags with a lower score are left out. `all_categories`:
        score every name of a large closed set, not only the likeliest."""
        categories = tuple(sorted(categories))  # the engine caches by their order what it computes for a closed set
        if not hashtags:
            return GenerationRequest(categories=categories, all_categories=all_categories)
        policy = policy or self.defaults.hashtag_policy
        return GenerationRequest(
            hashtags,
            categories,
            all_categories,
            hashtag_keys(self.defaults.blocked_hashtags).union(map(hashtag_key, blocked)),
            min_score,
            self._index.vocabulary if policy == "known" else None,
            self._index.find_neighbours if policy == "grounded" else None,
        )

    async def generate(
        self, note: Note, request: GenerationRequest, urgency: Urgency = PATIENT, read_time: ReadTime | None = None
    ) -> GenerationOutput:
        """Return vector and generations of a text that is not stored, from one prefill. `read_time`: how long it may
        wait for the store. Raises LimitExceeded, QueueFull, DeadlineExceeded, EngineFailed, Stopping."""
        try:
            output = await self._batcher.generate(note, request, urgency, self._tenant)
        except CategoriesTooLong as error:
            raise LimitExceeded("max_category_tokens", MAX_CATEGORY_TOKENS) from error
        read_time = read_time or ReadTime()
        return replace(output, hashtags=output.hashtags and await self._drop_missing_notes(output.hashtags, read_time))

    async def embed(self, notes: Sequence[Note], urgency: Urgency) -> list[GenerationOutput]:
        """Return outputs with the vectors of texts that are not stored, in order. All texts are admitted to the queue,
        or none. Raises QueueFull, DeadlineExceeded, EngineFailed, Stopping."""
        return await self._batcher.embed_all(notes, urgency, self._tenant)

    async def _drop_missing_notes(self, hashtags: Sequence[Hashtag], read_time: ReadTime) -> tuple[Hashtag, ...]:
        """Return the hashtags without those of their `notes` that the store lacks or cannot decode; without any notes
        while the store is unavailable."""
        ids = sorted({note_id for hashtag in hashtags for note_id in hashtag.notes})
        stored_ids: set[str] = set()
        if ids:
            with contextlib.suppress(StoreUnavailable):
                known = await read_time.wait(self._store.get(ids))
                stored_ids = {stored.note.id for stored in known if isinstance(stored, StoredNote)}
        return tuple(
            replace(hashtag, notes=tuple(note_id for note_id in hashtag.notes if note_id in stored_ids))
            for hashtag in hashtags
        )

    async def stream_hashtags(
        self, note: Note, request: GenerationRequest, urgency: Urgency = PATIENT
    ) -> AsyncGenerator[Hashtag | GenerationOutput]:
        """Yield each hashtag as soon as no better one can follow, and finally the whole output. Closing the generator
        aborts the request."""
        loop = asyncio.get_running_loop()
        settled: asyncio.Queue[Hashtag | None] = asyncio.Queue()

        def put_from_engine_thread(hashtag: Hashtag) -> None:
            loop.call_soon_threadsafe(settled.put_nowait, hashtag)

        streamed = replace(request, on_hashtag=put_from_engine_thread)
        read_time = ReadTime()  # of the whole stream: a store that hangs delays it once, not at each hashtag
        generating = asyncio.create_task(self.generate(note, streamed, urgency, read_time))
        generating.add_done_callback(lambda _: settled.put_nowait(None))
        try:
            while hashtag := await settled.get():
                (checked,) = await self._drop_missing_notes([hashtag], read_time)
                yield checked
            yield await generating
        finally:
            generating.cancel()
