"""The use-case of related notes: examples -> candidates -> selection -> notes that were read from the store.

A plain request asks the index for k notes. One with diversity, caps, collapse or boosts chooses among blocks of
candidates whose sizes do not depend on k, so that its first notes are the same however many are asked for. Both go on
until k notes are left that the store still has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from ulid import ULID

from model.note import Note
from service.access.principal import DEFAULT_TENANT
from service.admission import IN_BACKGROUND, PATIENT, Urgency
from service.batcher import Batcher
from service.behaviour.live import LiveBehaviour
from service.errors import FieldError, InvalidInput
from service.filters import Filter
from service.interfaces import Clock, Engine, ListStore, NoteIndex, NoteStore
from service.ranking.selection import SelectionOptions
from service.ranking.strategies import NoDirection
from service.read_time import ReadTime
from service.records import RankedList, RankedNote, Similar, Vector
from service.search.behaviour import BehaviourEvidence
from service.search.examples import Examples, UnusableExample, check_examples, query_of, read_examples
from service.search.explanation import explain, explain_behaviour, explain_words
from service.search.fusion import Evidence, FusedSource, find_nearest
from service.search.pages import MAX_LIST_NOTES, Pages, answer
from service.search.ranker import Ranker, Ranking
from service.search.request import AUTO, FIRST_PAGE, OTHER_SOURCES, SearchRequest, SourceName
from service.search.sources import ContentSource, Source
from service.search.title_centre import TitleCentre
from service.search.verified import ExamplesMissing, VerifiedNotes
from service.search.words import WordEvidence, query_note
from service.setting_fields import WORDS_WEIGHT
from service.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class PreparedSearch:
    """A search whose candidates are about to be ranked. `position`: log position of the index before the search.
    `notes`: notes that the search reads from the store. `words`, `behaviour`: None where they are not used."""

    request: SearchRequest
    examples: Examples
    position: str
    notes: VerifiedNotes
    options: SelectionOptions
    words: WordEvidence | None
    behaviour: BehaviourEvidence | None


class NoteSearch:
    """Related notes of one tenant. `engine`: the serving model; `batcher` queues the texts that it reads. `lists` keeps
    ranked lists for their pages. `behaviour`: None for a search without that source. `words_weight`: the weight of
    words in AUTO. `title_mean_share`: see NoteLLMConfig."""

    def __init__(
        self,
        engine: Engine,
        batcher: Batcher,
        store: NoteStore,
        index: NoteIndex,
        lists: ListStore,
        telemetry: Telemetry,
        clock: Clock,
        tenant: str = DEFAULT_TENANT,
        behaviour: LiveBehaviour | None = None,
        words_weight: float = WORDS_WEIGHT,
        title_mean_share: float = 0.0,
    ) -> None:
        self._behaviour = behaviour
        self._words_weight = words_weight
        self._engine = engine
        self._batcher = batcher
        self._store = store
        self._index = index
        self._pages = Pages(lists)
        self._titles = TitleCentre(
            index, store, partial(self.read_texts, urgency=IN_BACKGROUND), title_mean_share, tenant
        )
        self._telemetry = telemetry
        self._clock = clock
        self._tenant = tenant

    async def stop(self) -> None:
        """End background tasks."""
        await self._titles.stop()

    async def read_texts(self, notes: Sequence[Note], urgency: Urgency = PATIENT) -> list[Vector]:
        """Read texts with the model, part by part, and return their vectors. Raises QueueFull, DeadlineExceeded,
        EngineFailed."""
        outputs = await self._batcher.embed_all(notes, urgency, self._tenant)
        return [output.vector for output in outputs]

    async def related(
        self,
        request: SearchRequest,
        urgency: Urgency = PATIENT,
        texts: Sequence[Vector] | None = None,
        time_left: ReadTime | None = None,
    ) -> Similar:
        """Answer a request. `texts`: the vectors of its texts, where they have already been read. `time_left`: the time
        left of a read that has already begun; None for a new read.

        Raises InvalidInput, NoteNotFound, ExamplesNotFound, StoredNoteUnreadable, OtherSpace, ListExpired,
        StoreUnavailable, IndexBehind, and what read_texts raises.
        """
        check_examples(request)
        similar = await self._related(request, urgency, texts, time_left)
        if similar.degraded:
            self._telemetry.degraded.inc()
        return similar

    async def _related(
        self, request: SearchRequest, urgency: Urgency, texts: Sequence[Vector] | None, time_left: ReadTime | None
    ) -> Similar:
        if request.cursor not in (None, FIRST_PAGE):
            time_left = time_left or ReadTime()
            return await self._pages.next(request, VerifiedNotes(self._store, request.where, time_left), time_left)
        if texts is None:
            texts = await self.read_texts(request.texts, urgency) if request.texts else ()
        time_left = time_left or ReadTime()
        missing: dict[str, UnusableExample] = {}
        while True:
            examples = await read_examples(
                request, texts, missing, self._index, self._store, self._titles, self._engine, time_left
            )
            try:
                return await self._answer(request, examples, time_left)
            except ExamplesMissing as error:  # the index still had them
                missing |= error.examples

    async def _answer(self, request: SearchRequest, examples: Examples, time_left: ReadTime) -> Similar:
        """Answer with the notes themselves, or with the first page of a list of them. Raises ExamplesMissing."""
        position, ids = self._index.position, examples.ids
        where = replace(request.where, exclude=request.where.exclude.union(ids)) if ids else request.where
        notes = VerifiedNotes(self._store, where, time_left, ids)
        source, words, behaviour = await self._source(request, examples, where, notes)
        options = selection_options(request, source, self._clock())
        ranker = Ranker(self._index, source, where, request.min_score, options, notes)
        search = PreparedSearch(request, examples, position, notes, options, words, behaviour)
        if request.cursor is None:
            ranked = await self._list(search, await ranker.rank(request.k, verify=True))
            return answer(ranked, list(enumerate(ranked.notes)), ranked.complete, notes)
        reads_all = bool(options.boosts) or request.explain  # so that pages say the same as a long answer
        ranking = await ranker.rank(MAX_LIST_NOTES + 1, verify=reads_all)  # one more, to tell if the list is complete
        ranked = await self._list(search, ranking.cut(MAX_LIST_NOTES))
        return await self._pages.first(request, ranked, notes, time_left)

    async def _source(
        self, request: SearchRequest, examples: Examples, where: Filter, notes: VerifiedNotes
    ) -> tuple[Source, WordEvidence | None, BehaviourEvidence | None]:
        """Return the source of candidates, and the evidence of words and of behaviour in it. Raises ExamplesMissing."""
        content = self._content(request, examples)
        if not any(self._weight(request, name) for name in OTHER_SOURCES):
            return content, None, None
        try:
            # The vectors are compared while the store looks up the examples' texts. A failure of one cancels the other.
            async with asyncio.TaskGroup() as group:
                finding_words = group.create_task(self._word_evidence(request, examples, notes))
                finding_nearest = group.create_task(find_nearest(content, where))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        words, nearest = finding_words.result(), finding_nearest.result()
        behaviour = await self._behaviour_evidence(request, examples, content.unit)
        evidence: list[Evidence] = [one for one in (words, behaviour) if one]
        source = FusedSource(self._index, content, evidence, nearest) if evidence else content
        return source, words, behaviour

    async def _word_evidence(
        self, request: SearchRequest, examples: Examples, notes: VerifiedNotes
    ) -> WordEvidence | None:
        """Return the evidence of the positive examples' words; None where words have no weight, there are no such
        examples, or the store, which has the texts, is unavailable. Raises ExamplesMissing."""
        weight = self._weight(request, "words")
        positive = [example for example, _ in examples.positive if example.weight]
        if not weight or not positive:
            return None
        if any(example.note_id for example in positive):
            await notes.read([])
        stored = [notes.example(example.note_id) for example in positive]
        texts = [example.note or (one and one.note) for example, one in zip(positive, stored, strict=True)]
        known = [text for text in texts if text]
        if not known:
            return None
        adaptive, two_sided = request.sources == AUTO, request.strategy == "best_score"
        return WordEvidence(self._index, query_note(known), weight, adaptive, two_sided)

    async def _behaviour_evidence(
        self, request: SearchRequest, examples: Examples, unit: float
    ) -> BehaviourEvidence | None:
        """Return the evidence of the readers of the positive examples; None where behaviour has no weight, or no such
        example is a stored note."""
        weight = self._weight(request, "behaviour")
        ids = [example.note_id for example, _ in examples.positive if example.weight and example.note_id]
        if self._behaviour is None or not weight or not ids:
            return None
        related = await self._behaviour.candidates(ids)
        return BehaviourEvidence(related, self._index, weight, self._behaviour.kappa, unit)

    def _weight(self, request: SearchRequest, name: SourceName) -> float:
        """Return the weight of a source relative to that of the vectors."""
        weights = {"content": 1.0, "words": self._words_weight, "behaviour": 1.0}
        if request.sources != AUTO:
            weights = dict(request.sources)
        return weights.get(name, 0.0) / weights["content"]

    def _content(self, request: SearchRequest, examples: Examples) -> ContentSource:
        try:
            return ContentSource(self._index, query_of(request, examples))
        except NoDirection as error:
            detail = "the positive and negative examples cancel out; change the weights or use the strategy best_score"
            raise InvalidInput([FieldError("/positive", detail)]) from error

    async def _list(self, search: PreparedSearch, ranking: Ranking) -> RankedList:
        """Return a ranking as a list, with explanations if requested."""
        request, chosen = search.request, ranking.selection.chosen
        explained = {}
        if request.explain:
            explained = await explain(request, search.examples, chosen, search.options, self._index, search.notes)
            if search.words:
                explained = await explain_words(explained, search.words, search.notes)
            if search.behaviour:
                explained = explain_behaviour(explained, search.behaviour)
        return RankedList(
            id=str(ULID()),
            fingerprint=request.fingerprint if request.cursor else "",
            notes=tuple(RankedNote(one.id, one.score, one.duplicates, explained.get(one.id)) for one in chosen),
            total=len(chosen),
            complete=ranking.complete,
            log_position=search.position,
            missing=search.examples.missing,
            removed=await self._count_left_out(request, ranking) if request.explain else {},
        )

    async def _count_left_out(self, request: SearchRequest, ranking: Ranking) -> dict[str, int]:
        """Return how many notes the filter, caps and collapse left out, by name."""
        return {"filter": await self._index.count_excluded(request.where), **asdict(ranking.selection.left_out)}


def selection_options(request: SearchRequest, source: Source, now: float) -> SelectionOptions:
    """Return the options of the selection for a request. `now`: seconds since the epoch."""
    return SelectionOptions(
        request.diversity,
        request.max_per_author,
        request.max_per_category,
        request.collapse_above,
        request.boosts,
        source.unit,
        now,
    )
