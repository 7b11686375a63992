"""The optimizer and the learning-rate schedule, shared by NoteLLM and the encoder that it is compared with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from model.evaluation.metrics import NaNScoresError
from model.training.recipe import Recipe, RecipeError

LOWER_RATE = "lower learning_rate, and train in a new folder"
"""Advice at the end of the error of a run that saved weights from which it cannot go on."""
LOWER_RATES = "lower learning_rate or head_learning_rate, and train in a new folder"
"""Advice at the end of the error of a diverged run whose rates are those of a Recipe."""

Schedule = torch.optim.lr_scheduler.LRScheduler


def optimizer_and_schedule(
    body: Iterable[Tensor], head: Iterable[Tensor], recipe: Recipe, *, foreach: bool | None = None
) -> tuple[torch.optim.Optimizer, Schedule]:
    """Return AdamW over the backbone's weights and, with a separate rate and without weight decay, over the head's.

    `foreach`: as in torch.optim.AdamW; it cannot mix sharded and unsharded weights.
    """
    optimizer = torch.optim.AdamW(
        [
            {"params": body, "lr": recipe.learning_rate, "weight_decay": recipe.weight_decay},
            {"params": head, "lr": recipe.head_learning_rate, "weight_decay": 0.0},
        ],
        foreach=foreach,
    )
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, partial(cosine_with_warmup, recipe))


def refuse_divergence(step: int, loss: float, norm: float, remedy: str) -> None:
    """Raise RecipeError, ending with the `remedy`, where the loss or the gradient's norm of a step is not finite.

    Call it before the step's update: a single such gradient makes every weight NaN, and the states saved afterwards,
    too.
    """
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise RecipeError(f"step {step}: the loss is {loss} and the gradient norm {norm}: {remedy}")


@contextmanager
def refusing_nan_scores(step: int, remedy: str) -> Iterator[None]:
    """Raise RecipeError, ending with the `remedy`, where the model that the block measures after the update of `step`
    has NaN as scores: the next step's loss would be NaN, too."""
    try:
        yield
    except NaNScoresError as error:
        raise RecipeError(f"step {step}: after its update {error}: {remedy}") from error


def cosine_with_warmup(recipe: Recipe, step: int) -> float:
    """Return the factor of the learning rate at `step`: linear warm-up, then half a cosine down to 0."""
    warmup_steps = recipe.warmup * recipe.steps
    if step < warmup_steps:
        return min(1.0, (step + 1) / warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, recipe.steps - warmup_steps)))
