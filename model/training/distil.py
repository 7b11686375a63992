"""Distillation without labels: the backbone learns to reproduce the teachers' vector of any text.

    python -m model.training.distil --corpus FOLDER --out FOLDER --share SOURCE=SHARE ... [--data FOLDER] [--minutes N]
    python -m model.training.distil --corpus FOLDER --out FOLDER --recipe FILE ...

The loss of a note is 1 - cosine to the teachers' vector, plus the divergence between how student and teachers rank
other texts (`structure_loss`). An average of recent weights is measured and exported, so a run may end at any time. The
folder gets state.<step>.pt (the last two), log.jsonl with a line per step, and curve.jsonl with a line per measurement.
On SIGTERM or Ctrl-C the run saves and ends. The same command resumes it; learning rate and intervals may differ.
docs/guides/distillation.md has all commands, from the texts to a checkpoint.

Shapes: B notes of a batch, K dimension of all teachers together, R ranked texts.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model.cache_option import add_cache_option
from model.config import PACKAGED_BACKBONE, CheckpointError
from model.data.dataset import DatasetError
from model.data.pairs import PairsError
from model.note import Note
from model.training.held_out import POOL_SIZES, HeldOutDomain, recalls
from model.training.master_weights import MasterWeights
from model.training.optimizer import LOWER_RATE, refuse_divergence, refusing_nan_scores
from model.training.progress_lines import ProgressLines
from model.training.recipe import RecipeError, check_counts, check_positive, check_rates, check_shares, from_table
from model.training.resume import (
    backbone_digest,
    lower_rate_in,
    read_newest_state,
    refuse_other_inputs,
    refuse_other_recipe,
    restore_log,
    save_state,
    wait_while_exists,
)
from model.training.run_lock import FolderLock
from model.training.running_ridge import RunningRidge
from model.training.stopping import stopped_by_signals
from model.training.student import POOLINGS, build_student
from model.training.texts import Batch, Position, Texts
from model.training.token_teacher import TOKENS_FILE, TokenTeacher
from model.weights import file_digest

LOG, CURVE = "log.jsonl", "curve.jsonl"
ENCODER_NAME = re.compile(r"[\w-]+")
"""Matches a name of an encoder, which is that of its folder in the corpus."""
CHANGEABLE = ("learning_rate", "solve_every", "save_every", "measure_every")
"""Fields of the recipe that may change when a run is resumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distillation:
    """The recipe of one run; state files hold it under these names. Raises RecipeError for an invalid value."""

    shares: dict[str, float] = field(default_factory=dict)
    """Relative frequency with which each source is drawn."""
    teachers: list[str] = field(default_factory=lambda: ["minilm"])
    """Encoders whose vectors of the corpus teach, each with weight 1."""
    backbone: str = PACKAGED_BACKBONE
    prompt_version: str = "note-first/2"
    pooling: str = "read-out"
    """States of a note that are the head's input (student.POOLINGS)."""
    seed: int = 0
    threads: int = 2
    """Threads of one core each; each takes a part of the batch. 1 on a GPU."""
    batch: int = 48
    rank: int = 0
    """Rank of the adapter that is trained; 0: all weights of the linear layers are trained, and the export reduces
    their difference to an adapter."""
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    warmup_steps: int = 30
    clip: float = 1.0
    """Maximum norm of the gradient."""
    words: float = 1.0
    """Weight of the token teacher's cosine."""
    structure: float = 0.5
    """Weight of `structure_loss`; 1 - cosine has weight 1."""
    temperature: float = 0.05
    """Temperature of the softmax in `structure_loss`."""
    ranked: int = 4096
    """Number of corpus texts that `structure_loss` ranks."""
    averaged: int = 100
    """Approximate number of steps over which the weights are averaged."""
    remembered: int = 100
    """Approximate number of recent batches to which the head is fitted."""
    solve_every: int = 10
    """Steps between two solutions of the head."""
    starting_notes: int = 3072
    """Notes to which the initial head is fitted."""
    save_every: float = 15.0
    """Minutes between two states."""
    measure_every: float = 30.0
    """Minutes between two points of the learning curve."""

    def __post_init__(self) -> None:
        check_rates(self, ("learning_rate", "weight_decay", "words", "structure", "save_every", "measure_every"))
        check_positive(self, ("temperature",))
        counts = ("threads", "batch", "warmup_steps", "ranked", "averaged", "remembered", "solve_every")
        check_counts(self, (*counts, "starting_notes"))
        check_counts(self, ("seed", "rank"), minimum=0)
        if self.pooling not in POOLINGS:
            raise RecipeError(f"pooling must be one of {', '.join(POOLINGS)}, not {self.pooling}")
        if not self.teachers or len(set(self.teachers)) < len(self.teachers):
            raise RecipeError(f"teachers: name at least one encoder, and each once, not {self.teachers}")
        if wrong := [name for name in self.teachers if not ENCODER_NAME.fullmatch(name)]:
            raise RecipeError(f"teachers: {wrong[0]!r} is not the name of an encoder, such as minilm")
        check_shares(self.shares)


class PartialLoss(NamedTuple):
    """Result of one thread's part of a batch.

    `cosine`, `structure` (scalars): means over the part times its share of the notes, so that the parts sum to the
    means of the batch. `states` (b, H) or (b, 2H) and `teacher_vectors` (b, K) of the part's notes.
    """

    cosine: Tensor
    structure: Tensor
    states: Tensor
    teacher_vectors: Tensor


def structure_loss(vectors: Tensor, teacher_vectors: Tensor, ranked: Tensor, temperature: float) -> Tensor:
    """Mean KL divergence of the student's softmax from the teacher's, over the cosines with `ranked` (R, K).

    `vectors`, `teacher_vectors`: (B, K). All vectors are of unit length.
    """
    teacher = nn.functional.log_softmax(teacher_vectors @ ranked.T / temperature, dim=1)
    student = nn.functional.log_softmax(vectors @ ranked.T / temperature, dim=1)
    return nn.functional.kl_div(student, teacher, reduction="batchmean", log_target=True)


class Distiller:
    """A run with its texts and its folder. It resumes from the newest state in the folder, if there is one.

    `pause_file`: while it exists, the run waits between steps. `device`: "cpu" or "cuda"; a run may resume on the other
    one with the same number of threads. Raises CheckpointError; FileNotFoundError where the corpus lacks vectors;
    DatasetError where they belong to other notes; RecipeError where a share is too small for any note, the folder's run
    has different notes or vectors, a different recipe (except for CHANGEABLE) or only damaged states, the folder has
    files of no such run, or another process trains there.
    """

    def __init__(
        self,
        recipe: Distillation,
        corpus: Path,
        folder: Path,
        cache: Path,
        pause_file: Path | None = None,
        device: str = "cpu",
    ) -> None:
        self.recipe = recipe
        self.folder = folder
        self.pause_file = pause_file
        self._lock = FolderLock(folder, "model.training.distil", print)
        torch.manual_seed(recipe.seed)
        torch.set_num_threads(1)  # the parts of a batch run in parallel, not the matrix products
        token_teacher = TokenTeacher.load(corpus, cache) if recipe.words else None
        self.texts = Texts(corpus, recipe.teachers, recipe.shares, recipe.seed, token_teacher, recipe.words)
        self.texts.mix.check_batches(recipe.batch)
        self.inputs = self.texts.digests | backbone_digest(recipe.backbone)  # norms and embeddings stay frozen
        """Digests, by name, of everything besides the recipe that determines the run."""
        if recipe.words:
            self.inputs[TOKENS_FILE] = file_digest(corpus / TOKENS_FILE)
        count, dimension = self.texts.teacher_vectors.shape
        shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(recipe.seed))
        self.ranked = torch.from_numpy(self.texts.teacher_vectors[shuffled[: recipe.ranked].numpy()]).to(device)
        self.student = build_student(
            recipe.backbone, recipe.prompt_version, dimension, recipe.pooling, cache, device, recipe.rank
        )
        weights = self.student.trained_weights()
        rates, decays = [recipe.learning_rate] * len(weights), [recipe.weight_decay] * len(weights)
        self.master_weights = MasterWeights(weights, rates, decays, recipe.averaged, recipe.threads)
        self.ridge = RunningRidge(self.student.head.in_features, dimension, 1 - 1 / recipe.remembered, device)
        self.position: Position = (0, 0)
        self.step = 0
        self.text_count = 0
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self.stopped = False
        newest = read_newest_state(folder, print)
        if newest is None:
            self._solve_first_head()
        else:
            self._restore(*newest)

    def _solve_first_head(self) -> None:
        rows = self.texts.sample(self.recipe.starting_notes)
        states = self.student.read_states([self.texts.notes[row] for row in rows], self.master_weights.pool)
        self.ridge.add(states, torch.from_numpy(self.texts.teacher_vectors[rows]))
        self._solve_head()

    @torch.no_grad()
    def _solve_head(self) -> None:
        self.student.head.weight.copy_(self.ridge.head())

    def run(self, minutes: float, domains: Sequence[HeldOutDomain] = ()) -> None:
        """Train for `minutes` of step time, without pauses and measurements, or until `stop` is called.

        Raises RecipeError where the loss or the gradient is not finite, before that step changes the weights, and
        OSError where a file of the run cannot be written.
        """
        if self.step == 0:
            self.save()
        lines = ProgressLines()
        started = saved = measured = self.seconds
        for batch in self.texts.batches(self.student.model.prompt, self.recipe.batch, self.position):
            if not wait_while_exists(self.pause_file, lambda: self.stopped):
                self.save()
                return
            loss = self.update(batch)
            lines.tell(self.step, loss, self.seconds)
            finished = self.seconds - started > 60 * minutes
            ending = finished or self.stopped
            if ending or self.seconds - saved > 60 * self.recipe.save_every:
                self.save()
                saved = self.seconds
            if finished or self.seconds - measured > 60 * self.recipe.measure_every:
                self.measure(domains)
                measured = self.seconds
            if ending:
                return

    def stop(self) -> None:
        """Save and end the run after the current step or pause."""
        self.stopped = True

    def update(self, batch: Batch) -> float:
        """Do one optimizer step, and return its loss. Raises RecipeError, without the step, where loss or gradient is
        not finite."""
        started, cpu_started = time.monotonic(), time.process_time()
        parts = min(self.recipe.threads, len(batch.ids))
        losses = self.master_weights.add_gradients([partial(self._loss, batch, part) for part in range(parts)])
        cosine = sum(float(loss.cosine) for loss in losses)
        structure = sum(float(loss.structure) for loss in losses)
        norm = self.master_weights.clip_gradients(self.recipe.clip)
        loss = 1 - cosine + self.recipe.structure * structure
        refuse_divergence(self.step + 1, loss, norm, lower_rate_in(self.folder))
        states, teacher_vectors = zip(*((loss.states, loss.teacher_vectors) for loss in losses), strict=True)
        self.ridge.add(torch.cat(states), torch.cat(teacher_vectors))
        self.step += 1
        self.text_count += len(batch.lengths)
        self.position = batch.next_position
        rate_factor = min(1.0, self.step / self.recipe.warmup_steps)
        self.master_weights.step(self.step, rate_factor)
        seconds = time.monotonic() - started
        self.seconds += seconds
        self.cpu_seconds += time.process_time() - cpu_started
        if self.step % self.recipe.solve_every == 0:
            self._solve_head()
        self._log(
            LOG,
            step=self.step,
            cosine=cosine,
            structure=structure,
            norm=norm,
            tokens=int(batch.lengths.sum()),
            seconds=seconds,
        )
        return loss

    def _loss(self, batch: Batch, part: int) -> tuple[Tensor, PartialLoss]:
        """Return the loss of every `threads`-th row from row `part` on; the parts' losses sum to the batch's."""
        rows = slice(part, None, self.recipe.threads)
        lengths, teacher_vectors = batch.lengths[rows], batch.teacher_vectors[rows].to(self.ranked.device)
        share = len(lengths) / len(batch.lengths)
        states = self.student.states(batch.ids[rows, : int(lengths.max())], lengths)
        vectors = self.student.project(states)
        cosine = share * (vectors * teacher_vectors).sum(1).mean()
        structure = share * structure_loss(vectors, teacher_vectors, self.ranked, self.recipe.temperature)
        loss = share - cosine + self.recipe.structure * structure
        return loss, PartialLoss(cosine.detach(), structure.detach(), states.detach(), teacher_vectors)

    def measure(self, domains: Sequence[HeldOutDomain]) -> None:
        """Log a point of the learning curve: recall in each domain with the averaged weights."""
        started = time.monotonic()
        with self.master_weights.averaged(), refusing_nan_scores(self.step, LOWER_RATE):
            recall = recalls(self._embed_domain, domains)
        self._log(
            CURVE,
            step=self.step,
            texts=self.text_count,
            hours=self.seconds / 3600,
            cpu_hours=self.cpu_seconds / 3600,
            recall=recall,
            measuring_seconds=time.monotonic() - started,
        )

    def _embed_domain(self, notes: Sequence[Note]) -> npt.NDArray[np.float32]:
        wait_while_exists(self.pause_file, lambda: self.stopped)
        return self.student.embed(notes, self.master_weights.pool)

    def save(self) -> None:
        """Write the state to resume from (`save_state`), 1.7 GB for the packaged backbone."""
        state = {
            "recipe": asdict(self.recipe),
            "files": self.inputs,
            "masters": self.master_weights.state(),
            "ridge": self.ridge.state(),
            "head": self.student.head.weight.detach().cpu(),
            "progress": (self.step, self.text_count, self.seconds, self.cpu_seconds),
            "place": self.position,
        }
        save_state(self.folder, self.step, state)

    def _restore(self, path: Path, state: Mapping[str, Any]) -> None:
        saved = {"rank": 0} | state["recipe"]  # earlier versions had no such field, and trained all weights
        refuse_other_recipe(self.folder, saved, asdict(self.recipe), CHANGEABLE)
        refuse_other_inputs(path, state.get("files", {}), self.inputs, print)
        self.master_weights.restore(state["masters"])
        self.ridge.restore(state["ridge"])
        with torch.no_grad():
            self.student.head.weight.copy_(state["head"])
        self.step, self.text_count, self.seconds, self.cpu_seconds = state["progress"]
        self.position = state["place"]
        for name in (LOG, CURVE):
            restore_log(self.folder / name, self.step, print)

    def _log(self, name: str, **values: Any) -> None:
        with (self.folder / name).open("a") as file:
            file.write(json.dumps({**values, "at": time.strftime("%H:%M:%S")}) + "\n")


def option_parser() -> argparse.ArgumentParser:
    """Return the parser. Recipe options have the names of the recipe's fields, and are absent where not given."""
    parser = argparse.ArgumentParser(
        description="Train a generalist model by distillation from teachers, on texts without labels."
    )
    parser.add_argument("--corpus", type=Path, required=True, help="folder with the texts and the teachers' vectors")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run: states, log and measurements")
    parser.add_argument("--recipe", type=Path, help="TOML file with fields of the recipe; options override them")
    parser.add_argument(
        "--share",
        action="append",
        metavar="SOURCE=SHARE",
        help="share of a source in the training texts; may be repeated",
    )
    parser.add_argument("--data", type=Path, help="folder with the data sets of the held-out domains, for measurements")
    parser.add_argument(
        "--minutes",
        type=float,
        default=float("inf"),
        help="maximum training time of this command in minutes; unlimited by default",
    )
    parser.add_argument(
        "--total-minutes",
        type=float,
        default=float("inf"),
        help="maximum training time in minutes of all commands of the run together; later commands do nothing",
    )
    parser.add_argument("--measure-first", action="store_true", help="also measure before the first step")
    parser.add_argument("--pause-file", type=Path, help="file that pauses the run between steps while it exists")
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="training device (default: cpu); with cuda, use --threads 1",
    )
    add_cache_option(parser)
    recipe = parser.add_argument_group("recipe", argument_default=argparse.SUPPRESS)
    recipe.add_argument("--backbone")
    recipe.add_argument(
        "--teacher", dest="teachers", action="append", metavar="ENCODER",
        help="encoder whose vectors of the corpus teach; may be repeated",
    )  # fmt: skip
    recipe.add_argument("--pooling", choices=POOLINGS)
    for name in ("seed", "threads", "batch", "starting-notes", "rank"):
        recipe.add_argument(f"--{name}", type=int)
    for name in ("learning-rate", "words", "structure", "save-every", "measure-every"):
        recipe.add_argument(f"--{name}", type=float)
    return parser


def recipe_of(options: argparse.Namespace) -> Distillation:
    """Build the recipe from the file, where one is named, and from the options, which replace the file's fields.

    Raises OSError and ValueError for a file that cannot be read or is not TOML, ValueError for a share that is not a
    number, and RecipeError for unknown fields and invalid values.
    """
    table: dict[str, Any] = tomllib.loads(options.recipe.read_text("utf-8")) if options.recipe else {}
    table |= {name: value for name, value in vars(options).items() if name in Distillation.__dataclass_fields__}
    if options.share:
        table["shares"] = {name: float(share) for name, _, share in (text.partition("=") for text in options.share)}
    recipe: Distillation = from_table(Distillation, str(options.recipe or "options"), table)
    return recipe


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command of the module's docstring."""
    parser = option_parser()
    options = parser.parse_args(arguments)
    try:
        recipe = recipe_of(options)
    except (OSError, ValueError) as error:  # RecipeError is a ValueError
        parser.error(f"the recipe: {error}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no GPU; omit the option to train on the CPU")
    if options.data and not any((options.data / name).is_dir() for name in POOL_SIZES):
        parser.error(f"--data: {options.data} contains none of the folders {', '.join(POOL_SIZES)}")
    try:
        distiller = Distiller(recipe, options.corpus, options.out, options.cache, options.pause_file, options.device)
    except (CheckpointError, DatasetError, RecipeError, OSError) as error:
        parser.error(str(error))
    minutes_left = options.total_minutes - distiller.seconds / 60
    if minutes_left <= 0:
        print(
            f"the run in {options.out} has used its {options.total_minutes:g} minutes and is at step {distiller.step}"
        )
        return
    print(f"{len(distiller.texts.notes):,} texts; step {distiller.step}; {recipe}", flush=True)
    try:
        with stopped_by_signals(distiller.stop):
            domains = HeldOutDomain.load_all(options.data, options.out) if options.data else []
            pools = [domain.sample(POOL_SIZES[domain.name]) for domain in domains]
            if options.measure_first:
                distiller.measure(pools)
            distiller.run(min(options.minutes, minutes_left), pools)
    except (DatasetError, PairsError, RecipeError, OSError) as error:
        sys.exit(str(error))
    if distiller.stopped:  # not a success: a script must not go on to export the run
        sys.exit(f"stopped and saved at step {distiller.step}: the same command resumes the run")


if __name__ == "__main__":
    main()
