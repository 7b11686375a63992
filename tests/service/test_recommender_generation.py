"""Tests of generation in the use-cases: hashtags and category of stored notes, known hashtags, and hashtags as a
stream."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import pytest

from model.dedup_key import blocked_keys
from model.generation import CategoryProbability, GenerationOutput, GenerationRequest, Hashtag, Usage
from model.note import Note, hashtag_keys
from service.adding import Generate, Plan
from service.admission import PATIENT
from service.errors import EngineFailed
from service.filters import Filter
from service.generator import GenerationDefaults
from service.read_time import READ_SECONDS, ReadTime
from service.recommender import Recommender
from service.records import Attempt, Generated, Write
from service.search.search import NoteSearch
from service.store.redis_store import RedisNoteStore
from service.stored_notes import read_note
from tests.service.conftest import GatedStore, WordEngine, eventually, stored_note
from tests.service.steps import NOTHING, add, add_one, similar_ids

T = TypeVar("T")
pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ALL = Generate(hashtags=2, category=True)


async def test_only_what_the_author_left_out_is_generated(recommender: Recommender) -> None:
    untouched = Note(id="bare", title="Food is hot")
    notes = [
        untouched,
        replace(untouched, id="tagged", hashtags=("own",)),
        replace(untouched, id="filed", category="Mine"),
    ]
    bare, tagged, filed = (a.stored for a in await add(recommender, *notes, generate=ALL))
    assert (bare.hashtags, bare.category) == (("Food", "is"), "Food")
    assert (tagged.hashtags, tagged.generated.hashtags, tagged.category) == (("own",), None, "Food")
    assert (filed.hashtags, filed.category, filed.generated.category) == (("Food", "is"), "Mine", None)
    assert bare.note.hashtags == ()
    assert bare.note.category is None


async def test_a_deployment_names_its_own_categories(recommender: Recommender) -> None:
    recommender.generator.categories = ("Steam", "hot")
    added = await add_one(recommender, Note(title="Food is hot"), Generate(category=True))
    assert added.stored.category == "hot"


async def test_category_that_a_write_does_not_ask_for_stays(recommender: Recommender) -> None:
    note = Note(id="a", title="Food is hot")
    assert (await add_one(recommender, note, Generate(category=True))).stored.category == "Food"
    recommender.generator.defaults = GenerationDefaults(min_category_probability=1.0)
    added = await add_one(recommender, note, Generate(hashtags=2))
    assert (added.stored.category, added.below_min.category) == ("Food", None)


async def test_category_that_left_the_closed_set_is_chosen_anew_once_it_is_asked_for(recommender: Recommender) -> None:
    note = Note(id="a", title="Food is hot")
    assert (await add_one(recommender, note, Generate(category=True))).stored.category == "Food"
    recommender.generator.categories = ("Steam", "hot")
    assert (await add_one(recommender, note, Generate(hashtags=2))).stored.category == "Food"
    added = await add_one(recommender, note, Generate(category=True))
    assert (added.stored.category, added.stored.hashtags) == ("hot", ("Food", "is"))


async def test_stored_hashtag_that_was_blocked_since_goes_once_hashtags_are_asked_for(recommender: Recommender) -> None:
    note = Note(id="a", title="Food is hot")
    assert (await add_one(recommender, note, ALL)).stored.hashtags == ("Food", "is")
    recommender.generator.defaults = GenerationDefaults(blocked_hashtags=("FOOD",))
    assert (await add_one(recommender, note, Generate(category=True))).stored.hashtags == ("Food", "is")
    added = await add_one(recommender, note, Generate(hashtags=2))
    assert (added.stored.hashtags, added.stored.category) == (("is", "hot"), "Food")


async def test_stored_hashtag_is_blocked_in_the_plural_and_with_hyphens_too() -> None:
    stored = Generated(hashtags=(Hashtag("Viruses", 0.5), Hashtag("cat", 0.4)))
    for blocked, kept in (("vi-rus", None), ("dog", stored.hashtags)):
        assert Generate(hashtags=2).kept_of(stored, (), blocked_keys(hashtag_keys((blocked,)))).hashtags == kept


async def test_closed_sets_in_any_order_are_one_to_the_engine(recommender: Recommender) -> None:
    generator = recommender.generator
    one, other = (generator.request(2, names) for names in (("b", "a", "c"), ("c", "b", "a")))
    assert one.categories == other.categories == generator.request(0, ("a", "c", "b")).categories


@pytest.mark.parametrize(
    ("note", "generate", "defaults"),
    [
        (Note(id="a", title="x"), Generate(category=True), GenerationDefaults(min_category_probability=1.0)),
        (Note(id="a", title="Food"), Generate(hashtags=1), GenerationDefaults(hashtag_policy="known")),
    ],
)
async def test_result_that_is_not_stored_again_has_the_revision_and_position_of_the_stored_note(
    recommender: Recommender, engine: WordEngine, note: Note, generate: Generate, defaults: GenerationDefaults
) -> None:
    recommender.generator.defaults = defaults
    attempts = [Attempt("key", "fingerprint")]
    created = await add_one(recommender, note, generate)
    (repeated,) = await recommender.add([note], generate, PATIENT, attempts)
    (replayed,) = await recommender.add([note], generate, PATIENT, attempts)
    assert len(engine.batches) == 2
    for added in (repeated, replayed):
        assert added
        assert (added.status, added.stored.revision) == ("unchanged", 1)
        assert added.stored.position == created.stored.position


async def test_known_hashtags_are_those_of_stored_notes_authors(recommender: Recommender) -> None:
    generator = recommender.generator
    generator.defaults = GenerationDefaults(hashtag_policy="known")
    await add(recommender, Note(id="a", title="a", hashtags=("hot", "soup")), Note(id="b", title="b", hashtags=("is",)))
    note = Note(id="new", title="Food is hot")
    assert (await add_one(recommender, note, ALL)).stored.hashtags == ("is", "hot")
    await recommender.remove("b")
    await add_one(recommender, Note(id="a", title="a", hashtags=("soup",)))
    assert (await generator.generate(note, generator.request(2))).hashtags == ()


async def test_empty_result_of_known_hashtags_is_not_stored(recommender: Recommender) -> None:
    recommender.generator.defaults = GenerationDefaults(hashtag_policy="known")
    note = Note(id="a", title="Food is hot")
    assert (await add_one(recommender, note, ALL)).stored.hashtags == ()
    await add_one(recommender, Note(id="b", title="b", hashtags=("hot",)))
    assert (await add_one(recommender, note, ALL)).stored.hashtags == ("hot",)


async def test_a_note_is_no_neighbour_of_itself(recommender: Recommender) -> None:
    await add_one(recommender, Note(id="a", title="Food is hot", hashtags=("wrong",)))
    assert (
        "wrong"
        not in (await add_one(recommender, Note(id="a", title="Food is hot"), Generate(hashtags=9))).stored.hashtags
    )


async def test_hashtag_does_not_name_a_note_deleted_from_the_store(
    recommender: Recommender, embedded_store: GatedStore
) -> None:
    generator = recommender.generator
    await add_one(recommender, Note(id="a", title="Food is hot", hashtags=("soup",)))
    await embedded_store.hold()
    await embedded_store.delete("a")
    note, request = Note(title="Food is hot"), generator.request(9)
    output = await generator.generate(note, request)
    streamed = [each async for each in generator.stream_hashtags(note, request) if isinstance(each, Hashtag)]
    assert {hashtag.notes for hashtag in [*(output.hashtags or ()), *streamed]} == {()}
    embedded_store.release()


async def test_what_the_model_wrote_once_does_not_become_known(recommender: Recommender) -> None:
    generator = recommender.generator
    await add_one(recommender, Note(id="a", title="Food is hot"), ALL)
    output = await generator.generate(Note(title="Food is hot"), generator.request(2, policy="known"))
    assert output.hashtags == ()


async def test_notes_of_grounded_hashtags_are_told_but_not_stored(recommender: Recommender) -> None:
    generator = recommender.generator
    await add(recommender, Note(id="a", title="Food is hot", hashtags=("soup",)), Note(id="b", title="Food is hot"))
    note = Note(id="new", title="Food is hot")
    output = await generator.generate(note, generator.request(4, policy="grounded"))
    assert [(h.text, h.notes) for h in output.hashtags or ()][-1] == ("soup", ("a",))
    generator.defaults = GenerationDefaults(hashtag_policy="grounded")
    stored = (await add_one(recommender, note, Generate(hashtags=4))).stored
    assert [(h.text, h.notes) for h in stored.generated.hashtags or ()][-1] == ("soup", ())


async def test_stream_yields_each_hashtag_before_the_whole_output(recommender: Recommender) -> None:
    generator = recommender.generator
    seen = [each async for each in generator.stream_hashtags(Note(title="Food is hot"), generator.request(3))]
    assert [each.text for each in seen if isinstance(each, Hashtag)] == ["Food", "is", "hot"]
    assert [h.text for each in seen[-1:] if isinstance(each, GenerationOutput) for h in each.hashtags or ()] == [
        "Food",
        "is",
        "hot",
    ]


async def test_stream_of_hashtags_waits_once_for_a_store_that_hangs(
    recommender: Recommender, embedded_store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = recommender.generator
    hashtags = tuple(Hashtag(text, 0.5, ("a",)) for text in ("soup", "stew", "broth"))
    waits: list[float] = []

    class RecordedTime(ReadTime):
        async def wait(self, answer: Awaitable[T]) -> T:
            waits.append(self.seconds)
            return await super().wait(answer)

    async def never(ids: Sequence[str]) -> None:
        await asyncio.Event().wait()

    async def announce(note: Note, request: GenerationRequest, *_: object) -> GenerationOutput:
        assert request.on_hashtag is not None
        for hashtag in hashtags:
            request.on_hashtag(hashtag)
        return GenerationOutput(np.ones(3, np.float32), Usage(1), hashtags)

    monkeypatch.setattr("service.generator.ReadTime", RecordedTime)
    monkeypatch.setattr(embedded_store, "get", never)
    monkeypatch.setattr(generator._batcher, "generate", announce)
    stream = generator.stream_hashtags(Note(title="soup"), generator.request(3))
    *streamed, last = [each async for each in stream]
    assert streamed == [replace(hashtag, notes=()) for hashtag in hashtags]
    assert isinstance(last, GenerationOutput)
    assert list(last.hashtags or ()) == streamed
    assert sorted(waits) in ([0.0, 0.0, 0.0, READ_SECONDS], [0.0, 0.0, READ_SECONDS, READ_SECONDS])


async def test_caller_who_leaves_a_stream_of_hashtags_ends_the_request(
    recommender: Recommender, engine: WordEngine
) -> None:
    generator = recommender.generator
    stream = generator.stream_hashtags(Note(title=" ".join("abcdefghij")), generator.request(10**9))
    assert isinstance(await anext(stream), Hashtag)
    engine.gate.clear()
    await stream.aclose()
    engine.gate.set()
    await eventually(lambda: not engine.live)
    assert len(engine.batches) == 1
    assert (await generator.generate(Note(title="next"), generator.request(1))).hashtags


async def test_failure_of_the_engine_ends_a_stream_of_hashtags(recommender: Recommender, engine: WordEngine) -> None:
    generator = recommender.generator
    engine.failure = RuntimeError("out of luck")
    with pytest.raises(EngineFailed):
        _ = [each async for each in generator.stream_hashtags(Note(title="a"), generator.request(1))]


async def test_request_blocks_hashtags_beside_the_deployments(recommender: Recommender) -> None:
    generator = recommender.generator
    generator.defaults = GenerationDefaults(blocked_hashtags=("FOOD",))
    output = await generator.generate(Note(title="Food is hot"), generator.request(3, blocked=["i s"]))
    assert [h.text for h in output.hashtags or ()] == ["hot"]


async def test_what_was_generated_is_found_by_filters(recommender: Recommender, search: NoteSearch) -> None:
    await add(recommender, Note(id="a", title="Food is hot"), Note(id="b", title="hot"), generate=ALL)
    assert await similar_ids(search, "b", where=Filter(category="Food", hashtags=("IS",))) == ["a"]


async def test_what_was_generated_is_kept_and_costs_nothing_again(recommender: Recommender, engine: WordEngine) -> None:
    note = Note(id="a", title="Food is hot")
    first = await add_one(recommender, note, ALL)
    assert first.usage == Usage(3, 2)
    batches = len(engine.batches)
    for again, generate in [(note, ALL), (note, NOTHING)]:
        added = await add_one(recommender, again, generate)
        assert (added.status, added.usage) == ("unchanged", Usage())
        assert added.stored.generated == first.stored.generated
    moved = await add_one(recommender, replace(note, author="ann"), ALL)
    assert (moved.status, moved.usage, moved.stored.generated) == ("updated", Usage(), first.stored.generated)
    assert len(engine.batches) == batches


async def test_generation_asked_for_later_is_added_to_the_earlier(recommender: Recommender) -> None:
    note = Note(id="a", title="Food is hot")
    await add_one(recommender, note)
    category = await add_one(recommender, note, Generate(category=True))
    assert (category.status, category.stored.category, category.stored.hashtags) == ("updated", "Food", ())
    both = await add_one(recommender, note, ALL)
    assert (both.stored.hashtags, both.usage.generated_tokens) == (("Food", "is"), 2)
    assert both.stored.generated.category == category.stored.generated.category


async def test_a_new_text_drops_what_was_generated_for_the_old(
    recommender: Recommender, embedded_store: RedisNoteStore
) -> None:
    await add_one(recommender, Note(id="a", title="Food is hot"), ALL)
    added = await add_one(recommender, Note(id="a", title="Travel is long"))
    assert (added.stored.generated.hashtags, added.stored.generated.category) == (None, None)
    assert (await read_note(embedded_store, "a")).category is None


async def test_hashtags_that_were_not_found_are_not_generated_again(recommender: Recommender) -> None:
    note = Note(id="a", title=" ")
    first = await add_one(recommender, note, Generate(hashtags=2))
    assert (first.stored.hashtags, first.hashtags_reason) == ((), "no words")
    assert (await add_one(recommender, note, Generate(hashtags=2))).usage == Usage()


async def test_a_note_of_another_model_is_read_anew(
    recommender: Recommender, search: NoteSearch, embedded_store: GatedStore, engine: WordEngine
) -> None:
    await embedded_store.put([Write(stored_note("a", "soup", space="another", vector=np.ones(3, np.float32)))])
    await add_one(recommender, Note(id="b", title="soup"))
    added = await add_one(recommender, Note(id="a", title="soup"))
    assert (added.status, added.usage.prompt_tokens, added.stored.space) == ("updated", 1, engine.space)
    assert await similar_ids(search, "b") == ["a"]


async def test_a_note_of_another_model_keeps_what_was_generated_until_it_is_asked_for_anew(
    recommender: Recommender, embedded_store: GatedStore
) -> None:
    written = Generated((Hashtag("broth", 0.5),), CategoryProbability("Food", 0.9))
    await embedded_store.put([Write(replace(stored_note("a", "soup", space="another"), generated=written))])
    assert (await add_one(recommender, Note(id="a", title="soup"))).stored.generated == written
    await embedded_store.put([Write(replace(stored_note("a", "soup", space="another"), generated=written))])
    anew = await recommender.put(Note(id="a", title="soup"), Generate(hashtags=2))
    assert anew.stored.generated.hashtags not in (None, written.hashtags)
    assert anew.stored.generated.category == written.category


@pytest.mark.parametrize(("supported", "stored"), [(True, None), (False, ())])
async def test_note_without_known_hashtags_is_not_read_again_if_the_model_cannot_read_it(
    recommender: Recommender, supported: bool, stored: tuple[()] | None
) -> None:
    request = GenerationRequest(2, vocabulary=recommender.index.vocabulary)
    output = GenerationOutput(np.ones(3, np.float32), Usage(1), (), language_supported=supported)
    added = Plan(Note(id="a", title="суп"), None, Generated(), request).finish(output, "space", 0.0)
    assert added.stored.generated.hashtags == stored


async def test_hashtags_of_another_model_do_not_stay_where_the_new_one_finds_none(
    recommender: Recommender, embedded_store: GatedStore
) -> None:
    written = Generated((Hashtag("broth", 0.5),), CategoryProbability("Food", 0.9))
    await embedded_store.put([Write(replace(stored_note("a", "soup", space="another"), generated=written))])
    recommender.generator.defaults = GenerationDefaults(hashtag_policy="known")
    anew = await recommender.put(Note(id="a", title="soup"), Generate(hashtags=2))
    assert anew.stored.generated == replace(written, hashtags=None), "the next request tries again"
