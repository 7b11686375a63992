"""Training on a tiny real backbone: exact gradients, falling losses, and a checkpoint that serves."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from model.category_head import CATEGORIES_FILE
from model.config import CheckpointError, NoteLLMConfig
from model.data.dataset import DatasetError, Example, read_notes
from model.data.pairs import split_of
from model.generation import GenerationRequest
from model.inference.engine import Engine
from model.inference.torch_runtime import TorchRuntime
from model.note import Note
from model.training.contrastive import ContrastiveObjective
from model.training.cut_adapter import cut_adapter
from model.training.initialise import UNSTATED_TERMS
from model.training.loss import generative_loss, joint_loss
from model.training.model_card import write_card
from model.training.recipe import Data, Recipe, RecipeError
from model.training.resume import LAST
from model.training.teacher import write_vectors
from model.training.trainer import BEST, FINAL, LOG, Step, Trainer
from model.weights import ADAPTER_FILE, ADAPTER_FOLDER, HEAD_FILE
from tests.model.pairs_file import write_pairs_file
from tests.model.training.runs import random_vectors
from tests.models import in_torch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished_run(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of all steps of the recipe. It is shared: a test must not change it."""
    folder = tmp_path_factory.mktemp("run")
    list(Trainer(recipe, folder, cache=folder).run())
    return folder


def gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}


def batch_of(trainer: Trainer) -> tuple[list[Note], list[Example], ContrastiveObjective]:
    """First batch of a run: its notes, their examples, and the objective of their data set."""
    index, notes = next(trainer._batches())
    objective = trainer.objectives[index]
    assert objective is not None
    return notes, [trainer._example(note, random.Random(i)) for i, note in enumerate(notes)], objective


@pytest.mark.parametrize("lora_rank", [4, 0])
@pytest.mark.parametrize("kept_tokens", [0, 100_000])
@pytest.mark.parametrize("micro_batch_tokens", [60, 100_000])
def test_gradients_of_micro_batches_equal_one_backward(
    recipe: Recipe, tmp_path: Path, lora_rank: int, micro_batch_tokens: int, kept_tokens: int
):
    recipe = replace(
        recipe, lora_rank=lora_rank, micro_batch_tokens=micro_batch_tokens, kept_tokens=kept_tokens, alpha=0.5
    )
    check_gradients(Trainer(recipe, tmp_path, cache=tmp_path))


@pytest.mark.parametrize("kept_tokens", [0, 100_000])
@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("distillation", [0.0, 0.7])
def test_gradients_beyond_gcl_equal_one_backward(
    recipe: Recipe, tmp_path: Path, distillation: float, memory: bool, kept_tokens: int
):
    recipe = replace(recipe, micro_batch_tokens=60, kept_tokens=kept_tokens, alpha=0.5)
    trainer = Trainer(replace(recipe, distillation=distillation, memory=memory), tmp_path, cache=tmp_path)
    notes, _, objective = batch_of(trainer)
    objective.update_memory(objective.notes, random_vectors(len(objective.notes)))
    if objective.teacher_vectors is not None:
        objective.teacher_vectors[objective.rows([notes[3]])] = 0  # a note without a teacher's vector
    check_gradients(trainer)


@pytest.mark.parametrize("kept_tokens", [0, 100_000])
def test_gradients_of_input_hashtags_equal_one_backward(recipe: Recipe, tmp_path: Path, kept_tokens: int):
    recipe = replace(recipe, micro_batch_tokens=60, kept_tokens=kept_tokens, alpha=0.5, hashtag_share=0.3)
    trainer = Trainer(replace(recipe, prompt_version="note-first/2", input_hashtags=True), tmp_path, cache=tmp_path)
    _, examples, _ = batch_of(trainer)
    assert {e.targets[0] <= e.read_out for e in examples} == {False, True}  # both tasks
    check_gradients(trainer)


def check_gradients(trainer: Trainer) -> None:
    """Compare gradients and losses of `accumulate` with one forward and backward of the whole batch."""
    notes, examples, objective = batch_of(trainer)
    recipe, tau = trainer.recipe, trainer.model.tau
    loss = trainer.accumulate(examples, partial(objective.loss, notes, tau=tau))
    accumulated = gradients(trainer)
    trainer.model.zero_grad()

    vectors, logits, targets = trainer._forward(examples)
    direct = joint_loss(objective.loss(notes, vectors, tau), generative_loss(logits, targets), recipe.alpha)
    assert (direct.distillation > 0) == (recipe.distillation > 0)
    direct.total.backward()
    expected = gradients(trainer)
    assert accumulated.keys() == expected.keys()
    assert {"tau", "projection.weight"} < expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(accumulated[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    for part, whole in zip(loss, direct, strict=True):
        torch.testing.assert_close(part, whole.detach(), rtol=1e-5, atol=1e-6)


def test_batch_without_related_notes_trains_csft_alone(recipe: Recipe, tmp_path: Path):
    trainer = Trainer(replace(recipe, alpha=0.5, micro_batch_tokens=60), tmp_path, cache=tmp_path)
    _, examples, _ = batch_of(trainer)
    loss = trainer.accumulate(examples)
    accumulated = gradients(trainer)
    trainer.model.zero_grad()
    _, logits, targets = trainer._forward(examples)
    generative = generative_loss(logits, targets)
    generative.backward()
    torch.testing.assert_close(loss.generative, generative.detach())
    assert (loss.contrastive, loss.distillation) == (0, 0)
    assert "tau" not in accumulated
    for name, gradient in gradients(trainer).items():
        torch.testing.assert_close(accumulated[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_checkpointed_activations_give_the_same_gradients(recipe: Recipe, tmp_path: Path):
    kept, checkpointed = ({}, {})
    for into, checkpoint_activations in ((kept, False), (checkpointed, True)):
        trainer = Trainer(replace(recipe, checkpoint_activations=checkpoint_activations), tmp_path, cache=tmp_path)
        notes, examples, objective = batch_of(trainer)
        trainer.accumulate(examples, partial(objective.loss, notes, tau=trainer.model.tau))
        into |= gradients(trainer)
    assert kept.keys() == checkpointed.keys()
    for name, gradient in kept.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)


def test_sixty_steps_lower_the_losses_and_raise_recall(recipe: Recipe, tmp_path: Path):
    trainer = Trainer(
        replace(recipe, steps=60, evaluate_every=60, batch_pairs=8, learning_rate=2e-3), tmp_path, cache=tmp_path
    )
    before = trainer.validation_recall()
    steps = list(trainer.run())
    assert sum(s.contrastive for s in steps[-5:]) < 0.7 * sum(s.contrastive for s in steps[:5])
    assert sum(s.generative for s in steps[-5:]) < sum(s.generative for s in steps[:5])
    assert steps[-1].recall > before


def test_diverged_run_ends_before_the_step_that_would_spoil_its_state(recipe: Recipe, tmp_path: Path):
    trainer = Trainer(replace(recipe, steps=50, save_every=1, evaluate_every=100), tmp_path, cache=tmp_path)
    run = trainer.run()
    next(run)
    next(run)
    with torch.no_grad():
        trainer.model.projection.weight.fill_(1e38)
    next_of_run = (
        r"step 3: the loss is .* and the gradient norm nan: lower learning_rate .*last\.pt has the state of step 2"
    )
    with pytest.raises(RecipeError, match=next_of_run):
        next(run)
    state = torch.load(tmp_path / LAST, weights_only=True)
    assert state["progress"][0] == 2
    assert all(weight.isfinite().all() for weight in state["weights"].values())


def test_update_after_which_vectors_are_nan_ends_the_run_unsaved(recipe: Recipe, tmp_path: Path):
    trainer = Trainer(replace(recipe, learning_rate=1e30, steps=2, evaluate_every=1), tmp_path, cache=tmp_path)
    with pytest.raises(RecipeError, match=r"^step 1: after its update scores hold NaN, .*: lower learning_rate or"):
        next(trainer.run())
    assert not (tmp_path / LAST).exists()
    assert not (tmp_path / BEST).exists()


def test_log_begins_anew_where_a_run_was_killed_before_its_first_state(recipe: Recipe, tmp_path: Path):
    next(Trainer(recipe, tmp_path, cache=tmp_path).run())
    assert not (tmp_path / LAST).exists()
    list(Trainer(replace(recipe, batch_pairs=3), tmp_path, cache=tmp_path).run())
    logged = [json.loads(line)["step"] for line in (tmp_path / LOG).read_text().splitlines()]
    assert logged == [1, 2, 3, 4, 5, 6]


def test_folder_of_an_encoder_is_refused_and_left_as_it_is(recipe: Recipe, tmp_path: Path):
    (tmp_path / BEST).mkdir()
    (tmp_path / BEST / CATEGORIES_FILE).write_text("of an encoder")
    (tmp_path / LOG).write_text('{"step": 1}\n')
    before = {path for path in tmp_path.rglob("*")}
    with pytest.raises(RecipeError, match="holds files that are not of a run of notellm train"):
        list(Trainer(recipe, tmp_path, cache=tmp_path).run())
    assert {path for path in tmp_path.rglob("*")} == before
    assert (tmp_path / LOG).read_text() == '{"step": 1}\n'


@pytest.mark.parametrize("changes", [{"alpha": 0.0}, {"hashtag_share": 1.0}, {"hide_hashtags": 1.0}])
def test_categories_that_no_note_is_taught_count_as_unseen(recipe: Recipe, tmp_path: Path, changes: dict[str, float]):
    trainer = Trainer(replace(recipe, **changes), tmp_path, cache=tmp_path)
    assert trainer.model.config.trained_categories == ("",)


def test_categories_and_their_synonyms_count_as_trained(recipe: Recipe, data: Data, tmp_path: Path):
    row = replace(data, category_names={"Bread": ["Baking", "Loaves"], "Nothing": ["Void"]})
    trained = Trainer(replace(recipe, data=(row,)), tmp_path, cache=tmp_path).model.config.trained_categories
    names = {note.category for i, note in read_notes(data.notes).items() if split_of(i) == "train"}
    assert trained == tuple(sorted({*names, "Baking", "Loaves"}))


def test_notes_without_categories_leave_every_name_unseen(recipe: Recipe, data: Data, tmp_path: Path):
    lines = [json.loads(line) | {"category": None} for line in data.notes.read_text().splitlines()]
    (tmp_path / "notes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = replace(recipe, data=(replace(data, notes=tmp_path / "notes.jsonl"),))
    assert Trainer(recipe, tmp_path / "run", cache=tmp_path).model.config.trained_categories == ("",)


def test_categories_of_notes_that_are_never_drawn_count_as_unseen(recipe: Recipe, data: Data, tmp_path: Path):
    for name, category in (("alone", "Alone"), ("unshared", "Unshared")):
        note = {
            "id": next(f"n{i}" for i in range(9) if split_of(f"n{i}") == "train"),
            "category": category,
            "title": "t",
        }
        (tmp_path / name).write_text(data.notes.read_text() + json.dumps(note) + "\n")
    rows = (replace(data, notes=tmp_path / "alone"), Data(notes=tmp_path / "unshared", share=0.0))
    trained = Trainer(replace(recipe, data=rows), tmp_path / "run", cache=tmp_path).model.config.trained_categories
    assert {"Bread"} <= set(trained)
    assert not {"Alone", "Unshared"} & set(trained)


@pytest.mark.parametrize(
    ("earlier", "writing", "alpha", "expected"),
    [
        (("Earlier",), False, 0.0, {"Earlier"}),
        (("Earlier",), False, 0.01, {"Earlier", "Bread"}),
        (("",), False, 0.0, {""}),
        (("",), False, 0.01, {"Bread"}),
        ((), False, 0.0, set()),  # () stands for all names
        ((), False, 0.01, {"Bread"}),
        (("Earlier",), True, 0.0, {""}),  # the writing adapter is not taken over
    ],
)
def test_categories_that_the_start_was_trained_on_stay_so(
    recipe: Recipe,
    finished_run: Path,
    tmp_path: Path,
    earlier: tuple[str, ...],
    writing: bool,
    alpha: float,
    expected: set[str],
):
    start = Path(shutil.copytree(finished_run / BEST, tmp_path / BEST))
    config = NoteLLMConfig.load(start)
    replace(config, trained_categories=earlier, generation_adapter=writing).save(start)
    later = Trainer(replace(recipe, start=start, alpha=alpha), tmp_path / "run", cache=tmp_path)
    others = set(config.trained_categories) - {"Bread"}
    assert set(later.model.config.trained_categories) - others == expected


def test_validation_recall_of_a_small_pool_is_at_a_tenth_of_it(recipe: Recipe, tmp_path: Path):
    """At 100, every note of the pool would count as a hit, and the first evaluation would stay the best."""
    steps = list(Trainer(replace(recipe, steps=3), tmp_path, cache=tmp_path).run())
    assert (steps[-1].recall_at, recipe.validation_notes) == (4, 40)
    assert 0 < steps[-1].recall < 1


def test_checkpoint_takes_the_place_of_an_earlier_one_and_all_that_was_in_it(recipe: Recipe, tmp_path: Path):
    trainer = Trainer(recipe, tmp_path, cache=tmp_path)
    for leftover in (BEST, f"{BEST}.unfinished", f"{BEST}.previous"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / CATEGORIES_FILE).write_text("of other vectors")
    trainer._save_checkpoint(BEST)
    assert in_torch(tmp_path / BEST, tmp_path).dimension == 16
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(BEST)] == [BEST]
    assert not (tmp_path / BEST / CATEGORIES_FILE).exists()


def test_checkpoint_that_cannot_be_written_leaves_the_earlier_one(recipe: Recipe, tmp_path: Path):
    trainer = Trainer(recipe, tmp_path, cache=tmp_path)
    trainer._save_checkpoint(BEST)
    before = {path: path.read_bytes() for path in (tmp_path / BEST).rglob("*") if path.is_file()}
    trainer.model.config = replace(trainer.model.config, backbone="another")
    trainer.adapter = None
    trainer.model.tokenizer = None  # it is written after the weights
    with pytest.raises(AttributeError):
        trainer._save_checkpoint(BEST)
    assert {path: path.read_bytes() for path in (tmp_path / BEST).rglob("*") if path.is_file()} == before


def test_batch_of_fewer_pairs_than_processes_is_refused(recipe: Recipe, tmp_path: Path):
    trainer = Trainer(replace(recipe, batch_pairs=2), tmp_path, cache=tmp_path)
    trainer.ranks = 3
    with pytest.raises(DatasetError, match="a batch has 2 pairs that share no note, fewer than the 3 processes"):
        next(trainer.run())


def hub_of(folder: Path, notes: Path, hubs: int) -> Data:
    """Write pairs that relate each of `hubs` notes of a split to five others: a batch has at most `hubs` pairs."""
    ids = list(read_notes(notes))
    rows = []
    for split in ("train", "validation"):
        own = [note_id for note_id in ids if split_of(note_id) == split]
        rows += [f"('{own[hub]}', '{own[hubs + 5 * hub + i]}', 1.0)" for hub in range(hubs) for i in range(5)]
    return Data(notes=notes, pairs=write_pairs_file(folder / "hub.parquet", ", ".join(rows)))


def test_short_batches_are_told_and_counted_in_the_card(recipe: Recipe, data: Data, tmp_path: Path):
    told: list[str] = []
    row = hub_of(tmp_path, data.notes, 3)
    recipe = replace(recipe, data=(row,), steps=2)
    trainer = Trainer(recipe, tmp_path / "run", cache=tmp_path, progress=told.append)
    assert f"{row.pairs}: a batch has 3 pairs that share no note, fewer than batch_pairs = 4" in told
    list(trainer.run())
    assert "- 2 steps of 3 pairs in " in write_card(trainer, ["notellm"], "commit").read_text()


def test_batches_of_one_pair_are_refused_without_other_notes_to_compare(recipe: Recipe, data: Data, tmp_path: Path):
    recipe = replace(recipe, data=(hub_of(tmp_path, data.notes, 1),))
    with pytest.raises(DatasetError, match=r"hub\.parquet: a batch has only one pair, .* or set memory = true"):
        Trainer(recipe, tmp_path / "run", cache=tmp_path)
    step = next(Trainer(replace(recipe, memory=True), tmp_path / "run", cache=tmp_path).run())
    assert step.contrastive > 0


def test_run_on_batches_of_one_pair_that_an_earlier_version_began_goes_on(
    recipe: Recipe, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = replace(recipe, data=(hub_of(tmp_path, data.notes, 1),), steps=2, save_every=1)
    with monkeypatch.context() as earlier_version:
        earlier_version.setattr("model.training.trainer.check_batches", lambda *_, **__: None)
        next(Trainer(recipe, tmp_path / "run", cache=tmp_path).run())
    (step,) = Trainer(recipe, tmp_path / "run", cache=tmp_path).run()
    assert step.step == 2
    assert step.contrastive == 0
    assert step.generative > 0


def test_run_tells_which_pairs_and_vectors_count(recipe: Recipe, data: Data, tmp_path: Path):
    notes = list(read_notes(data.notes))
    known = [note_id for note_id in notes if split_of(note_id) == "train"][:-1]
    write_vectors(tmp_path / "t.npz", known, np.eye(len(known), dtype=np.float32))
    (tmp_path / "notes.jsonl").write_text("".join(data.notes.read_text().splitlines(keepends=True)[1:]))
    told: list[str] = []
    row = replace(data, notes=tmp_path / "notes.jsonl", teacher=tmp_path / "t.npz")
    recipe = replace(recipe, data=(row,), distillation=0.5)
    trainer = Trainer(recipe, tmp_path / "run", cache=tmp_path, progress=told.append)
    counts = trainer.data[0].counts
    assert counts.unknown > 0
    assert (
        f"{data.pairs}: {counts.read:,} pairs, {counts.in_split:,} between training notes, {counts.unknown} left out, "
        f"since a note of theirs is not in {row.notes}"
    ) in told
    summary = f"{row.notes}: 399 notes, 399 with a title or content, 399 with hashtags, 399 with a category"
    assert told.count(summary) == 1  # though the validation split is read, too
    training_notes = len(trainer.data[0].notes)
    assert f"{row.teacher}: has vectors for {100 - 100 / training_notes:.1f}% of the training notes" in told


@pytest.mark.parametrize("lora_rank", [4, 0])
def test_best_checkpoint_serves_what_was_trained(recipe: Recipe, tmp_path: Path, lora_rank: int):
    recipe = replace(recipe, lora_rank=lora_rank, steps=3)
    trainer = Trainer(recipe, tmp_path, cache=tmp_path)
    list(trainer.run())
    engine = in_torch(tmp_path / BEST, tmp_path)
    notes = [Note(title="river"), Note(title="bread", hashtags=("daily",))]
    np.testing.assert_allclose(engine.embed(notes), Engine(TorchRuntime(trainer.model)).embed(notes), atol=1e-5)
    assert engine.dimension == 16
    assert engine.name == "tiny-trained"
    assert (tmp_path / BEST / "adapter").is_dir() == bool(lora_rank)
    assert (tmp_path / BEST / "backbone").is_dir() != bool(lora_rank)
    final = in_torch(tmp_path / FINAL, tmp_path)
    np.testing.assert_allclose(final.embed(notes), engine.embed(notes), atol=1e-5)  # the last step was the best


def test_prompt_version_of_the_recipe_is_trained_and_served(recipe: Recipe, tmp_path: Path):
    trainer = Trainer(replace(recipe, steps=2, prompt_version="task-first/1"), tmp_path, cache=tmp_path)
    steps = list(trainer.run())
    assert all(step.contrastive > 0 and step.generative > 0 for step in steps)
    engine = in_torch(tmp_path / BEST, tmp_path)
    note = Note(title="river", hashtags=("daily",))
    assert engine.tokenize(note, GenerationRequest(3)) == Engine(TorchRuntime(trainer.model)).tokenize(
        note, GenerationRequest(3)
    )
    np.testing.assert_allclose(engine.embed([note]), Engine(TorchRuntime(trainer.model)).embed([note]), atol=1e-5)


def test_shards_without_torchrun_are_refused_before_anything_is_read(recipe: Recipe, tmp_path: Path):
    with pytest.raises(RecipeError, match="shard = true requires torchrun"):
        Trainer(replace(recipe, shard=True), tmp_path / "run", cache=tmp_path)
    assert not (tmp_path / "run").exists()


def test_unknown_prompt_version_is_refused(recipe: Recipe, tmp_path: Path):
    with pytest.raises(CheckpointError, match="task-first/0"):
        Trainer(replace(recipe, prompt_version="task-first/0"), tmp_path, cache=tmp_path)


def test_training_ends_when_validation_recall_stops_rising(recipe: Recipe, tmp_path: Path):
    trainer = Trainer(
        replace(recipe, steps=50, evaluate_every=1, patience=2, learning_rate=0.0, head_learning_rate=0.0),
        tmp_path,
        cache=tmp_path,
    )
    assert len(list(trainer.run())) == 3


def test_log_holds_every_step_with_its_losses(recipe: Recipe, tmp_path: Path):
    steps = list(Trainer(recipe, tmp_path, cache=tmp_path).run())
    logged = [Step(**json.loads(line)) for line in (tmp_path / LOG).read_text().splitlines()]
    assert logged == steps
    assert [step.step for step in steps] == [1, 2, 3, 4, 5, 6]
    assert [step.recall is not None for step in steps] == [False, False, True, False, False, True]


def test_loss_that_the_recipe_turns_off_is_zero(recipe: Recipe, tmp_path: Path):
    for name, changes in {"gcl": {"alpha": 0.0}, "csft": {"contrastive": False}}.items():
        (tmp_path / name).mkdir()
        step = next(Trainer(replace(recipe, **changes), tmp_path / name, cache=tmp_path).run())
        assert (step.generative == 0) == (name == "gcl")
        assert (step.contrastive == 0) == (name == "csft")
        assert step.loss == (step.contrastive or step.generative)
        assert step.gradient_norm > 0


def test_notes_without_pairs_train_csft_and_keep_the_latest(recipe: Recipe, data: Data, tmp_path: Path):
    recipe = replace(recipe, data=(replace(data, pairs=None),), contrastive=False, steps=2)
    steps = list(Trainer(recipe, tmp_path, cache=tmp_path).run())
    assert all(step.generative > 0 and step.recall is None for step in steps)
    assert in_torch(tmp_path / BEST, tmp_path).dimension == 16


def test_later_stage_starts_from_the_weights_of_an_earlier_one(recipe: Recipe, finished_run: Path, tmp_path: Path):
    later = Trainer(replace(recipe, start=finished_run / BEST), tmp_path, cache=tmp_path)
    notes = [Note(title="river")]
    served = in_torch(finished_run / BEST, tmp_path).embed(notes)
    np.testing.assert_allclose(Engine(TorchRuntime(later.model)).embed(notes), served, atol=1e-5)


def test_full_fine_tuning_starts_from_an_adapter_and_then_from_its_own_checkpoint(
    recipe: Recipe, finished_run: Path, tmp_path: Path
):
    notes = [Note(title="river")]
    start = finished_run / BEST
    for name in ("second", "third"):
        later = Trainer(replace(recipe, start=start, lora_rank=0, steps=1), tmp_path / name, cache=tmp_path)
        served = in_torch(start, tmp_path).embed(notes)
        np.testing.assert_allclose(Engine(TorchRuntime(later.model)).embed(notes), served, atol=1e-5)
        assert float(later.model.tau.detach()) == float(load_file(start / HEAD_FILE)["tau"])
        assert next(later.run()).gradient_norm > 0
        start = tmp_path / name / BEST
    with pytest.raises(CheckpointError, match="set dimension = 16"):
        Trainer(replace(recipe, start=start, lora_rank=0, dimension=8), tmp_path / "other", cache=tmp_path)
    with pytest.raises(CheckpointError, match="has no adapter to continue from: set lora_rank = 0"):
        Trainer(replace(recipe, start=start), tmp_path / "other", cache=tmp_path)


def test_full_fine_tuning_leaves_frozen_embeddings_as_they_are(recipe: Recipe, tmp_path: Path):
    frozen = Trainer(replace(recipe, lora_rank=0, frozen_embeddings=True, steps=1), tmp_path / "run", cache=tmp_path)
    embeddings = frozen.model.backbone.get_input_embeddings().weight
    other = frozen.model.backbone.base_model.layers[0].mlp.up_proj.weight
    before = [weight.detach().clone() for weight in (embeddings, other)]
    assert next(frozen.run()).gradient_norm > 0
    assert torch.equal(embeddings, before[0])
    assert not torch.equal(other, before[1])


def test_later_stage_starts_from_an_adapter_of_a_lower_rank_and_other_scale(
    recipe: Recipe, finished_run: Path, tmp_path: Path
):
    cut_adapter(finished_run / BEST, 2, tmp_path / "cut")
    (tmp_path / "later").mkdir()
    later = Trainer(replace(recipe, start=tmp_path / "cut"), tmp_path / "later", cache=tmp_path)
    notes = [Note(title="river")]
    served = in_torch(tmp_path / "cut", tmp_path).embed(notes)
    np.testing.assert_allclose(Engine(TorchRuntime(later.model)).embed(notes), served, atol=1e-5)
    assert next(later.run()).gradient_norm > 0


def test_later_stage_of_a_lower_rank_is_refused(recipe: Recipe, finished_run: Path, tmp_path: Path):
    best = finished_run / BEST
    with pytest.raises(CheckpointError, match=rf"^{best}/adapter has rank 4: choose a rank of at least 4"):
        Trainer(replace(recipe, start=best, lora_rank=2), tmp_path, cache=tmp_path)


def test_later_stage_keeps_the_settings_of_the_checkpoint_that_it_starts_from(recipe: Recipe, tmp_path: Path):
    first = Trainer(recipe, tmp_path, cache=tmp_path)
    first.model.config = replace(
        first.model.config, licence="own", max_content_windows=11, scripts=("LATIN",), languages=("en",),
        categories=("Food", "Travel"), name_cosine_weight=64.0, mean_share=0.5,
    )  # fmt: skip
    first._save_checkpoint(BEST)
    best, told = tmp_path / BEST, list[str]()
    replace(NoteLLMConfig.load(best), generation_adapter=True, generation_trunk="its trunk").save(best)
    later = replace(recipe, name="later", start=best)
    trained = Trainer(later, tmp_path / "later", cache=tmp_path, progress=told.append).model
    licence = f"own; trained on data with these terms: {UNSTATED_TERMS}"
    assert trained.config == replace(first.model.config, name="later", licence=licence)
    for line in (
        f"generation adapter of {best} is not copied",
        "only read notes in LATIN (`scripts`)",
        "`languages` en",
    ):
        assert line in " ".join(told)


def test_licence_names_the_terms_of_the_data_of_each_stage_once(recipe: Recipe, tmp_path: Path):
    recipe = replace(recipe, data=[replace(row, terms="ours") for row in recipe.data])
    Trainer(recipe, tmp_path, cache=tmp_path)._save_checkpoint(BEST)
    (tmp_path / "later").mkdir()
    others = [replace(row, terms="theirs") for row in recipe.data]
    later = replace(recipe, start=tmp_path / BEST, data=[*recipe.data, *others])
    licence = Trainer(later, tmp_path / "later", cache=tmp_path).model.config.licence
    assert licence.endswith("trained on data with these terms: ours; trained on data with these terms: theirs")
    assert licence.count("ours") == 1


def test_later_stage_of_another_dimension_names_the_one_to_set(recipe: Recipe, tmp_path: Path):
    Trainer(recipe, tmp_path, cache=tmp_path)._save_checkpoint(BEST)
    with pytest.raises(CheckpointError, match=r"vectors of 16 numbers, not 8: set dimension = 16"):
        Trainer(replace(recipe, start=tmp_path / BEST, dimension=8), tmp_path, cache=tmp_path)


def test_adapter_on_a_checkpoint_is_refused(recipe: Recipe, tmp_path: Path):
    Trainer(recipe, tmp_path, cache=tmp_path)._save_checkpoint(BEST)
    with pytest.raises(CheckpointError, match=r"best is a checkpoint, .* set `start` to the checkpoint in a recipe"):
        Trainer(replace(recipe, backbone=str(tmp_path / BEST)), tmp_path, cache=tmp_path)


def test_later_stage_from_an_adapter_without_some_layer_is_refused(recipe: Recipe, finished_run: Path, tmp_path: Path):
    shutil.copytree(finished_run / BEST, tmp_path / BEST)
    adapter = tmp_path / BEST / ADAPTER_FOLDER / ADAPTER_FILE
    weights = load_file(adapter)
    layer = next(iter(weights))
    save_file({name: weight for name, weight in weights.items() if name != layer}, adapter, {"format": "pt"})
    with pytest.raises(CheckpointError, match=layer):
        Trainer(replace(recipe, start=tmp_path / BEST), tmp_path / "run", cache=tmp_path)


def test_share_of_distillation_is_that_of_the_logged_loss(recipe: Recipe, tmp_path: Path):
    recipe = replace(recipe, distillation=0.3, alpha=0.5, steps=2)
    steps = list(Trainer(recipe, tmp_path, cache=tmp_path).run())
    for step in steps:
        assert step.distillation > 0
        related = 0.7 * step.contrastive + 0.3 * step.distillation
        assert step.loss == pytest.approx((related + 0.5 * step.generative) / 1.5, rel=1e-5)


def test_recipe_without_distillation_makes_no_teacher(recipe: Recipe, tmp_path: Path):
    trainer = Trainer(recipe, tmp_path, cache=tmp_path)
    assert [objective and objective.teacher_vectors for objective in trainer.objectives] == [None]
    assert next(trainer.run()).distillation == 0


@pytest.mark.parametrize("memory", [False, True])
def test_step_is_kept_in_memory_if_the_recipe_has_one(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: bool
):
    monkeypatch.setattr("model.training.initialise.STARTING_NOTES", 10)
    trainer = Trainer(replace(recipe, memory=memory, save_every=1), tmp_path, cache=tmp_path)
    (objective,) = trainer.objectives
    assert objective is not None
    _, notes = next(trainer._batches())
    first, second = itertools.islice(trainer.run(), 2)
    if not memory:
        assert objective.memory is None
        return
    assert objective.memory is not None
    lengths = objective.memory.norm(dim=1)
    assert set(lengths.nonzero()[:, 0].tolist()) > set(objective.rows(notes).tolist())
    torch.testing.assert_close(lengths[lengths > 0], torch.ones(int((lengths > 0).sum())))
    assert first.contrastive > 0
    assert second.contrastive > 0
    (stored,) = torch.load(tmp_path / LAST, weights_only=True)["memory"]
    torch.testing.assert_close(stored, objective.memory, rtol=0, atol=0)


def test_notes_without_pairs_are_read_anew_if_the_recipe_says_so(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("model.training.initialise.STARTING_NOTES", 10)
    trainer = Trainer(replace(recipe, memory=True, reread_notes=100), tmp_path, cache=tmp_path)
    (objective,) = trainer.objectives
    assert objective is not None
    steps = -(-len(objective.notes) // 100)
    list(itertools.islice(trainer.run(), steps))
    assert trainer.steps_on == [steps]
    assert objective.memory is not None
    assert objective.memory.any(1).all()


def test_unpaired_notes_join_the_pairs_of_a_step(recipe: Recipe, tmp_path: Path):
    recipe = replace(recipe, memory=True, distillation=0.5, unpaired_notes=9, alpha=0.5, steps=2)
    trainer = Trainer(recipe, tmp_path, cache=tmp_path)
    (objective,) = trainer.objectives
    assert objective is not None
    objective.memory = None
    _, pairs = next(trainer._batches())
    unpaired = objective.unpaired_at(0, pairs)
    assert len(unpaired) == 9
    next(trainer.run())
    assert objective.memory is not None
    read = objective.memory.any(1).nonzero()[:, 0].tolist()
    assert read == sorted(objective.rows([*pairs, *unpaired]).tolist())


def test_unpaired_notes_have_no_csft_targets(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = replace(recipe, distillation=0.5, unpaired_notes=9, alpha=0.5, steps=1)
    trainer = Trainer(recipe, tmp_path, cache=tmp_path)
    seen: list[Example] = []
    accumulate = trainer.accumulate
    monkeypatch.setattr(
        trainer, "accumulate", lambda examples, loss: (seen.extend(examples), accumulate(examples, loss))[1]
    )
    next(trainer.run())
    assert any(example.targets for example in seen[:-9])
    assert not any(example.targets for example in seen[-9:])


def test_more_unpaired_notes_than_a_data_set_has_are_refused(recipe: Recipe, tmp_path: Path):
    with pytest.raises(RecipeError, match="unpaired_notes: a data set has"):
        Trainer(replace(recipe, distillation=0.5, unpaired_notes=100_000), tmp_path, cache=tmp_path)


def test_unpaired_notes_that_processes_cannot_share_are_refused(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("model.training.trainer.rank_and_size", lambda: (0, 2))
    with pytest.raises(RecipeError, match="must be a multiple of the number of processes, 2"):
        Trainer(replace(recipe, distillation=0.5, unpaired_notes=7), tmp_path, cache=tmp_path)


SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SHAPE)),
    "smollm": (LlamaForCausalLM, LlamaConfig(**SHAPE, tie_word_embeddings=True)),
    "qwen": (Qwen3ForCausalLM, Qwen3Config(**SHAPE, head_dim=16)),
    "gemma": (Gemma3ForCausalLM, Gemma3TextConfig(**SHAPE, head_dim=16, sliding_window=16)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_backbone_of_each_family_trains(recipe: Recipe, backbone_folder: Path, tmp_path: Path, family: str):
    kind, config = FAMILIES[family]
    tokenizer = AutoTokenizer.from_pretrained(backbone_folder)
    config.vocab_size = len(tokenizer)
    torch.manual_seed(0)
    kind(config).save_pretrained(tmp_path / "backbone")
    tokenizer.save_pretrained(tmp_path / "backbone")
    recipe = replace(recipe, backbone=str(tmp_path / "backbone"), micro_batch_tokens=200, steps=2, evaluate_every=2)
    trainer = Trainer(recipe, tmp_path / "run", cache=tmp_path)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if "lora_B" in name}
    list(trainer.run())
    after = dict(trainer.model.named_parameters())
    assert before
    assert all(not torch.equal(after[name], p) for name, p in before.items())
    notes = [Note(title="river")]
    served = in_torch(tmp_path / "run" / BEST, tmp_path).embed(notes)
    np.testing.assert_allclose(served, Engine(TorchRuntime(trainer.model)).embed(notes), atol=1e-5)
