"""Beam search: the most probable hashtags with exact scores, within bounds, in any batch."""

from __future__ import annotations

import itertools
from dataclasses import replace
from string import ascii_lowercase, digits

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, PreTrainedTokenizerBase

from model.dedup_key import dedup_key
from model.generation import GenerationRequest, Hashtag, Neighbour, Neighbours
from model.hashtags.grounding import HashtagFilter
from model.inference.beam_search import (
    BEAMS_PER_HASHTAG,
    GLUED_CAPITALS,
    TOKENS_PER_HASHTAG,
    beam_width,
    key_without_edges,
    stem,
)
from model.inference.engine import Engine
from model.note import hashtag_key
from tests.conftest import FOODS
from tests.model.inference.models import (
    ENDS,
    bigram_engine,
    fresh_engine,
    opposite_rows,
    random_engine,
    random_rows,
    vocabulary_of,
    writes_only,
)
from tests.model.inference.outputs import assert_same_hashtags, close_to, generate, generate_alone, scores, texts
from tests.model.inference.reference import all_hashtags, assert_hashtags_match_reference, hashtag_probability
from tests.model.inference.samples import FEW_NOTES, HASHTAGS, NOTES
from tests.models import COMMON

UNTAGGED = [replace(note, hashtags=()) for note in FEW_NOTES]
"""Notes without their own hashtags, since an answer leaves those out."""

pytestmark = pytest.mark.slow

ENDED = {" #": 1.0}
"""Next-token probabilities after a word that completes a hashtag."""


@pytest.mark.parametrize("count", [1, 3])
def test_search_through_the_cache_matches_reference(writer: Engine, count: int) -> None:
    notes = NOTES[::2]
    outputs = generate(writer, notes, GenerationRequest(count))
    for note, output in zip(notes, outputs, strict=True):
        assert_hashtags_match_reference(writer, note, count, output)
    lengths = {output.usage.generated_tokens for output in outputs}
    assert len(lengths) > 2, "every search ends at the same step: the test shows too little"


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ([" coffee", " river", " cat", " lamp"], 3),
        ([" coffee", " Coffee", " river", "s"], 100),  # more than exist, so that the search stops at its bound
    ],
)
def test_search_with_enough_beams_finds_the_best_of_all(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, words: list[str], count: int
) -> None:
    monkeypatch.setattr("model.inference.beam_search.TOKENS_PER_HASHTAG", 3)
    monkeypatch.setattr("model.inference.beam_search.BEAMS_PER_HASHTAG", -(-(len(words) ** 3) // count))
    monkeypatch.setattr("model.inference.beam_search.without_further_forms", iter)  # "coffees" is among all
    engine = random_engine(LlamaConfig(**COMMON), tokenizer)
    engine = writes_only(engine, [*words, *ENDS], random_rows(len(words) + len(ENDS)))
    notes = UNTAGGED[:3]
    for note, output in zip(notes, generate(engine, notes, GenerationRequest(count)), strict=True):
        by_key = all_hashtags(engine, note, count, words, 3)
        best = sorted(by_key.items(), key=lambda item: -item[1])[:count]
        assert [dedup_key(hashtag.text) for hashtag in output.hashtags or ()] == [key for key, _ in best]
        assert scores(output.hashtags) == close_to([probability for _, probability in best])


def test_score_is_the_probability_of_hashtag_and_any_end(tokenizer: PreTrainedTokenizerBase) -> None:
    bigrams = {
        "": {" coffee": 0.6, " river": 0.4},
        " coffee": {" #": 0.4, "#": 0.2, "##": 0.1, "<|im_end|>": 0.1, "\n": 0.1, "\n\n": 0.1},
        " river": {" #": 0.3, "\n": 0.1, " cat": 0.6},
        " cat": {"<|im_end|>": 1.0},
    }
    for output in generate(bigram_engine(tokenizer, bigrams), UNTAGGED, GenerationRequest(3)):
        assert texts(output.hashtags) == ["coffee", "river cat", "river"]
        assert scores(output.hashtags) == close_to([0.6, 0.24, 0.16])


def test_improbable_hashtag_has_a_score_that_says_so(tokenizer: PreTrainedTokenizerBase) -> None:
    bigrams = {"": {"<|im_end|>": 1 - 1e-6, " coffee": 1e-6}, " coffee": {"<|im_end|>": 1.0}}
    for output in generate(bigram_engine(tokenizer, bigrams), UNTAGGED, GenerationRequest(2)):
        assert texts(output.hashtags) == ["coffee"]
        assert scores(output.hashtags) == close_to([1e-6])


def test_spellings_that_differ_in_hyphens_are_one_hashtag_spelled_as_the_likelier(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    bigrams = {
        "": {" note": 0.9, " river": 0.1},
        " note": {"-": 0.5, " taking": 0.3, "_": 0.2},
        "-": {"taking": 1.0},
        "_": {"taking": 1.0},
        **dict.fromkeys(("taking", " taking", " river"), ENDED),
    }
    (output,) = generate(bigram_engine(tokenizer, bigrams), UNTAGGED[:1], GenerationRequest(3))
    assert texts(output.hashtags) == ["note-taking", "river"]
    assert scores(output.hashtags) == close_to([0.9, 0.1])


def test_further_form_of_a_written_word_leaves_its_place_to_the_next_hashtag(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    bigrams = {
        "": {"river": 0.7, "cat": 0.2, "car": 0.1},
        "river": {" #": 0.6, "bank": 0.4},
        **dict.fromkeys(("bank", "cat", "car"), ENDED),
    }
    engine = bigram_engine(tokenizer, bigrams)
    (output,) = generate(engine, UNTAGGED[:1], GenerationRequest(3))
    assert texts(output.hashtags) == ["river", "cat", "car"]
    assert scores(output.hashtags) == close_to([0.42, 0.2, 0.1])
    known = GenerationRequest(3, vocabulary=vocabulary_of(engine, ("river", "riverbank", "cat")))
    (output,) = generate(engine, UNTAGGED[:1], known)
    assert texts(output.hashtags) == ["river", "riverbank", "cat"], "a community may use both"


def test_hashtag_after_a_further_form_is_not_announced_before_it_is_settled(tokenizer: PreTrainedTokenizerBase) -> None:
    bigrams = {
        "": {"river": 0.6, "note": 0.22, "cat": 0.18},
        "river": {" #": 0.6, "bank": 0.4},
        "note": {"-": 1.0},
        "-": {"taking": 1.0},
        **dict.fromkeys(("bank", "taking", "cat"), ENDED),
    }
    announced: list[Hashtag] = []
    request = GenerationRequest(3, on_hashtag=announced.append)
    (output,) = generate(bigram_engine(tokenizer, bigrams), UNTAGGED[:1], request)
    assert texts(output.hashtags) == ["river", "note-taking", "cat"]
    assert texts(tuple(announced)) == ["river", "note-taking", "cat"]


def test_hashtag_is_not_announced_before_one_that_a_token_of_punctuation_and_hash_may_end(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    bigrams = {
        "": {"river": 0.6, "cat": 0.4},
        "river": {" #": 0.5, "/#": 0.5},
        "/#": {"bank": 1.0},
        **dict.fromkeys(("bank", "cat"), ENDED),
    }
    announced, answer = announced_hashtags(bigram_engine(tokenizer, bigrams), "open", GenerationRequest(3))
    assert announced == answer == ["river", "cat"]


def test_hashtag_below_the_checkpoints_score_is_not_told(tokenizer: PreTrainedTokenizerBase) -> None:
    firsts = {" coffee": 0.6, " river": 0.3, "cat": 0.1}
    engine = bigram_engine(tokenizer, {"": firsts} | dict.fromkeys(firsts, ENDED))
    engine.prompt.config = replace(engine.prompt.config, min_hashtag_score=0.2)
    (output,) = generate(engine, UNTAGGED[:1], GenerationRequest(3))
    assert texts(output.hashtags) == ["coffee", "river"]
    request = GenerationRequest(3, vocabulary=vocabulary_of(engine, ("cat",)))
    (output,) = generate(engine, UNTAGGED[:1], request)
    assert texts(output.hashtags) == ["cat"], "a known hashtag needs a share of the score"
    engine.prompt.config = replace(engine.prompt.config, min_hashtag_score=0.7)
    (output,) = generate(engine, UNTAGGED[:1], GenerationRequest(3))
    assert (output.hashtags, output.hashtags_reason) == ((), "no hashtag is likely enough")


def test_word_that_goes_on_in_capitals_is_not_told(tokenizer: PreTrainedTokenizerBase) -> None:
    bigrams = {"": {" river": 0.6, " iOS": 0.4}, " river": {"HETATM": 0.6, " #": 0.4}, "HETATM": ENDED, " iOS": ENDED}
    for output in generate(bigram_engine(tokenizer, bigrams), UNTAGGED, GenerationRequest(3)):
        assert texts(output.hashtags) == ["iOS", "river"]


@pytest.mark.parametrize("text", ["ChatGPT", "PostgreSQL", "AutoCAD", "USA", "NATO"])
def test_name_that_ends_in_capitals_is_told(text: str) -> None:
    assert not GLUED_CAPITALS.search(text)


@pytest.mark.parametrize("engine", ["tiny_engine", "note_first", "short", "task_first"])
def test_hashtags_differ_and_are_ordered_by_score(engine: str, request: pytest.FixtureRequest) -> None:
    for output in generate(request.getfixturevalue(engine), NOTES, GenerationRequest(5)):
        in_order = scores(output.hashtags)
        assert in_order
        assert len({hashtag_key(text) for text in texts(output.hashtags) or ()}) == len(in_order)
        assert in_order == sorted(in_order, reverse=True)
        assert all(0 < score <= 1 for score in in_order)
        assert sum(in_order) <= 1 + 1e-5


@pytest.mark.parametrize("engine", ["tiny_engine", "note_first", "short", "task_first"])
def test_hashtags_are_bounded_in_count_and_tokens(engine: str, request: pytest.FixtureRequest) -> None:
    requests = [GenerationRequest(1 + i % 3) for i in range(len(UNTAGGED))]
    outputs = generate(request.getfixturevalue(engine), UNTAGGED, requests)
    for note_request, output in zip(requests, outputs, strict=True):
        assert len(output.hashtags or ()) <= note_request.hashtags
        assert output.usage.generated_tokens <= note_request.hashtags * BEAMS_PER_HASHTAG * TOKENS_PER_HASHTAG
        assert (output.first_token_seconds or 0) > 0


def test_hashtags_do_not_depend_on_requests_before(writer: Engine) -> None:
    requests = [
        GenerationRequest(3),
        GenerationRequest(1, FOODS),
        GenerationRequest(),
        GenerationRequest(3, FOODS),
        GenerationRequest(1),
    ]
    for order in itertools.islice(itertools.permutations(range(len(UNTAGGED))), 0, None, 29):
        notes = [UNTAGGED[i] for i in order]
        outputs = generate(writer, notes, [requests[i] for i in order])
        alone = generate_alone(writer, notes, [GenerationRequest(requests[i].hashtags) for i in order])
        assert_same_hashtags(outputs, alone)


def test_hashtags_of_mixed_policies_do_not_depend_on_batch(writer: Engine) -> None:
    policies = [
        GenerationRequest(2),
        GenerationRequest(3, vocabulary=vocabulary_of(writer, HASHTAGS)),
        GenerationRequest(2, find_neighbours=lambda *_: Neighbours([Neighbour("n", 1.0, HASHTAGS)])),
    ]
    notes, requests = UNTAGGED * 3, [policy for policy in policies for _ in UNTAGGED]
    alone = generate_alone(writer, notes, requests)
    assert_same_hashtags(generate(writer, notes, requests), alone)
    assert writer.runtime.pool.free == writer.runtime.pool.count


def test_known_hashtags_have_their_exact_probability(writer: Engine) -> None:
    count = len(HASHTAGS) - 1
    request = GenerationRequest(count, vocabulary=vocabulary_of(writer, HASHTAGS))
    for note, output in zip(UNTAGGED, generate(writer, UNTAGGED, request), strict=True):
        by_probability = [(hashtag_probability(writer, note, count, text), text) for text in HASHTAGS]
        expected = sorted(by_probability, reverse=True)[:count]
        assert texts(output.hashtags) == [text for _, text in expected]
        assert scores(output.hashtags) == close_to([probability for probability, _ in expected])


def test_empty_vocabulary_gives_no_hashtag_and_the_reason(writer: Engine) -> None:
    (output,) = generate(writer, UNTAGGED[:1], GenerationRequest(2, vocabulary=writer.vocabulary()))
    assert (output.hashtags, output.hashtags_reason) == ((), "no hashtag is known yet")


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize(("blocked", "own"), [({"cat"}, ()), (set(), ("Cats",))])
def test_likely_hashtag_that_is_not_allowed_is_the_reason_for_none(
    tokenizer: PreTrainedTokenizerBase, is_known: bool, blocked: set[str], own: tuple[str, ...]
) -> None:
    engine = bigram_engine(tokenizer, {"": {"cat": 1.0}, "cat": ENDED})
    vocabulary = vocabulary_of(engine, ("cat",)) if is_known else None
    request = GenerationRequest(2, blocked=frozenset(blocked), vocabulary=vocabulary)
    (output,) = generate(engine, [replace(UNTAGGED[0], hashtags=own)], request)
    reason = "all likely hashtags are blocked, already given, or in a script that the text does not use"
    assert (output.hashtags, output.hashtags_reason) == ((), reason)


def test_unlikely_hashtag_that_is_not_allowed_is_no_reason_for_none(tokenizer: PreTrainedTokenizerBase) -> None:
    engine = bigram_engine(tokenizer, {"": {" cat": 0.1, "<|im_end|>": 0.9}, " cat": ENDED})
    engine.prompt.config = replace(engine.prompt.config, min_hashtag_score=0.2)
    (output,) = generate(engine, UNTAGGED[:1], GenerationRequest(2, blocked=frozenset({"cat"})))
    assert (output.hashtags, output.hashtags_reason) == ((), "no hashtag is likely enough")


def test_hashtag_removed_during_the_search_is_not_returned(writer: Engine) -> None:
    engine = fresh_engine(writer)
    vocabulary = vocabulary_of(engine, HASHTAGS)
    engine.add_request(engine.tokenize(UNTAGGED[0], GenerationRequest(len(HASHTAGS), vocabulary=vocabulary)))
    assert engine.step() == []
    vocabulary.remove(HASHTAGS[1:])
    while not (finished := engine.step()):
        pass
    assert texts(finished[0][1].hashtags) == [HASHTAGS[0]]


@pytest.mark.parametrize("grounded", [False, True])
def test_on_hashtag_is_called_once_each_in_answer_order(writer: Engine, grounded: bool) -> None:
    neighbours = (lambda *_: Neighbours([Neighbour("n", 1.0, HASHTAGS)])) if grounded else None
    for note in UNTAGGED:
        announced: list[Hashtag] = []
        request = GenerationRequest(4, find_neighbours=neighbours, on_hashtag=announced.append)
        (output,) = generate(writer, [note], request)
        assert [hashtag.text for hashtag in announced] == texts(output.hashtags)
        for hashtag, score in zip(announced, scores(output.hashtags), strict=True):
            assert hashtag.score <= score + 1e-9  # later spellings add to the score of the answer
    engine, announced = fresh_engine(writer), []
    engine.add_request(engine.tokenize(UNTAGGED[0], GenerationRequest(4, on_hashtag=announced.append)))
    before_the_end = 0
    while not engine.step():
        before_the_end = max(before_the_end, len(announced))
    assert before_the_end > 0


POLICIES = ["open", "known", "grounded without neighbours"]


def announced_hashtags(engine: Engine, policy: str, request: GenerationRequest) -> tuple[list[str], list[str] | None]:
    """Texts of the hashtags that `on_hashtag` is called with, and of the answer, under one of POLICIES."""
    announced: list[Hashtag] = []
    request = replace(request, on_hashtag=announced.append)
    if policy == "known":
        request = replace(request, vocabulary=vocabulary_of(engine, ("river", "road trips", "road-trip")))
    elif policy != "open":
        request = replace(request, find_neighbours=lambda *_: Neighbours([]))
    (output,) = generate(engine, UNTAGGED[:1], request)
    return [hashtag.text for hashtag in announced], texts(output.hashtags)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("min_score", "expected"), [(0.0, ["road trips", "river"]), (0.5, ["road trips"])])
def test_hashtag_that_a_later_spelling_raises_is_announced_in_its_final_place(
    tokenizer: PreTrainedTokenizerBase, policy: str, min_score: float, expected: list[str]
) -> None:
    bigrams = {
        "": {"river": 0.4, "road": 0.6},
        "road": {" trips": 0.55, "-": 0.45},
        "-": {"trip": 1.0},
        **dict.fromkeys(("river", " trips", "trip"), ENDED),
    }
    request = GenerationRequest(3, min_hashtag_score=min_score)
    announced, answer = announced_hashtags(bigram_engine(tokenizer, bigrams), policy, request)
    assert announced == answer == expected


def test_hashtag_is_announced_in_its_final_spelling(tokenizer: PreTrainedTokenizerBase) -> None:
    bigrams = {
        "": {" trips": 0.3, " Trip": 0.25, "-": 0.45},
        "-": {"trip": 1.0},
        **dict.fromkeys((" trips", " Trip", "trip"), ENDED),
    }
    announced, answer = announced_hashtags(bigram_engine(tokenizer, bigrams), "open", GenerationRequest(3))
    assert announced == answer == ["trip"]


@given(
    st.lists(st.sampled_from([*"aeioushcxzyI旅가ﾞ🍜.-_+! ", "zzes", "ies", "ches", "ß", "\u0301", "\u11a8"]), max_size=7)
)
def test_stem_of_a_beginning_begins_the_key_of_the_whole_hashtag(pieces: list[str]) -> None:
    key = key_without_edges("".join(pieces).strip(" .-_+!"))
    assert all(key.startswith(stem("".join(pieces[:end]))) for end in range(len(pieces) + 1))


def test_hashtag_is_announced_while_no_unfinished_one_can_become_it_or_pass_it(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    bigrams = {
        "": {" coffee": 0.4, " river": 0.3, " garden": 0.3},
        " river": {" boat": 1.0},
        " garden": {" lamp": 1.0},
        **dict.fromkeys((" coffee", " boat", " lamp"), ENDED),
    }
    engine, announced = bigram_engine(tokenizer, bigrams), list[Hashtag]()
    engine.add_request(engine.tokenize(UNTAGGED[0], GenerationRequest(3, on_hashtag=announced.append)))
    before_the_end: list[str] = []
    while not engine.step():
        before_the_end = [hashtag.text for hashtag in announced]
    assert before_the_end == ["coffee"], "the unfinished ones have 0.6 together, and 0.3 each"


def test_blocked_hashtag_gives_its_rank_to_the_next(tokenizer: PreTrainedTokenizerBase) -> None:
    words = {" coffee": 0.5, " river": 0.3, " cat": 0.2}
    engine = bigram_engine(tokenizer, {"": words, **dict.fromkeys(words, ENDED)})
    for output in generate(engine, UNTAGGED, GenerationRequest(2, blocked=frozenset({"coffee"}))):
        assert texts(output.hashtags) == ["river", "cat"]


def test_hashtag_that_the_note_has_gives_its_rank_to_the_next(tokenizer: PreTrainedTokenizerBase) -> None:
    words = {" coffee": 0.6, " river": 0.3, " cat": 0.1}
    engine = bigram_engine(tokenizer, {"": words, **dict.fromkeys(words, ENDED)})
    (output,) = generate(engine, [replace(UNTAGGED[0], hashtags=("#COFFEE",))], GenerationRequest(2))
    assert texts(output.hashtags) == ["river", "cat"]


@pytest.mark.parametrize("policy", ["open", "known"])
@pytest.mark.parametrize("refused", ["blocked", "own"])
def test_few_hashtags_that_may_not_be_returned_displace_no_others(
    tokenizer: PreTrainedTokenizerBase, policy: str, refused: str
) -> None:
    words = {"ball": 0.4, "line": 0.35, "cat": 0.25}
    engine = bigram_engine(tokenizer, {"": words, **dict.fromkeys(words, ENDED)})
    vocabulary = vocabulary_of(engine, tuple(words)) if policy == "known" else None
    names = ("ball", "line")
    note = replace(UNTAGGED[0], hashtags=names if refused == "own" else ())
    blocked = frozenset(names if refused == "blocked" else ())
    (output,) = generate(engine, [note], GenerationRequest(1, blocked=blocked, vocabulary=vocabulary))
    assert texts(output.hashtags) == ["cat"]


def test_search_is_wider_by_the_hashtags_that_may_not_be_returned_up_to_a_bound() -> None:
    def width(hashtags: int, blocked: int, own: int = 0) -> int:
        names, owned = frozenset(map(str, range(blocked))), frozenset(map(str, range(own)))
        return beam_width(hashtags, HashtagFilter(names, own=owned))

    assert [width(0, 9), width(1, 0), width(5, 3), width(5, 1000), width(10, 1000)] == [0, 2, 13, 14, 20]
    assert [width(5, 0, own=7), width(5, 1000, own=30)] == [17, 20]


def test_hashtag_below_min_score_is_left_out_and_not_announced(tokenizer: PreTrainedTokenizerBase) -> None:
    words = {" coffee": 0.6, " river": 0.3, " cat": 0.1}
    engine = bigram_engine(tokenizer, {"": words, **dict.fromkeys(words, ENDED)})
    announced: list[Hashtag] = []
    request = GenerationRequest(3, on_hashtag=announced.append, min_hashtag_score=0.2)
    (output,) = generate(engine, UNTAGGED[:1], request)
    assert texts(output.hashtags) == texts(announced) == ["coffee", "river"]
    (output,) = generate(engine, UNTAGGED[:1], replace(request, min_hashtag_score=0.9, on_hashtag=None))
    assert (output.hashtags, output.hashtags_reason) == ((), "no hashtag has a score of min_score or more")


def test_spellings_of_a_hashtag_add_up(tokenizer: PreTrainedTokenizerBase) -> None:
    words = {" Coffee": 0.25, " coffee": 0.35, " river": 0.4}
    engine = bigram_engine(tokenizer, {"": words, **dict.fromkeys(words, ENDED)})
    for output in generate(engine, UNTAGGED, GenerationRequest(2)):
        assert texts(output.hashtags) == ["coffee", "river"]  # in the more probable spelling
        assert scores(output.hashtags) == close_to([0.6, 0.4])


@pytest.mark.parametrize("others", [(" coffee", " Coffee"), ("!", "?")], ids=["spellings of one", "no hashtags"])
def test_search_goes_on_until_it_has_enough_hashtags(
    tokenizer: PreTrainedTokenizerBase, others: tuple[str, str]
) -> None:
    bigrams = {
        "": {others[0]: 0.4, others[1]: 0.31, " New": 0.29},
        **dict.fromkeys(others, ENDED),
        " New": {" York": 1.0},
        " York": ENDED,
    }
    for output in generate(bigram_engine(tokenizer, bigrams), UNTAGGED, GenerationRequest(2)):
        assert {hashtag.text: hashtag.score for hashtag in output.hashtags or ()}.get("New York") == close_to(0.29)


@pytest.mark.parametrize("beyond", [0, 1])
def test_hashtag_up_to_the_token_bound_is_found(tokenizer: PreTrainedTokenizerBase, beyond: int) -> None:
    """A hashtag of more tokens than TOKENS_PER_HASHTAG is not found."""
    letters = (ascii_lowercase + digits)[: TOKENS_PER_HASHTAG + beyond]
    bigrams = {last: {letter: 1.0} for last, letter in zip(["", *letters], letters, strict=False)}
    engine = bigram_engine(tokenizer, bigrams | {letters[-1]: ENDED})
    for output in generate(engine, UNTAGGED, GenerationRequest(1)):
        assert texts(output.hashtags) == ([] if beyond else [letters])
        assert bool(output.hashtags_reason) == bool(beyond)


def test_endless_hashtag_stops_at_the_token_bound(tokenizer: PreTrainedTokenizerBase) -> None:
    engine = writes_only(random_engine(LlamaConfig(**COMMON), tokenizer), [" coffee", " river"], opposite_rows())
    for output in generate(engine, UNTAGGED, GenerationRequest(2)):
        assert output.hashtags == ()
        assert output.hashtags_reason
        assert output.usage.generated_tokens == 2 * BEAMS_PER_HASHTAG * TOKENS_PER_HASHTAG


def test_text_that_is_no_hashtag_gives_none_and_the_reason(tokenizer: PreTrainedTokenizerBase) -> None:
    writable = ["!", "?", *ENDS]
    engine = writes_only(random_engine(LlamaConfig(**COMMON), tokenizer), writable, random_rows(len(writable)))
    for output in generate(engine, UNTAGGED, GenerationRequest(2)):
        assert output.hashtags == ()
        assert output.hashtags_reason


def test_immediate_end_gives_no_hashtag_and_the_reason(tokenizer: PreTrainedTokenizerBase) -> None:
    engine = writes_only(random_engine(LlamaConfig(**COMMON), tokenizer), ["<|im_end|>", "\n"], opposite_rows())
    for output in generate(engine, UNTAGGED, GenerationRequest(2)):
        assert output.hashtags == ()
        assert output.hashtags_reason
