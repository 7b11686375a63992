"""The model card of a run: README.md beside its best checkpoint, written from the log, the recipe and the data."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from model.config import CONFIG_FILE, NoteLLMConfig
from model.training.processor import processor
from model.training.recipe import Recipe
from model.training.trainer import BEST, LOG, Trainer
from model.whole_file import whole_file

CARD = "README.md"
LAST_STEPS = 20
"""Last steps of the run over which the card averages the losses, since the loss of one batch is noisy."""


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Read the log of a run. Of a step that was repeated after an interruption, the last entry counts."""
    steps = map(json.loads, (folder / LOG).read_text("utf-8").splitlines())
    return list({step["step"]: {"recall_at": 100} | step for step in steps}.values())  # older logs lack `recall_at`


def write_card(trainer: Trainer, command: Sequence[str], commit: str) -> Path:
    """Write best/README.md and return its path. `command`: arguments that started the run. `commit`: its code."""
    recipe, folder = trainer.recipe, trainer.folder
    steps = read_log(folder)
    evaluated = [step for step in steps if step["recall"] is not None]
    best = max(evaluated, key=lambda step: step["recall"], default=steps[-1])
    recall = "recall not measured"
    if best["recall"] is not None:
        recall = f"Recall@{best['recall_at']} {100 * best['recall']:.1f}%"
    minutes = sum(step["seconds"] for step in steps) / 60
    lines = [
        f"# {recipe.name}",
        "",
        f"A NoteLLM checkpoint (arXiv 2403.01744): {_trained(recipe)}, {_tuning(recipe)}, "
        f"dimension {recipe.dimension}, prompt {recipe.prompt_version}. "
        "Load it with `NOTELLM_CHECKPOINT=this folder notellm serve`.",
        "",
        "## Data",
        "Notes whose id has sha1 modulo 5 of 2 to 4 (training); 1 is validation, and 0, the test notes, were not read.",
        "",
        "| notes | pairs | least score | share of steps | terms |",
        "|---|---|---|---|---|",
        *(
            f"| {len(paired.notes):,} of {row.notes.parent.name} | {len(paired.pairs) if paired.has_pairs else 0:,} "
            f"| {row.min_score} | {row.share} | {row.terms or 'not stated'} |"
            for row, paired in zip(recipe.data, trainer.data, strict=True)
        ),
        "",
        "## Run",
        f"- Command: `{' '.join([Path(command[0]).name, *command[1:]])}`, commit {commit}.",
        *([f"- Started from {_named(str(recipe.start))}, an earlier checkpoint."] if recipe.start else []),
        *([_distillation(recipe)] if recipe.distillation else []),
        *(["- Negatives are all training notes that were read, as last seen (`memory`)."] if recipe.memory else []),
        f"- {len(steps)} steps of {_pairs_per_step(steps)} pairs in {minutes:.0f} minutes on {_machine(trainer)}.",
        f"- Best step {best['step']}: validation {recall} (pairs scored {recipe.validation_min_score} or "
        f"more, among at most {recipe.validation_notes} notes), tau {best['tau']:.2f}.",
        f"- Losses, the mean of the last {LAST_STEPS} steps: {_losses(steps[-LAST_STEPS:])}.",
        "",
        "## Terms",
        "The backbone's licence holds for what was made from it. What the data's terms ask is in the table above.",
        "",
    ]
    card = folder / BEST / CARD
    with whole_file(card) as file:
        file.write("\n".join(lines).encode())
    return card


def _pairs_per_step(steps: Sequence[Mapping[str, Any]]) -> str:
    """Format the number of pairs per step, or the lowest and the highest where batches differ."""
    counts = {round(step["pairs_per_second"] * step["seconds"]) for step in steps}
    return " to ".join(f"{count}" for count in sorted({min(counts), max(counts)}))


def _machine(trainer: Trainer) -> str:
    """Describe the machine of the run: processes, cores, processor and library versions."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return f"{trainer.ranks} process(es), {os.cpu_count()} cores {processor()}, {libraries}"


def _losses(steps: Sequence[Mapping[str, Any]]) -> str:
    """Format the mean of each loss over the steps that have it: a batch without pairs has no contrastive loss."""
    means = []
    for name in ("contrastive", "generative"):
        losses = [step[name] for step in steps if step[name]]
        means.append(f"{name} {sum(losses) / max(1, len(losses)):.3f}")
    return ", ".join(means)


def _distillation(recipe: Recipe) -> str:
    teachers = ["behaviour", *(row.teacher.stem for row in recipe.data if row.teacher)]
    return (
        f"- Of the loss of related notes, {recipe.distillation:g} is distilled at temperature "
        f"{recipe.distillation_temperature:g} from {' and '.join(teachers)}."
    )


def _trained(recipe: Recipe) -> str:
    """Name what was trained: the backbone or, in full fine-tuning, the checkpoint that the run started from."""
    return _named(str(recipe.start) if recipe.start and not recipe.lora_rank else recipe.backbone)


def _named(source: str) -> str:
    """Name a checkpoint or a backbone, without local folders."""
    folder = Path(source)
    if (folder / CONFIG_FILE).is_file():
        return NoteLLMConfig.load(folder).name
    return folder.name if folder.is_dir() else source


def _tuning(recipe: Recipe) -> str:
    return f"LoRA of rank {recipe.lora_rank}" if recipe.lora_rank else "all weights trained"


def checked_out_commit() -> str:
    """Return the commit of this checkout, with `+` where files differ from it; "unknown" outside one or without git."""
    command = ["git", "describe", "--always", "--abbrev=10", "--dirty=+"]
    try:
        described = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return described.stdout.strip() or "unknown"
