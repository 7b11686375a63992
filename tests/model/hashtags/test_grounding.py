"""Tests of hashtag grounding: keys, filtering, weights of neighbours and re-ranking."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from model.dedup_key import dedup_key
from model.generation import Hashtag, NamedHashtag, Neighbour, Neighbours
from model.hashtags.grounding import (
    FEW_NOTES,
    LEXICAL_SHARE,
    MANY_NOTES,
    MAX_CANDIDATES,
    MIN_COSINE_FOR_WORDS,
    MIN_WRITTEN_PROBABILITY,
    NAMED_WEIGHT,
    NEAR_COSINE,
    NEAR_WORDS,
    NEIGHBOUR_SMOOTHING,
    NEIGHBOUR_TEMPERATURE,
    NEIGHBOURS_NAMED,
    HashtagFilter,
    candidates_from,
    grounded_score,
    named_share,
    neighbour_trust,
    neighbour_weights,
    rerank,
    written_weight,
)
from model.note import Note, hashtag_key

ANY = HashtagFilter()
WRITTEN_WEIGHT = 0.1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Travel Tips", "traveltip"),
        ("recipes", "Recipe"),
        ("beaches", "beach"),
        ("parties", "party"),
        ("boxes", "box"),
        ("movies", "movie"),
        ("potatoes", "potato"),
        ("viruses", "virus"),
        ("buses", "bus"),
        ("bonuses", "bonus"),
        ("houses", "house"),
        ("roses", "rose"),
        ("lenses", "lens"),
        ("irises", "iris"),
        ("exercises", "exercise"),
        ("canvases", "canvas"),
        ("aliases", "alias"),
        ("gases", "gas"),
        ("glasses", "glass"),
        ("quizzes", "quiz"),
        ("buzzes", "buzz"),
        ("waltzes", "waltz"),
        ("prizes", "prize"),
        ("headaches", "headache"),
        ("niches", "niche"),
        ("axes", "axe"),
        ("canoes", "canoe"),
        ("shoes", "shoe"),
        ("toes", "toe"),
        ("photos", "photo"),
        ("pies", "pie"),
        ("cookies", "cookie"),
        ("skies", "sky"),
        ("nurseries", "nursery"),
        ("skis", "ski"),
        ("menus", "menu"),
    ],
)
def test_plural_has_the_key_of_its_singular(one: str, other: str) -> None:
    assert dedup_key(one) == dedup_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("news", "new"),
        ("lens", "len"),
        ("pies", "py"),
        ("tense", "ten"),
        ("tease", "tea"),
        ("please", "plea"),
        ("rose", "ROS"),
        ("toe", "to"),
        ("life", "live"),
        ("virus", "virtue"),
        ("business", "busy"),
    ],
)
def test_different_words_have_different_keys(one: str, other: str) -> None:
    assert dedup_key(one) != dedup_key(other)


@pytest.mark.parametrize(("blocked", "written"), [("virus", "Viruses"), ("running shoes", "running-shoe")])
def test_blocked_hashtag_is_not_allowed_in_singular_or_plural(blocked: str, written: str) -> None:
    allowed = HashtagFilter.of(Note(title="a"), frozenset({hashtag_key(blocked)}))
    assert not allowed(blocked)
    assert not allowed(written)


@pytest.mark.parametrize(
    "text", ["note taking", "note-taking", "Notetaking", "note_taking", "note\u2013taking", "note \u2010 takings"]
)
def test_hyphens_spaces_and_underscores_do_not_count_in_a_key(text: str) -> None:
    assert dedup_key(text) == "notetaking"


def test_hashtags_without_any_letter_keep_their_keys() -> None:
    assert len({dedup_key(text) for text in ("-", "_", "--")}) == 3


@pytest.mark.parametrize("word", ["bus", "chess", "tennis", "gas", "news", "lens", "travelnews", "旅行"])
def test_word_that_only_looks_like_a_plural_is_its_own_key(word: str) -> None:
    assert dedup_key(word) == word


def test_hashtag_in_a_foreign_script_is_not_allowed_unless_latin() -> None:
    english, chinese = (HashtagFilter.of(Note(title=title), frozenset()) for title in ("Noodles", "面条"))
    assert [english(text) for text in ("noodles", "面条", "2026")] == [True, False, True]
    assert [chinese(text) for text in ("noodles", "面条")] == [True, True]


def test_note_without_letters_gets_hashtags_in_the_scripts_that_the_model_reads() -> None:
    reads_all, reads_latin = (HashtagFilter.of(Note(title="🍜"), frozenset(), read) for read in ((), ("LATIN",)))
    assert [reads_all(text) for text in ("noodles", "面条")] == [True, True]
    assert [reads_latin(text) for text in ("noodles", "面条")] == [True, False]


@pytest.mark.parametrize("text", ["road trip", "RoadTrips", "# road  trip", "ＲＯＡＤ trip", "road-trip"])
def test_hashtag_of_the_note_is_not_repeated_however_it_is_spelled(text: str) -> None:
    allowed = HashtagFilter.of(Note(title="a", hashtags=("Road Trip", "van life")), frozenset())
    assert not allowed(text)
    assert allowed("road")
    near = Neighbours([Neighbour("n", 0.9, (text, "camping"))])
    assert list(candidates_from(near, allowed)) == ["camping"]


def test_blocked_hashtag_is_not_allowed_however_it_is_spelled() -> None:
    allowed = HashtagFilter.of(Note(title="a"), frozenset({"traveltips"}))
    for text in (
        "Travel  Tips",
        "travel-tips",
        "Travel_Tip",
        "travel\u200btips",
        "travel\u200ctips",
        "travel\u034ftips",
    ):
        assert not allowed(text)
    assert allowed("travel")


def test_neighbours_weigh_by_vector_and_by_words() -> None:
    far = 0.9 - NEIGHBOUR_TEMPERATURE  # weighs 1 / e
    neighbours = Neighbours(
        [Neighbour("a", 0.9, ()), Neighbour("b", far, ()), Neighbour("d", far, ())],
        [Neighbour("c", 0.6, ()), Neighbour("b", 0.4, ())],
    )
    total = 1 + 2 / math.e
    assert neighbour_weights(neighbours) == pytest.approx(
        {
            "a": (1 - LEXICAL_SHARE) / total,
            "b": (1 - LEXICAL_SHARE) / math.e / total + LEXICAL_SHARE * 0.16 / 0.52,
            "c": LEXICAL_SHARE * 0.36 / 0.52,
            "d": (1 - LEXICAL_SHARE) / math.e / total,
        }
    )


def test_neighbours_found_in_one_way_have_all_the_weight() -> None:
    pair = [Neighbour("a", 0.5, ("soup",)), Neighbour("b", 0.5, ("soup",))]
    by_vector, by_words = neighbour_weights(Neighbours(pair)), neighbour_weights(Neighbours((), pair))
    assert by_vector == by_words == pytest.approx({"a": 0.5, "b": 0.5})
    assert neighbour_weights(Neighbours()) == {}


def test_candidate_weighs_as_much_as_the_notes_that_carry_it() -> None:
    """The carrying note with the largest weight is the first in `notes`."""
    soup = Neighbour("a", 0.5, ("Soup", "hot"))
    soups = Neighbour("b", 0.2, ("soups",))
    cold = Neighbour("c", 0.1, ("cold",))
    candidates = candidates_from(Neighbours((), [cold, soups, soup]), ANY)
    weights = {key: candidate.weight for key, candidate in candidates.items()}
    assert weights == pytest.approx({"soup": 0.29 / 0.3, "hot": 0.25 / 0.3, "cold": 0.01 / 0.3})
    assert (candidates["soup"].text, candidates["soup"].notes) == ("Soup", ["a", "b"])
    assert list(candidates) == ["soup", "hot", "cold"]


def test_candidate_has_the_spelling_of_most_weight() -> None:
    once = Neighbour("a", 0.5, ("Two Yuan",))
    others = [Neighbour(note_id, 0.4, ("two yuan",)) for note_id in "bc"]
    candidates = candidates_from(Neighbours((), [once, *others]), ANY)
    assert [(key, candidate.text) for key, candidate in candidates.items()] == [("twoyuan", "two yuan")]
    assert candidates["twoyuan"].notes == ["a", "b", "c"]
    (alone,) = candidates_from(Neighbours((), [once, others[0]]), ANY).values()
    assert alone.text == "Two Yuan"


@pytest.mark.parametrize(
    ("cosine", "word_score", "trust"),
    [
        (0.4, 0.12, 0.0),
        (0.1, 0.0, 0.0),
        (0.6, 0.0, 0.5),
        (0.4, 0.17, 0.5),
        (0.5, 0.17, 0.5),
        (0.9, 0.0, 1.0),
        (0.0, 0.9, 1.0),
    ],
)
def test_neighbours_have_a_say_as_far_as_the_nearest_is_near(cosine: float, word_score: float, trust: float) -> None:
    by_vector = [Neighbour("far", -0.1, ("hike",)), Neighbour("a", cosine, ("soup",))]
    neighbours = Neighbours(by_vector, [Neighbour("b", word_score, ("soup",))] if word_score else ())
    assert neighbour_trust(neighbours) == pytest.approx(trust)
    weights = [candidate.weight for candidate in candidates_from(neighbours, ANY).values()]
    assert sum(weights) == pytest.approx(trust)


def test_no_neighbours_have_no_say() -> None:
    assert neighbour_trust(Neighbours()) == 0.0


@pytest.mark.parametrize(
    ("notes", "weight"), [(0, 0.2), (FEW_NOTES, 0.2), (949, 0.125), (MANY_NOTES, 0.05), (10**9, 0.05)]
)
def test_model_has_less_of_a_say_in_a_larger_community(notes: int, weight: float) -> None:
    assert written_weight((0.2, 0.05), notes) == pytest.approx(weight, abs=1e-4)


def test_candidates_are_bounded_and_filtered() -> None:
    many = [Neighbour(f"{i}", 0.5, (f"tag {i}",)) for i in range(MAX_CANDIDATES + 9)]
    assert len(candidates_from(Neighbours(many), ANY)) == MAX_CANDIDATES
    assert list(candidates_from(Neighbours(many[:2]), HashtagFilter(frozenset({"tag0"})))) == ["tag1"]
    assert candidates_from(Neighbours(), ANY) == {}


def test_rerank_orders_by_neighbour_share_and_probability() -> None:
    candidates = candidates_from(Neighbours([Neighbour(f"n{i}", 0.9, ("soup",)) for i in range(9)]), ANY)
    ranked = rerank([Hashtag("hot", 0.5), Hashtag("Soups", 0.1)], candidates, {"soup": 0.2}, 5, WRITTEN_WEIGHT)
    soup = (1 + NEIGHBOUR_SMOOTHING) / (1 + NEIGHBOUR_SMOOTHING) * 0.2**WRITTEN_WEIGHT
    hot = NEIGHBOUR_SMOOTHING / (1 + NEIGHBOUR_SMOOTHING) * 0.5**WRITTEN_WEIGHT
    scores = [(hashtag.text, hashtag.score) for hashtag in ranked]
    assert scores == [("soup", pytest.approx(soup)), ("hot", pytest.approx(hot))]
    assert [hashtag.notes for hashtag in ranked] == [tuple(f"n{i}" for i in range(NEIGHBOURS_NAMED)), ()]
    assert rerank([Hashtag("hot", 0.5)], candidates, {"soup": 0.2}, 1, WRITTEN_WEIGHT) == ranked[:1]


@pytest.mark.parametrize(
    ("spelling", "cosine"), [("CAMPING", 0.2), ("campings", 0.2), ("campings", NEAR_COSINE + 0.05)]
)
@pytest.mark.parametrize("probabilities", [{"camping": 1e-6}, {"camping": 0.0}, {}], ids=["scored", "closed", "left"])
def test_written_hashtag_scores_no_less_where_a_neighbour_spells_it_improbably(
    spelling: str, cosine: float, probabilities: dict[str, float]
) -> None:
    written = [Hashtag("camping", 0.784), Hashtag("tent", 0.05)]
    candidates = candidates_from(Neighbours([Neighbour("far", cosine, (spelling,))]), ANY)
    without = {dedup_key(hashtag.text): hashtag.score for hashtag in rerank(written, {}, {}, 5, WRITTEN_WEIGHT, 0.015)}
    ranked = {
        dedup_key(hashtag.text): hashtag
        for hashtag in rerank(written, candidates, probabilities, 5, WRITTEN_WEIGHT, 0.015)
    }
    assert ranked.keys() == without.keys()
    assert all(ranked[key].score >= score for key, score in without.items())
    assert ranked["camping"].notes == ("far",)


def test_further_form_of_a_word_is_left_out_unless_the_community_uses_it() -> None:
    written = [Hashtag("metal", 0.5), Hashtag("metallic", 0.4), Hashtag("microwave", 0.3), Hashtag("kitchen", 0.2)]
    ranked = rerank(written, {}, {}, 3, WRITTEN_WEIGHT)
    assert [hashtag.text for hashtag in ranked] == ["metal", "microwave", "kitchen"]
    candidates = candidates_from(Neighbours([Neighbour("n", 0.9, ("metallic",))]), ANY)
    ranked = rerank(written, candidates, {"metallic": 0.1}, 3, WRITTEN_WEIGHT)
    assert [hashtag.text for hashtag in ranked] == ["metallic", "microwave", "kitchen"]
    ranked = rerank(written, candidates, {"metallic": 0.0}, 3, 5.0)
    assert [hashtag.text for hashtag in ranked] == ["metal", "metallic", "microwave"], "its own score is the lower one"


def test_hashtag_has_the_spelling_that_its_score_is_of() -> None:
    written = [Hashtag("camping", 0.784)]
    for cosine, probability, expected in ((0.2, 1e-6, "camping"), (0.2, 0.8, "CAMPING"), (0.8, 1e-6, "CAMPING")):
        candidates = candidates_from(Neighbours([Neighbour("n", cosine, ("CAMPING",))]), ANY)
        (ranked,) = rerank(written, candidates, {"camping": probability}, 5, WRITTEN_WEIGHT, 0.015)
        assert ranked.text == expected


def test_words_that_the_model_has_not_met_are_ordered_by_their_neighbours() -> None:
    near, far = Neighbour("a", 0.9, ("soup",)), Neighbour("b", 0.9 - NEIGHBOUR_TEMPERATURE, ("hike",))
    candidates = candidates_from(Neighbours([near, far]), ANY)
    ranked = rerank([], candidates, {"soup": 1e-30, "hike": 0.9 * MIN_WRITTEN_PROBABILITY}, 5, WRITTEN_WEIGHT)
    assert [hashtag.text for hashtag in ranked] == ["soup", "hike"]
    assert [hashtag.score for hashtag in ranked] == [
        grounded_score(c.weight, 0.0, WRITTEN_WEIGHT) for c in candidates.values()
    ]


def test_improbable_hashtag_is_told_if_a_near_neighbour_carries_it() -> None:
    near, far = Neighbour("a", NEAR_COSINE, ("soup", "hot")), Neighbour("b", NEAR_COSINE - 0.01, ("hike", "trail"))
    candidates = candidates_from(Neighbours([near, far]), ANY)
    probabilities = {"soup": 0.2, "hot": 0.001, "hike": 0.2, "trail": 0.001}
    assert len(rerank([], candidates, probabilities, 5, WRITTEN_WEIGHT)) == 4
    assert {hashtag.text for hashtag in rerank([], candidates, probabilities, 5, WRITTEN_WEIGHT, 0.02)} == {
        "soup",
        "hot",
        "hike",
    }


@pytest.mark.parametrize(
    ("cosine", "words", "told"),
    [
        (MIN_COSINE_FOR_WORDS, NEAR_WORDS, True),
        (MIN_COSINE_FOR_WORDS, NEAR_WORDS - 0.01, False),
        (MIN_COSINE_FOR_WORDS - 0.01, 0.9, False),
    ],
    ids=["shares words", "shares few words", "has a vector like none"],
)
def test_improbable_hashtag_of_a_note_by_words_is_told_if_the_vector_is_known(
    cosine: float, words: float, told: bool
) -> None:
    neighbours = Neighbours([Neighbour("a", cosine, ())], [Neighbour("b", words, ("soup",))])
    ranked = rerank([], candidates_from(neighbours, ANY), {"soup": 0.001}, 5, WRITTEN_WEIGHT, 0.02)
    assert [hashtag.text for hashtag in ranked] == ["soup"] * told


def test_singular_and_plural_that_a_note_names_are_one_candidate_with_the_larger_share() -> None:
    named = [NamedHashtag("cat", 30, 40), NamedHashtag("cats", 1, 90), NamedHashtag("Cat", 1, 80)]
    for order in (named, named[::-1]):
        (cat,) = candidates_from(Neighbours(named=order), ANY).values()
        assert (cat.text, cat.weight) == ("cat", pytest.approx(NAMED_WEIGHT * named_share(named[0])))


SURE, RARE = NamedHashtag("Kyoto", 30, 40), NamedHashtag("kyoto", 1, 40)
"""A hashtag that most notes with its word carry, and one that few do."""


def test_named_hashtag_is_a_candidate_without_any_neighbour() -> None:
    (kyoto,) = candidates_from(Neighbours(named=[SURE]), ANY).values()
    assert (kyoto.text, kyoto.notes) == ("Kyoto", [])
    assert kyoto.weight == pytest.approx(NAMED_WEIGHT * named_share(SURE))
    assert candidates_from(Neighbours(named=[SURE]), HashtagFilter(frozenset({"kyoto"}))) == {}


def test_named_hashtag_weighs_more_than_its_neighbours_alone_say() -> None:
    carried = Neighbours([Neighbour("a", 0.9, ("kyoto",)), Neighbour("b", 0.9, ("soup",))])
    (before,) = {c.weight for c in candidates_from(carried, ANY).values()}
    for named in (SURE, RARE):
        candidates = candidates_from(replace(carried, named=[named]), ANY)
        assert list(candidates) == ["kyoto", "soup"]
        added = NAMED_WEIGHT * named_share(named)
        assert candidates["kyoto"].weight == pytest.approx(before + added - before * added)
        assert candidates["soup"].weight == before
        assert candidates["kyoto"].notes == ["a"]


@pytest.mark.parametrize(
    ("named", "told"), [(SURE, True), (NamedHashtag("Kyoto", 1, 1), False), (NamedHashtag("Kyoto", 1, 40), False)]
)
def test_improbable_hashtag_is_told_if_many_notes_with_its_words_carry_it(named: NamedHashtag, told: bool) -> None:
    ranked = rerank([], candidates_from(Neighbours(named=[named]), ANY), {"kyoto": 0.001}, 5, WRITTEN_WEIGHT, 0.02)
    assert [hashtag.text for hashtag in ranked] == ["Kyoto"] * told


@pytest.mark.parametrize("text", ["a" * 49 + "ß", "Fußballweltmeisterschaftsqualifikationsspielanalyse"])
def test_blocked_hashtag_whose_key_is_longer_than_itself_is_not_allowed(text: str) -> None:
    assert not HashtagFilter.of(Note(title="a"), frozenset({hashtag_key(text)}))(text)
