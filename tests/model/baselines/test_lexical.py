"""The rivals rank by what they are said to rank by, and those that learn, learn."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from model.baselines.encoder import UNSEEN, CategoryEncoder, SentenceEncoder, fine_tune, plain_text
from model.baselines.lexical import Bm25, CopiedHashtags, FrequentHashtags, TfIdf, system, with_copied_hashtags
from model.data.dataset import DatasetError
from model.data.pairs import PairOptions, related_pairs, split_of
from model.evaluation.evaluate import QUERY_BATCH_SIZE, Record, Scorer
from model.note import Note
from model.training.recipe import Data, Recipe
from model.training.trainer import BEST, LOG
from model.weights import silent
from service.cli.main import app

NOTES = [
    Note(title="bread in paris", hashtags=("baking",)),
    Note(title="paris by night"),
    Note(title="bread bread bread", content="and butter"),
    Note(title="a horse"),
]
ALL = np.arange(len(NOTES))


def test_a_rival_reads_title_content_and_hashtags():
    assert plain_text(Note(title="t", content="c", hashtags=("a b", "d"))) == "t c #a b #d"


def test_tf_idf_scores_are_cosines_and_nothing_shared_is_zero():
    scores = TfIdf().related(NOTES)(ALL)
    np.testing.assert_allclose(np.diag(scores), 1)
    np.testing.assert_allclose(scores, scores.T)
    assert scores[0, 3] == 0 < scores[0, 1]


def test_bm25_is_the_hand_computed_score():
    lengths = [4, 3, 5, 1]  # words of two letters or more
    scores = Bm25(k1=1.2, b=0.75).related(NOTES)(np.array([1]))
    # The query "paris by night" shares one word with note 0, and that word is in two notes of four.
    idf = math.log(1 + (4 - 2 + 0.5) / (2 + 0.5))
    norm = 1.2 * (1 - 0.75 + 0.75 * lengths[0] / (sum(lengths) / 4))
    assert scores[0, 0] == pytest.approx(idf * 1 * 2.2 / (1 + norm), rel=1e-5)
    assert scores[0, 2] == scores[0, 3] == 0


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder()


def test_vectors_of_the_encoder_are_of_unit_length_and_know_what_is_alike(encoder: SentenceEncoder):
    vectors = encoder.embed(NOTES)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    scores = encoder.related([Note(title="a dog"), Note(title="a puppy"), Note(title="tax law")])(np.array([0]))
    assert scores[0, 1] > scores[0, 2]


def test_a_vector_does_not_depend_on_its_batch(encoder: SentenceEncoder):
    notes = [Note(title="word " * (i * 7 % 40)) for i in range(60)]  # three groups, lengths mixed
    alone = np.concatenate([encoder.embed([note]) for note in notes])
    np.testing.assert_allclose(encoder.embed(notes), alone, atol=1e-5)


def test_no_notes_have_no_vectors(encoder: SentenceEncoder):
    assert encoder.embed([]).shape == (0, 384)


def test_gradients_pass_through_the_groups(encoder: SentenceEncoder):
    notes = [Note(title="word " * (i * 7 % 40)) for i in range(30)]

    def gradient(vectors: torch.Tensor) -> torch.Tensor:
        weight = encoder.backbone.embeddings.LayerNorm.weight
        (found,) = torch.autograd.grad(vectors[:, 0].square().sum(), weight)
        return found

    by_row = torch.cat([encoder([note]) for note in notes])
    torch.testing.assert_close(gradient(encoder(notes)), gradient(by_row), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("training", [True, False])
def test_to_embed_leaves_the_mode_as_it_was(encoder: SentenceEncoder, training: bool):
    before = encoder.embed(NOTES)
    encoder.train(training)
    try:
        np.testing.assert_allclose(encoder.embed(NOTES), before, atol=1e-6)  # no dropout, no bfloat16
        assert {module.training for module in encoder.modules()} == {training}
    finally:
        encoder.eval()


def test_a_saved_encoder_is_the_same_encoder(encoder: SentenceEncoder, tmp_path: Path):
    encoder.save(tmp_path)
    loaded = system(str(tmp_path), (), tmp_path, "auto", silent)
    assert type(loaded) is SentenceEncoder
    np.testing.assert_allclose(loaded.embed(NOTES), encoder.embed(NOTES), atol=1e-6)


SUBJECTS = {
    "baking": "bread dough oven flour yeast crust butter",
    "travel": "paris train hotel beach island flight museum",
    "tax": "income deduction return audit refund form law",
}


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """120 notes of three subjects, told apart by their words, with pairs inside each; half are of the first subject.

    Categories of validation notes include one that training never shows.
    """
    folder = tmp_path_factory.mktemp("subjects")
    names = list(SUBJECTS)
    notes, histories = [], {name: [] for name in names}
    for i in range(120):
        name = names[i % 6] if i % 6 < 3 else "baking"
        words = SUBJECTS[name].split()
        notes.append({"id": str(i), "title": " ".join(words[(i + k) % 7] for k in range(3)), "category": name})
        histories[name].append(str(i))
    unseen = next(note for note in notes if split_of(note["id"]) == "validation")
    unseen["category"] = "never trained"
    notes.append({"id": "no category", "title": "bread"})
    (folder / "notes.jsonl").write_text("".join(json.dumps(note) + "\n" for note in notes))
    clicks = [
        {"user": f"{name} {at}", "note": i}
        for name in names
        for at in range(0, len(histories[name]), 5)
        for i in histories[name][at : at + 5]
    ]
    (folder / "clicks.jsonl").write_text("".join(json.dumps(click) + "\n" for click in clicks))
    related_pairs(folder / "clicks.jsonl", folder / "pairs.parquet", PairOptions())
    return Data(notes=folder / "notes.jsonl", pairs=folder / "pairs.parquet")


@pytest.fixture(scope="module")
def categories_recipe(subjects: Data) -> Recipe:
    return Recipe(
        name="c", data=(subjects,), contrastive=False, batch_pairs=8, steps=12, evaluate_every=6, learning_rate=1e-4
    )


@pytest.fixture(scope="module")
def trained_head(categories_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("head")
    list(fine_tune(categories_recipe, folder))
    return folder


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


def test_a_trained_head_beats_the_majority_class(trained_head: Path):
    steps = logged(trained_head)
    assert [step["validation"] is not None for step in steps] == [i % 6 == 0 for i in range(1, 13)]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert steps[-1]["validation"] < 1  # the category that training never showed
    head = CategoryEncoder.load(trained_head / BEST)
    assert head.categories == tuple(sorted(SUBJECTS))  # those of the training split
    notes = [Note(title=words) for words in SUBJECTS.values()]
    found = head.category_log_probs(notes, list(SUBJECTS))
    assert found.argmax(1).tolist() == [0, 1, 2]


def test_the_same_seed_gives_the_same_head(categories_recipe: Recipe, trained_head: Path, tmp_path: Path):
    again = [loss for _, loss, _ in islice(fine_tune(categories_recipe, tmp_path), 2)]
    assert again == pytest.approx([step["loss"] for step in logged(trained_head)[:2]], abs=1e-6)


def test_the_encoder_distils_from_the_teacher_that_notellm_gets(subjects: Data, tmp_path: Path):
    recipe = Recipe(name="r", data=(subjects,), batch_pairs=4, steps=2, evaluate_every=2, validation_min_score=0)
    contrastive, mixed, distilled = (
        next(fine_tune(replace(recipe, distillation=share), tmp_path))[1] for share in (0.0, 0.25, 1.0)
    )
    assert distilled != pytest.approx(contrastive, rel=0.01)
    assert mixed == pytest.approx(0.75 * contrastive + 0.25 * distilled, rel=1e-4)


def test_the_encoder_remembers_as_notellm_does(subjects: Data, tmp_path: Path):
    """From the first step on it is compared with all notes of the data set, which are more negatives."""
    recipe = Recipe(name="r", data=(subjects,), batch_pairs=4, steps=2, evaluate_every=2, validation_min_score=0)
    without, remembering = (next(fine_tune(replace(recipe, memory=memory), tmp_path))[1] for memory in (False, True))
    assert remembering > without + 0.1


def test_training_ends_when_validation_no_longer_rises(categories_recipe: Recipe, tmp_path: Path):
    still = replace(categories_recipe, learning_rate=0.0, head_learning_rate=0.0, evaluate_every=1, patience=2)
    figures = [figure for _, _, figure in fine_tune(still, tmp_path)]
    assert len(set(figures)) == 1
    assert len(figures) == 3


def test_categories_are_log_probabilities_in_the_columns_asked_for():
    head = CategoryEncoder(["a", "b", "c"])
    own = head.category_log_probs(NOTES, ["a", "b", "c"])
    np.testing.assert_allclose(np.exp(own).sum(1), 1, rtol=1e-5)
    asked = head.category_log_probs(NOTES, ["c", "of another world", "a"])
    np.testing.assert_array_equal(asked[:, [0, 2]], own[:, [2, 0]])
    assert (asked[:, 1] == np.float32(UNSEEN)).all()
    assert np.isfinite(asked).all()


def test_a_saved_head_is_the_same_head(tmp_path: Path):
    head = CategoryEncoder(["Küche", "b"])
    head.save(tmp_path)
    loaded = system(str(tmp_path), (), tmp_path, "auto", silent)
    assert isinstance(loaded, CategoryEncoder)
    expected = head.category_log_probs(NOTES, ["b", "Küche"])
    np.testing.assert_allclose(loaded.category_log_probs(NOTES, ["b", "Küche"]), expected, atol=1e-6)


def test_notes_without_categories_cannot_be_trained_on(tmp_path: Path):
    (tmp_path / "notes.jsonl").write_text('{"id": "1", "title": "t"}\n')
    recipe = Recipe(name="c", data=(Data(notes=tmp_path / "notes.jsonl"),), contrastive=False)
    with pytest.raises(DatasetError, match="category"):
        fine_tune(recipe, tmp_path)


def test_the_command_fine_tunes_on_pairs_and_keeps_the_best(subjects: Data, tmp_path: Path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'name = "r"\nbatch_pairs = 4\nsteps = 2\nvalidation_min_score = 0\n'
        f'[[data]]\nnotes = "{subjects.notes}"\npairs = "{subjects.pairs}"\n'
    )
    result = CliRunner().invoke(app, ["train-encoder", "--config", str(recipe), "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert "validation Recall@100" in result.output
    best = SentenceEncoder(tmp_path / "run" / BEST)
    assert not np.allclose(best.embed(NOTES), SentenceEncoder().embed(NOTES), atol=1e-6)


class ByTitle:
    """Scores are numbers: 1 / (1 + distance) of the titles. It keeps what it was shown."""

    name = "by title"

    def __init__(self) -> None:
        self.shown: list[Note] = []

    def related(self, notes: Sequence[Note]) -> Scorer:
        self.shown = list(notes)
        at = np.array([float(note.title) for note in notes])
        return lambda rows: 1 / (1 + np.abs(at[rows][:, None] - at))


KNOWN = [
    Note(id="a", title="1", hashtags=("x", "Y")),  # 1/2 from a query at 0
    Note(id="b", title="2", hashtags=("z",)),  # 1/3
    Note(id="c", title="3", hashtags=("y", "w")),  # 1/4
    Note(id="d", title="9", hashtags=("z",)),  # 1/10
    Note(id="e", title="0"),
]


def test_copied_hashtags_rank_by_the_scores_of_the_neighbours_that_have_them():
    query = Note(id="q", title="0")
    # Y and y are one: 1/2 + 1/4. x: 1/2. z: 1/3 + 1/10. w: 1/4.
    assert CopiedHashtags(ByTitle(), KNOWN).hashtags([query], 9) == [("Y", "x", "z", "w")]
    assert CopiedHashtags(ByTitle(), KNOWN).hashtags([query], 2) == [("Y", "x")]
    # Of one neighbour both weigh the same: the smaller key is first.
    assert CopiedHashtags(ByTitle(), KNOWN, neighbours=1).hashtags([query], 9) == [("x", "Y")]


def test_a_note_does_not_copy_its_own_hashtags():
    rival = ByTitle()
    (copied,) = CopiedHashtags(rival, KNOWN, neighbours=1).hashtags([KNOWN[0]], 9)
    assert copied == ("z",)
    assert rival.shown[-1] == Note(id="a", title="1")


def test_a_record_says_that_its_hashtags_are_copied():
    record = Record(system="by title", data="d", split="test", with_hashtags=True)
    copied = with_copied_hashtags(record, ByTitle(), [Note(id="own", title="0", hashtags=("x",))], KNOWN, silent)
    assert (record.hashtags_from, copied.hashtags_from) == ("written", "copied")
    assert copied.hashtags is not None
    assert copied.hashtags.recall == [[0.0, 1.0, 1.0]]  # Y, then x


def test_every_query_of_many_gets_its_own_neighbours():
    known = [Note(id=str(i), title=str(i), hashtags=(f"h{i}",)) for i in range(5)]
    queries = [Note(id=f"q{i}", title=str(i % 5)) for i in range(QUERY_BATCH_SIZE + 7)]
    copied = CopiedHashtags(ByTitle(), known, neighbours=1).hashtags(queries, 1)
    assert copied == [(f"h{i % 5}",) for i in range(len(queries))]


def test_hashtags_are_copied_through_a_real_rival(encoder: SentenceEncoder):
    known = [Note(id="1", title="a puppy", hashtags=("dogs",)), Note(id="2", title="tax law", hashtags=("money",))]
    for rival in (encoder, TfIdf()):
        copied = CopiedHashtags(rival, known, neighbours=1).hashtags([Note(title="a puppy in the law")], 1)
        assert copied == [("dogs",)], rival.name


def test_frequent_hashtags_are_the_same_for_everybody_and_the_most_frequent_first():
    known = [Note(hashtags=("b", "a")), Note(hashtags=("New York", "c")), Note(hashtags=("newyork",))]
    assert FrequentHashtags(known).hashtags([Note(), Note(title="t")], 3) == [("New York", "a", "b")] * 2
