"""Tests of training data: the task of each note, the tokens of its forward, and the batches of a run."""

import gzip
import itertools
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest
import torch

from model.data.dataset import (
    MAX_CATEGORY_CHARS,
    DatasetError,
    Example,
    PairedNotes,
    category_example,
    draw_example,
    embedding_example,
    hashtag_example,
    read_notes,
    with_category_synonym,
)
from model.data.pairs import PairOptions, related_pairs, split_of
from model.generation import GenerationRequest
from model.inference.engine import Engine
from model.note import Note
from model.prompt import Prompt

PARIS = Note(id="1", title="A day in Paris", content="Bread.", hashtags=("paris", "bread", "seine"), category="Travel")
TRAIN = [str(i) for i in range(100) if split_of(str(i)) == "train"]


@pytest.fixture(params=["tiny_engine", "tiny_short", "tiny_task_first"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """An engine for each prompt version in turn."""
    engine: Engine = request.getfixturevalue(request.param)
    return engine


@pytest.fixture
def prompt(engine: Engine) -> Prompt:
    return engine.prompt


@pytest.fixture
def hashtags_last(tiny_short: Engine) -> Prompt:
    """Prompt of the version that shows hashtags last."""
    return tiny_short.prompt


def output(example: Example) -> list[int]:
    """Token ids that the generative loss (CSFT) predicts."""
    return [example.ids[position] for position in example.targets]


def test_hashtag_task_withholds_hashtags_and_states_their_count(prompt: Prompt):
    for seed in range(20):
        example = hashtag_example(prompt, PARIS, random.Random(seed))
        seen = prompt.decode(example.ids[: example.read_out + 1])
        assert "paris" not in seen.replace("Paris", "")
        written = [text for text, _ in prompt.parse_hashtags(output(example))]
        assert 1 <= len(written) <= 3
        assert set(written) <= set(PARIS.hashtags)
        assert f"{len(written)} hashtags" in prompt.decode(example.ids[example.read_out + 1 : example.targets[0]])


def test_hashtag_task_draws_every_count_up_to_five(prompt: Prompt):
    note = Note(title="t", hashtags=tuple("abcdefg"))
    rng = random.Random(0)
    examples = [hashtag_example(prompt, note, rng) for _ in range(200)]
    counts = {len(prompt.parse_hashtags(output(e))) for e in examples}
    assert counts == {1, 2, 3, 4, 5}


def test_category_task_shows_hashtags_and_writes_the_category(prompt: Prompt):
    example = category_example(prompt, PARIS)
    shown = prompt.decode(example.ids[: example.read_out + 1])
    assert all(hashtag in shown for hashtag in PARIS.hashtags)
    assert prompt.decode(output(example)) == " Travel"
    assert example.ids[-1] == prompt.end_id


def test_category_prompt_in_training_is_the_served_one(prompt: Prompt, engine: Engine):
    example = category_example(prompt, PARIS)
    served = engine.tokenize(PARIS).ids
    assert example.ids[: example.read_out + 1] == served == embedding_example(prompt, PARIS).ids
    assert list(example.ids[example.read_out + 1 : example.targets[0]]) == prompt.category_task()


def test_hashtag_prompt_in_training_is_the_served_one(prompt: Prompt, engine: Engine):
    for seed in range(5):
        example = hashtag_example(prompt, PARIS, random.Random(seed))
        count = len(prompt.parse_hashtags(output(example)))
        tokenized = engine.tokenize(replace(PARIS, hashtags=()), GenerationRequest(count))
        assert example.ids[: example.read_out + 1] == (tokenized.hashtag_prompt or tokenized.ids)
        assert list(example.ids[example.read_out + 1 : example.targets[0]]) == prompt.hashtag_task(count)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_note_without_the_target_of_its_task_is_only_embedded(prompt: Prompt, share: float):
    bare = Note(title="Only a title")
    example = draw_example(prompt, bare, share, random.Random(0))
    assert example == embedding_example(prompt, bare)
    assert example.targets == ()
    assert len(example.ids) == example.read_out + 1


def test_targets_are_all_ids_that_follow_the_task(prompt: Prompt):
    for share in (0.0, 1.0):
        example = draw_example(prompt, PARIS, share, random.Random(0))
        assert example.targets == tuple(range(example.targets[0], len(example.ids)))
        assert example.targets[0] > example.read_out + 1


def test_input_hashtags_and_then_the_category_are_targets(hashtags_last: Prompt):
    example = draw_example(hashtags_last, PARIS, 0.0, random.Random(0), input_hashtags=True)
    shown = [example.ids[position] for position in example.targets if position <= example.read_out]
    assert hashtags_last.decode(shown) == "paris #bread #seine"
    assert output(example) == [*shown, *hashtags_last.category_outputs(["Travel"])[0]]
    without = draw_example(hashtags_last, PARIS, 0.0, random.Random(0))
    assert example == replace(without, targets=example.targets)
    assert example.targets[len(shown) :] == without.targets


def test_input_hashtags_without_a_category_are_targets(hashtags_last: Prompt):
    example = category_example(hashtags_last, replace(PARIS, category=None), input_hashtags=True)
    assert hashtags_last.decode(output(example)) == "paris #bread #seine"
    assert len(example.ids) == example.read_out + 1


def test_input_hashtags_that_are_withheld_are_no_targets(hashtags_last: Prompt):
    example = draw_example(hashtags_last, PARIS, 1.0, random.Random(0), input_hashtags=True)
    assert example == draw_example(hashtags_last, PARIS, 1.0, random.Random(0))
    assert "paris" not in hashtags_last.decode(example.ids[: example.read_out + 1])
    assert example.targets[0] > example.read_out


def test_input_hashtags_of_a_note_without_any_are_no_targets(hashtags_last: Prompt):
    bare = replace(PARIS, hashtags=())
    assert embedding_example(hashtags_last, bare, input_hashtags=True).targets == ()
    assert category_example(hashtags_last, bare, input_hashtags=True) == category_example(hashtags_last, bare)


@pytest.mark.parametrize("engine", ["tiny_engine", "tiny_task_first"], indirect=True)
def test_input_hashtags_before_the_content_are_no_targets(prompt: Prompt):
    for share in (0.0, 1.0):
        with_them = draw_example(prompt, PARIS, share, random.Random(0), input_hashtags=True)
        assert with_them == draw_example(prompt, PARIS, share, random.Random(0))
    assert embedding_example(prompt, PARIS, input_hashtags=True) == embedding_example(prompt, PARIS)


def test_share_of_hashtag_tasks_is_r(prompt: Prompt):
    rng = random.Random(0)
    category = category_example(prompt, PARIS)
    hashtag_tasks = sum(draw_example(prompt, PARIS, 0.4, rng) != category for _ in range(2000))
    assert 0.36 < hashtag_tasks / 2000 < 0.44


def write_notes(path: Path, ids: list[str]) -> Path:
    path.write_text("".join(json.dumps({"id": i, "title": f"note {i}", "hashtags": ["x"]}) + "\n" for i in ids))
    return path


def write_pairs(folder: Path, histories: list[list[str]]) -> Path:
    clicks = folder / "clicks.jsonl"
    clicks.write_text(
        "".join(json.dumps({"user": u, "note": n}) + "\n" for u, notes in enumerate(histories) for n in notes)
    )
    related_pairs(clicks, folder / "pairs.parquet", PairOptions(top=100))
    return folder / "pairs.parquet"


@pytest.fixture
def paired(tmp_path: Path) -> PairedNotes:
    histories = [list(pair) for pair in itertools.combinations(TRAIN[:12], 2)]
    return PairedNotes(write_notes(tmp_path / "notes.jsonl", TRAIN), write_pairs(tmp_path, histories))


def pairs_of(batches: list[list[Note]]) -> list[tuple[str, str]]:
    """Id pairs of all batches, in order."""
    return [(a.id, b.id) for batch in batches for a, b in zip(batch[::2], batch[1::2], strict=True)]


def test_batch_holds_pairs_side_by_side_and_no_note_twice(paired: PairedNotes):
    for batch in itertools.islice(paired.batches(4, seed=0), 30):
        ids = [note.id for note in batch]
        assert len(set(ids)) == len(ids) == 8
        assert all(tuple(sorted(pair)) in paired.pairs for pair in zip(ids[::2], ids[1::2], strict=True))


def test_pairs_are_seen_equally_often(paired: PairedNotes):
    seen = [
        tuple(sorted((a.id, b.id)))
        for batch in itertools.islice(paired.batches(3, seed=0), 2 * len(paired.pairs))
        for a, b in zip(batch[::2], batch[1::2], strict=True)
    ]
    times = [seen.count(pair) for pair in paired.pairs]
    assert max(times) - min(times) <= 2  # a pair may be postponed into the next epoch


def test_batches_of_disjoint_pairs_follow_the_shuffles(tmp_path: Path):
    histories = [list(pair) for pair in zip(TRAIN[:32:2], TRAIN[1:32:2], strict=True)]
    paired = PairedNotes(write_notes(tmp_path / "notes.jsonl", TRAIN), write_pairs(tmp_path, histories))
    rng = random.Random(7)
    drawn = [rng.sample(paired.pairs, 16) for _ in range(2)]
    batches = list(itertools.islice(paired.batches(4, seed=7), 6))
    assert pairs_of(batches) == [*drawn[0], *drawn[1][:8]]


def test_batches_stay_full_where_one_note_has_most_pairs(tmp_path: Path):
    """A batch takes at most one pair of the hub, so most of its pairs are left when all others are used up."""
    hub, *others = TRAIN
    histories = [[hub, other] for other in others] + [others[i : i + 2] for i in range(0, 24, 2)]
    paired = PairedNotes(write_notes(tmp_path / "notes.jsonl", TRAIN), write_pairs(tmp_path, histories))
    batches = list(itertools.islice(paired.batches(4, seed=0), 400))
    assert {len(batch) for batch in batches} == {8}
    assert batches == list(itertools.islice(paired.batches(4, seed=0), 400))
    assert set(pairs_of(batches)) == set(paired.pairs)


def test_batch_is_short_where_all_pairs_share_a_note(tmp_path: Path):
    hub, *others = TRAIN[:6]
    paired = PairedNotes(
        write_notes(tmp_path / "notes.jsonl", TRAIN), write_pairs(tmp_path, [[hub, other] for other in others])
    )
    batches = list(itertools.islice(paired.batches(4, seed=0), 60))
    assert {len(batch) for batch in batches} == {2}
    assert {note.id for batch in batches for note in batch} == {hub, *others}


def test_batches_are_a_function_of_the_seed(paired: PairedNotes):
    first, again, other = (list(itertools.islice(paired.batches(4, seed), 5)) for seed in (1, 1, 2))
    assert first == again != other


def test_notes_and_pairs_are_of_the_split_alone(tmp_path: Path):
    ids = [str(i) for i in range(100)]
    notes = write_notes(tmp_path / "notes.jsonl", ids)
    pairs = write_pairs(tmp_path, [ids])
    for split in ("train", "validation", "test"):
        part = PairedNotes(notes, pairs, split=split)
        assert part.notes.keys() == {i for i in ids if split_of(i) == split}
        assert {i for pair in part.pairs for i in pair} <= part.notes.keys()


def test_pairs_below_the_score_are_known_but_not_trained_on(tmp_path: Path):
    a, b, c, d = TRAIN[:4]
    notes = write_notes(tmp_path / "notes.jsonl", TRAIN)
    paired = PairedNotes(notes, write_pairs(tmp_path, [[a, b], [a, b], [c, d]]), min_score=0.9)
    assert paired.pairs == [tuple(sorted((a, b)))]
    notes = [paired.notes[i] for i in (c, a, d, b)]
    known = paired.known_related(notes, notes)
    assert [row.nonzero()[:, 0].tolist() for row in known] == [[0, 2], [1, 3], [0, 2], [1, 3]]


def test_known_related_notes_are_found_among_any_notes(tmp_path: Path):
    a, b, c, d, alone = TRAIN[:5]
    paired = PairedNotes(write_notes(tmp_path / "notes.jsonl", TRAIN), write_pairs(tmp_path, [[a, b, c], [c, d]]))
    notes = paired.notes
    twin = replace(notes[alone], id="says the same")
    stored = set(paired._related)
    known = paired.known_related(
        [notes[i] for i in (a, d, alone)], [notes[b], twin, notes[c], notes[a], notes[TRAIN[5]]]
    )
    assert set(paired._related) == stored
    assert known.dtype == torch.bool
    assert known.tolist() == [
        [True, False, True, True, False],
        [False, False, True, False, False],
        [False, True, False, False, False],
    ]
    assert paired.known_related([notes[a], notes[alone]], []).shape == (2, 0)


def test_copy_of_a_related_note_is_no_negative(tmp_path: Path):
    a, b, copy, other = TRAIN[:4]
    path = write_notes(tmp_path / "notes.jsonl", TRAIN)
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    text = {key: value for key, value in next(row for row in rows if row["id"] == b).items() if key != "id"}
    path.write_text("".join(json.dumps(row | text if row["id"] == copy else row) + "\n" for row in rows), "utf-8")
    paired = PairedNotes(path, write_pairs(tmp_path, [[a, b], [copy, other]]))
    notes = [paired.notes[i] for i in (a, b, copy, other)]
    known = paired.known_related(notes, notes).tolist()
    assert known == [
        [True, True, True, False],
        [True, True, True, True],
        [True, True, True, True],
        [False, True, True, True],
    ]


def test_pair_has_the_higher_score_of_its_two_directions(tmp_path: Path):
    a, b, c, d = TRAIN[:4]
    notes = write_notes(tmp_path / "notes.jsonl", TRAIN)
    paired = PairedNotes(notes, write_pairs(tmp_path, [[a, b], [a, b], [b, a], [c, d, a]]), min_score=0.9)
    expected = {
        tuple(sorted(pair)): score for pair, score in [((a, b), 1), ((c, d), 1 / 3), ((c, a), 1 / 3), ((d, a), 1 / 3)]
    }
    assert paired.scores == pytest.approx(expected)  # pairs below min_score, which are not trained on, have scores too


def test_batches_without_pairs_hold_notes_that_have_a_target(tmp_path: Path):
    path = tmp_path / "notes.jsonl"
    with path.open("w") as lines:
        for i in TRAIN[:20]:
            lines.write(json.dumps({"id": i, "title": "t", "category": "Food" if int(i) % 2 else None}) + "\n")
    singles = PairedNotes(path, None)
    assert not singles.has_pairs
    batch = next(singles.batches(2, seed=0))
    assert len(batch) == 4
    assert all(note.category for note in batch)


def test_sample_has_notes_of_pairs_and_others(tmp_path: Path):
    pairs = [list(pair) for pair in zip(TRAIN[:16:2], TRAIN[1:16:2], strict=True)]
    paired = PairedNotes(write_notes(tmp_path / "notes.jsonl", TRAIN[:40]), write_pairs(tmp_path, pairs))
    notes, among = paired.sample(24, seed=0)
    ids = {note.id for note in notes}
    assert len(ids) == len(notes) == 24
    assert len(ids & set(TRAIN[:16])) >= 12
    assert ids - set(TRAIN[:16])
    assert among == [pair for pair in paired.pairs if set(pair) <= ids]
    assert len(among) >= 6


def test_sample_larger_than_the_split_is_the_split(tmp_path: Path):
    paired = PairedNotes(write_notes(tmp_path / "notes.jsonl", TRAIN[:9]), write_pairs(tmp_path, [TRAIN[:3]]))
    notes, among = paired.sample(100, seed=0)
    assert sorted(note.id for note in notes) == sorted(TRAIN[:9])
    assert among == paired.pairs


def test_category_is_replaced_by_each_synonym_half_of_the_time():
    note, rng = Note(id="1", title="t", category="Pets"), random.Random(0)
    names = {"Pets": ["Animals", "Pet care"], "Food": ["Meals"]}
    drawn = Counter(with_category_synonym(note, names, rng).category for _ in range(400))
    assert drawn.keys() == {"Pets", "Animals", "Pet care"}
    assert 150 < drawn["Pets"] < 250
    assert min(drawn.values()) > 60


@pytest.mark.parametrize("category", ["Film", None])
def test_category_without_synonyms_keeps_its_name(category: str | None):
    note = Note(id="1", title="t", category=category)
    assert all(with_category_synonym(note, {"Pets": ["Animals"]}, random.Random(seed)) == note for seed in range(20))


def test_pairs_are_counted_by_split_and_by_missing_notes(tmp_path: Path):
    a, b, missing = TRAIN[:3]
    c, d = (str(i) for i in itertools.islice((i for i in range(100) if split_of(str(i)) == "validation"), 2))
    pairs = write_pairs(tmp_path, [[a, b], [c, d], [a, missing], [missing, c]])
    paired = PairedNotes(write_notes(tmp_path / "notes.jsonl", [a, b, c, d]), pairs)
    assert paired.counts == (4, 1, 2)
    with pytest.raises(DatasetError, match=r"no pairs at all; of 4 pairs 4 name a note that is not in "):
        PairedNotes(write_notes(tmp_path / "other.jsonl", [b]), pairs)


def test_split_without_pairs_is_refused(tmp_path: Path):
    notes = write_notes(tmp_path / "notes.jsonl", TRAIN)
    with pytest.raises(DatasetError, match="no pair of validation notes"):
        PairedNotes(notes, write_pairs(tmp_path, [TRAIN[:2]]), split="validation")


def test_least_score_above_all_names_field_and_highest_score(tmp_path: Path):
    notes = write_notes(tmp_path / "notes.jsonl", TRAIN)
    with pytest.raises(DatasetError, match=r"a score of 5 or more \(min_score\): the highest is 0.5"):
        PairedNotes(notes, write_pairs(tmp_path, [TRAIN[:2]]), min_score=5)


def test_notes_without_pairs_hashtags_and_categories_are_nothing_to_train_on(tmp_path: Path):
    (tmp_path / "notes.jsonl").write_text("".join(json.dumps({"id": i, "title": "t"}) + "\n" for i in TRAIN))
    with pytest.raises(DatasetError, match=r"notes.jsonl has nothing to train on"):
        PairedNotes(tmp_path / "notes.jsonl", None)


def test_notes_are_read_plain_or_gzipped_with_normalised_tags(tmp_path: Path):
    line = json.dumps(
        {"id": 7, "title": None, "content": "c", "hashtags": ["#A", "a", " "], "category": "", "caption": "not read"}
    )
    (tmp_path / "n.jsonl").write_text(line)
    (tmp_path / "n.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    expected = {"7": Note(id="7", content="c", hashtags=("A",))}
    assert read_notes(tmp_path / "n.jsonl") == read_notes(tmp_path / "n.jsonl.gz") == expected


def test_notes_of_another_system_are_read(tmp_path: Path):
    line = b'\xef\xbb\xbf{"id": "a", "title": "with a byte order mark"}\r\n'
    (tmp_path / "n.jsonl").write_bytes(line)
    (tmp_path / "N.JSONL.GZ").write_bytes(gzip.compress(line))
    assert read_notes(tmp_path / "n.jsonl") == read_notes(tmp_path / "N.JSONL.GZ")
    assert read_notes(tmp_path / "n.jsonl")["a"].title == "with a byte order mark"


def test_pair_with_a_negative_score_is_not_trained_on_and_is_no_negative(tmp_path: Path):
    scores = dict(zip(TRAIN[1:4], (-3.0, -0.5, 2.0), strict=True))
    rows = ", ".join(f"('{TRAIN[0]}', '{related}', {score})" for related, score in scores.items())
    pairs = tmp_path / "pairs.parquet"
    duckdb.execute(f"COPY (FROM (VALUES {rows}) AS t(note, related, score)) TO '{pairs}' (FORMAT parquet)")
    paired = PairedNotes(write_notes(tmp_path / "notes.jsonl", TRAIN), pairs)
    assert sorted(paired.scores.values()) == [-3.0, -0.5, 2.0]
    assert [set(pair) for pair in paired.pairs] == [{TRAIN[0], TRAIN[3]}]
    first, *others = (paired.notes[note_id] for note_id in TRAIN[:4])
    assert paired.known_related([first], others).all()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"not packed", "gzip"), (gzip.compress(b'{"id": "1"}' * 1000)[:-9], "gzip"), (gzip.compress(b"\xff"), "UTF-8")],
    ids=["not-packed", "cut-off", "not-utf-8"],  # gzip output contains the time, so it cannot be part of an id
)
def test_broken_file_is_named(tmp_path: Path, content: bytes, reason: str):
    (tmp_path / "n.jsonl.gz").write_bytes(content)
    with pytest.raises(DatasetError, match=f"n.jsonl.gz.*{reason}"):
        read_notes(tmp_path / "n.jsonl.gz")


def test_notes_file_is_summed_up_with_keys_that_are_not_read_and_replaced_lines(tmp_path: Path):
    lines = [
        {"id": "1", "title": "Soup", "body": "with beans", "category": "Food"},
        {"id": "2", "content": "A walk", "hashtags": ["hike"], "tags": ["x"]},
        {"id": "2", "content": "A long walk", "hashtags": ["hike"]},
        {"id": "3", "title": " ", "hashtags": ["hike"]},
    ]
    path, told = tmp_path / "n.jsonl", list[str]()
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_notes(path, told.append)["2"].content == "A long walk"
    assert told == [
        f"{path}: 3 notes, 2 with a title or content, 2 with hashtags, 1 with a category; ignored keys: body, tags; "
        "1 lines replaced an earlier one of the same id"
    ]


def test_notes_without_any_title_or_content_are_refused_with_the_keys_that_they_have(tmp_path: Path):
    (tmp_path / "n.jsonl").write_text('{"id": "1", "name": "Soup", "text": "with beans", "hashtags": ["soup"]}\n')
    with pytest.raises(DatasetError, match=r"no note of .*n\.jsonl has a title or content; ignored keys: name, text$"):
        read_notes(tmp_path / "n.jsonl")


def test_note_with_a_text_in_the_place_of_its_category_is_named(tmp_path: Path):
    lines = [{"id": "1", "title": "t", "category": "c" * MAX_CATEGORY_CHARS}]
    path = tmp_path / "n.jsonl"
    path.write_text(json.dumps(lines[0]))
    assert len(read_notes(path)["1"].category or "") == MAX_CATEGORY_CHARS
    lines.append({"id": "42", "title": "t", "category": "word " * 4000})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DatasetError, match=r"line 2, .*the category of note 42 has 19,999 characters, more than 200"):
        read_notes(path)


def test_lone_surrogates_are_replaced_in_texts_and_refused_in_an_id(tmp_path: Path):
    path = tmp_path / "n.jsonl"
    path.write_text('{"id": "1", "title": "t \\ud83d", "content": "c \\udc00", "category": "Food \\ud83d"}\n')
    note = read_notes(path)["1"]
    assert (note.title, note.content, note.category) == ("t \ufffd", "c \ufffd", "Food \ufffd")
    path.write_text('{"id": "1", "title": "t"}\n{"id": "2\\udc00", "title": "t"}\n')
    with pytest.raises(DatasetError, match=r"n\.jsonl, line 2, .*its id has a lone surrogate"):
        read_notes(path)


def test_spaces_around_a_category_do_not_make_another_one(tmp_path: Path):
    lines = [{"id": i, "title": "t", "category": name} for i, name in enumerate(("Food", " Food\t", " "))]
    (tmp_path / "n.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [note.category for note in read_notes(tmp_path / "n.jsonl").values()] == ["Food", "Food", None]


EXPORT = (
    '{"export":1,"tenant":"default","after":null,"begin":"1-0","vectors":null,"space":"s","dimension":2}',
    '{"id":"a","title":"Soup","hashtags":["own"],"category":null,"author":null,"expires_at":null,"attributes":{},'
    '"revision":1,"log_position":"1-0","generated":{"hashtags":[{"text":"x","score":1}],"category":null}}',
    '{"id":"b","title":"gone"}',
    '{"removed":"b","log_position":"2-0"}',
    '{"end":"2-0","notes":2,"removed":1,"unreadable":0}',
)


def test_export_is_read_without_removed_notes_and_blank_lines(tmp_path: Path):
    (tmp_path / "n.jsonl").write_text("\n\n".join(EXPORT) + "\n \n")
    assert read_notes(tmp_path / "n.jsonl") == {"a": Note(id="a", title="Soup", hashtags=("own",))}


def test_export_is_summed_up_without_its_other_keys_and_its_changes(tmp_path: Path):
    path, told = tmp_path / "n.jsonl", list[str]()
    path.write_text("\n".join([*EXPORT[:-1], EXPORT[1], EXPORT[-1]]))
    read_notes(path, told.append)
    assert told == [f"{path}: 1 notes, 1 with a title or content, 1 with hashtags, 0 with a category"]


@pytest.mark.parametrize(
    "last", [(), ('{"problem":{"detail":"the store is unavailable"}}',)], ids=["cut-off", "failed"]
)
def test_export_that_was_broken_off_is_refused(tmp_path: Path, last: tuple[str, ...]):
    (tmp_path / "n.jsonl").write_text("\n".join([*EXPORT[:-1], *last]))
    with pytest.raises(DatasetError, match=r"n\.jsonl is an incomplete export"):
        read_notes(tmp_path / "n.jsonl")


@pytest.mark.parametrize("line", ['{"title":"x","removed":"a"}', '{"end":"2-0"}', '["end"]', '"end"'])
def test_lines_of_an_export_are_none_in_another_file(tmp_path: Path, line: str):
    (tmp_path / "n.jsonl").write_text(f'{{"id":"a","title":"Soup"}}\n{line}\n')
    with pytest.raises(DatasetError, match=r"line 2, is not a note"):
        read_notes(tmp_path / "n.jsonl")


def test_export_of_another_version_is_refused(tmp_path: Path):
    (tmp_path / "n.jsonl").write_text('{"export":2}\n')
    with pytest.raises(DatasetError, match=r"line 1, .*version 2, but only 1 can be read"):
        read_notes(tmp_path / "n.jsonl")


def test_folder_is_no_notes_file(tmp_path: Path):
    with pytest.raises(DatasetError, match="is a folder"):
        read_notes(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        *("{", "[]", '{"title": "no id"}', '{"id": "2", "title": 1917}', '{"id": "2", "category": 0}'),
        *('{"id": "2", "hashtags": "travel, food"}', '{"id": "2", "hashtags": [1]}', '{"id": null}', '{"id": [2]}'),
        *('{"id": true, "title": "t"}', '{"id": " "}', '{"id": ""}', '{"id": "2", "attributes": ' + "[" * 100_000),
    ],
    ids=lambda line: line[:30],
)
def test_line_that_is_no_note_is_named(tmp_path: Path, line: str):
    (tmp_path / "n.jsonl").write_text('{"id": "1"}\n' + line)
    with pytest.raises(DatasetError, match="line 2"):
        read_notes(tmp_path / "n.jsonl")
