"""`notellm train`, `train-encoder` and `embed`: training by a recipe, and the vectors of a teacher for one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from model.cli.options import CACHE, Cache
from model.terminal import check_writable, err, exit_on, fail, say

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from model.evaluation.system import Embedder
    from model.note import Note
    from model.training.trainer import Step, Trainer

Changes = Annotated[
    list[str] | None, typer.Option("--set", help="Override a value of the recipe, as name=value; may be repeated.")
]
COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
EMBED_BATCH_SIZE = 1024
"""Notes per step of the progress bar of `notellm embed`: enough that notes of similar length are read together."""


def train(
    config: Annotated[Path, typer.Option(help="Recipe (TOML file).")],
    folder: Annotated[
        Path, typer.Option("--out", help="Folder of the run: log, curves, last state and best checkpoint.")
    ],
    change: Changes = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        typer.Option(help="Device for training. auto: cuda if there is a GPU, otherwise cpu."),
    ] = "auto",
    cache: Cache = CACHE,
) -> None:
    """Train a model by a recipe. Run the same command again to resume. torchrun can start it in several processes.

    SIGTERM or Ctrl-C saves the state after the current step and stops the run with exit status 1.
    """
    import torch

    from model.config import CheckpointError
    from model.data.dataset import DatasetError
    from model.data.pairs import PairsError
    from model.training.curves import CURVES, draw_curves
    from model.training.distributed import processes
    from model.training.model_card import CARD, checked_out_commit, write_card
    from model.training.recipe import Recipe, RecipeError, parse_change
    from model.training.resume import LAST
    from model.training.stopping import stopped_by_signals
    from model.training.trainer import BEST, Trainer
    from model.weights import silent

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        fail("--device cuda: PyTorch finds no GPU; omit the option to train on the CPU")
    errors = (RecipeError, DatasetError, PairsError, CheckpointError, OSError)
    with exit_on(*errors), processes(device) as (rank, own_device):
        recipe = Recipe.load(config, dict(parse_change(text) for text in change or ()))
        commit = checked_out_commit()  # read before the run, during which files may change
        progress = say if rank == 0 else silent
        trainer = Trainer(recipe, folder, cache=cache, device=own_device, progress=progress)
        if trainer.ended and (folder / BEST / CARD).is_file():
            progress(
                f"the run in {folder} is complete at step {trainer.state.step}: choose a new folder for another run"
            )
            return
        with stopped_by_signals(trainer.stop):
            run_with_progress_bar(trainer, quiet=rank > 0)
        if not trainer.ended:
            fail(
                f"stopped at step {trainer.state.step}, saved in {folder / LAST}: run the same command again to resume"
            )
        if rank == 0:
            draw_curves(folder)
            say(f"curves: {folder / CURVES}")
            if (folder / BEST).is_dir():
                say(f"best checkpoint: {folder / BEST}; model card: {write_card(trainer, sys.argv, commit)}")


def run_with_progress_bar(trainer: Trainer, quiet: bool) -> None:
    """Run a trainer to its end, with a bar and a line for each evaluation unless `quiet`."""
    with Progress(*COLUMNS, console=err, disable=quiet) as bar:
        task = bar.add_task("training", total=trainer.recipe.steps, completed=trainer.state.step)
        for step in trainer.run():
            bar.update(task, completed=step.step, description=description_of(step))
            if step.recall is not None and not quiet:
                bar.console.print(f"step {step.step}: validation Recall@{step.recall_at} {100 * step.recall:.1f}%")


def description_of(step: Step) -> str:
    """Return the text beside the progress bar."""
    return (
        f"contrastive {step.contrastive:.3f}  generative {step.generative:.3f}  tau {step.tau:.2f}  "
        f"{step.pairs_per_second:.1f} pairs/s"
    )


def train_encoder(
    config: Annotated[Path, typer.Option(help="Recipe (TOML file).")],
    folder: Annotated[Path, typer.Option("--out", help="Folder of the run: log and best encoder.")],
    change: Changes = None,
) -> None:
    """Fine-tune all-MiniLM-L6-v2, the strongest baseline, on the pairs of a recipe with the same contrastive loss.

    With contrastive = false in the recipe, it is trained on the categories of the notes instead.
    """
    from model.baselines.encoder import fine_tune
    from model.data.dataset import DatasetError
    from model.data.pairs import PairsError
    from model.training.recipe import Recipe, RecipeError, parse_change

    with exit_on(RecipeError, DatasetError, PairsError, OSError):
        recipe = Recipe.load(config, dict(parse_change(text) for text in change or ()))
        figure = "recall" if recipe.contrastive else "accuracy"
        with Progress(*COLUMNS, console=err) as bar:
            task = bar.add_task("training", total=recipe.steps)
            for step, loss, measured in fine_tune(recipe, folder, say):
                bar.update(task, completed=step, description=f"loss {loss:.3f}")
                if measured is not None:
                    bar.console.print(f"step {step}: validation {figure} {100 * measured:.1f}%")


def embed(
    checkpoint: Annotated[str, typer.Option(help="Checkpoint, backbone, folder of an encoder, or minilm.")],
    notes: Annotated[Path, typer.Option(help="JSONL file of notes with id, title, content and hashtags.")],
    out_file: Annotated[Path, typer.Option("--out", help=".npz file to write.")],
    split: Annotated[
        Literal["train", "validation", "test"], typer.Option(help="Split of the notes to embed.")
    ] = "train",
    whiten: Annotated[
        int | None,
        typer.Option(help="Whiten the vectors on these notes to this dimension; not whitened by default.", min=1),
    ] = None,
    cache: Cache = CACHE,
) -> None:
    """Compute the vectors of a split's notes and save them, for the `teacher` of a recipe."""
    from model.baselines.loading import load_embedder
    from model.config import CheckpointError
    from model.data.dataset import DatasetError, read_notes
    from model.evaluation.evaluate import notes_of_split
    from model.training.teacher import write_vectors
    from model.training.whiten import whitening

    check_writable(out_file)
    with exit_on(CheckpointError, DatasetError, OSError):
        chosen = notes_of_split(read_notes(notes, say), split)
        if not chosen:
            fail(f"{notes} has no notes of the split {split}")
        embedder = load_embedder(checkpoint, cache, say)
        vectors = embed_with_progress_bar(embedder, chosen)
        if whiten is not None:
            with exit_on(ValueError):  # fewer notes or directions than requested dimensions
                vectors = vectors @ whitening([vectors], whiten).T
        write_vectors(out_file, [note.id for note in chosen], vectors)


def embed_with_progress_bar(embedder: Embedder, notes: Sequence[Note]) -> npt.NDArray[np.float32]:
    """Return the vectors (len(notes), D) of one note or more, with a progress bar on standard error."""
    import numpy as np

    with Progress(*COLUMNS, console=err) as bar:
        starts = range(0, len(notes), EMBED_BATCH_SIZE)
        steps = bar.track(starts, description=f"reading {len(notes):,} notes")
        return np.concatenate([embedder.embed(notes[start : start + EMBED_BATCH_SIZE]) for start in steps])
