"""Tests of copied and frequent hashtags against rankings worked out by hand."""

from collections.abc import Sequence

import numpy as np

from model.baselines.encoder import SentenceEncoder
from model.baselines.hashtags import CopiedHashtags, FrequentHashtags
from model.baselines.lexical import TfIdf
from model.data.pairs import split_of
from model.evaluation.evaluate import EvaluationData, evaluate
from model.evaluation.ranking import MAX_QUERIES, Scorer
from model.note import Note


class ByTitle:
    """Scores notes by 1 / (1 + distance) of their numeric titles, and records the notes it was given."""

    name = "by title"

    def __init__(self) -> None:
        self.shown: list[Note] = []

    def related(self, notes: Sequence[Note]) -> Scorer:
        self.shown = list(notes)
        at = np.array([float(note.title) for note in notes])
        return lambda rows: 1 / (1 + np.abs(at[rows][:, None] - at))


KNOWN = [
    Note(id="a", title="1", hashtags=("x", "Y")),  # score 1/2 for a query at 0
    Note(id="b", title="2", hashtags=("z",)),  # 1/3
    Note(id="c", title="3", hashtags=("y", "w")),  # 1/4
    Note(id="d", title="9", hashtags=("z",)),  # 1/10
    Note(id="e", title="0"),
]


def test_copied_hashtags_rank_by_the_scores_of_their_neighbours():
    query = Note(id="q", title="0")
    # Y and y are one hashtag: 1/2 + 1/4. x: 1/2. z: 1/3 + 1/10. w: 1/4.
    assert CopiedHashtags(ByTitle(), KNOWN).hashtags([query], 9) == [("Y", "x", "z", "w")]
    assert CopiedHashtags(ByTitle(), KNOWN).hashtags([query], 2) == [("Y", "x")]
    # With one neighbour both hashtags weigh the same, so the smaller key is first.
    assert CopiedHashtags(ByTitle(), KNOWN, neighbours=1).hashtags([query], 9) == [("x", "Y")]


def test_copied_hashtags_are_never_the_notes_own():
    system = ByTitle()
    (copied,) = CopiedHashtags(system, KNOWN, neighbours=1).hashtags([KNOWN[0]], 9)
    assert copied == ("z",)
    assert system.shown[-1] == Note(id="a", title="1")


def test_copied_hashtags_with_a_power_trust_near_notes_more():
    query = Note(id="q", title="0")
    # Squared scores: Y 1/4 + 1/16, x 1/4, z 1/9 + 1/100 + 1/25. Plain scores: z 1/3 + 1/10 + 1/5 is before x 1/2.
    far = [*KNOWN, Note(id="f", title="4", hashtags=("z",))]
    assert CopiedHashtags(ByTitle(), far).hashtags([query], 3) == [("Y", "z", "x")]
    assert CopiedHashtags(ByTitle(), far, power=2).hashtags([query], 3) == [("Y", "x", "z")]


def test_tuned_copier_copies_from_more_notes_than_the_plain_one():
    known = [Note(id="near", title="1", hashtags=("one",))]
    known += [Note(id=f"far{i:02}", title="3", hashtags=("many",)) for i in range(9)]  # 9 * (1/4)^2 > (1/2)^2
    known += [Note(id=f"farther{i:02}", title="4", hashtags=("most",)) for i in range(30)]  # not among the nearest ten
    query = Note(id="q", title="0")
    assert CopiedHashtags(ByTitle(), known).hashtags([query], 3) == [("many", "one")]
    assert CopiedHashtags.tuned(ByTitle(), known).hashtags([query], 3) == [("most", "many", "one")]


def test_record_of_a_copier_says_that_hashtags_are_copied():
    note = Note(id="own", title="0", hashtags=("x",))
    assert split_of(note.id) == "test"
    data = EvaluationData("d", {note.id: note}, {}, {})
    system = ByTitle()
    record = evaluate(system, data, parts=["hashtags"])
    copied = evaluate(system, data, parts=["hashtags"], copier=CopiedHashtags(system, KNOWN))
    tuned = evaluate(system, data, parts=["hashtags"], copier=CopiedHashtags.tuned(system, KNOWN))
    sources = [measured.hashtags_from for measured in (record, copied, tuned)]
    assert sources == ["written", "copied", "copied, tuned"]
    assert record.hashtags is None
    assert copied.hashtags is not None
    assert copied.hashtags.recall == [[0.0, 1.0, 1.0]]  # predicted: Y, then x


def test_copied_hashtags_of_many_queries_are_their_own():
    known = [Note(id=str(i), title=str(i), hashtags=(f"h{i}",)) for i in range(5)]
    queries = [Note(id=f"q{i}", title=str(i % 5)) for i in range(MAX_QUERIES + 7)]
    copied = CopiedHashtags(ByTitle(), known, neighbours=1).hashtags(queries, 1)
    assert copied == [(f"h{i % 5}",) for i in range(len(queries))]


def test_copied_hashtags_of_real_systems_are_the_neighbours(encoder: SentenceEncoder):
    known = [Note(id="1", title="a puppy", hashtags=("dogs",)), Note(id="2", title="tax law", hashtags=("money",))]
    for system in (encoder, TfIdf()):
        copied = CopiedHashtags(system, known, neighbours=1).hashtags([Note(title="a puppy in the law")], 1)
        assert copied == [("dogs",)], system.name


def test_frequent_hashtags_are_the_same_for_every_note():
    known = [Note(hashtags=("b", "a")), Note(hashtags=("New York", "c")), Note(hashtags=("newyork",))]
    assert FrequentHashtags(known).hashtags([Note(), Note(title="t")], 3) == [("New York", "a", "b")] * 2
