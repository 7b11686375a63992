"""Tests of a whole distillation on a tiny model: it learns, resumes, can be paused, and becomes a checkpoint."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from model.config import CheckpointError, NoteLLMConfig
from model.inference.engine import Engine
from model.note import Note
from model.notellm import NoteLLM
from model.training import distil, export, token_teacher
from model.training import student as student_module
from model.training.corpus_vectors import notes_path, shard_path, write_digest
from model.training.distil import CURVE, LOG, Distillation, Distiller, structure_loss
from model.training.export import load_state, low_rank_factors
from model.training.held_out import HeldOutDomain
from model.training.recipe import RecipeError
from model.weights import BACKBONE_FOLDER, file_digest
from tests.model.training.distillation import ENCODER, write_corpus, write_data
from tests.model.training.runs import begin_run, stopped_at_once, training_in

pytestmark = pytest.mark.slow

RECIPES = Path(distil.__file__).parent / "recipes" / "distillation"
LONG_ALONE = ("--share", "long=1", "--teacher", ENCODER)
NOTES = tuple(Note(id=str(n), title=f"{word} {n}") for n in range(5) for word in ("soup", "hike"))


@pytest.fixture(autouse=True)
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(student_module, "bfloat16_pays", lambda device: False)


@pytest.fixture
def recipe(tiny_checkpoint: Path) -> Distillation:
    return Distillation(
        shares={"lists": 0.7, "long": 0.3},
        teachers=[ENCODER],
        backbone=str(tiny_checkpoint / BACKBONE_FOLDER),
        batch=16,
        learning_rate=2e-3,
        warmup_steps=2,
        starting_notes=40,
        words=0.0,
        ranked=30,
        averaged=20,
    )


def start(recipe: Distillation, corpus: Path, folder: Path) -> Distiller:
    return Distiller(recipe, corpus, folder, folder)


def train(distiller: Distiller, steps: int) -> None:
    stream = distiller.texts.batches(distiller.student.model.prompt, distiller.recipe.batch, distiller.position)
    for _, batch in zip(range(steps), stream, strict=False):
        distiller.update(batch)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("rank", [0, 2])
def test_student_comes_closer_to_its_teacher(rank: int, recipe: Distillation, corpus: Path, tmp_path: Path) -> None:
    recipe = replace(recipe, rank=rank)
    run = start(recipe, corpus, tmp_path)
    train(run, 40)
    log = lines(tmp_path / LOG)
    assert [line["step"] for line in log] == list(range(1, 41))
    first, last = (
        [sum(line[name] for line in part) / 8 for name in ("cosine", "structure")] for part in (log[:8], log[-8:])
    )
    assert last[0] > first[0] + 0.05
    assert last[1] < first[1]


def test_first_head_is_better_than_chance(recipe: Distillation, corpus: Path, tmp_path: Path) -> None:
    run = start(recipe, corpus, tmp_path)
    vectors = run.student.embed(run.texts.notes, run.master_weights.pool)
    assert (vectors * run.texts.teacher_vectors).sum(1).mean() > 0.3


@pytest.mark.parametrize("rank", [0, 2])
def test_resumed_run_continues_as_without_a_break(
    rank: int, recipe: Distillation, corpus: Path, tmp_path: Path
) -> None:
    recipe = replace(recipe, rank=rank)
    whole = start(recipe, corpus, tmp_path / "whole")
    train(whole, 12)
    first = start(recipe, corpus, tmp_path / "halves")
    train(first, 6)
    first.save()
    second = start(recipe, corpus, tmp_path / "halves")
    assert second.step == 6
    train(second, 6)
    for a, b in zip(whole.master_weights.masters, second.master_weights.masters, strict=True):
        assert a.detach() == pytest.approx(b.detach(), abs=1e-5)


def test_diverged_run_ends_before_the_step_that_would_spoil_its_weights(
    recipe: Distillation, corpus: Path, tmp_path: Path
) -> None:
    run = start(recipe, corpus, tmp_path)
    with torch.no_grad():
        run.master_weights.weights[0].fill_(torch.nan)
    message = r"step 1: the loss is nan and .* nan: lower learning_rate: .* resumes from state\.00000000\.pt"
    with pytest.raises(RecipeError, match=message):
        run.run(minutes=10)
    assert run.step == 0
    assert all(weight.isfinite().all() for weight in run.master_weights.masters)


def test_measured_vectors_that_are_nan_end_the_run(recipe: Distillation, corpus: Path, tmp_path: Path) -> None:
    run = start(recipe, corpus, tmp_path)
    with torch.no_grad():
        run.student.head.weight.fill_(torch.nan)
    notes = tuple(Note(id=f"{i}", title=f"note {i}") for i in range(3))
    domain = HeldOutDomain("films", notes, (("0", "1"),), cutoff=1)
    with pytest.raises(RecipeError, match=r"^step 0: after its update scores hold NaN, .*: lower learning_rate, and"):
        run.measure([domain])


def test_run_goes_on_from_the_older_state_where_the_newest_is_damaged(
    recipe: Distillation, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start(recipe, corpus, tmp_path)
    for _ in range(2):
        train(run, 1)
        run.save()
    newest = tmp_path / "state.00000002.pt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    again = start(recipe, corpus, tmp_path)
    assert again.step == 1
    assert f"{newest} cannot be read" in capsys.readouterr().out
    assert [line["step"] for line in lines(tmp_path / LOG)] == [1]


def test_folder_in_which_another_process_trains_is_refused(recipe: Distillation, corpus: Path, tmp_path: Path) -> None:
    with training_in(tmp_path), pytest.raises(RecipeError, match="another process trains in"):
        start(recipe, corpus, tmp_path)


def test_run_of_another_recipe_is_not_resumed(recipe: Distillation, corpus: Path, tmp_path: Path) -> None:
    start(recipe, corpus, tmp_path).save()
    with pytest.raises(RecipeError, match=r"another recipe \(different: seed, shares\)"):
        start(replace(recipe, shares={"lists": 0.5, "long": 0.5}, seed=1), corpus, tmp_path)
    assert start(replace(recipe, learning_rate=1e-3, save_every=1.0), corpus, tmp_path).recipe.learning_rate == 1e-3


def test_run_on_another_corpus_is_not_resumed(recipe: Distillation, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    write_corpus(corpus)
    start(recipe, corpus, tmp_path / "run").save()
    with gzip.open(notes_path(corpus, "long"), "at") as notes:
        notes.write('{"id": "one more", "title": "soup"}\n')
    write_digest(corpus, ENCODER, "long")
    with pytest.raises(RecipeError, match=r"long changed since the run in .* began"):
        start(recipe, corpus, tmp_path / "run")


def change_a_vector(corpus: Path) -> None:
    vectors = np.load(shard_path(corpus, ENCODER, "long", 0))
    vectors[3] = -vectors[3]
    np.save(shard_path(corpus, ENCODER, "long", 0), vectors)


def take_the_last_vector(corpus: Path) -> None:
    np.save(shard_path(corpus, ENCODER, "long", 0), np.load(shard_path(corpus, ENCODER, "long", 0))[:-1])


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (change_a_vector, "by-rule's vectors of long"),
        (take_the_last_vector, "by-rule's vectors of long, numbers of notes"),
    ],
)
def test_run_on_other_vectors_is_not_resumed(
    change: Callable[[Path], None], names: str, recipe: Distillation, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    write_corpus(corpus)
    start(recipe, corpus, tmp_path / "run").save()
    assert start(recipe, corpus, tmp_path / "run").step == 0
    change(corpus)
    with pytest.raises(RecipeError, match=f"^{names} changed since the run in .* began"):
        start(recipe, corpus, tmp_path / "run")


def test_run_on_another_backbone_is_not_resumed(recipe: Distillation, corpus: Path, tmp_path: Path) -> None:
    backbone = Path(shutil.copytree(recipe.backbone, tmp_path / "backbone"))
    recipe = replace(recipe, backbone=str(backbone))
    start(recipe, corpus, tmp_path / "run").save()
    (file,) = backbone.glob("*.safetensors")
    weights = load_file(file)
    weights["model.norm.weight"] += 1
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(RecipeError, match=f"^{backbone} changed since the run in .* began"):
        start(recipe, corpus, tmp_path / "run")


def test_run_with_its_sources_in_another_order_is_not_resumed(
    recipe: Distillation, corpus: Path, tmp_path: Path
) -> None:
    start(recipe, corpus, tmp_path).save()
    with pytest.raises(RecipeError, match=r"^numbers of notes changed since"):
        start(replace(recipe, shares=dict(reversed(recipe.shares.items()))), corpus, tmp_path)


def test_run_on_another_token_teacher_is_not_resumed(
    recipe: Distillation, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    write_corpus(corpus)
    command = [str(corpus), "--backbone", recipe.backbone, "--cache", str(tmp_path)]
    token_teacher.main(command)
    recipe = replace(recipe, words=1.0)
    start(recipe, corpus, tmp_path / "run").save()
    token_teacher.main(command)
    assert start(recipe, corpus, tmp_path / "run").step == 0
    notes_path(corpus, "lists").rename(tmp_path / "lists.jsonl.gz")  # the token counts of `long` alone differ
    token_teacher.main(command)
    (tmp_path / "lists.jsonl.gz").rename(notes_path(corpus, "lists"))
    with pytest.raises(RecipeError, match=r"^tokens\.npz changed since"):
        start(recipe, corpus, tmp_path / "run")


@pytest.mark.parametrize(
    ("digests", "unchecked"),
    [
        ((), "{backbone}, by-rule's vectors of lists, by-rule's vectors of long, lists, long, numbers of notes"),
        (("lists", "long"), "{backbone}, by-rule's vectors of lists, by-rule's vectors of long, numbers of notes"),
    ],
)
def test_run_of_an_earlier_version_goes_on_and_says_what_is_not_checked(
    digests: Sequence[str],
    unchecked: str,
    recipe: Distillation,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start(recipe, corpus, tmp_path).save()
    (path,) = tmp_path.glob("state.*.pt")
    state = torch.load(path)
    state["files"] = {name: state["files"][name] for name in digests}
    if not digests:
        del state["files"]
    del state["recipe"]["rank"]
    torch.save(state, path)
    assert start(recipe, corpus, tmp_path).step == 0
    names = unchecked.format(backbone=recipe.backbone)
    assert f"{path} is from an earlier version: it is not checked whether {names} changed" in capsys.readouterr().out


def test_stop_in_a_pause_saves_without_a_step(recipe: Distillation, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "pause").touch()
    run = Distiller(recipe, corpus, tmp_path / "run", tmp_path, tmp_path / "pause")
    run.stop()
    run.run(minutes=10)
    assert run.step == 0
    assert list((tmp_path / "run").glob("state.*.pt"))


def test_folder_without_held_out_data_ends_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        distil.main(["--corpus", "c", "--out", "o", "--share", "long=1", "--data", str(tmp_path)])
    assert "none of the folders microlens50k, movielens_tmdb" in capsys.readouterr().err


def test_newest_two_states_are_kept(recipe: Distillation, corpus: Path, tmp_path: Path) -> None:
    run = start(recipe, corpus, tmp_path)
    for _ in range(3):
        train(run, 1)
        run.save()
    assert sorted(path.name for path in tmp_path.glob("state*")) == ["state.00000002.pt", "state.00000003.pt"]


def test_stopped_run_saves_after_its_step(recipe: Distillation, corpus: Path, tmp_path: Path) -> None:
    run = start(recipe, corpus, tmp_path)
    run.stop()
    run.run(minutes=10)
    assert run.step == 1
    assert max(path.name for path in tmp_path.glob("state.*.pt")) == "state.00000001.pt"


def test_run_ends_in_time_and_is_measured(recipe: Distillation, corpus: Path, tmp_path: Path) -> None:
    domain = HeldOutDomain("own", NOTES, (("0", "1"), ("2", "3")), cutoff=3)
    run = start(replace(recipe, save_every=0.0, measure_every=0.0), corpus, tmp_path)
    run.run(minutes=0.001, domains=[domain])
    curve = lines(tmp_path / CURVE)
    assert curve[-1]["texts"] == run.text_count > 0
    assert 0 <= curve[-1]["recall"]["own"]["centred"] <= 100
    assert list(tmp_path.glob("state.*.pt"))


def test_command_runs_a_distillation(
    tiny_checkpoint: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--corpus", str(corpus), "--out", str(tmp_path), "--cache", str(tmp_path), *LONG_ALONE]
    options += ["--minutes", "0.0001", "--pause-file", str(tmp_path / "pause")]
    options += [
        "--backbone",
        str(tiny_checkpoint / BACKBONE_FOLDER),
        "--words",
        "0",
        "--batch",
        "8",
        "--starting-notes",
        "20",
    ]
    distil.main(options)
    assert lines(tmp_path / LOG)


def test_command_that_had_its_total_minutes_does_nothing(
    recipe: Distillation, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--corpus", str(corpus), "--out", str(tmp_path), "--cache", str(tmp_path), *LONG_ALONE]
    options += ["--backbone", recipe.backbone, "--words", "0", "--batch", "8", "--starting-notes", "20"]
    distil.main([*options, "--total-minutes", "1e-9"])
    first = lines(tmp_path / LOG)
    assert len(first) == 1
    distil.main([*options, "--total-minutes", "1e-9"])
    assert lines(tmp_path / LOG) == first
    assert f"the run in {tmp_path} has used its 1e-09 minutes and is at step 1" in capsys.readouterr().out


def command(recipe: Distillation, corpus: Path, folder: Path) -> list[str]:
    """Return the options of a command in `folder`."""
    options = ["--corpus", str(corpus), "--out", str(folder), "--cache", str(folder), *LONG_ALONE]
    return [*options, "--backbone", recipe.backbone, "--words", "0", "--batch", "8", "--starting-notes", "20"]


def command_with_held_out(recipe: Distillation, corpus: Path, folder: Path, domain: Path) -> list[str]:
    """Write the data of a held-out domain, and return the options of a command in `folder` that is evaluated on it."""
    write_data(domain, [str(n) for n in range(40)])
    return [*command(recipe, corpus, folder), "--data", str(domain.parent)]


def test_command_that_is_stopped_fails_and_says_how_to_resume(
    recipe: Distillation,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(distil, "stopped_by_signals", stopped_at_once)
    with pytest.raises(SystemExit, match="stopped and saved at step 1: the same command resumes the run"):
        distil.main(command(recipe, corpus, tmp_path))
    assert "step 1: loss " in capsys.readouterr().out


def test_full_disk_ends_the_command_with_the_reason(recipe: Distillation, corpus: Path, tmp_path: Path) -> None:
    begin_run(tmp_path, "model.training.distil")
    (tmp_path / LOG).symlink_to("/dev/full")
    with pytest.raises(SystemExit, match="No space left on device"):
        distil.main(command(recipe, corpus, tmp_path))


def test_disk_full_of_the_pairs_of_a_held_out_domain_ends_the_command_with_the_reason(
    recipe: Distillation, corpus: Path, tmp_path: Path
) -> None:
    domain = tmp_path / "data" / "microlens50k"
    options = command_with_held_out(recipe, corpus, tmp_path, domain)
    digests = [file_digest(domain / name)[:8] for name in ("notes.jsonl.gz", "clicks.jsonl.gz")]
    pairs_file = ".".join(("pairs_without_ties.microlens50k", *digests, "json.unfinished"))
    begin_run(tmp_path, "model.training.distil")
    (tmp_path / pairs_file).symlink_to("/dev/full")
    with pytest.raises(SystemExit, match="No space left on device"):
        distil.main(options)


def test_held_out_domain_without_pairs_ends_the_command_before_the_first_step(
    recipe: Distillation, corpus: Path, tmp_path: Path
) -> None:
    options = command_with_held_out(recipe, corpus, tmp_path / "run", tmp_path / "data" / "microlens50k")
    with pytest.raises(SystemExit, match="microlens50k has no related pairs among its validation notes"):
        distil.main(options)
    assert not (tmp_path / "run" / LOG).exists()


def test_clicks_of_a_held_out_domain_that_make_no_pairs_end_the_command(
    recipe: Distillation, corpus: Path, tmp_path: Path
) -> None:
    options = command_with_held_out(recipe, corpus, tmp_path / "run", tmp_path / "data" / "movielens_tmdb")
    with pytest.raises(SystemExit, match="has no ratings"):
        distil.main(options)


def test_recipe_file_gives_fields_that_options_replace(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text('backbone = "own"\nbatch = 8\nlearning_rate = 1e-3\n[shares]\nlong = 1.0\n')
    needed = ["--corpus", "c", "--out", "o", "--recipe", str(file)]
    options = distil.option_parser().parse_args(
        [*needed, "--batch", "9", "--share", "lists=2", "--teacher", "a", "--teacher", "b"]
    )
    expected = Distillation(backbone="own", batch=9, learning_rate=1e-3, shares={"lists": 2.0}, teachers=["a", "b"])
    assert distil.recipe_of(options) == expected
    by_the_file = distil.recipe_of(distil.option_parser().parse_args(needed))
    assert (by_the_file.shares, by_the_file.teachers) == ({"long": 1.0}, ["minilm"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("bach = 1", "bach"),
        ("teachers = []", "at least one encoder"),
        ('teachers = "minilm"', "teachers must be a list of names, not 'minilm'"),
        ("teachers = [1]", "teachers must be a list of names, not "),
        ('teachers = ["../minilm"]', "'../minilm' is not the name of an encoder"),
        ('teachers = ["minilm", "minilm"]', "each once"),
        ("batch =", "Invalid"),
        ("batch = 1", "no source has a share"),
        ("batch = 0", "batch must be at least 1, not 0"),
        ("threads = 0", "threads must be at least 1, not 0"),
        ("warmup_steps = 0", "warmup_steps must be at least 1, not 0"),
        ("remembered = 0", "remembered must be at least 1, not 0"),
        ("solve_every = 0", "solve_every must be at least 1, not 0"),
        ("seed = -1", "seed must be at least 0, not -1"),
        ('batch = "8"', "batch must be int, not '8'"),
        ("words = -1.0", "words must be 0 or more and finite"),
        ("temperature = 0.0", "temperature must be above 0 and finite, not 0.0"),
        ("temperature = inf", "temperature must be above 0 and finite, not inf"),
        ("save_every = nan", "save_every must be 0 or more and finite, not nan"),
        ("measure_every = nan", "measure_every must be 0 or more and finite, not nan"),
        ('pooling = "last"', "pooling must be one of read-out, "),
        ("shares = 1", "shares must be a table, not 1"),
        ("[shares]\nlong = 0.0", "no source has a share above 0"),
        ("[shares]\nlong = nan", "shares: that of long must be 0 or more and finite, not nan"),
        ('[shares]\nlong = "1"', "shares: that of long must be 0 or more and finite, not '1'"),
        ("clip = 0.0", "clip, the maximum norm of the gradient, must be above 0, not 0.0"),
        ("learning_rate = -1e-4", "learning_rate must be 0 or more and finite"),
        ("weight_decay = inf", "weight_decay must be 0 or more and finite"),
    ],
)
def test_recipe_that_cannot_be_used_ends_the_command(
    text: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(text)
    with pytest.raises(SystemExit):
        distil.main(["--corpus", "c", "--out", "o", "--recipe", str(file)])
    assert reason in capsys.readouterr().err


def test_card_that_is_not_there_ends_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        distil.main(["--corpus", "c", "--out", "o", "--share", "long=1", "--device", "cuda"])
    assert "finds no GPU" in capsys.readouterr().err


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.toml")), ids=lambda file: file.stem)
def test_our_recipes_are_read(file: Path) -> None:
    options = ["--corpus", "c", "--out", "o", "--recipe", str(file)]
    assert distil.recipe_of(distil.option_parser().parse_args(options)).shares


def test_structure_loss_of_the_teachers_ranking_is_zero() -> None:
    torch.manual_seed(0)
    teacher, ranked, other = (torch.nn.functional.normalize(torch.randn(n, 8), dim=1) for n in (5, 20, 5))
    assert float(structure_loss(teacher, teacher, ranked, 0.05)) == pytest.approx(0, abs=1e-5)
    assert float(structure_loss(other, teacher, ranked, 0.05)) > 1


def test_low_rank_product_is_the_best_approximation() -> None:
    torch.manual_seed(0)
    exact = torch.randn(9, 3) @ torch.randn(3, 7)
    left, right = low_rank_factors(exact, 3)
    assert left @ right == pytest.approx(exact, abs=1e-4)
    noisy = torch.randn(9, 7)
    values = torch.linalg.svdvals(noisy)
    left, right = low_rank_factors(noisy, 4)
    assert float((noisy - left @ right).norm()) == pytest.approx(float(values[4:].norm()), rel=1e-4)


def test_exported_checkpoint_serves_the_same_vectors(
    recipe: Distillation, corpus: Path, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    run = start(recipe, corpus, tmp_path / "run")
    train(run, 10)
    run.save()
    (state,) = (tmp_path / "run").glob("state.*.pt")
    out = tmp_path / "out"
    export.main(
        ["--state", str(state), "--out", str(out), "--rank", "64", "--name", "general", "--cache", str(tmp_path)]
    )
    config = NoteLLMConfig.load(out)
    assert (config.name, config.dimension, config.adapter, config.prompt_version) == (
        "general",
        12,
        True,
        "note-first/2",
    )
    served = Engine.load(str(out), cache=tmp_path, device="cpu", runtime="torch").embed(NOTES)
    with run.master_weights.averaged():  # averaged weights, with the head that was solved for last
        expected = run.student.embed(NOTES, run.master_weights.pool)
    assert (served * expected).sum(1).min() > 0.999  # the exported adapter is in bfloat16
    whitened = tmp_path / "white"
    smaller = ["--rank", "8", "--dimension", "6", "--corpus", str(corpus)]
    export.main(["--state", str(state), "--out", str(whitened), *smaller, "--cache", str(tmp_path)])
    assert NoteLLM.load(str(whitened), cache=tmp_path, device=torch.device("cpu"), dtype=torch.float32).dimension == 6


def test_run_that_trains_an_adapter_is_exported_with_that(
    recipe: Distillation, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start(replace(recipe, rank=2), corpus, tmp_path / "run")
    train(run, 10)
    run.save()
    (state,) = (tmp_path / "run").glob("state.*.pt")
    command = ["--state", str(state), "--cache", str(tmp_path), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        export.main([*command, "--rank", "1"])
    assert "has an adapter of rank 2: export that, and reduce it with" in " ".join(capsys.readouterr().err.split())
    export.main(command)
    assert f"{tmp_path / 'out'}: rank 2, " in capsys.readouterr().out
    served = Engine.load(str(tmp_path / "out"), cache=tmp_path, device="cpu", runtime="torch").embed(NOTES)
    with run.master_weights.averaged():
        expected = run.student.embed(NOTES, run.master_weights.pool)
    assert (served * expected).sum(1).min() > 0.999
    assert json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())["r"] == 2


def test_export_that_fails_leaves_nothing(
    recipe: Distillation, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start(recipe, corpus, tmp_path / "run")
    train(run, 1)
    run.save()
    (state,) = (tmp_path / "run").glob("state.*.pt")
    out = tmp_path / "made" / "out"
    command = ["--state", str(state), "--out", str(out), "--dimension", "999", "--corpus", str(corpus)]
    with pytest.raises(SystemExit):
        export.main([*command, "--cache", str(tmp_path)])
    assert "fewer than 999" in capsys.readouterr().err
    assert not list(out.parent.iterdir())


def test_state_with_another_pooling_is_not_exported(recipe: Distillation, corpus: Path, tmp_path: Path) -> None:
    run = start(replace(recipe, pooling="both"), corpus, tmp_path)
    train(run, 1)
    run.save()
    with pytest.raises(CheckpointError, match="pooling 'both'"):
        load_state(next(tmp_path.glob("state.*.pt")), tmp_path)


def test_source_that_no_batch_would_have_is_refused(recipe: Distillation, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="shares: too small for any note in batches of 16: long"):
        start(replace(recipe, shares={"long": 1e-4, "lists": 1.0}), corpus, tmp_path)
