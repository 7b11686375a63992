"""Commands on finished checkpoints: `notellm average`, `whiten`, `calibrate`, `fit-categories`, `fit-hashtags` and
`export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from model.cli.options import CACHE, Cache
from model.terminal import check_changeable, exit_on, say, show

DATA_WITH_CATEGORIES = "Folders with notes.jsonl.gz, or such files, whose notes have categories."
DATA_WITH_HASHTAGS = "Folders with notes.jsonl.gz, or such files, whose notes have hashtags."
TrainingNotes = Annotated[
    int, typer.Option("--max-notes", min=1, help="Training notes read of each data set, drawn at random.")
]
ValidationNotes = Annotated[
    int, typer.Option("--max-notes", min=1, help="Validation notes read of each data set, drawn at random.")
]


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
    max_notes: TrainingNotes = 2000,
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
    max_notes: TrainingNotes = 10_000,
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
