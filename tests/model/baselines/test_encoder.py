"""Tests of the encoder that NoteLLM is compared with: its vectors, its training, and its category head."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from model.baselines.adapted_encoder import AdaptedEncoder
from model.baselines.encoder import (
    CATEGORIES_FILE,
    UNSEEN,
    CategoryEncoder,
    SentenceEncoder,
    fine_tune,
    plain_text,
)
from model.baselines.loading import adapted_encoder
from model.config import CheckpointError
from model.data.dataset import DatasetError, read_notes
from model.data.pairs import PairOptions, related_pairs, split_of
from model.evaluation.ranking import cosine
from model.note import Note
from model.training.recipe import Data, Recipe, RecipeError
from model.training.trainer import BEST, LOG
from model.training.whiten import whitening
from service.cli.main import app
from tests.model.training.runs import begin_run, training_in

pytestmark = pytest.mark.slow

NOTES = [
    Note(title="bread in paris", hashtags=("baking",)),
    Note(title="paris by night"),
    Note(title="bread bread bread", content="and butter"),
    Note(title="a horse"),
]


def test_plain_text_has_title_content_and_hashtags():
    assert plain_text(Note(title="t", content="c", hashtags=("a b", "d"))) == "t c #a b #d"


def test_encoder_gives_unit_vectors_that_know_what_is_alike(encoder: SentenceEncoder):
    vectors = encoder.embed(NOTES)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    scores = encoder.related([Note(title="a dog"), Note(title="a puppy"), Note(title="tax law")])(np.array([0]))
    assert scores[0, 1] > scores[0, 2]


def test_encoder_vector_does_not_depend_on_its_batch(encoder: SentenceEncoder):
    notes = [Note(title="word " * (i * 7 % 40)) for i in range(60)]  # three groups, lengths mixed
    alone = np.concatenate([encoder.embed([note]) for note in notes])
    np.testing.assert_allclose(encoder.embed(notes), alone, atol=1e-5)


def test_encoder_of_no_notes_gives_no_vectors(encoder: SentenceEncoder):
    assert encoder.embed([]).shape == (0, 384)


def test_encoder_gradients_pass_through_all_forwards(encoder: SentenceEncoder):
    notes = [Note(title="word " * (i * 7 % 40)) for i in range(30)]

    def gradient(vectors: torch.Tensor) -> torch.Tensor:
        weight = encoder.backbone.embeddings.LayerNorm.weight
        (computed,) = torch.autograd.grad(vectors[:, 0].square().sum(), weight)
        return computed

    by_row = torch.cat([encoder([note]) for note in notes])
    torch.testing.assert_close(gradient(encoder(notes)), gradient(by_row), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("training", [True, False])
def test_embed_leaves_the_mode_as_it_was(encoder: SentenceEncoder, training: bool):
    before = encoder.embed(NOTES)
    encoder.train(training)
    try:
        np.testing.assert_allclose(encoder.embed(NOTES), before, atol=1e-6)  # no dropout, no bfloat16
        assert {module.training for module in encoder.modules()} == {training}
    finally:
        encoder.eval()


SUBJECTS = {
    "baking": "bread dough oven flour yeast crust butter",
    "travel": "paris train hotel beach island flight museum",
    "tax": "income deduction return audit refund form law",
}


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """120 notes of three subjects that differ in their words, with pairs inside each; half are of the first subject.

    One validation note has a category that training never shows.
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
    told = list[str]()
    list(fine_tune(categories_recipe, folder, told.append))
    assert [line for line in told if " with a category" in line]
    return folder


def new_folder(parent: Path, name: object) -> Path:
    folder = parent / str(name)
    folder.mkdir()
    return folder


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


def test_trained_head_beats_the_majority_class(trained_head: Path):
    steps = logged(trained_head)
    assert [step["validation"] is not None for step in steps] == [i % 6 == 0 for i in range(1, 13)]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert steps[-1]["validation"] < 1  # because of the category that training never showed
    head = CategoryEncoder.load(trained_head / BEST)
    assert head.categories == tuple(sorted(SUBJECTS))  # only those of the training split
    notes = [Note(title=words) for words in SUBJECTS.values()]
    log_probs = head.category_log_probs(notes, list(SUBJECTS))
    assert log_probs.argmax(1).tolist() == [0, 1, 2]


def test_head_trained_twice_with_a_seed_is_the_same(categories_recipe: Recipe, trained_head: Path, tmp_path: Path):
    again = [loss for _, loss, _ in islice(fine_tune(categories_recipe, tmp_path), 2)]
    assert again == pytest.approx([step["loss"] for step in logged(trained_head)[:2]], abs=1e-6)


def test_encoder_distils_from_the_teacher_that_notellm_gets(subjects: Data, tmp_path: Path):
    recipe = Recipe(name="r", data=(subjects,), batch_pairs=4, steps=2, evaluate_every=2, validation_min_score=0)
    contrastive, mixed, distilled = (
        next(fine_tune(replace(recipe, distillation=share), new_folder(tmp_path, share)))[1]
        for share in (0.0, 0.25, 1.0)
    )
    assert distilled != pytest.approx(contrastive, rel=0.01)
    assert mixed == pytest.approx(0.75 * contrastive + 0.25 * distilled, rel=1e-4)


def test_encoder_with_memory_has_more_negatives(subjects: Data, tmp_path: Path):
    """With a memory each note is compared with all notes of the data set from the first step on."""
    recipe = Recipe(name="r", data=(subjects,), batch_pairs=4, steps=2, evaluate_every=2, validation_min_score=0)
    without, with_memory = (
        next(fine_tune(replace(recipe, memory=memory), new_folder(tmp_path, memory)))[1] for memory in (False, True)
    )
    assert with_memory > without + 0.1


def test_encoder_training_ends_when_validation_stops_rising(categories_recipe: Recipe, tmp_path: Path):
    still = replace(categories_recipe, learning_rate=0.0, head_learning_rate=0.0, evaluate_every=1, patience=2)
    figures = [figure for _, _, figure in fine_tune(still, tmp_path)]
    assert len(set(figures)) == 1
    assert len(figures) == 3


def test_category_columns_are_in_the_requested_order():
    head = CategoryEncoder(["a", "b", "c"])
    all_classes = head.category_log_probs(NOTES, ["a", "b", "c"])
    np.testing.assert_allclose(np.exp(all_classes).sum(1), 1, rtol=1e-5)
    log_probs = head.category_log_probs(NOTES, ["c", "unknown", "a"])
    np.testing.assert_array_equal(log_probs[:, [0, 2]], all_classes[:, [2, 0]])
    assert (log_probs[:, 1] == np.float32(UNSEEN)).all()
    assert np.isfinite(log_probs).all()


def test_notes_without_categories_are_refused(tmp_path: Path):
    (tmp_path / "notes.jsonl").write_text('{"id": "1", "title": "t"}\n')
    recipe = Recipe(name="c", data=(Data(notes=tmp_path / "notes.jsonl"),), contrastive=False)
    with pytest.raises(DatasetError, match="category"):
        fine_tune(recipe, tmp_path / "run")


def test_fields_without_effect_on_an_encoder_are_refused(subjects: Data, tmp_path: Path):
    recipe = Recipe(name="r", data=(subjects,), memory=True, reread_notes=4, start=tmp_path)
    with pytest.raises(RecipeError, match=r"^start, reread_notes: has no effect on an encoder"):
        fine_tune(recipe, tmp_path)
    with pytest.raises(RecipeError, match=r"^frozen_embeddings: has no effect on an encoder"):
        fine_tune(Recipe(name="r", data=(subjects,), lora_rank=0, frozen_embeddings=True), tmp_path)


def test_fields_of_its_data_without_effect_on_an_encoder_are_refused(subjects: Data, tmp_path: Path):
    recipe = Recipe(name="r", data=(replace(subjects, share=0.5, category_names={"baking": ["bread"]}),))
    with pytest.raises(RecipeError, match=r"^share, category_names of \[\[data\]\]: has no effect on an encoder"):
        fine_tune(recipe, tmp_path)


def test_recipe_with_several_data_sets_is_refused_for_an_encoder(subjects: Data, tmp_path: Path):
    recipe = Recipe(name="r", data=(subjects, replace(subjects, pairs=None)))
    with pytest.raises(RecipeError, match=r"an encoder is trained on one \[\[data\]\], but the recipe has 2"):
        fine_tune(recipe, tmp_path)


def test_diverged_encoder_ends_its_run_with_what_to_lower(categories_recipe: Recipe, tmp_path: Path):
    with pytest.raises(RecipeError, match=r"step \d: the loss is .* nan: lower learning_rate or head_learning_rate"):
        list(fine_tune(replace(categories_recipe, learning_rate=1e30), tmp_path))


@pytest.mark.parametrize("task", ["pairs", "categories"])
def test_update_after_which_an_encoder_measures_nan_ends_the_run(
    categories_recipe: Recipe, subjects: Data, tmp_path: Path, task: str
):
    recipe = categories_recipe
    if task == "pairs":
        recipe = Recipe(name="r", data=(subjects,), batch_pairs=4, validation_min_score=0)
    with pytest.raises(RecipeError, match=r"^step 1: after its update .* hold NaN.*: lower learning_rate or head"):
        list(fine_tune(replace(recipe, learning_rate=1e30, evaluate_every=1), tmp_path))
    assert not (tmp_path / BEST).exists()


def test_folder_in_which_another_process_trains_an_encoder_is_refused(categories_recipe: Recipe, tmp_path: Path):
    with training_in(tmp_path), pytest.raises(RecipeError, match="another process trains in"):
        fine_tune(categories_recipe, tmp_path)


def test_train_encoder_fine_tunes_on_pairs_and_keeps_the_best(subjects: Data, tmp_path: Path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'name = "r"\nbatch_pairs = 4\nsteps = 2\nvalidation_min_score = 0\n'
        f'[[data]]\nnotes = "{subjects.notes}"\npairs = "{subjects.pairs}"\n'
    )
    leftover = tmp_path / "run" / BEST / CATEGORIES_FILE
    begin_run(tmp_path / "run", "notellm train-encoder")
    leftover.parent.mkdir()
    leftover.write_text("of another encoder")
    command = ["train-encoder", "--config", str(recipe), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert not leftover.exists()
    pool = sum(split_of(note_id) == "validation" for note_id in read_notes(subjects.notes))
    assert f"Validation recall is Recall@{pool // 10} among {pool} notes" in " ".join(result.stderr.split())
    assert "step 2: validation recall" in result.stderr
    best = SentenceEncoder(tmp_path / "run" / BEST)
    assert not np.allclose(best.embed(NOTES), SentenceEncoder().embed(NOTES), atol=1e-6)
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 1
    assert "holds a run, and runs of an encoder cannot be resumed: choose a new folder" in " ".join(
        again.stderr.split()
    )


def test_adapted_encoder_compares_as_a_checkpoint_of_ours_does(encoder: SentenceEncoder):
    known = [Note(title=f"{subject} number {i}") for subject in ("bread", "law", "horses") for i in range(6)]
    vectors, matrix = encoder.embed(NOTES), whitening([encoder.embed(known)], 8)
    whitened = vectors @ matrix.T
    whitened /= np.linalg.norm(whitened, axis=1, keepdims=True)
    rows = np.arange(len(NOTES))
    adapted = AdaptedEncoder(encoder, known, 8, 0.5)
    assert adapted.name == "minilm, whitened to 8, less 0.5 of the mean"
    np.testing.assert_allclose(adapted.related(NOTES)(rows), cosine(whitened, 0.5)(rows), atol=1e-5)
    with pytest.raises(CheckpointError, match="--whiten 385: vectors of 384 numbers"):
        adapted_encoder(encoder, known, 385, 0.0)
    centred = AdaptedEncoder(encoder, known, None, 0.5)
    assert centred.name == "minilm, less 0.5 of the mean"
    np.testing.assert_allclose(centred.related(NOTES)(rows), cosine(vectors, 0.5)(rows), atol=1e-5)
