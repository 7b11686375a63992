"""Tests that two processes train exactly as one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from model.note import Note
from model.training.model_card import read_log
from model.training.recipe import Recipe
from model.training.resume import LAST
from model.training.trainer import BEST, FINAL, Trainer
from tests.model.training.runs import losses
from tests.models import in_torch

pytestmark = pytest.mark.slow

LOOPBACK = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}


PROCESS = """
import json, sys
from pathlib import Path
import torch
from model.training.distributed import processes
from model.training.recipe import Data, Recipe
from model.training.trainer import Trainer

torch.set_num_threads(1)
with processes("cpu") as (rank, device):
    for name, given in json.loads(Path(sys.argv[1]).read_text()).items():
        data = tuple(Data(notes=Path(d["notes"]), pairs=Path(d["pairs"])) for d in given.pop("data"))
        folder = Path(sys.argv[1]).parent / name
        trainer = Trainer(Recipe(**given, data=data), folder, cache=folder, device=device)
        recall = trainer.validation_recall
        trainer.validation_recall = lambda recall=recall: recall() - rank  # that of the first process decides
        run = trainer.run()
        next(run)
        if name == "stopped" and rank == 1:
            trainer.stop()
        list(run)
        weights = {n: p.full_tensor() if hasattr(p, "full_tensor") else p for n, p in trainer.model.named_parameters()}
        (folder / f"rank{rank}.json").write_text(json.dumps(trainer.state.best))
        torch.save({n: p.detach() for n, p in weights.items()}, folder / f"rank{rank}.pt")
"""


WAYS = {
    "lora": {},
    "full": {"lora_rank": 0},
    "sharded-lora": {"shard": True},
    "sharded-full": {"lora_rank": 0, "shard": True},
    "distilled": {"distillation": 0.5},
    "remembered": {"distillation": 0.5, "memory": True},
    "reread": {"distillation": 0.5, "memory": True, "reread_notes": 7},
    "unpaired": {"distillation": 0.5, "unpaired_notes": 8},
}


def recipe_of(recipe: Recipe, way: str) -> Recipe:
    return replace(recipe, steps=3, alpha=0.5, micro_batch_tokens=120, **WAYS[way])


@pytest.fixture(scope="module")
def two_processes(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train in each of WAYS with two processes under torchrun; the folder has a subfolder for each way."""
    folder = tmp_path_factory.mktemp("two")
    recipes = {}
    for way in WAYS:
        (folder / way).mkdir()
        recipes[way] = asdict(recipe_of(recipe, way))
    (folder / "stopped").mkdir()
    recipes["stopped"] = asdict(recipe_of(recipe, "sharded-lora"))
    (folder / "recipes.json").write_text(json.dumps(recipes, default=str))
    (folder / "process.py").write_text(PROCESS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = [str(folder / "process.py"), str(folder / "recipes.json")]
    subprocess.run([*launch, *arguments], check=True, timeout=110, env=LOOPBACK)
    return folder


@pytest.fixture(scope="module")
def one_process(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that trains in one of WAYS with one process, without sharding, and returns its folder."""

    @cache
    def trained(way: str) -> Path:
        folder = tmp_path_factory.mktemp(way)
        list(Trainer(recipe_of(recipe, way), folder, cache=folder).run())
        return folder

    return lambda way: trained(way.removeprefix("sharded-"))


def test_run_ends_in_all_processes_after_the_step_in_which_one_is_stopped(two_processes: Path):
    folder = two_processes / "stopped"
    assert [step["step"] for step in read_log(folder)] == [1, 2]
    assert (folder / LAST).is_file()
    assert not (folder / FINAL).exists()


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_train_as_one_with_the_whole_batch(
    one_process: Callable[[str], Path], two_processes: Path, tmp_path: Path, way: str
):
    one, two = one_process(way), two_processes / way
    assert all((distillation > 0) == ("distillation" in WAYS[way]) for _, _, distillation, _, _ in losses(two))
    for alone, together in zip(losses(one), losses(two), strict=True):
        assert together == pytest.approx(alone, rel=1e-5)
    weights = [torch.load(two / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=0, atol=0, msg=name)
    best = [json.loads((two / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert best[0] == best[1] >= 0
    notes = [Note(title="river"), Note(title="bread")]
    vectors = [in_torch(f / BEST, tmp_path).embed(notes) for f in (one, two)]
    np.testing.assert_allclose(*vectors, atol=1e-5)
    assert (two / LAST).is_file()
