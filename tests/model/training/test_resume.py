"""A run that was broken off goes on as if it had not been."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from model.training.recipe import Recipe, RecipeError
from model.training.trainer import Trainer
from tests.model.training.runs import losses

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("beyond_gcl", [False, True])
def test_killed_run_resumes_to_the_identical_losses(recipe: Recipe, tmp_path: Path, beyond_gcl: bool):
    if beyond_gcl:
        recipe = replace(recipe, memory=True, distillation=0.5)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    list(Trainer(recipe, whole, cache=tmp_path).run())
    run = Trainer(recipe, broken, cache=tmp_path).run()
    for _ in range(5):  # the state was saved after step 4, so the fifth step is lost
        next(run)
    del run
    list(Trainer(recipe, broken, cache=tmp_path).run())
    assert losses(broken)[:5] == losses(whole)[:5]
    assert losses(broken)[5:] == losses(whole)[4:]


def test_folder_with_a_run_of_another_recipe_is_refused(recipe: Recipe, tmp_path: Path):
    list(Trainer(replace(recipe, steps=2), tmp_path, cache=tmp_path).run())
    with pytest.raises(RecipeError, match=r"another recipe \(learning_rate\)"):
        Trainer(replace(recipe, steps=2, learning_rate=1.0), tmp_path, cache=tmp_path)
