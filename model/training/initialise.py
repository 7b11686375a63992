"""The model before its first step: the backbone and adapter, the projection, and the memories of past vectors.

Shapes: N notes of a sample, H hidden size, D embedding dimension, K the teacher's dimension.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.config import CheckpointError, NoteLLMConfig
from model.data.dataset import PairedNotes
from model.note import Note
from model.notellm import NoteLLM
from model.precision import bfloat16_pays
from model.training.contrastive import ContrastiveObjective
from model.training.distributed import shard_layers
from model.training.recipe import Recipe
from model.weights import BACKBONE_FOLDER, Progress, adaptable, folder_digest, silent

STARTING_NOTES = 3072
"""Notes sampled to initialise the projection and a memory: several times the 576 components of the packaged backbone's
states, whose covariance is estimated from them (docs/decisions/0005-training.md)."""
KEPT_SETTINGS = (
    "max_title_tokens", "max_hashtag_tokens", "max_content_tokens", "max_content_windows", "scripts", "languages",
    "categories", "name_cosine_weight", "mean_share", "title_mean_share",
)  # fmt: skip
"""Settings that are not learnt: a run copies them from the checkpoint that it starts from."""
UNSTATED_TERMS = "terms that the recipe does not state"
RIDGE = 0.1
"""Ridge penalty of the projection's regression, as a share of the mean variance of an input component."""

ReadStates = Callable[[Sequence[Note]], Tensor]
"""Function that returns the states of notes at the read-out position, (N, H) float32."""


def turn_dropout_off(model: nn.Module) -> None:
    """Set the dropout that some backbones have to 0: a step computes the vectors of its notes twice, and both must be
    equal; and a resumed run must go on as the interrupted one would have."""
    layers: Iterable[Any] = model.modules()
    for layer in layers:
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
        if hasattr(layer, "attention_dropout"):
            layer.attention_dropout = 0.0


def build_model(
    recipe: Recipe, taught_categories: Sequence[str], cache: Path, device: torch.device, progress: Progress
) -> tuple[NoteLLM, Any]:
    """Load the model to train and its adapter. `taught_categories`: names that training shows (`shown_categories`). In
    full fine-tuning the adapter is None, and all weights come from the starting checkpoint, if there is one, with its
    adapter merged.

    Raises CheckpointError.
    """
    full = not recipe.lora_rank
    backbone_name = BACKBONE_FOLDER if full else adaptable(recipe.backbone)
    source = str(recipe.start) if full and recipe.start else recipe.backbone
    loaded = NoteLLM.load(source, cache=cache, device=device, dtype=torch.float32, progress=progress, trunk_alone=True)
    origin = NoteLLMConfig.load(recipe.start) if recipe.start else loaded.config
    if recipe.start and not full and not origin.adapter:
        raise CheckpointError(f"{recipe.start} has no adapter to continue from: set lora_rank = 0")
    if recipe.start and not full and origin.backbone != backbone_name:
        _refuse_other_weights(recipe.start, origin.backbone, backbone_name, progress)
    if recipe.start:
        _report_inherited_settings(recipe.start, origin, progress)
    config = NoteLLMConfig(
        **{setting: getattr(origin, setting) for setting in KEPT_SETTINGS},
        name=recipe.name,
        licence=_licence(origin.licence or loaded.config.licence, recipe),
        backbone=backbone_name,
        dimension=recipe.dimension,
        prompt_version=recipe.prompt_version,
        adapter=not full,
        trained_categories=_trained_categories(taught_categories, origin if recipe.start else None),
    )
    model = NoteLLM(config, loaded.backbone, loaded.tokenizer).to(device).train()
    turn_dropout_off(model)
    if device.type == "cpu":
        # For 23 short notes the backward of a layer's fused attention takes 17 ms, that of plain matrix products 3 ms.
        model.backbone.set_attn_implementation("eager")
    if not full and recipe.bfloat16 and bfloat16_pays(device.type) and not recipe.shard:
        store_in_bfloat16(model)
    adapter = None if full else model.add_adapter(recipe.lora_rank)
    if full:
        model.requires_grad_(True)
        model.backbone.get_input_embeddings().requires_grad_(not recipe.frozen_embeddings)
    if recipe.start and adapter is None:
        model.start_head(recipe.start)
    elif recipe.start and adapter is not None:
        model.start_adapter(adapter, recipe.start)
    if recipe.checkpoint_activations:
        backbone: Any = model.backbone
        enable = getattr(backbone, "activation_checkpointing_enable", None)  # its name since transformers 5.24
        (enable or backbone.gradient_checkpointing_enable)({"use_reentrant": False})
    if recipe.shard:
        shard_layers(model.backbone)
    return model, adapter


def _licence(former: str, recipe: Recipe) -> str:
    """Return the terms of the new checkpoint in one line: those of the backbone or starting checkpoint, and those of
    the recipe's data, without repeats."""
    terms = dict.fromkeys(row.terms or UNSTATED_TERMS for row in recipe.data)
    lines = [former, *(f"trained on data with these terms: {each}" for each in terms if each not in former)]
    return "; ".join(line for line in lines if line)


def _trained_categories(taught: Sequence[str], start: NoteLLMConfig | None) -> tuple[str, ...]:
    """Return `trained_categories` of the new checkpoint: the `taught` names and those that `start` lists. A `start`
    with a generation adapter contributes no names: the adapter learnt them, and it is not copied."""
    if start is None or start.generation_adapter:
        return tuple(taught)
    return start.categories_after(taught)


def _refuse_other_weights(start: Path, trained_on: str, backbone: str, progress: Progress) -> None:
    """Raise CheckpointError where the adapter of `start` does not belong to `backbone`. A backbone folder may have been
    moved: then the weights are compared or, where the former folder is missing, `progress` names it."""
    former, folder = Path(trained_on), Path(backbone)
    moved = former.is_absolute() and folder.is_absolute()
    if not moved or (former.is_dir() and folder_digest(former) != folder_digest(folder)):
        raise CheckpointError(f"{start} has an adapter for {trained_on}: set `backbone` to that, not to {backbone}")
    if not former.is_dir():
        progress(f"{start} has an adapter for {former}, which no longer exists: {folder} must have the same weights")


def _report_inherited_settings(start: Path, origin: NoteLLMConfig, progress: Progress) -> None:
    """Report which settings of the starting checkpoint limit the new one, and what is not copied."""
    if origin.generation_adapter:
        progress(
            f"The generation adapter of {start} is not copied: teach the new checkpoint to write after this training"
        )
    if origin.scripts:
        progress(f"Like {start}, the new checkpoint will only read notes in {', '.join(origin.scripts)} (`scripts`)")
    if origin.languages:
        progress(f"Like {start}, the new checkpoint will declare the `languages` {', '.join(origin.languages)}")


def store_in_bfloat16(model: NoteLLM) -> None:
    """Convert the frozen matrices to bfloat16 once; autocast would convert them in every forward.

    The embedding stays in float32: it sets the precision of the states that run through all layers, and the output
    layer shares its weights.
    """
    output = model.backbone.get_output_embeddings()
    for layer in model.backbone.modules():
        if isinstance(layer, nn.Linear) and layer is not output:
            layer.to(torch.bfloat16)


@torch.no_grad()
def initialise(
    model: NoteLLM,
    recipe: Recipe,
    data: Sequence[PairedNotes],
    objectives: Sequence[ContrastiveObjective | None],
    read_states: ReadStates,
    progress: Progress = silent,
) -> None:
    """Set the projection and the memories from the states of training notes.

    The projection is fitted to the first data set that names a teacher file, or else to the notes of all data sets. It
    is left unchanged where the run starts from a checkpoint with the same prompt, whose projection was loaded with it.
    `progress` gets a message where the projection of the starting checkpoint is replaced.

    Each memory is filled with the vectors of a sample of notes.
    """
    with_teacher = [
        objective
        for row, objective in zip(recipe.data, objectives, strict=True)
        if row.teacher and objective is not None
    ]
    started_with = NoteLLMConfig.load(recipe.start).prompt_version if recipe.start else None
    if model.projection is not None and started_with != recipe.prompt_version:
        if started_with:
            progress(
                f"{recipe.start} was trained with another prompt than {recipe.prompt_version}, so a new projection is "
                f'fitted. To keep its projection, set prompt_version = "{started_with}"'
            )
        pool = with_teacher[0].notes if with_teacher else [note for paired in data for note in paired.notes.values()]
        notes = _sample(pool, recipe.seed)
        states = read_states(notes)
        vectors = None
        if with_teacher and with_teacher[0].teacher_vectors is not None:
            vectors = with_teacher[0].teacher_vectors[with_teacher[0].rows(notes)]
        rows = projection_start(states, model.dimension, vectors)
        model.projection.weight[: len(rows)] = rows
    if recipe.memory:
        for objective in filter(None, objectives):
            notes = _sample(objective.notes, recipe.seed)
            objective.update_memory(notes, model.embed(read_states(notes)))


def _sample(pool: Sequence[Note], seed: int) -> list[Note]:
    return random.Random(seed).sample(pool, min(len(pool), STARTING_NOTES))


def projection_start(states: Tensor, dimension: int, teacher_vectors: Tensor | None = None) -> Tensor:
    """Return the initial rows of a projection, at most `dimension`, from the states (N, H) of a sample of notes.

    A random projection would lose the similarity that the backbone already knows, and the mean that all states share
    would dominate it. The rows are therefore the principal components of the centred states. With `teacher_vectors` (N,
    K) they come from a ridge regression of these on the states, which also maps the shared mean to 0, reduced to the
    directions in which its predictions vary most (reduced-rank regression, Izenman 1975).
    """
    mean = states.mean(0)
    centred = states - mean
    if teacher_vectors is None:
        components: Tensor = torch.linalg.svd(centred, full_matrices=False).Vh[:dimension]
        return components
    gram = centred.T @ centred + len(states) * torch.outer(mean, mean)
    penalty = RIDGE * centred.square().mean() * len(centred) * torch.eye(len(gram), device=gram.device)
    weights = torch.linalg.solve(gram + penalty, centred.T @ (teacher_vectors - teacher_vectors.mean(0)))
    directions = torch.linalg.svd(centred @ weights, full_matrices=False).Vh[:dimension]
    rows = directions @ weights.T
    # The learning rate is meant for rows of length 1, so the root mean square of the rows' lengths is set to 1.
    scaled: Tensor = rows * (len(rows) ** 0.5 / rows.norm())
    return scaled
