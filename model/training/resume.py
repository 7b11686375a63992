"""Going on after a break: everything that a run changes, saved to one file and restored from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from model.notellm import NoteLLM
from model.training.contrastive import ContrastiveObjective
from model.training.distributed import rank_and_size
from model.training.optimizer import Schedule
from model.training.recipe import Recipe, RecipeError

LAST = "last.pt"
"""File of a run's folder with its latest state."""
_OPTIONS = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


@dataclass(slots=True)
class RunState:
    """All that changes from step to step.

    `step`: updates done. `best`: highest validation recall so far, -1 before the first evaluation.
    `evaluations_without_gain`: evaluations since then.
    """

    model: NoteLLM
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    objectives: Sequence[ContrastiveObjective | None]
    step: int = 0
    best: float = -1.0
    evaluations_without_gain: int = 0

    def save(self, folder: Path, recipe: Recipe) -> None:
        """Write `folder`/last.pt through a temporary file, so that a kill leaves the previous one whole.

        Called by every process, since sharded weights are gathered; rank 0 writes.
        """
        weights, optimizer = get_state_dict(self.model, self.optimizer, options=_OPTIONS)
        state = {
            "recipe": _fields_as_text(recipe),
            "weights": weights,
            "optimizer": optimizer,
            "schedule": self.schedule.state_dict(),
            "progress": (self.step, self.best, self.evaluations_without_gain),
            "memory": [objective and objective.memory for objective in self.objectives],
        }
        rank, _ = rank_and_size()
        if rank == 0:
            unfinished = folder / f"{LAST}.unfinished"
            torch.save(state, unfinished)
            unfinished.rename(folder / LAST)

    def restore(self, folder: Path, recipe: Recipe) -> None:
        """Load what `save` wrote. Raises RecipeError, naming the fields that differ, for a run of another recipe."""
        state = torch.load(folder / LAST, map_location="cpu", weights_only=True)
        fields, saved_fields = _fields_as_text(recipe), state["recipe"]
        if saved_fields != fields:
            changed = sorted(name for name in fields if fields[name] != saved_fields.get(name))
            raise RecipeError(f"{folder} holds a run of another recipe ({', '.join(changed)}): choose a new folder")
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["weights"],
            optim_state_dict=state["optimizer"],
            options=replace(_OPTIONS, strict=False),  # frozen weights are not in the file
        )
        self.schedule.load_state_dict(state["schedule"])
        self.step, self.best, self.evaluations_without_gain = state["progress"]
        for objective, memory in zip(self.objectives, state["memory"], strict=True):
            if objective is not None and memory is not None:
                objective.update_memory(objective.notes, memory.to(self.model.tau.device))


def _fields_as_text(recipe: Recipe) -> dict[str, str]:
    return {name: str(value) for name, value in asdict(recipe).items()}
