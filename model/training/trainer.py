"""One training run: GCL and CSFT from the same forward, in micro-batches, on one process or many.

The contrastive loss needs only the vectors of a batch, so a large batch fits in the memory of one micro-batch
(GradCache, Gao et al. 2021): all vectors are computed without gradients, the loss gives the gradient of each vector,
and a second forward of each micro-batch backpropagates the gradients of its own vectors into the weights. The result is
the gradient of one backward over the whole batch. With several processes the vectors are gathered, every process
computes the whole loss, and each backpropagates the gradients of its own rows.

Shapes: B pairs of the whole batch, U unpaired notes, b rows of a micro-batch, T its tokens when padded, N output
tokens, V vocabulary, H hidden size, D embedding dimension.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from model.data.dataset import (
    DatasetError,
    Example,
    PairedNotes,
    draw_example,
    embedding_example,
    with_category_synonym,
)
from model.evaluation.ranking import pool_cutoff, recall_of_pairs
from model.inference.engine import Engine
from model.inference.torch_runtime import TorchRuntime
from model.note import Note
from model.precision import bfloat16_pays
from model.training.contrastive import ContrastiveObjective, check_batches
from model.training.distributed import (
    any_process,
    clip_gradients,
    gather_rows,
    has_process_group,
    rank_and_size,
    sum_over_processes,
    value_of_the_first_process,
)
from model.training.initialise import build_model, initialise
from model.training.loss import JointLoss, RelatedLoss, generative_loss, joint_loss
from model.training.optimizer import (
    LOWER_RATES,
    Schedule,
    optimizer_and_schedule,
    refuse_divergence,
    refusing_nan_scores,
)
from model.training.recipe import Recipe, RecipeError
from model.training.resume import (
    LAST,
    RunState,
    input_digests,
    read_run,
    replaced_folder,
    restore_log,
    restore_replaced,
)
from model.training.run_data import check_unpaired_notes, report_pairs, taught_categories, validation_notes
from model.training.run_lock import FolderLock
from model.weights import Progress, silent

BEST, FINAL, LOG = "best", "final", "log.jsonl"
"""Names in a run's folder: best checkpoint, checkpoint after the last step (for averages), log with a line per step."""


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the log.

    Losses are those before the step's update. `pairs_per_second` counts all processes. `recall`: validation
    Recall@`recall_at`, if it was measured after this step.
    """

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
    recall_at: int | None = None


class Trainer:
    """A recipe with its model, data and folder. `run` yields a Step after each update.

    `folder` gets log.jsonl, last.pt (the state to resume from), best/ (the best checkpoint, which can be served) and
    final/ (the checkpoint after the last step). Raises DatasetError, PairsError, CheckpointError, and RecipeError where
    `folder` holds a run with another recipe, data, start or frozen backbone, a damaged state, or files of no such run,
    another process trains there, or the recipe has `shard` without torchrun.
    """

    def __init__(self, recipe: Recipe, folder: Path, *, cache: Path, device: str = "cpu", progress: Progress = silent):
        if recipe.shard and not has_process_group():
            raise RecipeError("shard = true requires torchrun, also for one process")
        self.recipe = recipe
        self.folder = folder
        self.rank, self.ranks = rank_and_size()
        self.device = torch.device(device)
        self._lock = FolderLock(folder, "notellm train", progress) if self.rank == 0 else None
        new_run = not (folder / LAST).is_file()
        progress("Reading notes and pairs")
        self.data = [
            PairedNotes(row.notes, row.pairs, min_score=row.min_score, progress=progress) for row in recipe.data
        ]
        self.validation = validation_notes(recipe)
        report_pairs(recipe, self.data, self.validation, progress)
        for row, paired in zip(recipe.data, self.data, strict=True):
            if recipe.contrastive and row.pairs and row.share > 0:
                check_batches(paired, str(row.pairs), recipe, progress, new_run=new_run)
        self.objectives = [
            ContrastiveObjective(paired, recipe, row.teacher, self.device)
            if recipe.contrastive and paired.has_pairs
            else None
            for paired, row in zip(self.data, recipe.data, strict=True)
        ]
        check_unpaired_notes(recipe, self.data, self.ranks)
        self.stopped = False
        """Whether `stop` was called."""
        self.steps_on = [0] * len(self.data)
        """Steps so far on each data set."""
        files = input_digests(recipe)
        saved = None if new_run else read_run(folder, recipe, files, progress)
        torch.manual_seed(recipe.seed)
        taught = taught_categories(recipe, self.data)
        self.model, self.adapter = build_model(recipe, taught, cache, self.device, progress)
        optimizer, schedule = self._optimizer()
        self.state = RunState(self.model, optimizer, schedule, self.objectives, files=files)
        self.saved_step: int | None = None
        """Step of the state in last.pt; None before the first save."""
        if saved is not None:
            progress(f"Resuming from {folder / LAST}")
            self.state.restore(saved)
            self.saved_step = self.state.step
            if self.rank == 0:
                for name in (BEST, FINAL):
                    restore_replaced(folder / name)
                restore_log(folder / LOG, self.state.step, progress)
        else:
            progress("Starting a new run: initialising from the states of the notes")
            initialise(self.model, recipe, self.data, self.objectives, self._read_states, progress)

    def _optimizer(self) -> tuple[torch.optim.Optimizer, Schedule]:
        projection = self.model.projection
        head = [self.model.tau] if projection is None else [projection.weight, self.model.tau]
        head_ids = {id(parameter) for parameter in head}
        body = [parameter for parameter in self._trainable() if id(parameter) not in head_ids]
        return optimizer_and_schedule(body, head, self.recipe, foreach=not self.recipe.shard)

    def _trainable(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @property
    def ended(self) -> bool:
        """Whether training is over: all steps are done, or validation recall has stopped rising."""
        recipe, state = self.recipe, self.state
        return state.step >= recipe.steps or state.evaluations_without_gain >= recipe.patience

    def run(self) -> Iterator[Step]:
        """Train until the last step, or until validation recall stops rising (`patience` evaluations without gain).

        After `stop` it ends with the current step, and saves its state. A resumed run continues after the step of
        last.pt, with the batches that an uninterrupted run would have had. Raises RecipeError where the loss or the
        gradient is not finite, before that step changes the weights, and where an evaluation's scores are NaN, before
        that step is saved.
        """
        recipe, state = self.recipe, self.state
        if self.saved_step is None and self.rank == 0:
            (self.folder / LOG).write_text("")  # drop the log of a run that was killed before its first state
        batches = self._batches()
        for _ in range(state.step):
            index, _ = next(batches)
            self.steps_on[index] += 1
        while not self.ended:
            step = self._update(*next(batches))
            evaluated = state.step % recipe.evaluate_every == 0 or state.step == recipe.steps
            if evaluated:
                step = replace(step, recall=self._evaluate(), recall_at=self.recall_at)
            self._log(step)
            stopping = any_process(self.stopped, self.device)
            if evaluated or stopping or state.step % recipe.save_every == 0:
                state.save(self.folder, recipe)
                self.saved_step = state.step
            yield step
            if stopping and not self.ended:
                return
        self._save_checkpoint(FINAL)

    def stop(self) -> None:
        """Save and end the run after the current step."""
        self.stopped = True

    def _batches(self) -> Iterator[tuple[int, list[Note]]]:
        """Yield batches without end, each with the index in `data` of the data set that all its notes come from."""
        streams = [paired.batches(self.recipe.batch_pairs, self.recipe.seed) for paired in self.data]
        rng = random.Random(self.recipe.seed)
        shares = [row.share for row in self.recipe.data]
        while True:
            (index,) = rng.choices(range(len(streams)), shares)
            yield index, next(streams[index])

    def _update(self, index: int, notes: list[Note]) -> Step:
        """Do one step on a batch of the data set with this index."""
        started = time.perf_counter()
        rng = random.Random(f"{self.recipe.seed} {self.state.step}")
        paired = len(notes) // (2 * self.ranks) * 2 * self.ranks  # whole pairs, as many on each process
        if not paired:
            raise DatasetError(
                f"a batch has {len(notes) // 2} pairs that share no note, fewer than the {self.ranks} processes: start "
                "fewer processes"
            )
        notes = notes[:paired]
        objective = self.objectives[index]
        if objective:
            notes = notes + objective.unpaired_at(self.steps_on[index], notes)
            if reread := objective.reread_at(self.steps_on[index]):
                objective.update_memory(reread, self._read_vectors(reread))
        synonyms = self.recipe.data[index].category_names
        examples = [self._example(with_category_synonym(note, synonyms, rng), rng) for note in notes[:paired]]
        examples += [embedding_example(self.model.prompt, note) for note in notes[paired:]]
        related_loss = partial(self._related_loss, objective, notes, len(notes) - paired) if objective else None
        loss = self.accumulate(examples, related_loss)
        total, norm = float(loss.total), float(clip_gradients(self._trainable(), self.recipe.clip))
        refuse_divergence(self.state.step + 1, total, norm, self._remedy())
        learning_rate = float(self.state.schedule.get_last_lr()[0])
        self.state.optimizer.step()
        self.state.schedule.step()
        self.state.optimizer.zero_grad(set_to_none=True)
        self.state.step += 1
        self.steps_on[index] += 1
        seconds = time.perf_counter() - started
        return Step(
            step=self.state.step,
            loss=total,
            contrastive=float(loss.contrastive),
            distillation=float(loss.distillation),
            generative=float(loss.generative),
            tau=float(self.model.tau.detach()),
            learning_rate=learning_rate,
            gradient_norm=norm,
            seconds=seconds,
            pairs_per_second=paired / 2 / seconds,
        )

    def _remedy(self) -> str:
        """Return advice for a run that diverged, with the step of its saved state."""
        saved = "" if self.saved_step is None else f"; {self.folder / LAST} has the state of step {self.saved_step}"
        return LOWER_RATES + saved

    def _related_loss(
        self, objective: ContrastiveObjective, notes: Sequence[Note], unpaired: int, vectors: Tensor
    ) -> RelatedLoss:
        loss = objective.loss(notes, vectors, self.model.tau, unpaired)
        objective.update_memory(notes, vectors)
        return loss

    def _example(self, note: Note, rng: random.Random) -> Example:
        if rng.random() < self.recipe.hide_hashtags:
            return embedding_example(self.model.prompt, replace(note, hashtags=()))
        if self.recipe.alpha == 0:
            return embedding_example(self.model.prompt, note)
        return draw_example(self.model.prompt, note, self.recipe.hashtag_share, rng, self.recipe.input_hashtags)

    def accumulate(
        self, examples: Sequence[Example], related_loss: Callable[[Tensor], RelatedLoss] | None = None
    ) -> JointLoss:
        """Add the gradients of one batch to `.grad` of the weights; returns the loss over all processes.

        examples: all 2B + U of the batch, on every process; each process computes its own part of them. related_loss:
        loss of the vectors (2B + U, D); without it, the batch trains CSFT alone.
        """
        own_count = len(examples) // self.ranks
        own = slice(self.rank * own_count, (self.rank + 1) * own_count)
        own_examples = examples[own]
        longest = max(len(example.ids) for example in examples)
        chunks = self._micro_batches(own_examples, longest)
        micro_batches = [[own_examples[row] for row in chunk] for chunk in chunks]
        # A small batch is computed once, keeping its graph; a large one again for each micro-batch, as GradCache does.
        keep = own_count * longest <= self.recipe.kept_tokens
        kept = [self._forward(micro_batch) for micro_batch in micro_batches] if keep else None

        # (L_related + alpha L_gen) / (1 + alpha), or L_gen alone.
        weight = self.recipe.alpha / (1 + self.recipe.alpha) if related_loss else 1.0
        zero = torch.zeros((), device=self.device)
        related, vector_gradients = RelatedLoss(zero, zero, zero), None
        if related_loss:
            parts = [vectors.detach() for vectors, _, _ in kept] if kept else self._vectors(micro_batches)
            own_vectors = torch.zeros(own_count, self.model.dimension, device=self.device)
            for chunk, part in zip(chunks, parts, strict=True):
                own_vectors[chunk] = part
            all_vectors = gather_rows(own_vectors).requires_grad_()
            related = related_loss(all_vectors)
            torch.autograd.backward(related.total * (1 - weight))
            assert all_vectors.grad is not None
            vector_gradients = all_vectors.grad[own]

        generative = zero
        output_tokens = sum(len(example.targets) for example in examples)
        for i, chunk in enumerate(chunks):
            vectors, logits, targets = kept[i] if kept else self._forward(micro_batches[i])
            loss = generative_loss(logits, targets, output_tokens)
            surrogate = weight * loss  # its gradient is that of the joint loss
            if vector_gradients is not None:
                surrogate = surrogate + (vectors * vector_gradients[chunk]).sum()
            torch.autograd.backward(surrogate)
            generative = generative + loss.detach()
        # The gradient of tau is not summed: every process has already computed it from the whole loss.
        sum_over_processes(generative, (p for p in self._trainable() if p is not self.model.tau))
        if related_loss is None:
            return JointLoss(generative, zero, zero, generative)
        return joint_loss(RelatedLoss(*(part.detach() for part in related)), generative, self.recipe.alpha)

    def _micro_batches(self, examples: Sequence[Example], longest: int) -> list[list[int]]:
        """Group the rows of `examples` by length, each group within `micro_batch_tokens` when padded to `longest`.

        With the same `longest`, every process makes the same number of groups, which sharded weights require.
        """
        size = max(1, self.recipe.micro_batch_tokens // longest)
        by_length = sorted(range(len(examples)), key=lambda row: len(examples[row].ids))
        return [by_length[start : start + size] for start in range(0, len(by_length), size)]

    @torch.no_grad()
    def _vectors(self, micro_batches: Sequence[Sequence[Example]]) -> list[Tensor]:
        """Vectors (b, D) of each micro-batch, from the prompts alone."""
        return [self.model.embed(self._states(micro_batch)) for micro_batch in micro_batches]

    def _states(self, examples: Sequence[Example]) -> Tensor:
        """States (b, H) at the read-out positions, from the prompts alone."""
        ids, mask, positions = self._padded([example.ids[: example.read_out + 1] for example in examples])
        with self._autocast():
            hidden = self.model(ids, mask, positions)
        states: Tensor = hidden[torch.arange(len(examples), device=self.device), mask.sum(1) - 1]
        return states

    @torch.no_grad()
    def _read_states(self, notes: Sequence[Note]) -> Tensor:
        """States (len(notes), H) of notes at the read-out position, float32, without gradients."""
        examples = [embedding_example(self.model.prompt, note) for note in notes]
        states = torch.zeros(len(notes), self.model.backbone.config.get_text_config().hidden_size, device=self.device)
        for chunk in self._micro_batches(examples, max(len(example.ids) for example in examples)):
            states[chunk] = self._states([examples[row] for row in chunk]).float()
        return states

    @torch.no_grad()
    def _read_vectors(self, notes: Sequence[Note]) -> Tensor:
        """Vectors (len(notes), D) of notes, float32, without gradients."""
        return self.model.embed(self._read_states(notes))

    def _forward(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
        """Run one forward for both losses: vectors (b, D), logits (N, V), and their target tokens (N,)."""
        ids, mask, positions = self._padded([example.ids for example in examples])
        targets = [(row, column) for row, example in enumerate(examples) for column in example.targets]
        rows, columns = torch.tensor(targets, dtype=torch.int64, device=self.device).reshape(-1, 2).T
        read_out = torch.tensor([example.read_out for example in examples], device=self.device)
        with self._autocast():
            hidden = self.model(ids, mask, positions)
            logits = self.model.logits(hidden[rows, columns - 1])
        vectors = self.model.embed(hidden[torch.arange(len(examples), device=self.device), read_out])
        return vectors, logits, ids[rows, columns]

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Right-padded ids, their 0/1 mask and positions, all (b, T) int64."""
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=self.device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=self.device)
        return ids, mask, torch.arange(longest, device=self.device).expand_as(ids)

    def _autocast(self) -> torch.autocast:
        enabled = self.recipe.bfloat16 and bfloat16_pays(self.device.type)
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def _evaluate(self) -> float | None:
        """Measure validation recall and save the best checkpoint; without validation pairs, save the latest one."""
        if self.validation is None:
            self._save_checkpoint(BEST)
            return None
        with self._autocast(), refusing_nan_scores(self.state.step, self._remedy()):
            recall = value_of_the_first_process(self.validation_recall(), self.device)
        if recall > self.state.best:
            self.state.best, self.state.evaluations_without_gain = recall, 0
            self._save_checkpoint(BEST)
        else:
            self.state.evaluations_without_gain += 1
        return recall

    @property
    def recall_at(self) -> int | None:
        """k of the validation's Recall@k, which depends on the pool's size; None without validation pairs."""
        pool = self.validation and min(self.recipe.validation_notes, len(self.validation.notes))
        return pool_cutoff(pool) if pool else None

    def validation_recall(self) -> float:
        """Recall@`recall_at` of validation pairs in a pool of at most `validation_notes` notes, embedded by the Engine
        that serves, in the precision of training."""
        assert self.validation is not None
        assert self.recall_at is not None
        notes, pairs = self.validation.sample(self.recipe.validation_notes, self.recipe.seed)
        vectors = Engine(TorchRuntime(self.model)).embed(notes)
        return recall_of_pairs(vectors, [note.id for note in notes], pairs, k=self.recall_at)

    def _save_checkpoint(self, name: str) -> None:
        """Write the checkpoint `name` of the run's folder. It replaces an earlier one as a whole, leaving no old files.

        Called by every process, since sharded weights are gathered; rank 0 writes. Raises OSError.
        """
        weights: dict[str, Any] | None = None
        if self.recipe.shard:
            weights = get_model_state_dict(self.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if self.rank == 0:
            with replaced_folder(self.folder / name) as unfinished:
                self.model.save(unfinished, self.adapter, weights)

    def _log(self, step: Step) -> None:
        if self.rank == 0:
            with (self.folder / LOG).open("a") as log:
                log.write(json.dumps(asdict(step)) + "\n")
