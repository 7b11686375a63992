"""Training on a tiny real backbone: exact gradients, exact resumption, and a checkpoint that serves."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from model.config import CheckpointError
from model.data.dataset import Example, PairedNotes
from model.data.pairs import PairOptions, related_pairs, split_of
from model.generation import GenerationRequest
from model.inference.engine import Engine
from model.inference.torch_runtime import TorchRuntime
from model.note import Note
from model.notellm import NoteLLM
from model.training.contrastive import ContrastiveObjective
from model.training.loss import generative_loss, joint_loss
from model.training.recipe import Data, Recipe, RecipeError
from model.training.teacher import write_vectors
from model.training.trainer import (
    BEST,
    LAST,
    LOG,
    RIDGE,
    Step,
    Trainer,
    cosine_with_warmup,
    projection_start,
    ridge_regression,
    store_in_bfloat16,
)
from tests.conftest import in_torch

LOOPBACK = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
WORDS = ("river", "bread", "lamp", "cloud", "horse", "piano", "stone", "apple")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Notes of eight subjects; who reads one note of a subject reads another one of it."""
    folder = tmp_path_factory.mktemp("data")
    notes = [{"id": str(i), "title": f"{WORDS[i % 8]} number {i}"} for i in range(400)]
    for note in notes:
        subject = WORDS[int(note["id"]) % 8]
        note |= {"content": f"about the {subject}", "hashtags": [subject, "daily"], "category": subject.title()}
    (folder / "notes.jsonl").write_text("".join(json.dumps(note) + "\n" for note in notes))
    with (folder / "clicks.jsonl").open("w") as clicks:
        for user, (a, b) in enumerate(itertools.combinations(range(400), 2)):
            if a % 8 == b % 8 and (b - a) < 60 and split_of(str(a)) == split_of(str(b)):
                clicks.writelines(json.dumps({"user": user, "note": str(i)}) + "\n" for i in (a, b))
    related_pairs(folder / "clicks.jsonl", folder / "pairs.parquet", PairOptions())
    return Data(notes=folder / "notes.jsonl", pairs=folder / "pairs.parquet")


@pytest.fixture(scope="module")
def recipe(data: Data, tiny_checkpoint: Path) -> Recipe:
    return Recipe(
        name="tiny-trained",
        data=(data,),
        backbone=str(tiny_checkpoint / "backbone"),
        dimension=16,
        batch_pairs=4,
        steps=6,
        lora_rank=4,
        bfloat16=False,
        evaluate_every=3,
        save_every=2,
        validation_notes=40,
    )


def gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}


def batch_of(trainer: Trainer) -> tuple[list[Note], list[Example], ContrastiveObjective]:
    data, notes = next(trainer._batches())
    related = trainer.related[trainer.data.index(data)]
    assert related is not None
    return notes, [trainer._example(note, random.Random(i)) for i, note in enumerate(notes)], related


def random_vectors(count: int) -> torch.Tensor:
    """Of unit length, as the recipe here has them."""
    return torch.nn.functional.normalize(torch.randn(count, 16, generator=torch.Generator().manual_seed(4)), dim=-1)


@pytest.mark.parametrize("lora_rank", [4, 0])
@pytest.mark.parametrize("kept_tokens", [0, 100_000])
@pytest.mark.parametrize("micro_batch_tokens", [60, 200, 100_000])
def test_gradients_of_micro_batches_are_those_of_the_direct_way(
    recipe: Recipe, tmp_path: Path, lora_rank: int, micro_batch_tokens: int, kept_tokens: int
):
    recipe = replace(
        recipe, lora_rank=lora_rank, micro_batch_tokens=micro_batch_tokens, kept_tokens=kept_tokens, alpha=0.5
    )
    check_gradients(Trainer(recipe, tmp_path, cache=tmp_path))


@pytest.mark.parametrize("kept_tokens", [0, 100_000])
@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("distillation", [0.0, 0.7])
def test_gradients_of_micro_batches_beyond_gcl_are_those_of_the_direct_way(
    recipe: Recipe, tmp_path: Path, distillation: float, memory: bool, kept_tokens: int
):
    recipe = replace(recipe, micro_batch_tokens=60, kept_tokens=kept_tokens, alpha=0.5)
    trainer = Trainer(replace(recipe, distillation=distillation, memory=memory), tmp_path, cache=tmp_path)
    notes, _, related = batch_of(trainer)
    related.update_memory(related.notes, random_vectors(len(related.notes)))
    if related.teacher_vectors is not None:
        related.teacher_vectors[related.rows([notes[3]])] = 0  # one that the teacher does not know
    check_gradients(trainer)


@pytest.mark.parametrize("kept_tokens", [0, 100_000])
def test_gradients_of_hashtags_in_the_input_are_those_of_the_direct_way(
    recipe: Recipe, tmp_path: Path, kept_tokens: int
):
    recipe = replace(recipe, micro_batch_tokens=60, kept_tokens=kept_tokens, alpha=0.5, hashtag_share=0.3)
    trainer = Trainer(replace(recipe, prompt_version="note-first/2", input_hashtags=True), tmp_path, cache=tmp_path)
    _, examples, _ = batch_of(trainer)
    assert {e.targets[0] <= e.read_out for e in examples} == {False, True}  # both tasks
    check_gradients(trainer)


def check_gradients(trainer: Trainer) -> None:
    """Gradients and losses of `accumulate` against one forward and backward of the whole batch."""
    notes, examples, related = batch_of(trainer)
    recipe, tau = trainer.recipe, trainer.model.tau
    loss = trainer.accumulate(examples, partial(related.loss, notes, tau=tau))
    accumulated = gradients(trainer)
    trainer.model.zero_grad()

    vectors, logits, targets = trainer._forward(examples)
    of_vectors = related.loss(notes, vectors, tau)
    direct = joint_loss(of_vectors, generative_loss(logits, targets), recipe.alpha)
    assert (direct.distillation > 0) == (recipe.distillation > 0)
    direct.total.backward()
    expected = gradients(trainer)
    assert accumulated.keys() == expected.keys()
    assert {"tau", "projection.weight"} < expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(accumulated[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    for part, whole in zip(loss, direct, strict=True):
        torch.testing.assert_close(part, whole.detach(), rtol=1e-5, atol=1e-6)


def test_a_batch_without_related_notes_teaches_csft_alone(recipe: Recipe, tmp_path: Path):
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
    found = []
    for checkpoint_activations in (False, True):
        trainer = Trainer(replace(recipe, checkpoint_activations=checkpoint_activations), tmp_path, cache=tmp_path)
        notes, examples, related = batch_of(trainer)
        trainer.accumulate(examples, partial(related.loss, notes, tau=trainer.model.tau))
        found.append(gradients(trainer))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


def test_weights_stored_in_bfloat16_compute_what_autocast_computes(tiny_checkpoint: Path, tmp_path: Path):
    model = NoteLLM.load(str(tiny_checkpoint), cache=tmp_path, device=torch.device("cpu"), dtype=torch.float32)
    ids = torch.tensor([model.prompt.note(Note(title="river", hashtags=("daily",)))])
    mask = torch.ones_like(ids)

    def computed() -> list[torch.Tensor]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            hidden = model(ids, mask, mask.cumsum(1) - 1)
            return [hidden, model.logits(hidden)]

    before = computed()
    store_in_bfloat16(model)
    backbone = model.backbone
    assert backbone.base_model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    for layer in (backbone.get_input_embeddings(), backbone.get_output_embeddings(), model.projection):
        assert layer.weight.dtype == torch.float32
    for after, expected in zip(computed(), before, strict=True):
        torch.testing.assert_close(after, expected, rtol=0, atol=0)


def losses(folder: Path) -> list[tuple[float, ...]]:
    rows = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    return [tuple(row[name] for name in ("step", "contrastive", "distillation", "generative", "tau")) for row in rows]


@pytest.mark.parametrize("beyond_gcl", [False, True])
def test_a_run_that_was_killed_goes_on_to_the_identical_loss_curve(recipe: Recipe, tmp_path: Path, beyond_gcl: bool):
    if beyond_gcl:
        recipe = replace(recipe, memory=True, distillation=0.5)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    list(Trainer(recipe, whole, cache=tmp_path).run())
    run = Trainer(recipe, broken, cache=tmp_path).run()
    for _ in range(5):  # its state was written after step 4: the fifth is lost
        next(run)
    del run
    list(Trainer(recipe, broken, cache=tmp_path).run())
    assert losses(broken)[:5] == losses(whole)[:5]
    assert losses(broken)[5:] == losses(whole)[4:]


def test_a_folder_with_a_run_of_another_recipe_is_refused(recipe: Recipe, tmp_path: Path):
    list(Trainer(replace(recipe, steps=2), tmp_path, cache=tmp_path).run())
    with pytest.raises(RecipeError, match=r"another recipe \(learning_rate\)"):
        Trainer(replace(recipe, steps=2, learning_rate=1.0), tmp_path, cache=tmp_path)


def test_the_loss_falls_and_validation_recall_rises(recipe: Recipe, tmp_path: Path):
    trainer = Trainer(
        replace(recipe, steps=60, evaluate_every=60, batch_pairs=8, learning_rate=2e-3), tmp_path, cache=tmp_path
    )
    before = trainer.validation_recall()
    steps = list(trainer.run())
    assert sum(s.contrastive for s in steps[-5:]) < 0.7 * sum(s.contrastive for s in steps[:5])
    assert sum(s.generative for s in steps[-5:]) < sum(s.generative for s in steps[:5])
    assert steps[-1].recall >= before


@pytest.mark.parametrize("lora_rank", [4, 0])
def test_the_best_checkpoint_serves_what_was_trained(recipe: Recipe, tmp_path: Path, lora_rank: int):
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


def test_a_recipe_chooses_the_prompt_version_and_its_checkpoint_serves_with_it(recipe: Recipe, tmp_path: Path):
    trainer = Trainer(replace(recipe, steps=2, prompt_version="task-first/1"), tmp_path, cache=tmp_path)
    steps = list(trainer.run())
    assert all(step.contrastive > 0 and step.generative > 0 for step in steps)
    engine = in_torch(tmp_path / BEST, tmp_path)
    note = Note(title="river", hashtags=("daily",))
    assert engine.tokenize(note, GenerationRequest(3)) == Engine(TorchRuntime(trainer.model)).tokenize(
        note, GenerationRequest(3)
    )
    np.testing.assert_allclose(engine.embed([note]), Engine(TorchRuntime(trainer.model)).embed([note]), atol=1e-5)


def test_a_recipe_with_an_unknown_prompt_version_is_refused(recipe: Recipe, tmp_path: Path):
    with pytest.raises(CheckpointError, match="task-first/0"):
        Trainer(replace(recipe, prompt_version="task-first/0"), tmp_path, cache=tmp_path)


def test_training_ends_when_validation_no_longer_rises(recipe: Recipe, tmp_path: Path):
    trainer = Trainer(
        replace(recipe, steps=50, evaluate_every=1, patience=2, learning_rate=0.0, head_learning_rate=0.0),
        tmp_path,
        cache=tmp_path,
    )
    assert len(list(trainer.run())) == 3


def test_the_log_holds_every_step_with_its_losses(recipe: Recipe, tmp_path: Path):
    steps = list(Trainer(recipe, tmp_path, cache=tmp_path).run())
    logged = [Step(**json.loads(line)) for line in (tmp_path / LOG).read_text().splitlines()]
    assert logged == steps
    assert [step.step for step in steps] == [1, 2, 3, 4, 5, 6]
    assert [step.recall is not None for step in steps] == [False, False, True, False, False, True]


def test_without_csft_nothing_is_generated_and_without_gcl_nothing_is_contrasted(recipe: Recipe, tmp_path: Path):
    for name, changes in {"gcl": {"alpha": 0.0}, "csft": {"contrastive": False}}.items():
        (tmp_path / name).mkdir()
        step = next(Trainer(replace(recipe, **changes), tmp_path / name, cache=tmp_path).run())
        assert (step.generative == 0) == (name == "gcl")
        assert (step.contrastive == 0) == (name == "csft")
        assert step.gradient_norm > 0


def test_notes_without_pairs_train_csft_and_leave_their_latest_checkpoint(recipe: Recipe, data: Data, tmp_path: Path):
    recipe = replace(recipe, data=(replace(data, pairs=None),), contrastive=False, steps=2)
    steps = list(Trainer(recipe, tmp_path, cache=tmp_path).run())
    assert all(step.generative > 0 and step.recall is None for step in steps)
    assert in_torch(tmp_path / BEST, tmp_path).dimension == 16


def test_later_stages_start_from_the_weights_of_an_earlier_one(recipe: Recipe, tmp_path: Path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    trainer = Trainer(recipe, first, cache=tmp_path)
    list(trainer.run())
    later = Trainer(replace(recipe, start=first / BEST), second, cache=tmp_path)
    notes = [Note(title="river")]
    served = in_torch(first / BEST, tmp_path).embed(notes)
    np.testing.assert_allclose(Engine(TorchRuntime(later.model)).embed(notes), served, atol=1e-5)


def test_the_share_of_distillation_is_that_of_the_logged_loss(recipe: Recipe, tmp_path: Path):
    recipe = replace(recipe, distillation=0.3, alpha=0.5, steps=2)
    steps = list(Trainer(recipe, tmp_path, cache=tmp_path).run())
    for step in steps:
        assert step.distillation > 0
        related = 0.7 * step.contrastive + 0.3 * step.distillation
        assert step.loss == pytest.approx((related + 0.5 * step.generative) / 1.5, rel=1e-5)


def test_without_a_share_no_teacher_is_made(recipe: Recipe, tmp_path: Path):
    trainer = Trainer(recipe, tmp_path, cache=tmp_path)
    assert [related and related.teacher_vectors for related in trainer.related] == [None]
    assert next(trainer.run()).distillation == 0


@pytest.mark.parametrize("memory", [False, True])
def test_a_step_is_remembered_for_the_next_ones_where_the_recipe_says_so(recipe: Recipe, tmp_path: Path, memory: bool):
    trainer = Trainer(replace(recipe, memory=memory, save_every=1), tmp_path, cache=tmp_path)
    (related,) = trainer.related
    assert related is not None
    assert related.memory is None  # without a teacher of its own there is nothing to begin with
    _, notes = next(trainer._batches())
    first, second = itertools.islice(trainer.run(), 2)
    if not memory:
        assert related.memory is None
        return
    assert related.memory is not None
    lengths = related.memory.norm(dim=1)
    assert set(lengths.nonzero()[:, 0].tolist()) > set(related.rows(notes).tolist())
    torch.testing.assert_close(lengths[lengths > 0], torch.ones(int((lengths > 0).sum())))
    assert first.contrastive > 0
    assert second.contrastive > 0
    (stored,) = torch.load(tmp_path / LAST, weights_only=True)["memory"]
    torch.testing.assert_close(stored, related.memory, rtol=0, atol=0)


def states_around(mean: torch.Tensor, notes: int = 40) -> torch.Tensor:
    """States (notes, H) of that mean, whose components are uncorrelated and of variance 1."""
    raw = torch.randn(notes, len(mean), generator=torch.Generator().manual_seed(1))
    columns, _ = torch.linalg.qr(raw - raw.mean(0))
    return columns * notes**0.5 + mean


def test_a_projection_starts_from_the_principal_components_of_the_states():
    """Three directions of variance 16, 4 and 1 around a mean that is larger than all of them."""
    directions, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2)))
    mean = torch.tensor([100.0, -50.0, 20.0])
    states = states_around(torch.zeros(3)) * torch.tensor([4.0, 2.0, 1.0]) @ directions + mean
    start = projection_start(states, 2)
    torch.testing.assert_close(start @ start.T, torch.eye(2))
    torch.testing.assert_close((start @ directions.T).abs(), torch.eye(3)[:2], atol=1e-3, rtol=0)


def test_a_projection_starts_from_a_teacher_that_is_linear_in_the_states():
    mean = torch.zeros(8)
    mean[0] = 30.0
    states = states_around(mean)
    of_teacher = torch.randn(8, 3, generator=torch.Generator().manual_seed(3))
    of_teacher[0] = 0  # it does not look along the mean
    taught = states @ of_teacher
    start = projection_start(states, 5, taught)
    assert start.shape == (3, 8)  # the teacher has no more directions
    assert start.norm(dim=1).square().mean().item() == pytest.approx(1)
    torch.testing.assert_close(cosines(states @ start.T), cosines(taught), atol=1e-4, rtol=0)


def test_a_projection_that_starts_from_a_teacher_drops_the_mean_of_all_states():
    mean = torch.full((8,), 10.0)
    states = states_around(mean)
    taught = states @ torch.randn(8, 3, generator=torch.Generator().manual_seed(3))
    start = projection_start(states, 3, taught)
    kept = (states @ start.T).mean(0).norm() / mean.norm()
    assert kept < 0.01 * ((states - mean) @ start.T).norm(dim=1).mean() / (states - mean).norm(dim=1).mean()


def test_a_narrow_projection_keeps_the_directions_in_which_the_teachers_answers_differ_most():
    """It weighs the second component less than the first, but notes differ more in it."""
    states = states_around(torch.zeros(8)) * torch.tensor([1.0, 5.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    taught = states * torch.tensor([5.0, 2.0, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(projection_start(states, 1, taught).abs(), torch.eye(8)[[1]], atol=1e-3, rtol=0)
    two = projection_start(states, 2, taught).abs()
    torch.testing.assert_close(two / two.norm(dim=1, keepdim=True), torch.eye(8)[[1, 0]], atol=1e-3, rtol=0)


def cosines(vectors: torch.Tensor) -> torch.Tensor:
    vectors = torch.nn.functional.normalize(vectors, dim=-1)
    return vectors @ vectors.T


def write_teacher(path: Path, notes: list[str]) -> Path:
    """One that tells notes apart by their subject alone."""
    write_vectors(path, notes, np.eye(8, dtype=np.float32)[[int(i) % 8 for i in notes]])
    return path


def test_a_trainer_starts_the_projection_from_the_teacher_of_its_data(recipe: Recipe, data: Data, tmp_path: Path):
    """The teacher tells notes apart by their subject alone: so does the new model, before any step."""
    notes = PairedNotes(data.notes, None).notes
    subjects = np.array([int(i) % 8 for i in notes])
    teacher = write_teacher(tmp_path / "teacher.npz", list(notes))
    found = {}
    for name, taught in {"with": replace(data, teacher=teacher), "without": data}.items():
        trainer = Trainer(replace(recipe, data=(taught,), distillation=0.5), tmp_path / name, cache=tmp_path)
        vectors = Engine(TorchRuntime(trainer.model)).embed(list(notes.values()))
        alike = subjects[:, None] == subjects
        scores = vectors @ vectors.T
        found[name] = scores[alike].mean() - scores[~alike].mean()
    assert found["with"] > max(0.3, 1.2 * found["without"])


def test_a_linear_map_is_recovered_but_for_the_ridge():
    given = states_around(torch.zeros(6), notes=50)
    wanted = torch.randn(6, 4, generator=torch.Generator().manual_seed(5))
    found = ridge_regression(given, given @ wanted)
    assert found.shape == (6, 4)
    torch.testing.assert_close(found, wanted / (1 + RIDGE))  # of components that are uncorrelated and alike
    few = torch.cat([given, torch.zeros(30, 6)])  # rows of which nothing is known teach nothing
    torch.testing.assert_close(ridge_regression(few, torch.cat([given @ wanted, torch.ones(30, 4)])), found)


def test_each_memory_starts_with_all_notes_that_its_teacher_knows(
    recipe: Recipe, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Those of the sample as they are read, the others where the teacher says."""
    monkeypatch.setattr("model.training.trainer.STARTING_NOTES", 100)
    lonely = [str(i) for i in range(1000, 1100) if split_of(str(i)) == "train"]  # known to nobody
    lines = [json.dumps({"id": i, "title": f"stray {i}"}) + "\n" for i in lonely]
    (tmp_path / "notes.jsonl").write_text(data.notes.read_text() + "".join(lines))
    known = list(PairedNotes(data.notes, None).notes)
    teacher = write_teacher(tmp_path / "teacher.npz", known)
    taught = replace(data, notes=tmp_path / "notes.jsonl", teacher=teacher)
    trainer = Trainer(replace(recipe, data=(taught, taught), memory=True, distillation=0.5), tmp_path, cache=tmp_path)

    related, second = trainer.related
    assert related is not None
    assert related.memory is not None
    assert second is not None
    assert second.memory is not None
    torch.testing.assert_close(second.memory, related.memory)
    remembered = related.memory.any(1)
    torch.testing.assert_close(related.memory.norm(dim=1), remembered.float())
    rows = related.rows([related.paired.notes[i] for i in known])
    assert remembered[rows].all()
    strays = related.rows([related.paired.notes[i] for i in lonely])
    assert remembered[strays].any()  # of the sample
    assert not remembered[strays].all()
    read = torch.from_numpy(Engine(TorchRuntime(trainer.model)).embed(related.notes))
    as_read = (related.memory * read).sum(1)
    sample = as_read > 1 - 1e-4
    assert 100 <= sample.sum() < 110
    assert sample[strays].sum() == remembered[strays].sum()
    # The others: where notes of their subject are, so nearer to their own vector than others' are.
    others = related.memory[rows][~sample[rows]] @ read[rows][~sample[rows]].T
    subjects = torch.tensor([int(i) % 8 for i in known])[~sample[rows]]
    alike = subjects[:, None] == subjects
    assert others[alike].mean() > others[~alike].mean() + 0.3


@pytest.mark.parametrize(("version", "kept"), [("note-first/1", True), ("note-first/2", False)])
def test_a_later_stage_begins_its_projection_afresh_exactly_where_its_prompt_is_another(
    recipe: Recipe, tmp_path: Path, version: str, kept: bool
):
    assert recipe.prompt_version == "note-first/1"
    first = Trainer(recipe, tmp_path, cache=tmp_path)
    with torch.no_grad():
        first.model.projection.weight.copy_(random_vectors(64).T)
        first.model.tau.fill_(2.5)
    first._save_checkpoint()
    recipe = replace(recipe, prompt_version=version)
    later = Trainer(replace(recipe, start=tmp_path / BEST), tmp_path / "later", cache=tmp_path)
    fresh = Trainer(recipe, tmp_path / "fresh", cache=tmp_path)  # the adapter is still the identity: states are equal
    assert later.model.tau.item() == 2.5
    expected = first if kept else fresh
    torch.testing.assert_close(later.model.projection.weight, expected.model.projection.weight, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(later.model.projection.weight, (fresh if kept else first).model.projection.weight)


def test_the_learning_rate_warms_up_and_falls_to_nothing(recipe: Recipe):
    recipe = replace(recipe, steps=100, warmup=0.1)
    shares = [cosine_with_warmup(recipe, step) for step in range(101)]
    assert shares[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert shares[100] == pytest.approx(0)
    short = replace(recipe, steps=5, warmup=0.1)
    assert max(cosine_with_warmup(short, step) for step in range(6)) == 1


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
def test_every_family_of_backbone_trains(recipe: Recipe, backbone_folder: Path, tmp_path: Path, family: str):
    kind, config = FAMILIES[family]
    tokenizer = AutoTokenizer.from_pretrained(backbone_folder)
    config.vocab_size = len(tokenizer)
    torch.manual_seed(0)
    kind(config).save_pretrained(tmp_path / "backbone")
    tokenizer.save_pretrained(tmp_path / "backbone")
    recipe = replace(recipe, backbone=str(tmp_path / "backbone"), micro_batch_tokens=200, steps=2, evaluate_every=2)
    trainer = Trainer(recipe, tmp_path, cache=tmp_path)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if "lora_B" in name}
    list(trainer.run())
    after = dict(trainer.model.named_parameters())
    assert before
    assert all(not torch.equal(after[name], p) for name, p in before.items())
    notes = [Note(title="river")]
    served = in_torch(tmp_path / BEST, tmp_path).embed(notes)
    np.testing.assert_allclose(served, Engine(TorchRuntime(trainer.model)).embed(notes), atol=1e-5)


PROCESS = """
import json, sys
from pathlib import Path
import torch
from model.training.recipe import Recipe, Data
from model.training.trainer import Trainer, processes

torch.set_num_threads(1)
with processes("cpu") as (rank, device):
    for name, given in json.loads(Path(sys.argv[1]).read_text()).items():
        data = tuple(Data(notes=Path(d["notes"]), pairs=Path(d["pairs"])) for d in given.pop("data"))
        folder = Path(sys.argv[1]).parent / name
        trainer = Trainer(Recipe(**given, data=data), folder, cache=folder, device=device)
        list(trainer.run())
        weights = {n: p.full_tensor() if hasattr(p, "full_tensor") else p for n, p in trainer.model.named_parameters()}
        torch.save({n: p.detach() for n, p in weights.items()}, folder / f"rank{rank}.pt")
"""
WAYS = {
    "lora": {},
    "full": {"lora_rank": 0},
    "sharded-lora": {"shard": True},
    "sharded-full": {"lora_rank": 0, "shard": True},
    "distilled": {"distillation": 0.5},
    "remembered": {"distillation": 0.5, "memory": True},
}


@pytest.fixture(scope="module")
def two_processes(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each way trained by two processes that torchrun started; a folder for each way."""
    folder = tmp_path_factory.mktemp("two")
    recipes = {}
    for way, changes in WAYS.items():
        (folder / way).mkdir()
        recipes[way] = asdict(replace(recipe, steps=3, alpha=0.5, micro_batch_tokens=120, **changes))
    (folder / "recipes.json").write_text(json.dumps(recipes, default=str))
    (folder / "process.py").write_text(PROCESS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = [str(folder / "process.py"), str(folder / "recipes.json")]
    subprocess.run([*launch, *arguments], check=True, timeout=110, env=LOOPBACK)
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_with_half_the_batch_each_are_one_with_the_whole(
    recipe: Recipe, two_processes: Path, tmp_path: Path, way: str
):
    changes = WAYS[way] | {"shard": False}
    list(
        Trainer(replace(recipe, steps=3, alpha=0.5, micro_batch_tokens=120, **changes), tmp_path, cache=tmp_path).run()
    )
    two = two_processes / way
    assert all((distillation > 0) == ("distillation" in changes) for _, _, distillation, _, _ in losses(two))
    for alone, together in zip(losses(tmp_path), losses(two), strict=True):
        assert together == pytest.approx(alone, rel=1e-5)
    weights = [torch.load(two / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=0, atol=0, msg=name)
    notes = [Note(title="river"), Note(title="bread")]
    vectors = [in_torch(f / BEST, tmp_path).embed(notes) for f in (tmp_path, two)]
    np.testing.assert_allclose(*vectors, atol=1e-5)
    assert (two / LAST).is_file()
