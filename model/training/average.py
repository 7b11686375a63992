"""Average of checkpoints of one run, or of a run and its continuation: often better than each of them.

This is the mean of weights along one training path (stochastic weight averaging, Izmailov et al. 2018). Adapters with
different starts cannot be averaged: the mean of two products of factors is not the product of the factors' means.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import CheckpointError, NoteLLMConfig
from model.weights import ADAPTER_CONFIG_FILE, ADAPTER_FILE, ADAPTER_FOLDER, BACKBONE_FOLDER, HEAD_FILE, loading_errors
from model.whole_file import whole_folder

COMPARED: tuple[str, ...] = ("adapter", "backbone", "prompt_version", "dimension")
"""Settings that all checkpoints must share: weights for different backbones or prompts have no meaningful mean."""
ADAPTER_COMPARED: tuple[str, ...] = ("r", "lora_alpha")
"""Settings that all adapters must share: the product of an adapter's factors is scaled by lora_alpha / r."""
MIN_COSINE = 0.3
"""Minimum cosine of the projections of two checkpoints, and of their adapters' first factors, each as one long vector.
Along one training path they stay alike. Whitening chooses the directions anew from the notes, in any order and with
either sign: two whitenings of the shipped checkpoint, by 127 sample notes each, have -0.03 to 0.01. A new adapter draws
its first factors from the seed, so those of two runs with different seeds have about 0."""
CARD_FILE = "README.md"
CARD_NOTE = (
    "The weights are the mean of {count} checkpoints (`notellm average`), of which this card describes the first."
)
"""Section that is added to the model card of a mean."""


def average(checkpoints: Sequence[Path], out: Path) -> None:
    """Write a checkpoint whose weights are the element-wise mean of those of `checkpoints`, in float32.

    The weights are adapter and head, or after full fine-tuning backbone and head. Configuration and model card are the
    first checkpoint's, except that the licence names the terms of all, and `trained_categories` those of all; a section
    of the card says that it is a mean. Category head and generation adapter are left out, since they were fitted to the
    old vectors or trunk. Raises CheckpointError for fewer than two checkpoints, for incompatible ones, such as
    checkpoints that were whitened apart or adapters with different starts, and where `out` exists; OSError where it
    cannot be written, which leaves no partial `out`.
    """
    if len(checkpoints) < 2:
        raise CheckpointError("an average requires at least two checkpoints")
    if out.exists():
        raise CheckpointError(f"{out} already exists: choose a new folder")
    first = checkpoints[0]
    config = NoteLLMConfig.load(first)
    trained = ADAPTER_FOLDER if config.adapter else BACKBONE_FOLDER
    if not config.adapter and config.backbone != BACKBONE_FOLDER:
        raise CheckpointError(f"{first} has neither an adapter nor its own backbone, so there is nothing to average")
    for checkpoint in checkpoints[1:]:
        if changed := differences(first, checkpoint):
            raise CheckpointError(f"{checkpoint} differs from {first} in {', '.join(changed)}")
    weights = sorted(f"{trained}/{path.name}" for path in (first / trained).glob("*.safetensors"))
    if not weights:
        raise CheckpointError(f"{first / trained} has no .safetensors files")
    means = {name: mean_of(checkpoints, name) for name in (*weights, HEAD_FILE)}
    _refuse_other_projections(checkpoints)
    if config.adapter:
        _refuse_other_starts(checkpoints)
    configs = [NoteLLMConfig.load(checkpoint) for checkpoint in checkpoints]
    with whole_folder(out) as unfinished:
        shutil.copytree(first / trained, unfinished / trained, ignore=shutil.ignore_patterns("*.safetensors"))
        if (first / CARD_FILE).exists():
            card = (first / CARD_FILE).read_text("utf-8").rstrip("\n")
            card += f"\n\n## Mean\n{CARD_NOTE.format(count=len(checkpoints))}\n"
            (unfinished / CARD_FILE).write_text(card, "utf-8")
        for name, tensors in means.items():
            save_file(tensors, unfinished / name, {"format": "pt"})
        licence = "; ".join(dict.fromkeys(part for each in configs for part in each.licence.split("; ") if part))
        mean = replace(config, licence=licence, trained_categories=_trained_categories(configs))
        replace(mean, generation_adapter=False, generation_trunk="").save(unfinished)


def differences(checkpoint: Path, other: Path) -> list[str]:
    """Return which of COMPARED and, for adapters, of ADAPTER_COMPARED differ between two checkpoints. Raises
    CheckpointError."""
    configs = [asdict(NoteLLMConfig.load(folder)) for folder in (checkpoint, other)]
    compared = [(COMPARED, configs)]
    if all(config["adapter"] for config in configs):
        compared.append((ADAPTER_COMPARED, [_adapter_settings(folder) for folder in (checkpoint, other)]))
    return [name for names, (first, second) in compared for name in names if first.get(name) != second.get(name)]


def _trained_categories(configs: Sequence[NoteLLMConfig]) -> tuple[str, ...]:
    """Return `trained_categories` of the mean: all names that the checkpoints list. What a generation adapter has
    learnt does not count, since the mean has none."""
    lists = [config.trained_categories for config in configs if not config.generation_adapter]
    names = {name for names in lists for name in names} - {""}
    return tuple(sorted(names)) or (() if () in lists else ("",))


def _refuse_other_projections(checkpoints: Sequence[Path]) -> None:
    """Raise CheckpointError where the projection of a checkpoint has other directions than that of the first."""
    if other := _unlike_first(checkpoints, HEAD_FILE, "projection"):
        raise CheckpointError(
            f"the projections of {other} and {checkpoints[0]} have other directions, as after "
            "`notellm whiten`: average the checkpoints before it, and whiten the mean"
        )


def _refuse_other_starts(checkpoints: Sequence[Path]) -> None:
    """Raise CheckpointError where the adapter of a checkpoint began with other factors than that of the first."""
    if other := _unlike_first(checkpoints, f"{ADAPTER_FOLDER}/{ADAPTER_FILE}", "lora_A"):
        raise CheckpointError(
            f"the adapters of {other} and {checkpoints[0]} are not of one run, or of a run and its continuation: the "
            "mean of their factors is not that of the adapters"
        )


def _unlike_first(checkpoints: Sequence[Path], name: str, part: str) -> Path | None:
    """Return a checkpoint whose tensors in the file `name`, those with `part` in their names, have a cosine below
    MIN_COSINE with those of the first checkpoint; None if there is none."""
    first, *others = (
        torch.cat([tensor.float().flatten() for key, tensor in sorted(load_file(folder / name).items()) if part in key])
        for folder in checkpoints
    )
    for checkpoint, other in zip(checkpoints[1:], others, strict=True):
        if torch.cosine_similarity(first, other, dim=0) < MIN_COSINE:
            return checkpoint
    return None


def _adapter_settings(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / ADAPTER_FOLDER / ADAPTER_CONFIG_FILE
    with loading_errors(path):
        settings: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return settings


def mean_of(checkpoints: Sequence[Path], name: str) -> dict[str, Tensor]:
    """Return the means of the tensors in the file `name` of each checkpoint. Raises CheckpointError."""
    files = []
    for checkpoint in checkpoints:
        with loading_errors(checkpoint / name):
            files.append(load_file(checkpoint / name))
    shapes = [{key: tensor.shape for key, tensor in file.items()} for file in files]
    for checkpoint, other in zip(checkpoints, shapes, strict=True):
        if other != shapes[0]:
            raise CheckpointError(
                f"{checkpoint / name} has tensors of other names or shapes than {checkpoints[0] / name}"
            )
    return {key: torch.stack([file[key].float() for file in files]).mean(0) for key in files[0]}
