"""LiveTexts: words and hashtags of the notes in an index, their merges, and their snapshot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.hashtags.lexical_index import InvertedLexicalIndex
from model.hashtags.vocabulary import HashtagTrie
from model.note import Note
from service.index.array_files import load_arrays
from service.index.backend import Arrays
from service.index.merging import MAX_DEAD_SHARE, MERGE_FACTOR
from service.index.snapshot_files import SnapshotFolder, SnapshotOrigin
from service.index.texts import LiveTexts
from service.records import StoredNote
from tests.model.hashtags.reference import by_comparing_all
from tests.service.conftest import letters
from tests.service.index.reference import do_jobs, hashtags_of, row

QUERY = Note(title="saffron soup")
GROWING_ROWS = 4
WORDS = ("saffron", "soup", "lemon", "hike", "yarn")
IDS = st.sampled_from("abcdefghijkl")
TEXTS = st.lists(st.sampled_from(WORDS), max_size=3).map(" ".join)
HASHTAGS = st.lists(st.sampled_from(("soup", "红烧肉", "hike")), max_size=2, unique=True).map(tuple)
EXPIRY = st.sampled_from((None, 10.0, 20.0))
UPSERT = st.tuples(IDS, TEXTS, HASHTAGS, EXPIRY)
STEPS = st.lists(st.one_of(UPSERT, UPSERT, UPSERT, IDS, st.sampled_from((do_jobs, None))), max_size=40)
"""Steps: a note is written, the note of an id is removed, jobs are run, or (None) the process is restarted."""


def new_texts(growing_rows: int = GROWING_ROWS) -> LiveTexts:
    return LiveTexts(letters(), InvertedLexicalIndex(), growing_rows)


def saved(texts: LiveTexts) -> Mapping[str, Arrays]:
    return {part.name: part.make() for part in texts.snapshot_parts()}


def restored(texts: LiveTexts) -> LiveTexts:
    """Return texts that are restored from a snapshot of these."""
    new = new_texts()
    new.restore(saved(texts).__getitem__)
    return new


def numbered(count: int, first: int = 0, text: str = "soup") -> list[StoredNote]:
    return [row(f"n{n}", title=f"{text} {n}", hashtags=("soup",)) for n in range(first, first + count)]


def ids(texts: LiveTexts, now: float = 0.0) -> list[str]:
    return [note_id for note_id, _ in texts.by_words(QUERY, 10, now)]


def filled() -> LiveTexts:
    texts = new_texts()
    texts.upsert(
        [
            row("bare", 0, title="saffron"),
            row("tagged", 1, title="saffron soup", hashtags=("soup",)),
            row("short lived", 2, title="soup", expires_at=10.0),
            row("removed", 3, title="saffron soup", hashtags=("gone",)),
        ]
    )
    texts.remove(["removed"])
    return texts


def check(texts: LiveTexts, living: Mapping[str, Note]) -> None:
    """Check that the texts are exactly those of the notes `living`."""
    for now in (0.0, 10.0, 20.0):
        shown = {note.id for note in living.values() if note.expires_at is None or note.expires_at > now}
        for query in (QUERY, Note(id="a", title="lemon hike soup")):
            expected = [hit for hit in by_comparing_all(living, query) if hit[0] in shown]
            hits = texts.by_words(query, len(living), now)
            assert dict(hits) == pytest.approx(dict(expected))
            assert dict(texts.word_scores(query, 0, now, "abcz")).keys() == dict(expected).keys() & set("abc")
    assert hashtags_of(texts, "abcdefghijkl") == {note.id: note.hashtags for note in living.values() if note.hashtags}
    vocabulary = texts.vocabulary
    assert isinstance(vocabulary, HashtagTrie)
    assert vocabulary._note_counts == Counter(tag for note in living.values() for tag in note.hashtags)


@settings(deadline=None)
@given(STEPS)
def test_texts_after_any_steps_are_those_of_the_living_notes(steps: list[object]) -> None:
    texts, living = new_texts(), dict[str, Note]()
    for step in steps:
        if isinstance(step, tuple):
            note_id, text, hashtags, expires_at = step
            stored = row(note_id, title=text, hashtags=hashtags, expires_at=expires_at)
            texts.upsert([stored])
            living[note_id] = stored.note
        elif isinstance(step, str):
            texts.remove([step])
            living.pop(step, None)
        elif step is do_jobs:
            do_jobs(texts)
        else:
            texts = restored(texts)
    check(texts, living)
    check(restored(texts), living)
    assert restored(texts).by_words(QUERY, 100, 0.0) == texts.by_words(QUERY, 100, 0.0), "not by a rounding error"
    do_jobs(texts)
    check(texts, living)


def test_words_of_all_notes_are_found_with_hashtags_or_without() -> None:
    assert ids(filled()) == ["tagged", "bare", "short lived"]
    assert [near.id for near in filled().with_hashtags(filled().by_words(QUERY, 10, 0.0))] == ["tagged"]


def test_expired_note_is_not_found_by_its_words() -> None:
    assert ids(filled(), now=10.0) == ["tagged", "bare"]


def test_restored_texts_answer_with_the_same_scores() -> None:
    texts = new_texts()
    texts.upsert([*numbered(50), *numbered(5, text="lemon")])
    texts.remove(["n7", "n30"])
    do_jobs(texts)
    texts.remove(["n8"])
    for query in (QUERY, Note(title="soup 17"), Note(id="n3", title="lemon 3")):
        assert restored(texts).by_words(query, 10, 0.0) == texts.by_words(query, 10, 0.0)
    again = restored(texts)
    again.upsert([row("n9", title="bread")])
    assert "n9" not in dict(again.by_words(QUERY, 50, 0.0))


def test_changes_while_a_merge_runs_are_in_it() -> None:
    texts = new_texts()
    texts.upsert(numbered(GROWING_ROWS * MERGE_FACTOR + 1))
    job = texts.plan()
    assert job
    assert job.rows == GROWING_ROWS * MERGE_FACTOR
    texts.remove(["n2"])
    job.run()
    texts.upsert(numbered(1, first=5, text="lemon"))
    texts.finish(job)
    found = dict(texts.by_words(Note(title="soup"), 100, 0.0))
    assert found.keys() == {f"n{n}" for n in range(GROWING_ROWS * MERGE_FACTOR + 1)} - {"n2"}
    assert list(dict(texts.by_words(Note(title="lemon"), 9, 0.0))) == ["n5"]
    assert hashtags_of(texts, ["n1", "n2"]) == {"n1": ("soup",)}


def test_merge_that_failed_is_planned_again_after_all_others() -> None:
    texts = new_texts()
    texts.upsert(numbered(GROWING_ROWS * MERGE_FACTOR + 1))
    first = texts.plan()
    assert first
    texts.give_up(first)
    assert texts.plan() is None
    again = texts.plan()
    assert again
    assert again.sources == first.sources


def test_segments_stay_few_and_tombstones_a_small_share() -> None:
    """This holds however many notes are written, and however often each is changed."""
    texts = new_texts()
    for turn in range(4):
        for n in range(0, 500, 10):
            texts.upsert(numbered(10, first=n, text=f"turn {turn}"))
            do_jobs(texts)
    segments = texts._segments
    assert len(segments) <= 4 * (MERGE_FACTOR - 1) + 1
    assert all(segment.dead <= MAX_DEAD_SHARE * len(segment) for segment in segments[:-1])
    assert sum(segment.living for segment in segments) == 500


def test_snapshot_after_few_changes_writes_few_notes(tmp_path: Path) -> None:
    """Notes of a sealed segment are written to disk once, whatever happens to them later."""
    origin = SnapshotOrigin("store", "space")

    def save(folder: SnapshotFolder, texts: LiveTexts) -> int:
        """Save the texts, and return how many notes the new files have."""
        before = set(tmp_path.glob("*.npz"))
        folder.save(origin, "1-0", texts.snapshot_parts())
        return sum(len(load_arrays(path).get("expires", ())) for path in set(tmp_path.glob("*.npz")) - before)

    texts = new_texts(growing_rows=64)
    texts.upsert(numbered(64 * 16 + 1))
    do_jobs(texts)
    with closing(SnapshotFolder(tmp_path)) as folder:
        assert save(folder, texts) == 64 * 16 + 1
        texts.upsert(numbered(3, text="changed"))
        texts.remove(["n500"])
        assert save(folder, texts) == 4
        snapshot = folder.load(origin)
        assert snapshot
        new = new_texts()
        new.restore(snapshot.read)
        assert dict(new.by_words(Note(title="changed"), 10, 0.0)).keys() == {"n0", "n1", "n2"}
        assert hashtags_of(new, ["n499", "n500"]) == {"n499": ("soup",)}
        new.upsert(numbered(1, text="again"))
        assert save(folder, new) == 4 + 1, "what grew before the start is in a sealed segment now, written once more"


def test_writes_and_merges_beside_searches_hide_no_note() -> None:
    """A search for a shared word finds all notes that have it, while notes are changed, segments merged and snapshots
    taken."""
    texts = new_texts(growing_rows=16)
    texts.upsert(numbered(100))

    def write() -> None:
        for turn in range(30):
            texts.upsert(numbered(100, text=f"soup turn{turn}"))
            do_jobs(texts)
            saved(texts)

    def search() -> None:
        while not writing.done():
            assert len(texts.word_scores(Note(title="soup"), 100, 0.0)) == 100
            assert hashtags_of(texts, ["n7"]) == {"n7": ("soup",)}

    with ThreadPoolExecutor(3) as threads:
        writing = threads.submit(write)
        for searching in [threads.submit(search), threads.submit(search)]:
            searching.result()
        writing.result()
