"""Commands on finished checkpoints: `notellm average`, `whiten`, `calibrate`, `fit-categories`, `fit-hashtags` and
`export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from model.cli.options import CACHE, Cache
from model.terminal import check_changeable, exit_on, say, show

DATA_WITH_CATEGORIES = "Folder with notes.jsonl.gz, or such a file, whose notes have categories; may be repeated."
DATA_WITH_HASHTAGS = "Folder with notes.jsonl.gz, or such a file, whose notes have hashtags; may be repeated."
TrainingNotes = Annotated[
    int, typer.Option("--max-notes", min=1, help="Maximum training notes per data set, drawn at random.")
]
ValidationNotes = Annotated[
    int, typer.Option("--max-notes", min=1, help="Maximum validation notes per data set, drawn at random.")
]


def average(
    checkpoint: Annotated[list[Path], typer.Option(help="Checkpoint folder of the run; give two or more.")],
    out_folder: Annotated[Path, typer.Option("--out", help="New checkpoint folder.")],
) -> None:
    """Average the weights of several checkpoints of one training run, or of a run and its continuation."""
    from model.config import CheckpointError
    from model.training.average import average as average_checkpoints

    with exit_on(CheckpointError, OSError):
        average_checkpoints(checkpoint, out_folder)
    show({"averaged checkpoints": len(checkpoint)}, as_json=False)


def whiten(
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint folder; its projection is changed in place.")],
    data: Annotated[
        list[Path], typer.Option(help="Folder with notes.jsonl.gz, or such a file, of one data set; may be repeated.")
    ],
    dimension: Annotated[
        int | None,
        typer.Option(
            help="New dimension of the vectors; by default 128, or the trained dimension minus the number of data "
            "sets, if that is smaller.",
            min=1,
        ),
    ] = None,
    max_notes: TrainingNotes = 2000,
    cache: Cache = CACHE,
) -> None:
    """Whiten a checkpoint's vectors: remove the mean vector of each data set, and reduce the dimension."""
    from model.training.whiten import whiten_by_training_notes

    check_changeable(checkpoint)
    with exit_on(ValueError, OSError):
        dimension = whiten_by_training_notes(checkpoint, data, dimension, max_notes, cache, say)
    show({"dimension": dimension}, as_json=False)


def calibrate(
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint folder; its notellm.json is changed in place.")],
    data: Annotated[list[Path], typer.Option(help=DATA_WITH_CATEGORIES)],
    max_notes: ValidationNotes = 500,
    cache: Cache = CACHE,
) -> None:
    """Fit the temperature of category probabilities on validation notes, and save it in the checkpoint."""
    from model.training.calibrate import calibrate as fit_temperature

    check_changeable(checkpoint)
    with exit_on(ValueError, OSError):
        temperature = fit_temperature(checkpoint, data, max_notes, cache, say)
    show({"category_temperature": temperature}, as_json=False)


def fit_categories(
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint folder, to which categories.safetensors is added.")],
    data: Annotated[list[Path], typer.Option(help=DATA_WITH_CATEGORIES)],
    max_notes: TrainingNotes = 10_000,
    cache: Cache = CACHE,
) -> None:
    """Fit a category head on the vectors and words of training notes. Its scores are combined with the model's."""
    from model.config import CONFIG_FILE, NoteLLMConfig
    from model.training.calibrate import fit_categories as fit_head

    check_changeable(checkpoint)
    with exit_on(ValueError, OSError):
        head = fit_head(checkpoint, data, max_notes, cache, say)
    for weights in sorted({tuple(head.exponents([name]).tolist()) for name in head.pooled_names}):
        experts = zip(("model", "vector", "words"), weights, strict=True)
        say("Pool weights: " + ", ".join(f"{expert} {weight:.2f}" for expert, weight in experts))
    show({"categories": len(head.names)}, as_json=False)
    if not head.covers(NoteLLMConfig.load(checkpoint).categories):
        by_setting = f'set NOTELLM_CATEGORIES="{", ".join(head.pooled_names)}", or '
        if any("," in name for name in head.pooled_names):
            by_setting = ""  # the setting is split at commas
        say(
            f"By default this checkpoint chooses among other categories. To choose among these, {by_setting}write them "
            f'to "categories" of its {CONFIG_FILE}'
        )


def fit_hashtags(
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint folder; its notellm.json is changed in place.")],
    data: Annotated[list[Path], typer.Option(help=DATA_WITH_HASHTAGS)],
    max_notes: ValidationNotes = 500,
    cache: Cache = CACHE,
) -> None:
    """Choose the minimum score of a generated hashtag on validation notes, and save it in the checkpoint. Also sets the
    weights of the model's probability in grounded hashtags to 0.1."""
    from model.training.calibrate import LEARNT_WEIGHTS
    from model.training.calibrate import fit_hashtags as fit_least_score

    check_changeable(checkpoint)
    with exit_on(ValueError, OSError):
        least = fit_least_score(checkpoint, data, max_notes, cache, say)
    weights = dict(zip(("few notes", "many notes"), LEARNT_WEIGHTS, strict=True))
    show({"min_hashtag_score": least, "written_weights": weights}, as_json=False)


def export(
    out_folder: Annotated[
        Path, typer.Option("--out", help="New folder for the export, to be used as NOTELLM_CHECKPOINT.")
    ],
    checkpoint: Annotated[
        str | None, typer.Option(help="Checkpoint or backbone; by default the shipped checkpoint.")
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "int8"],
        typer.Option(
            help="Format of the stored weights. bfloat16: stored as float16, computed in bfloat16 or float32."
        ),
    ] = "bfloat16",
    cache: Cache = CACHE,
) -> None:
    """Export a checkpoint for serving on a CPU: a folder that requires neither PyTorch nor a cache."""
    from model.config import CheckpointError
    from model.inference.openvino.exported import write_exported
    from model.weights import SHIPPED_CHECKPOINT

    with exit_on(CheckpointError, OSError):
        source = checkpoint or str(SHIPPED_CHECKPOINT)
        config = write_exported(source, out_folder, cache=cache, precision=dtype, progress=say)
    size = sum(path.stat().st_size for path in out_folder.rglob("*") if path.is_file())
    say(f"{config.name} as {dtype}, {size // 2**20} MiB: NOTELLM_CHECKPOINT={out_folder}")
