"""Vectors of a teacher: from behaviour, from another model, and from both."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from model.data.dataset import DatasetError, PairedNotes
from model.data.pairs import PairOptions, related_pairs, split_of
from model.note import Note
from model.training.teacher import Teacher, Vectors, behaviour_vectors, known_share, read_vectors, write_vectors

TRAIN = [str(i) for i in range(100) if split_of(str(i)) == "train"]
GROUPS = (TRAIN[:4], TRAIN[4:8])
"""Users who read one note of a group read its others, and none of the other group."""
TOGETHER = {pair: 0.5 for group in GROUPS for pair in itertools.combinations(sorted(group), 2)}


def cosines(vectors: Vectors, ids: list[str], others: list[str]) -> list[float]:
    return [float(vectors[a] @ vectors[b]) for a in ids for b in others if a != b]


def test_notes_read_together_are_closer_than_others():
    vectors = behaviour_vectors(TOGETHER)
    inside = [cosine for group in GROUPS for cosine in cosines(vectors, group, group)]
    assert min(inside) > max(cosines(vectors, *GROUPS))


def test_two_dimensions_of_two_groups_are_the_groups():
    vectors = behaviour_vectors(TOGETHER, dimension=2)
    for group in GROUPS:
        assert cosines(vectors, group, group) == pytest.approx([1] * 12, abs=1e-5)
    assert cosines(vectors, *GROUPS) == pytest.approx([0] * 16, abs=1e-5)


def test_note_read_with_one_other_is_near_it_alone():
    vectors = behaviour_vectors({("a", "b"): 1.0, ("c", "d"): 1.0, ("e", "f"): 1.0})
    assert float(vectors["a"] @ vectors["b"]) > 0.9
    assert abs(float(vectors["a"] @ vectors["c"])) < 0.5


def test_notes_of_pairs_alone_have_unit_vectors():
    vectors = behaviour_vectors({**TOGETHER, ("x", TRAIN[0]): 0.01})
    assert vectors.keys() == {*GROUPS[0], *GROUPS[1], "x"}
    assert [float(np.linalg.norm(vector)) for vector in vectors.values()] == pytest.approx([1] * 9, abs=1e-5)


def test_behaviour_vectors_made_twice_are_equal():
    first, again = behaviour_vectors(TOGETHER), behaviour_vectors(TOGETHER)
    assert first.keys() == again.keys()
    assert all((first[note_id] == again[note_id]).all() for note_id in first)


def test_scores_of_few_users_count_less():
    """`x` is read with both groups, but by few users with the second one.

    With a hundred times as many users in the same proportions the second group would count for more.
    """
    scores = {pair: 5.0 if pair[0] in GROUPS[0] else 0.05 for pair in TOGETHER}
    scores |= {("x", GROUPS[0][0]): 5.0, ("x", GROUPS[1][0]): 0.05}
    few = behaviour_vectors(scores, dimension=2)
    many = behaviour_vectors({pair: 100 * score for pair, score in scores.items()}, dimension=2)
    of_few, of_many = (sum(cosines(vectors, ["x"], GROUPS[1])) for vectors in (few, many))
    assert of_few < 0.5 * of_many


@pytest.fixture
def paired(tmp_path: Path) -> PairedNotes:
    (tmp_path / "notes.jsonl").write_text("".join(json.dumps({"id": i, "title": i}) + "\n" for i in TRAIN))
    clicks = [{"user": u, "note": i} for u, group in enumerate(GROUPS) for i in group]
    (tmp_path / "clicks.jsonl").write_text("".join(json.dumps(click) + "\n" for click in clicks))
    related_pairs(tmp_path / "clicks.jsonl", tmp_path / "pairs.parquet", PairOptions(top=100))
    return PairedNotes(tmp_path / "notes.jsonl", tmp_path / "pairs.parquet")


def test_cosine_of_two_sources_is_their_mean(paired: PairedNotes, tmp_path: Path):
    read = {TRAIN[0]: (1.0, 0.0), TRAIN[1]: (0.6, 0.8), TRAIN[4]: (0.0, 2.0)}  # of any length: only the angle counts
    write_vectors(tmp_path / "read.npz", list(read), np.array(list(read.values())))
    ids = list(read)
    teacher = Teacher(paired, tmp_path / "read.npz").vectors([Note(id=i) for i in ids]).numpy()
    vectors = behaviour_vectors(paired.scores)
    behaviour = np.stack([vectors[i] for i in ids])
    by_reading = np.array([[1, 0.6, 0], [0.6, 1, 0.8], [0, 0.8, 1]])
    np.testing.assert_allclose(teacher @ teacher.T, (behaviour @ behaviour.T + by_reading) / 2, atol=1e-5)


def test_vector_is_zero_only_where_no_source_knows_the_note(paired: PairedNotes, tmp_path: Path):
    by_reading, by_both, by_none = TRAIN[20], TRAIN[0], TRAIN[30]
    write_vectors(tmp_path / "read.npz", [by_reading, by_both], np.eye(2))
    notes = [Note(id=i) for i in (by_reading, by_none, by_both, TRAIN[1])]
    both = Teacher(paired, tmp_path / "read.npz").vectors(notes)
    half = 0.5**0.5
    assert both.norm(dim=1).tolist() == pytest.approx([half, 0, 1, half], abs=1e-5)
    behaviour = Teacher(paired).vectors(notes)
    assert behaviour.norm(dim=1).tolist() == pytest.approx([0, 0, 1, 1], abs=1e-5)


def test_source_that_does_not_know_one_note_counts_as_a_cosine_of_zero(paired: PairedNotes, tmp_path: Path):
    known, unclicked = TRAIN[0], TRAIN[20]
    write_vectors(tmp_path / "read.npz", [known, unclicked], np.array([[1.0, 0.0], [0.8, 0.6]]))
    first, second = Teacher(paired, tmp_path / "read.npz").vectors([Note(id=known), Note(id=unclicked)])
    assert float(first @ second) == pytest.approx(0.8 / 2, abs=1e-5)


def test_teacher_of_other_notes_is_refused(paired: PairedNotes, tmp_path: Path):
    write_vectors(tmp_path / "read.npz", ["another"], np.ones((1, 2)))
    with pytest.raises(
        DatasetError, match=r"vectors for none of .* training notes: it has ids such as 'another', the notes have"
    ):
        Teacher(paired, tmp_path / "read.npz")


def test_known_share_counts_the_notes_with_a_vector(tmp_path: Path):
    write_vectors(tmp_path / "read.npz", ["a", "b", "other"], np.ones((3, 2)))
    assert known_share(tmp_path / "read.npz", ["a", "b", "c", "d"]) == 0.5


@pytest.mark.parametrize("name", ["vectors.npz", "vectors"])
def test_written_vectors_are_read_back_at_unit_length(tmp_path: Path, name: str):
    write_vectors(tmp_path / name, ["旅行", "7"], np.array([[3.0, 4.0], [0.0, 0.0]]))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    vectors = read_vectors(tmp_path / name)
    assert {note_id: vector.tolist() for note_id, vector in vectors.items()} == {
        "旅行": pytest.approx([0.6, 0.8]),
        "7": [0, 0],
    }


def broken(folder: Path) -> dict[str, Path]:
    """Write files without readable vectors, each broken in another way."""
    paths = {name: folder / name for name in ("missing", "empty", "text", "cut", "array", "others", "flat", "none")}
    write_vectors(paths["cut"], ["1", "2"], np.eye(2))
    paths["cut"].write_bytes(paths["cut"].read_bytes()[:-40])
    paths["empty"].write_bytes(b"")
    paths["text"].write_text("no archive")
    with paths["array"].open("wb") as file:
        np.save(file, np.eye(2))
    with paths["others"].open("wb") as file:
        np.savez(file, something=np.eye(2))
    write_vectors(paths["flat"], ["1", "2"], np.ones(2))
    write_vectors(paths["none"], [], np.zeros((0, 4)))
    return paths


@pytest.mark.parametrize("name", ["missing", "empty", "text", "cut", "array", "others", "flat", "none"])
def test_file_without_vectors_is_named(tmp_path: Path, name: str):
    path = broken(tmp_path)[name]
    with pytest.raises(DatasetError, match=str(path)):
        read_vectors(path)


def test_pairs_without_a_score_teach_nothing(paired: PairedNotes):
    expected = Teacher(paired).vectors(list(paired.notes.values()))
    alone = next(note_id for note_id in paired.notes if note_id not in {i for pair in paired.scores for i in pair})
    paired.scores[min(alone, TRAIN[0]), max(alone, TRAIN[0])] = 0.0
    assert Teacher(paired).vectors(list(paired.notes.values())).equal(expected)
    paired.scores = dict.fromkeys(paired.scores, 0.0)
    assert Teacher(paired).vectors(list(paired.notes.values())).shape == (len(paired.notes), 0)
