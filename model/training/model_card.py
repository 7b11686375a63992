"""What a run leaves for people: curves.png, and the model card beside its best checkpoint."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from model.training.recipe import Recipe
from model.training.trainer import BEST, LOG, Trainer

CURVES = "curves.png"
LAST_STEPS = 20


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The steps of a run; of a step that was done twice, because a run was broken off, the later one."""
    steps = map(json.loads, (folder / LOG).read_text("utf-8").splitlines())
    return list({step["step"]: step for step in steps}.values())


def draw_curves(folder: Path) -> None:
    """Both losses, temperature and validation recall by step, as `folder`/curves.png."""
    from matplotlib.figure import Figure

    steps = read_log(folder)
    x = [step["step"] for step in steps]
    figure = Figure(figsize=(9, 6), layout="constrained")
    contrastive, generative, tau, recall = figure.subplots(2, 2).flat
    contrastive.plot(x, [s["contrastive"] for s in steps], linewidth=0.8)
    contrastive.set_title("contrastive loss")
    generative.plot(x, [s["generative"] for s in steps], linewidth=0.8)
    generative.set_title("generative loss")
    tau.plot(x, [s["tau"] for s in steps])
    tau.set_title("tau")
    measured = [s for s in steps if s["recall"] is not None]
    recall.plot([s["step"] for s in measured], [100 * s["recall"] for s in measured], marker="o")
    recall.set_title("validation Recall@100, %")
    for axes in (contrastive, generative, tau, recall):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    figure.savefig(folder / CURVES, dpi=120)


def write_card(trainer: Trainer, command: Sequence[str], made_by: str) -> Path:
    """`best/README.md`, from the run itself: data, split, command, commit `made_by`, figures, terms."""
    recipe, folder = trainer.recipe, trainer.folder
    steps = read_log(folder)
    measured = [step for step in steps if step["recall"] is not None]
    best = max(measured, key=lambda step: step["recall"], default=steps[-1])
    recall = "not measured" if best["recall"] is None else f"{100 * best['recall']:.1f}%"
    minutes = sum(step["seconds"] for step in steps) / 60
    lines = [
        f"# {recipe.name}",
        "",
        f"A NoteLLM checkpoint (arXiv 2403.01744): {recipe.backbone}, {_tuning(recipe)}, dimension {recipe.dimension}, "
        f"prompt {recipe.prompt_version}. Load it with `NOTELLM_CHECKPOINT=this folder notellm serve`.",
        "",
        "## Data",
        "Notes whose id has sha1 modulo 5 of 2 to 4 (training); 1 is validation, and 0, the test notes, were not read.",
        "",
        "| notes | pairs | least score | share of steps | terms |",
        "|---|---|---|---|---|",
        *(
            f"| {len(paired.notes):,} of {data.notes.parent.name} | {len(paired.pairs) if paired.has_pairs else 0:,} "
            f"| {data.min_score} | {data.share} | {data.terms or 'not stated'} |"
            for data, paired in zip(recipe.data, trainer.data, strict=True)
        ),
        "",
        "## Run",
        f"- Command: `{' '.join([Path(command[0]).name, *command[1:]])}`, commit {made_by}.",
        *([f"- Started from {recipe.start.name}, an earlier checkpoint."] if recipe.start else []),
        *([_distillation(recipe)] if recipe.distillation else []),
        *(["- Negatives are all training notes of a data set, as last seen (`memory`)."] if recipe.memory else []),
        f"- {len(steps)} steps of {recipe.batch_pairs} pairs in {minutes:.0f} minutes on {trainer.ranks} process(es), "
        f"{os.cpu_count()} cores {processor()}, torch {version('torch')}, transformers {version('transformers')}.",
        f"- Best step {best['step']}: validation Recall@100 {recall} (pairs scored {recipe.validation_min_score} or "
        f"more, among at most {recipe.validation_notes} notes), tau {best['tau']:.2f}.",
        f"- Losses, the mean of the last {LAST_STEPS} steps: {_losses(steps[-LAST_STEPS:])}.",
        "",
        "## Terms",
        "The backbone's licence holds for what was made from it. What the data's terms ask is in the table above.",
        "",
    ]
    card = folder / BEST / "README.md"
    card.write_text("\n".join(lines), "utf-8")
    return card


def _losses(steps: Sequence[Mapping[str, Any]]) -> str:
    """Of each loss over the steps that had it: a batch without pairs has no contrastive one."""
    had = {name: [step[name] for step in steps if step[name]] for name in ("contrastive", "generative")}
    return ", ".join(f"{name} {sum(of) / max(1, len(of)):.3f}" for name, of in had.items())


def _distillation(recipe: Recipe) -> str:
    teachers = ["behaviour", *(data.teacher.stem for data in recipe.data if data.teacher)]
    return (
        f"- Of the loss of related notes, {recipe.distillation:g} is distilled at temperature "
        f"{recipe.distillation_temperature:g} from {' and '.join(teachers)}."
    )


def _tuning(recipe: Recipe) -> str:
    return f"LoRA of rank {recipe.lora_rank}" if recipe.lora_rank else "all weights trained"


def processor() -> str:
    """Its name, or else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line for line in lines if line.startswith("model name")]
    return names[0].split(":")[1].strip() if names else platform.machine()


def commit() -> str:
    """The commit that is checked out now, with `+` where files differ from it; "unknown" outside a checkout."""
    described = subprocess.run(
        ["git", "describe", "--always", "--abbrev=10", "--dirty=+"],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return described.stdout.strip() or "unknown"
