"""One training run: GCL and CSFT from the same forward, in micro-batches, on one process or many.

A large contrastive batch fits in little memory because the loss needs only the vectors: they are computed without
gradients first, the loss gives the gradient of each vector, and each micro-batch is run again to carry its rows' vector
gradients into the weights. The gradients are those of the direct way. Across processes the same holds: vectors are
gathered, every process computes the whole loss, and carries its own rows' part.

Shapes: B pairs of the whole batch, D dimension, T tokens of a micro-batch.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from model.config import NoteLLMConfig
from model.data.dataset import Example, PairedNotes, draw_example, embedding_example, with_category_synonym
from model.evaluation.evaluate import recall_of_pairs
from model.inference.engine import Engine
from model.inference.torch_runtime import TorchRuntime
from model.note import Note
from model.notellm import NoteLLM
from model.precision import bfloat16_pays
from model.training.contrastive import ContrastiveObjective
from model.training.loss import JointLoss, RelatedLoss, generative_loss, joint_loss
from model.training.recipe import Recipe, RecipeError
from model.weights import BACKBONE_FOLDER, Progress, silent

LAST, BEST, LOG = "last.pt", "best", "log.jsonl"
STARTING_NOTES = 3072
"""Whose states the start is computed from."""
RIDGE = 0.1
"""Of the mean variance of a state's component."""
STATE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did, as the log has it. Losses are those before its update; `pairs_per_second` is over all
    processes; `recall` is validation Recall@100 where it was measured after this step."""

    step: int
    loss: float
    contrastive: float
    distillation: float
    generative: float
    tau: float
    learning_rate: float
    gradient_norm: float
    seconds: float
    pairs_per_second: float
    recall: float | None = None


class Trainer:
    """A recipe bound to its model, data and folder. `run` yields a Step after each update.

    `folder` gets log.jsonl, last.pt (to go on from after a break) and best/ (a checkpoint that serves).
    """

    def __init__(self, recipe: Recipe, folder: Path, *, cache: Path, device: str = "cpu", progress: Progress = silent):
        self.recipe = recipe
        self.folder = folder
        self.rank, self.ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.device = torch.device(device)
        progress("Reading notes and pairs")
        self.data = [PairedNotes(d.notes, d.pairs, min_score=d.min_score) for d in recipe.data]
        self.related = [
            ContrastiveObjective(paired, recipe, data.teacher, self.device)
            if recipe.contrastive and paired.has_pairs
            else None
            for paired, data in zip(self.data, recipe.data, strict=True)
        ]
        first = next((d for d in recipe.data if d.pairs), None)
        self.validation = (
            PairedNotes(first.notes, first.pairs, split="validation", min_score=recipe.validation_min_score)
            if first
            else None
        )
        torch.manual_seed(recipe.seed)
        shown = {note.category for paired in self.data for note in paired.notes.values() if note.category}
        self.model, self.adapter = build(recipe, sorted(shown), cache, self.device, progress)
        self.optimizer, self.schedule = self._optimizer()
        self.step, self.best, self.evaluations_without_gain = 0, -1.0, 0
        if (folder / LAST).is_file():
            progress(f"Going on from {folder / LAST}")
            self._restore()
        else:
            progress("Starting from the notes' states")
            self._start()

    def run(self) -> Iterator[Step]:
        """Train to the end, or until validation recall no longer rises; goes on where `last.pt` was written."""
        batches = self._batches()
        for _ in range(self.step):
            next(batches)
        while self.step < self.recipe.steps and self.evaluations_without_gain < self.recipe.patience:
            done = self._update(*next(batches))
            measured = self.step % self.recipe.evaluate_every == 0 or self.step == self.recipe.steps
            if measured:
                done = replace(done, recall=self._evaluate())
            self._log(done)
            if measured or self.step % self.recipe.save_every == 0:
                self._save()
            yield done

    def _batches(self) -> Iterator[tuple[PairedNotes, list[Note]]]:
        """Each batch is of one data set, so that its negatives are of the same world."""
        streams = [d.batches(self.recipe.batch_pairs, self.recipe.seed) for d in self.data]
        chosen = random.Random(self.recipe.seed)
        while True:
            (at,) = chosen.choices(range(len(streams)), [d.share for d in self.recipe.data])
            yield self.data[at], next(streams[at])

    def _update(self, data: PairedNotes, notes: list[Note]) -> Step:
        started = time.perf_counter()
        rng = random.Random(f"{self.recipe.seed} {self.step}")
        notes = notes[: len(notes) // (2 * self.ranks) * 2 * self.ranks]
        at = self.data.index(data)
        names = self.recipe.data[at].category_names
        examples = [self._example(with_category_synonym(note, names, rng), rng) for note in notes]
        related = self.related[at]
        loss = self.accumulate(examples, partial(self._related_loss, related, notes) if related else None)
        norm = self._clip()
        rate = float(self.schedule.get_last_lr()[0])
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        seconds = time.perf_counter() - started
        return Step(
            step=self.step,
            loss=float(loss.total),
            contrastive=float(loss.contrastive),
            distillation=float(loss.distillation),
            generative=float(loss.generative),
            tau=float(self.model.tau.detach()),
            learning_rate=rate,
            gradient_norm=float(norm),
            seconds=seconds,
            pairs_per_second=len(notes) / 2 / seconds,
        )

    def _related_loss(self, related: ContrastiveObjective, notes: Sequence[Note], vectors: Tensor) -> RelatedLoss:
        loss = related.loss(notes, vectors, self.model.tau)
        related.update_memory(notes, vectors)
        return loss

    def _example(self, note: Note, rng: random.Random) -> Example:
        if rng.random() < self.recipe.hide_hashtags:
            return embedding_example(self.model.prompt, replace(note, hashtags=()))
        if self.recipe.alpha == 0:
            return embedding_example(self.model.prompt, note)
        return draw_example(self.model.prompt, note, self.recipe.hashtag_share, rng, self.recipe.input_hashtags)

    def accumulate(
        self, examples: Sequence[Example], related: Callable[[Tensor], RelatedLoss] | None = None
    ) -> JointLoss:
        """Add one batch's gradients to the weights; returns the loss of the whole batch, over all processes.

        examples: the whole batch's, 2B, on every process, of which each takes its own rows. related: the loss of their
        vectors (2B, D); without it the batch teaches CSFT alone.
        """
        share = len(examples) // self.ranks
        own = slice(self.rank * share, (self.rank + 1) * share)
        longest = max(len(e.ids) for e in examples)
        chunks = self._micro_batches(examples[own], longest)
        rows_of = [[examples[own][i] for i in chunk] for chunk in chunks]
        kept = [self._forward(rows) for rows in rows_of] if share * longest <= self.recipe.kept_tokens else None
        # (L_related + alpha L_gen) / (1 + alpha), or L_gen alone.
        weight = self.recipe.alpha / (1 + self.recipe.alpha) if related else 1.0
        nothing = torch.zeros((), device=self.device)
        of_vectors, wanted = RelatedLoss(nothing, nothing, nothing), None
        if related:
            parts = [vectors.detach() for vectors, _, _ in kept] if kept else self._vectors(rows_of)
            vectors = torch.zeros(share, self.model.dimension, device=self.device)
            for chunk, part in zip(chunks, parts, strict=True):
                vectors[chunk] = part
            everyones = self._gather(vectors).requires_grad_()
            of_vectors = related(everyones)
            torch.autograd.backward(of_vectors.total * (1 - weight))
            assert everyones.grad is not None
            wanted = everyones.grad[own]
        generative = nothing
        tokens = sum(len(e.targets) for e in examples)
        for at, chunk in enumerate(chunks):
            vectors, logits, targets = kept[at] if kept else self._forward(rows_of[at])
            part = generative_loss(logits, targets, tokens)
            surrogate = weight * part if wanted is None else weight * part + (vectors * wanted[chunk]).sum()
            torch.autograd.backward(surrogate)
            generative = generative + part.detach()
        self._sum_over_processes(generative)
        return joint_loss(RelatedLoss(*(part.detach() for part in of_vectors)), generative, self.recipe.alpha)

    @torch.no_grad()
    def _vectors(self, chunks: Sequence[Sequence[Example]]) -> list[Tensor]:
        """(b, D) of each chunk, without gradients and without the outputs' tokens."""
        return [self.model.embed(self._states(chunk)) for chunk in chunks]

    def _states(self, examples: Sequence[Example]) -> Tensor:
        """States at the read-out positions (b, H)."""
        ids, mask, positions = self._padded([e.ids[: e.read_out + 1] for e in examples])
        with self._autocast():
            hidden = self.model(ids, mask, positions)
        states: Tensor = hidden[torch.arange(len(examples), device=self.device), mask.sum(1) - 1]
        return states

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Right-padded ids, their 0/1 mask and positions, all (b, T) int64."""
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=self.device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=self.device)
        return ids, mask, torch.arange(longest, device=self.device).expand_as(ids)

    def _forward(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors (b, D), and the logits (N, V) that predict the output tokens (N,): one forward for both losses."""
        ids, mask, positions = self._padded([e.ids for e in examples])
        written = [(row, target) for row, e in enumerate(examples) for target in e.targets]
        row, column = torch.tensor(written, dtype=torch.int64, device=self.device).reshape(-1, 2).T
        read_out = torch.tensor([e.read_out for e in examples], device=self.device)
        with self._autocast():
            hidden = self.model(ids, mask, positions)
            logits = self.model.logits(hidden[row, column - 1])
        vectors = self.model.embed(hidden[torch.arange(len(examples), device=self.device), read_out])
        return vectors, logits, ids[row, column]

    def _micro_batches(self, examples: Sequence[Example], longest: int) -> list[list[int]]:
        """Rows of like length, within the token bound when padded; as many groups on every process."""
        rows = max(1, self.recipe.micro_batch_tokens // longest)
        ordered = sorted(range(len(examples)), key=lambda i: len(examples[i].ids))
        return [ordered[at : at + rows] for at in range(0, len(ordered), rows)]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.recipe.bfloat16 and bfloat16_pays(self.device.type)
        )

    def _gather(self, vectors: Tensor) -> Tensor:
        """(2B / ranks, D) of each process -> (2B, D), in the order of the batch."""
        if self.ranks == 1:
            return vectors
        parts = [torch.empty_like(vectors) for _ in range(self.ranks)]
        dist.all_gather(parts, vectors)
        return torch.cat(parts)

    def _sum_over_processes(self, generative: Tensor) -> None:
        """Each process carried its own rows. tau is left out: its gradient is whole everywhere; and what is sharded,
        since FSDP has summed it already."""
        if self.ranks == 1:
            return
        dist.all_reduce(generative)
        for parameter in self._trainable():
            if parameter is not self.model.tau and parameter.grad is not None and not isinstance(parameter, DTensor):
                dist.all_reduce(parameter.grad)

    def _clip(self) -> Tensor:
        """Norm of the whole gradient, to which it is cut; sharded and whole weights are cut apart, by the same norm."""
        weights = [p for p in self._trainable() if p.grad is not None]
        squares = [p.grad.norm().square() for p in weights if p.grad is not None]
        norm = torch.stack([s.full_tensor() if isinstance(s, DTensor) else s for s in squares]).sum().sqrt()
        for sharded in (False, True):
            nn.utils.clip_grads_with_norm_(
                [p for p in weights if isinstance(p, DTensor) == sharded], self.recipe.clip, norm, foreach=False
            )
        return norm

    def _trainable(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def _optimizer(self) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        recipe = self.recipe
        head = [p for p in (self.model.projection and self.model.projection.weight, self.model.tau) if p is not None]
        heads = {id(p) for p in head}
        body = [p for p in self._trainable() if id(p) not in heads]
        optimizer = torch.optim.AdamW(
            [
                {"params": body, "lr": recipe.learning_rate, "weight_decay": recipe.weight_decay},
                {"params": head, "lr": recipe.head_learning_rate, "weight_decay": 0.0},
            ],
            foreach=not recipe.shard,  # it cannot mix sharded and whole weights
        )
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, partial(cosine_with_warmup, recipe))

    @torch.no_grad()
    def _start(self) -> None:
        """Projection and memories from the states of training notes; the projection from those of the first data set
        with a teacher of its own where there is one. A run from a checkpoint of the same prompt has its projection."""
        taught = [
            related for data, related in zip(self.recipe.data, self.related, strict=True) if data.teacher and related
        ]
        if self.model.projection is not None and not self._has_projection():
            pool = taught[0].notes if taught else [note for data in self.data for note in data.notes.values()]
            notes, states = self._states_of_sample(pool)
            vectors = (
                taught[0].teacher_vectors[taught[0].rows(notes)]
                if taught and taught[0].teacher_vectors is not None
                else None
            )
            start = projection_start(states, self.model.dimension, vectors)
            self.model.projection.weight[: len(start)] = start
        for related in taught if self.recipe.memory else ():
            self._start_memory(related)

    def _start_memory(self, related: ContrastiveObjective) -> None:
        """What is not read yet is where the teacher's vector leads; notes of a sample are where they are."""
        notes, states = self._states_of_sample(related.notes)
        taught = None if related.teacher_vectors is None else related.teacher_vectors[related.rows(notes)]
        if related.teacher_vectors is None or taught is None or not taught.any():
            return
        vectors = self.model.embed(states)
        to_vectors = ridge_regression(taught, vectors)
        related.update_memory(related.notes, nn.functional.normalize(related.teacher_vectors @ to_vectors, dim=-1))
        related.update_memory(notes, vectors)

    def _states_of_sample(self, pool: Sequence[Note]) -> tuple[list[Note], Tensor]:
        """STARTING_NOTES of `pool`, drawn at random, and their read-out states (N, H)."""
        notes = random.Random(self.recipe.seed).sample(pool, min(len(pool), STARTING_NOTES))
        examples = [embedding_example(self.model.prompt, note) for note in notes]
        states = torch.zeros(len(notes), self.model.backbone.config.get_text_config().hidden_size, device=self.device)
        for chunk in self._micro_batches(examples, max(len(e.ids) for e in examples)):
            states[chunk] = self._states([examples[i] for i in chunk]).float()
        return notes, states

    def _has_projection(self) -> bool:
        start, version = self.recipe.start, self.recipe.prompt_version
        return start is not None and NoteLLMConfig.load(start).prompt_version == version

    def _evaluate(self) -> float | None:
        """Validation Recall@100, read through the Engine; keeps the best checkpoint, without pairs the latest."""
        if self.validation is None:
            self._save_checkpoint()
            return None
        with self._autocast():
            recall = self.validation_recall()
        if recall > self.best:
            self.best, self.evaluations_without_gain = recall, 0
            self._save_checkpoint()
        else:
            self.evaluations_without_gain += 1
        return recall

    def validation_recall(self) -> float:
        """Recall@100 over validation pairs among the notes of these pairs and others, `validation_notes` in all."""
        assert self.validation is not None
        notes, pairs = self.validation.sample(self.recipe.validation_notes, self.recipe.seed)
        vectors = Engine(TorchRuntime(self.model)).embed(notes)
        return recall_of_pairs(vectors, [note.id for note in notes], pairs, k=100)

    def _save_checkpoint(self) -> None:
        state: dict[str, Any] | None = None
        if self.recipe.shard:
            state = get_model_state_dict(self.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if self.rank == 0:
            self.model.save(self.folder / BEST, self.adapter, state)

    def _save(self) -> None:
        """Everything that going on needs, beside the recipe; written whole or not at all."""
        weights, optimizer = get_state_dict(self.model, self.optimizer, options=STATE)
        state = {
            "recipe": self._recipe(),
            "weights": weights,
            "optimizer": optimizer,
            "schedule": self.schedule.state_dict(),
            "progress": (self.step, self.best, self.evaluations_without_gain),
            "memory": [related and related.memory for related in self.related],
        }
        if self.rank == 0:
            torch.save(state, self.folder / f"{LAST}.unfinished")
            (self.folder / f"{LAST}.unfinished").rename(self.folder / LAST)

    def _restore(self) -> None:
        state = torch.load(self.folder / LAST, map_location="cpu", weights_only=True)
        if state["recipe"] != (now := self._recipe()):
            changed = sorted(name for name in now if now[name] != state["recipe"].get(name))
            raise RecipeError(
                f"{self.folder} holds a run of another recipe ({', '.join(changed)}): choose a new folder"
            )
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["weights"],
            optim_state_dict=state["optimizer"],
            options=replace(STATE, strict=False),
        )
        self.schedule.load_state_dict(state["schedule"])
        self.step, self.best, self.evaluations_without_gain = state["progress"]
        for related, memory in zip(self.related, state["memory"], strict=True):
            if related and memory is not None:
                related.update_memory(related.notes, memory.to(self.device))

    def _recipe(self) -> dict[str, str]:
        return {name: str(value) for name, value in asdict(self.recipe).items()}

    def _log(self, step: Step) -> None:
        if self.rank == 0:
            with (self.folder / LOG).open("a") as log:
                log.write(json.dumps(asdict(step)) + "\n")


def build(
    recipe: Recipe, categories: Sequence[str], cache: Path, device: torch.device, progress: Progress
) -> tuple[NoteLLM, Any]:
    """The model to train, on notes of these categories, and its adapter when it has one. Raises CheckpointError."""
    loaded = NoteLLM.load(recipe.backbone, cache=cache, device=device, dtype=torch.float32, progress=progress)
    config = NoteLLMConfig(
        name=recipe.name,
        backbone=recipe.backbone if recipe.lora_rank else BACKBONE_FOLDER,
        dimension=recipe.dimension,
        prompt_version=recipe.prompt_version,
        adapter=bool(recipe.lora_rank),
        trained_categories=tuple(categories),
    )
    model = NoteLLM(config, loaded.backbone, loaded.tokenizer).to(device).train()
    if device.type == "cpu":
        # The backward of its fused attention takes 17 ms for 23 short notes and a layer, that of plain products 3 ms.
        model.backbone.set_attn_implementation("eager")
    if recipe.lora_rank and recipe.bfloat16 and bfloat16_pays(device.type) and not recipe.shard:
        store_in_bfloat16(model)
    adapter = model.add_adapter(recipe.lora_rank) if recipe.lora_rank else None
    if not recipe.lora_rank:
        model.requires_grad_(True)
    if adapter is not None and recipe.start:
        model.start_adapter(adapter, recipe.start)
    if recipe.checkpoint_activations:
        backbone: Any = model.backbone
        enable = getattr(backbone, "activation_checkpointing_enable", None)  # its name since transformers 5.24
        (enable or backbone.gradient_checkpointing_enable)({"use_reentrant": False})
    if recipe.shard:
        for layer in model.backbone.modules():
            if type(layer).__name__ in (model.backbone._no_split_modules or ()):
                sharded = fully_shard(layer)
                sharded.set_gradient_divide_factor(1.0)  # a sum, as for what is not sharded
                sharded.set_force_sum_reduction_for_comms(True)  # gloo can do no other
    return model, adapter


def projection_start(states: Tensor, dimension: int, taught: Tensor | None = None) -> Tensor:
    """Rows to start a projection with, at most `dimension` of them, from notes' states (N, H).

    A random projection would throw away what the backbone knows of similarity, and the mean that all states share would
    drown it: the principal components of centred states keep the one and drop the other. Where a teacher knows the
    notes, `taught` (N, K), the start is the ridge regression onto its vectors, which also keeps the shared mean at 0,
    cut to the directions in which its answers differ most (reduced-rank regression, Izenman 1975).
    """
    mean = states.mean(0)
    centred = states - mean
    if taught is None:
        components: Tensor = torch.linalg.svd(centred, full_matrices=False).Vh[:dimension]
        return components
    gram = centred.T @ centred + len(states) * torch.outer(mean, mean)
    weights = _ridge(gram, centred.T @ (taught - taught.mean(0)), centred)
    directions = torch.linalg.svd(centred @ weights, full_matrices=False).Vh[:dimension]
    start = directions @ weights.T
    # As large as rows of length 1, for which the learning rate is meant.
    scaled: Tensor = start * (len(start) ** 0.5 / start.norm())
    return scaled


def ridge_regression(given: Tensor, wanted: Tensor) -> Tensor:
    """(K, D) for which given (N, K) @ it is near wanted (N, D)."""
    return _ridge(given.T @ given, given.T @ wanted, given)


def _ridge(gram: Tensor, moments: Tensor, given: Tensor) -> Tensor:
    width = given.shape[1]
    weights: Tensor = torch.linalg.solve(
        gram + RIDGE * given.square().sum() / width * torch.eye(width, device=given.device), moments
    )
    return weights


def store_in_bfloat16(model: NoteLLM) -> None:
    """The frozen matrices as autocast would cast them anyway, but once, not in every forward. The embedding stays: the
    states that run through all layers have its precision, and the output layer shares its weights."""
    output = model.backbone.get_output_embeddings()
    for layer in model.backbone.modules():
        if isinstance(layer, nn.Linear) and layer is not output:
            layer.to(torch.bfloat16)


@contextlib.contextmanager
def processes(device: str) -> Iterator[tuple[int, str]]:
    """(rank, device) of this process; under torchrun it joins the others for the time."""
    if "RANK" not in os.environ:
        yield 0, device
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield dist.get_rank(), device
    finally:
        dist.destroy_process_group()


def cosine_with_warmup(recipe: Recipe, step: int) -> float:
    """Share of the learning rate at `step`: linear warm-up, then half a cosine down to 0."""
    warm = recipe.warmup * recipe.steps
    if step < warm:
        return min(1.0, (step + 1) / warm)
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, recipe.steps - warm)))
