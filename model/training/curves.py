"""Plot of a run's loss curves."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from model.training.model_card import read_log

CURVES = "curves.png"


def draw_curves(folder: Path) -> None:
    """Plot contrastive and generative loss, tau and validation recall by step, as `folder`/curves.png."""
    steps = read_log(folder)
    x = [step["step"] for step in steps]
    figure = Figure(figsize=(9, 6), layout="constrained")
    contrastive, generative, tau, recall = figure.subplots(2, 2).flat
    contrastive.plot(x, [step["contrastive"] for step in steps], linewidth=0.8)
    contrastive.set_title("contrastive loss")
    generative.plot(x, [step["generative"] for step in steps], linewidth=0.8)
    generative.set_title("generative loss")
    tau.plot(x, [step["tau"] for step in steps])
    tau.set_title("tau")
    evaluated = [step for step in steps if step["recall"] is not None]
    recall.plot([step["step"] for step in evaluated], [100 * step["recall"] for step in evaluated], marker="o")
    recall.set_title(f"validation Recall@{evaluated[-1]['recall_at'] if evaluated else 'k'}, %")
    for axes in (contrastive, generative, tau, recall):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    figure.savefig(folder / CURVES, dpi=120)
