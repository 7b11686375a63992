"""The offline half of the `notellm` command line: pairs, train, evaluate. What they need is imported when they run."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from model.generation import HashtagPolicy

if TYPE_CHECKING:
    from model.training.trainer import Step

out = Console()
err = Console(stderr=True)
Cache = Annotated[Path, typer.Option(envvar="NOTELLM_CACHE_DIR", help="Converted weights.")]
COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
CACHE = Path("~/.cache/notellm").expanduser()
DATA_WITH_CATEGORIES = "Folders with notes.jsonl.gz, or such files, that have categories."


def add_to(app: typer.Typer) -> None:
    """Register the commands with the one `notellm` app."""
    for command in (pairs, train, train_encoder, embed, whiten, calibrate, fit_categories, evaluate):
        app.command()(command)


def pairs(
    clicks: Annotated[Path, typer.Option(help="JSONL, CSV or Parquet with user, note and, if known, time and rating.")],
    out_file: Annotated[Path, typer.Option("--out", help="The Parquet file to write.")],
    notes: Annotated[Path | None, typer.Option(help="JSONL with id and category, for --per-category.")] = None,
    window: Annotated[int | None, typer.Option(help="Most steps between the two notes; the whole history.")] = None,
    lower: Annotated[float, typer.Option(help="Pairs scored lower are dropped.")] = 0.01,
    upper: Annotated[float, typer.Option(help="Pairs scored higher are dropped.")] = 30.0,
    top: Annotated[int, typer.Option(help="Pairs kept per note.")] = 10,
    min_rating: Annotated[float | None, typer.Option(help="Only clicks with this rating or more count.")] = None,
    max_history: Annotated[int | None, typer.Option(help="Only a user's first notes make pairs.")] = None,
    per_category: Annotated[int | None, typer.Option(help="Pairs kept per combination of categories.")] = None,
    split: Annotated[Literal["all", "train", "validation", "test"], typer.Option(help="Of both notes.")] = "all",
    engine: Annotated[
        Literal["duckdb", "spark"], typer.Option(help="Spark is for what one machine cannot hold.")
    ] = "duckdb",
    memory: Annotated[str, typer.Option(help="For the join; the rest goes to disk.")] = "1GB",
    as_json: Annotated[bool, typer.Option("--json", help="The report, for programs.")] = False,
) -> None:
    """Related pairs of notes from what users clicked: s(A->B) = sum over users of 1/N."""
    from model.data.pairs import PairOptions, PairsError, related_pairs

    given = locals()
    with exit_on(PairsError):
        options = PairOptions(**{f.name: given[f.name] for f in fields(PairOptions)})
        report = related_pairs(clicks, out_file, options, notes=notes, engine=engine, memory=memory, progress=say)
    show(asdict(report), as_json)


def train(
    config: Annotated[Path, typer.Option(help="The recipe, TOML.")],
    folder: Annotated[Path, typer.Option("--out", help="Log, curves, state to go on from, and the best checkpoint.")],
    change: Annotated[list[str] | None, typer.Option("--set", help="name=value, instead of the recipe's.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda; what is there by default.")] = "auto",
    cache: Cache = CACHE,
) -> None:
    """Train as the recipe says; the same command goes on after a break. Under torchrun: on several processes."""
    import torch

    from model.config import CheckpointError
    from model.data.dataset import DatasetError
    from model.data.pairs import PairsError
    from model.training.model_card import CURVES, commit, draw_curves, write_card
    from model.training.recipe import Recipe, RecipeError
    from model.training.trainer import BEST, Trainer, processes

    device = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    with exit_on(RecipeError, DatasetError, PairsError, CheckpointError), processes(device) as (rank, device):
        recipe = Recipe.load(config, dict(parsed(text) for text in change or ()))
        folder.mkdir(parents=True, exist_ok=True)
        quiet, made_by = rank > 0, commit()
        trainer = Trainer(recipe, folder, cache=cache, device=device, progress=(lambda message: None) if quiet else say)
        with Progress(*COLUMNS, console=err, disable=quiet) as bar:
            task = bar.add_task("training", total=recipe.steps, completed=trainer.step)
            for step in trainer.run():
                bar.update(task, completed=step.step, description=described(step))
                if step.recall is not None and not quiet:
                    bar.console.print(f"step {step.step}: validation Recall@100 {100 * step.recall:.1f}%")
        if not quiet:
            draw_curves(folder)
            say(f"curves: {folder / CURVES}")
            if (folder / BEST).is_dir():
                say(f"the best checkpoint: {folder / BEST}; its card: {write_card(trainer, sys.argv, made_by)}")


def train_encoder(
    config: Annotated[Path, typer.Option(help="The recipe, TOML.")],
    folder: Annotated[Path, typer.Option("--out", help="Log and the best encoder.")],
    change: Annotated[list[str] | None, typer.Option("--set", help="name=value, instead of the recipe's.")] = None,
) -> None:
    """Fine-tune all-MiniLM-L6-v2, the rival to beat: on the same pairs with the same contrastive loss, or, where the
    recipe says contrastive = false, on the notes' categories."""
    from model.baselines.encoder import fine_tune
    from model.data.dataset import DatasetError
    from model.data.pairs import PairsError
    from model.training.recipe import Recipe, RecipeError

    with exit_on(RecipeError, DatasetError, PairsError, FileNotFoundError):
        recipe = Recipe.load(config, dict(parsed(text) for text in change or ()))
        folder.mkdir(parents=True, exist_ok=True)
        figure = "Recall@100" if recipe.contrastive else "accuracy"
        with Progress(*COLUMNS, console=err) as bar:
            task = bar.add_task("training", total=recipe.steps)
            for step, loss, measured in fine_tune(recipe, folder):
                bar.update(task, completed=step, description=f"loss {loss:.3f}")
                if measured is not None:
                    bar.console.print(f"step {step}: validation {figure} {100 * measured:.1f}%")


def embed(
    checkpoint: Annotated[str, typer.Option(help="A checkpoint, a backbone, an encoder's folder, or minilm.")],
    notes: Annotated[Path, typer.Option(help="JSONL with id, title, content, hashtags.")],
    out_file: Annotated[Path, typer.Option("--out", help="The .npz file to write.")],
    split: Annotated[Literal["train", "validation", "test"], typer.Option(help="Whose notes are read.")] = "train",
    cache: Cache = CACHE,
) -> None:
    """Vectors of a split's notes: what a recipe's `teacher` is made of."""
    from model.baselines import lexical as baselines
    from model.config import CheckpointError
    from model.data.dataset import DatasetError, read_notes
    from model.data.pairs import split_of
    from model.evaluation.evaluate import Embedder
    from model.training.teacher import write_vectors

    with exit_on(CheckpointError, DatasetError, FileNotFoundError):
        chosen = [note for i, note in sorted(read_notes(notes).items()) if split_of(i) == split]
        system = baselines.system(checkpoint, (), cache, "auto", say)
        if not isinstance(system, Embedder):
            raise CheckpointError(f"{checkpoint} gives no vectors")
        say(f"Reading {len(chosen):,} notes")
        out_file.parent.mkdir(parents=True, exist_ok=True)
        write_vectors(out_file, [note.id for note in chosen], system.embed(chosen))


def whiten(
    checkpoint: Annotated[Path, typer.Option(help="A checkpoint folder, whose projection is changed.")],
    data: Annotated[list[Path], typer.Option(help="Folders with notes.jsonl.gz, or such files; one a data set.")],
    dimension: Annotated[int, typer.Option(help="Of its vectors afterwards.", min=1)] = 128,
    most_notes: Annotated[int, typer.Option(help="Training notes that are read of each, drawn at random.")] = 2000,
    cache: Cache = CACHE,
) -> None:
    """Take out of a checkpoint's vectors what all of them share, and cut them to what tells notes apart."""
    from model.config import CheckpointError
    from model.data.dataset import DatasetError, read_notes
    from model.evaluation.evaluate import notes_of_split
    from model.inference.engine import Engine
    from model.training.whiten import whiten as change

    with exit_on(CheckpointError, DatasetError, ValueError, FileNotFoundError):
        chosen = [notes_of_split(read_notes(notes_file(path)), "train", most_notes) for path in data]
        engine = Engine.load(str(checkpoint), cache=cache, fitted=False, progress=say)
        say(f"Reading {sum(map(len, chosen)):,} notes")
        change(checkpoint, [engine.embed(of) for of in chosen], dimension)
    show({"dimension": dimension}, False)


def calibrate(
    checkpoint: Annotated[Path, typer.Option(help="A checkpoint folder, whose notellm.json is changed.")],
    data: Annotated[list[Path], typer.Option(help=DATA_WITH_CATEGORIES)],
    most_notes: Annotated[int, typer.Option(help="Of each, drawn at random.")] = 500,
    cache: Cache = CACHE,
) -> None:
    """Fit the temperature of category probabilities on the validation notes, and keep it in the checkpoint."""
    from model.config import NoteLLMConfig
    from model.data.dataset import read_notes
    from model.evaluation.evaluate import EngineSystem
    from model.inference.engine import Engine
    from model.training.calibrate import category_temperature

    with exit_on(ValueError, FileNotFoundError):
        config = NoteLLMConfig.load(checkpoint)
        notes = [read_notes(notes_file(path)) for path in data]
        engine = Engine.load(str(checkpoint), cache=cache, fitted=False, progress=say)
        temperature = category_temperature(EngineSystem(engine), notes, most_notes, say)
        replace(config, category_temperature=round(temperature, 4)).save(checkpoint)
    show({"category_temperature": temperature}, False)


def fit_categories(
    checkpoint: Annotated[Path, typer.Option(help="A checkpoint folder, which gets categories.safetensors.")],
    data: Annotated[list[Path], typer.Option(help=DATA_WITH_CATEGORIES)],
    most_notes: Annotated[int, typer.Option(help="Training notes that are read of each, drawn at random.")] = 10_000,
    cache: Cache = CACHE,
) -> None:
    """Learn from training notes what a note's vector says of its category, beside the name that the model writes."""
    from model.config import CheckpointError, NoteLLMConfig
    from model.data.dataset import read_notes
    from model.inference.engine import Engine
    from model.training.calibrate import category_head

    with exit_on(CheckpointError, ValueError, FileNotFoundError):
        NoteLLMConfig.load(checkpoint)  # a bare backbone has no folder for it
        notes = [read_notes(notes_file(path)) for path in data]
        engine = Engine.load(str(checkpoint), cache=cache, fitted=False, progress=say)
        head = category_head(engine, notes, most_notes, say)
        head.save(checkpoint, engine.space)
    for written, vector in sorted({(a, b) for a, b in head.pool_weights.tolist()}):
        say(f"Trust in what is written {written:.2f}, in the vector {vector:.2f}")
    show({"categories": len(head.names)}, False)


def evaluate(
    checkpoint: Annotated[
        str, typer.Option(help="A checkpoint, a backbone, an encoder's folder, or tf-idf, bm25, minilm, frequent.")
    ],
    data: Annotated[Path, typer.Option(help="A folder with notes.jsonl.gz and, for related notes, clicks.jsonl.gz.")],
    split: Annotated[Literal["validation", "test"], typer.Option(help="Tune on validation.")] = "validation",
    part: Annotated[list[str] | None, typer.Option(help="related, categories, hashtags; all by default.")] = None,
    protocol: Annotated[list[str] | None, typer.Option(help="cold-cold, cold-all; both by default.")] = None,
    hashtags: Annotated[bool, typer.Option(help="Whether the notes show theirs.")] = True,
    copy_hashtags: Annotated[
        bool, typer.Option("--copy-hashtags", help="Copied from the nearest training notes, not written.")
    ] = False,
    hashtag_policy: Annotated[
        HashtagPolicy, typer.Option(help="Of written ones; known and grounded look at those of training notes.")
    ] = "open",
    most_notes: Annotated[
        int | None, typer.Option(help="Whose categories and hashtags are asked for, drawn at random; all by default.")
    ] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "int8"],
        typer.Option(help="Precision of a checkpoint; as served by default."),
    ] = "auto",
    record: Annotated[Path | None, typer.Option(help="Where to write every rank and choice, as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The summary, for programs; shares in 0 to 1.")] = False,
    cache: Cache = CACHE,
) -> None:
    """Related notes, categories and hashtags of notes that training never saw; a checkpoint is read as it is served."""
    from model.baselines import lexical as baselines
    from model.config import CheckpointError
    from model.data.dataset import DatasetError, read_notes
    from model.data.pairs import PairsError, split_of
    from model.evaluation.evaluate import PARTS, EngineSystem, Retriever, Tagger, notes_of_split
    from model.evaluation.evaluate import evaluate as measured
    from model.evaluation.protocol import NOTES_FILE, PROTOCOLS, evaluation_pairs
    from model.training.model_card import commit, processor

    check_names("part", part or (), PARTS)
    check_names("protocol", protocol or (), PROTOCOLS)
    origin = {"commit": commit(), "processor": processor()}
    with exit_on(CheckpointError, DatasetError, PairsError, FileNotFoundError):
        notes = read_notes(data / NOTES_FILE)
        wanted = part or PARTS
        pairs, clicks = (
            evaluation_pairs(data, split, protocol or list(PROTOCOLS), say) if "related" in wanted else ({}, {})
        )
        known = [note for i, note in notes.items() if split_of(i) == "train"]
        asked = baselines.system(checkpoint, known, cache, dtype, say, hashtag_policy)
        origin["dtype"] = asked.precision if isinstance(asked, EngineSystem) else ""
        source = asked if isinstance(asked, Retriever) and (copy_hashtags or not isinstance(asked, Tagger)) else None
        found = measured(
            asked, data.resolve().name, notes, pairs, clicks,
            split=split, with_hashtags=hashtags, parts=[p for p in wanted if p != "hashtags" or not source],
            most_notes=most_notes, progress=say,
        )  # fmt: skip
        if "hashtags" in wanted and source:
            found = baselines.with_copied_hashtags(found, source, notes_of_split(notes, split, most_notes), known, say)
    if record:
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(origin | asdict(found)) + "\n")
    show(found.summary(), as_json)


def check_names(what: str, given: Collection[str], known: Collection[str]) -> None:
    """Ends the command when an option names something that there is not."""
    if unknown := sorted(set(given) - set(known)):
        err.print(f"[red]there is no {what} {', '.join(unknown)}; known: {', '.join(known)}[/red]", highlight=False)
        raise typer.Exit(1)


def described(step: Step) -> str:
    return (
        f"contrastive {step.contrastive:.3f}  generative {step.generative:.3f}  tau {step.tau:.2f}  "
        f"{step.pairs_per_second:.1f} pairs/s"
    )


def parsed(text: str) -> tuple[str, Any]:
    """name=value, the value as TOML spells it; anything else is text."""
    import tomllib

    name, _, value = text.partition("=")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value


@contextmanager
def exit_on(*errors: type[Exception]) -> Iterator[None]:
    """An expected error ends the command with its message."""
    try:
        yield
    except errors as error:
        err.print(f"[red]{error}[/red]", highlight=False)
        raise typer.Exit(1) from error


def say(message: str) -> None:
    err.print(f"[dim]{message}[/dim]", highlight=False)


def show(report: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        out.print_json(json.dumps(report))
        return
    table = Table("what", "value")
    for name, value in flat(report):
        number = "" if value is None else f"{value:,.3f}" if isinstance(value, float) else f"{value:,}"
        table.add_row(name.replace("_", " "), number)
    out.print(table)


def flat(report: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as pairs of a path and a value."""
    for name, value in report.items():
        path = f"{above} {name}".strip()
        if isinstance(value, Mapping):
            yield from flat(value, path)
        else:
            yield path, value


def notes_file(data: Path) -> Path:
    """Of a data folder; or the file itself."""
    from model.evaluation.protocol import NOTES_FILE

    return data / NOTES_FILE if data.is_dir() else data
