"""Tests of training to write: the trunk is unchanged, a tree's loss equals that of its outputs, and a run resumes."""

from __future__ import annotations

import json
import math
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.config import CONFIG_FILE, DEFAULT_CATEGORIES, CheckpointError, NoteLLMConfig
from model.data.corpora import write_notes_file
from model.data.dataset import DatasetError, read_notes, shown_categories
from model.data.labelled_lines import labelled_notes
from model.data.pairs import split_of
from model.generation import GenerationRequest
from model.inference.engine import Engine
from model.note import Note
from model.notellm import NoteLLM
from model.prompt import Prompt
from model.training import writing_examples
from model.training.recipe import RecipeError
from model.training.writing import LOG, GenerationTrainer, category_synonyms, load_for_writing, main
from model.training.writing_examples import Tree, WritingExample, common_spellings, respelled, writing_example
from model.training.writing_loss import read_notes_into_cache, writing_loss
from model.training.writing_recipe import GenerationRecipe
from model.training.writing_sources import LINES, read_sources
from model.weights import BACKBONE_FOLDER, GENERATION_FOLDER, SHIPPED_CHECKPOINT
from tests.model.inference.models import add_random_generation_adapter
from tests.model.training.runs import begin_run, stopped_at_once, training_in

NOTE = Note(id="1", title="Soup", content="with beans", hashtags=("bean soup", "soup"), category="Food")
RECIPE = GenerationRecipe(shares={"own": 1.0}, shown_hashtags=0.0, subject_names=0.0)


@pytest.fixture(autouse=True)
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("model.training.writing.bfloat16_pays", "model.training.writing_loss.bfloat16_pays"):
        monkeypatch.setattr(path, lambda device: False)


@pytest.fixture
def prompt(tiny_short: Engine) -> Prompt:
    return tiny_short.prompt


def example(prompt: Prompt, note: Note, recipe: GenerationRecipe = RECIPE, seed: int = 0) -> WritingExample:
    shares = {"shown_hashtags": recipe.shown_hashtags, "subject_names": recipe.subject_names}
    return writing_example(prompt, note, {}, random.Random(seed), **shares)


def target_tokens(tree: Tree) -> set[int]:
    return {target.token for target in tree.targets}


def test_tree_token_attends_to_its_branch_alone() -> None:
    tree = Tree()
    task = tree.append([1, 2], -1)
    tree.add_output([3, 4], task, 1.0)
    tree.add_output([5, 6], task, 1.0)
    depths, mask = tree.depths_and_mask()
    assert (tree.ids, depths) == ([1, 2, 3, 5], [0, 1, 2, 2])
    assert mask.tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [True, True, True, False],
        [True, True, False, True],
    ]
    assert [(target.at, target.token) for target in tree.targets] == [(1, 3), (2, 4), (1, 5), (3, 6)]


def test_note_shows_no_hashtag_that_it_is_to_write(prompt: Prompt) -> None:
    assert example(prompt, NOTE).ids == prompt.note(replace(NOTE, hashtags=()))
    recipe = replace(RECIPE, shown_hashtags=1.0)
    shown = [example(prompt, NOTE, recipe, seed).ids for seed in range(8)]
    assert {tuple(prompt.note(replace(NOTE, hashtags=(tag,)))) for tag in NOTE.hashtags} == set(map(tuple, shown))


def test_weights_of_a_notes_hashtags_sum_to_one_and_fall(prompt: Prompt) -> None:
    tree = example(prompt, NOTE).tree
    firsts = [target.weight for target in tree.targets if target.at == tree.targets[0].at]
    assert sum(firsts) == pytest.approx(1)
    assert firsts[0] > firsts[1]


def test_note_without_hashtags_teaches_to_write_none(prompt: Prompt) -> None:
    (target,) = example(prompt, Note(title="same thing")).tree.targets
    assert (target.token, target.weight) == (prompt.end_id, 1.0)


def test_first_hashtag_may_stand_for_the_category(prompt: Prompt) -> None:
    note = replace(NOTE, category=None)
    (subject,) = prompt.category_outputs(["Bean soup"])
    assert not set(subject[:1]) & target_tokens(example(prompt, note).tree)
    assert set(subject) <= target_tokens(example(prompt, note, replace(RECIPE, subject_names=1.0)).tree)


def test_hashtags_are_learnt_in_their_most_frequent_spelling() -> None:
    notes = [Note(hashtags=tags) for tags in (("Two Yuan", "soup"), ("two yuan",), ("two yuan", "Soup"), ("TwoYuan",))]
    spellings = common_spellings(notes)
    assert spellings == {"twoyuan": "two yuan", "soup": "soup"}, "of equally frequent ones the last"
    assert respelled(Note(hashtags=("TWO YUAN", "Hike")), spellings).hashtags == ("two yuan", "Hike")


def test_synonyms_are_those_of_the_default_categories() -> None:
    assert "Cooking" in category_synonyms()["Food"]


@torch.no_grad()
def test_loss_of_the_tree_is_that_of_its_outputs_alone(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing_examples, "REQUESTED_HASHTAGS", range(3, 4))
    model, adapter = load_for_writing(tiny_checkpoint, 2, tmp_path)
    longer = Note(title="A much longer title for one more soup", hashtags=("stew",))
    examples = [example(model.prompt, note) for note in (NOTE, longer)]
    with adapter.disable_adapter():
        loss = writing_loss(model, examples, read_notes_into_cache(model, examples))
    expected = 0.0
    for note, weights in ((NOTE, (1 / 1.85, 0.85 / 1.85)), (longer, (1.0,))):
        context = [*model.prompt.note(replace(note, hashtags=())), *model.prompt.hashtag_task(3)]
        for hashtag, weight in zip(note.hashtags, weights, strict=True):
            expected += weight * negative_log_probability(model, context, model.prompt.hashtag_output([hashtag]))
    context = [*model.prompt.note(replace(NOTE, hashtags=())), *model.prompt.category_task()]
    expected += negative_log_probability(model, context, model.prompt.category_outputs(["Food"])[0])
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def negative_log_probability(model: NoteLLM, context: list[int], output: list[int]) -> float:
    ids = torch.tensor([[*context, *output]])
    positions = torch.arange(ids.shape[1])[None]
    log_probs = model.logits(model(ids, torch.ones_like(ids), positions)).log_softmax(-1)[0]
    start = len(context)
    return -sum(float(log_probs[start + i - 1, token]) for i, token in enumerate(output))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def start(checkpoint: Path, notes_file: Path, folder: Path, **changes: Any) -> GenerationTrainer:
    recipe = GenerationRecipe(
        shares={"own": 0.9, LINES: 0.1}, rank=4, batch=16, learning_rate=1e-2, warmup_steps=1, averaged=10, **changes
    )
    return GenerationTrainer(recipe, checkpoint, {"own": notes_file}, folder, folder)


@pytest.mark.slow
def test_run_learns_and_resumes_as_if_unbroken(tiny_checkpoint: Path, notes_file: Path, tmp_path: Path) -> None:
    whole = start(tiny_checkpoint, notes_file, tmp_path / "whole", steps=12)
    before = whole.measure()
    whole.run(60)
    first = start(tiny_checkpoint, notes_file, tmp_path / "broken", steps=12)
    first.stop()
    first.run(60)
    assert first.step == 1
    second = start(tiny_checkpoint, notes_file, tmp_path / "broken", steps=12)
    second.run(60)
    logs = [[line["loss"] for line in lines(tmp_path / name / LOG) if "loss" in line] for name in ("whole", "broken")]
    assert logs[0] == pytest.approx(logs[1], rel=1e-3)
    assert lines(tmp_path / "whole" / LOG)[-1]["validation_loss"] < before


def test_diverged_run_ends_before_the_step_that_would_spoil_its_weights(
    tiny_checkpoint: Path, notes_file: Path, tmp_path: Path
) -> None:
    trainer = start(tiny_checkpoint, notes_file, tmp_path / "run", steps=3)
    trainer.stop()
    trainer.run(60)
    with torch.no_grad():
        trainer.master_weights.weights[0].fill_(torch.nan)
    message = r"step 2: the loss is nan and .* nan: lower learning_rate: .* resumes from state\.00000001\.pt"
    with pytest.raises(RecipeError, match=message):
        trainer.run(60)
    assert trainer.step == 1
    assert all(weight.isfinite().all() for weight in trainer.master_weights.masters)


def test_last_update_that_spoils_the_weights_fails_the_run(
    tiny_checkpoint: Path, notes_file: Path, tmp_path: Path
) -> None:
    trainer = start(tiny_checkpoint, notes_file, tmp_path / "run", steps=1)
    trainer.master_weights.rates = [math.inf] * len(trainer.master_weights.rates)
    with pytest.raises(RecipeError, match=r"^step 1: after its update the validation loss is nan: lower learning_rate"):
        trainer.run(60)


def test_rate_that_is_not_finite_ends_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--checkpoint", "c", "--out", str(tmp_path), "--notes", "n.jsonl=1", "--learning-rate", "inf"])
    assert "learning_rate must be 0 or more and finite" in capsys.readouterr().err


def test_command_that_is_stopped_fails_and_resumes_without_the_log_of_a_killed_run(
    tiny_checkpoint: Path, notes_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "run" / LOG
    begin_run(log.parent, "model.training.writing")
    log.write_text('{"step": 1, "loss": 9}\n{"step": 2, "lo')  # killed before its first state
    options = ["--checkpoint", str(tiny_checkpoint), "--out", str(tmp_path / "run"), "--cache", str(tmp_path)]
    options += ["--notes", f"{notes_file}=1", "--steps", "2", "--batch", "4", "--rank", "4"]
    with monkeypatch.context() as patch:
        patch.setattr("model.training.writing.stopped_by_signals", stopped_at_once)
        with pytest.raises(SystemExit, match="stopped and saved at step 1: the same command resumes the run"):
            main(options)
    main(options)
    assert [entry["step"] for entry in map(json.loads, log.read_text().splitlines()) if "loss" in entry] == [1, 2]


def test_command_says_at_which_step_its_minutes_ended(
    tiny_checkpoint: Path, notes_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--checkpoint", str(tiny_checkpoint), "--out", str(tmp_path / "run"), "--cache", str(tmp_path)]
    main([*options, "--notes", f"{notes_file}=1", "--steps", "9", "--batch", "4", "--rank", "4", "--minutes", "0"])
    assert f"ended and saved at step 1 of 9: {tmp_path / 'run' / 'checkpoint'}" in capsys.readouterr().out


def test_full_disk_ends_the_command_with_the_reason(tiny_checkpoint: Path, notes_file: Path, tmp_path: Path) -> None:
    begin_run(tmp_path / "run", "model.training.writing")
    (tmp_path / "run" / LOG).symlink_to("/dev/full")
    options = ["--checkpoint", str(tiny_checkpoint), "--out", str(tmp_path / "run"), "--cache", str(tmp_path)]
    with pytest.raises(SystemExit, match="No space left on device"):
        main([*options, "--notes", f"{notes_file}=1", "--steps", "1", "--batch", "4", "--rank", "4"])


def test_folder_in_which_another_process_trains_is_refused(
    tiny_checkpoint: Path, notes_file: Path, tmp_path: Path
) -> None:
    with training_in(tmp_path / "run"), pytest.raises(RecipeError, match="another process trains in"):
        start(tiny_checkpoint, notes_file, tmp_path / "run")


def test_folder_of_another_kind_of_run_keeps_its_log(tiny_checkpoint: Path, notes_file: Path, tmp_path: Path) -> None:
    begin_run(tmp_path / "run", "notellm train")
    (tmp_path / "run" / LOG).write_text('{"step": 1}\n')
    with pytest.raises(RecipeError, match="holds a run of notellm train"):
        start(tiny_checkpoint, notes_file, tmp_path / "run")
    assert (tmp_path / "run" / LOG).read_text() == '{"step": 1}\n'


@pytest.mark.slow
def test_run_on_another_trunk_or_recipe_is_not_resumed(tiny_checkpoint: Path, notes_file: Path, tmp_path: Path) -> None:
    first = start(tiny_checkpoint, notes_file, tmp_path / "run", steps=1)
    first.run(60)
    assert start(tiny_checkpoint, notes_file, tmp_path / "run", steps=1).ended
    with pytest.raises(RecipeError, match=r"another recipe \(different: seed\)"):
        start(tiny_checkpoint, notes_file, tmp_path / "run", steps=1, seed=1)
    other = Path(shutil.copytree(tiny_checkpoint, tmp_path / "other"))
    weights = load_file(other / BACKBONE_FOLDER / "model.safetensors")
    save_file({name: 2 * weight for name, weight in weights.items()}, other / BACKBONE_FOLDER / "model.safetensors")
    with pytest.raises(CheckpointError, match="a run with another trunk"):
        start(other, notes_file, tmp_path / "run", steps=1)


def test_run_whose_notes_changed_is_not_resumed(tiny_checkpoint: Path, notes_file: Path, tmp_path: Path) -> None:
    start(tiny_checkpoint, notes_file, tmp_path / "run", steps=1).run(60)
    write_notes_file(notes_file, [NOTE, *read_notes(notes_file).values()], "own")
    with pytest.raises(RecipeError, match=rf"^{notes_file.name.split('.')[0]} changed since the run"):
        start(tiny_checkpoint, notes_file, tmp_path / "run", steps=1)


def test_run_whose_lines_changed_is_not_resumed(
    tiny_checkpoint: Path, notes_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(tiny_checkpoint, notes_file, tmp_path / "run", steps=1).run(60)
    monkeypatch.setattr("model.training.writing.labelled_notes", lambda language: list(labelled_notes(language))[:-1])
    with pytest.raises(RecipeError, match=r"^lines.* changed since the run"):
        start(tiny_checkpoint, notes_file, tmp_path / "run", steps=1)


def test_source_without_training_notes_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_notes_file(tmp_path / "own.jsonl.gz", [], "own")
    with pytest.raises(DatasetError, match=r"own.jsonl.gz: no note is in the training split"):
        start(tiny_checkpoint, tmp_path / "own.jsonl.gz", tmp_path / "run")


def test_folder_inside_of_the_checkpoint_is_refused_and_not_made(
    tiny_checkpoint: Path, notes_file: Path, tmp_path: Path
) -> None:
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    with pytest.raises(RecipeError, match=r"is inside of the checkpoint .*: choose a folder outside of it"):
        start(checkpoint, notes_file, checkpoint / "run")
    assert not (checkpoint / "run").exists()


def test_file_whose_hashtags_have_another_key_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    (tmp_path / "own.jsonl").write_text('{"id": "1", "title": "Soup", "tags": ["soup"]}\n')
    read_sources({"own": tmp_path / "own.jsonl"}, "train", told.append)
    assert told[0].endswith("0 with hashtags, 0 with a category; ignored keys: tags")
    assert "own.jsonl: no note has hashtags, so each of them teaches to write none" in told[1]


def test_notes_of_nothing_but_hashtags_are_left_out(tmp_path: Path) -> None:
    told: list[str] = []
    alone, with_text, empty = [str(i) for i in range(20) if split_of(str(i)) == "train"][:3]
    soup = {"hashtags": ["soup"]}
    notes = [{"id": alone, **soup}, {"id": with_text, "title": "Soup", **soup}, {"id": empty}]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(note) + "\n" for note in notes))
    read = read_sources({"own": tmp_path / "own.jsonl"}, "train", told.append)["own"]
    assert [note.id for note in read] == [with_text, empty]
    assert any("1 notes of the train split have hashtags alone and are left out" in line for line in told)


@pytest.mark.parametrize(("language", "words"), [("en", "lentil soup"), ("zh", "红烧肉")])
def test_lines_are_those_of_the_language_in_their_splits(language: str, words: str) -> None:
    sources = {split: read_sources({}, split, language=language)[LINES] for split in ("train", "validation")}
    assert any(words in note.hashtags for notes in sources.values() for note in notes)
    for split, notes in sources.items():
        assert {split_of(note.id) for note in notes} == {split}


def test_trunk_that_no_adapter_fits_is_refused_before_training(
    tiny_checkpoint: Path, notes_file: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(tiny_checkpoint, tmp_path / "other"))
    replace(NoteLLMConfig.load(other), prompt_version="task-first/1").save(other)
    with pytest.raises(CheckpointError, match="requires a prompt version with the task last"):
        start(other, notes_file, tmp_path / "run")
    (other / CONFIG_FILE).unlink()
    with pytest.raises(CheckpointError, match="is not a NoteLLM checkpoint"):
        start(other, notes_file, tmp_path / "run")


@pytest.mark.parametrize(
    ("notes", "reason"),
    [
        (["a/notes.jsonl=0.5", "b/notes.jsonl.gz=0.5"], "b/notes.jsonl.gz: another source is already called notes"),
        (["a/lines.jsonl=1"], "another source is already called lines"),
        (["a/notes.jsonl"], "could not convert"),
    ],
)
def test_notes_that_cannot_be_told_apart_end_the_command(
    notes: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--checkpoint", "c", "--out", str(tmp_path), *(f"--notes={text}" for text in notes)])
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--batch", "0"], "batch must be at least 1, not 0"),
        (["--threads", "0"], "threads must be at least 1, not 0"),
        (["--rank", "0"], "rank must be at least 1, not 0"),
        (["--steps", "0"], "steps must be at least 1, not 0"),
        (["--save-every", "nan"], "save_every must be 0 or more and finite, not nan"),
        (["--seed", "-1"], "seed must be at least 0, not -1"),
        (["--seed", str(2**64)], "seed must be less than 2**63, not 18446744073709551616"),
        (["--shown-hashtags", "1.5"], "shown_hashtags must be between 0 and 1, not 1.5"),
        (["--lines", "inf"], "shares: that of lines must be 0 or more and finite, not inf"),
        ([], "shares: no source has a share above 0"),
    ],
)
def test_recipe_that_cannot_be_used_ends_the_command(
    options: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--checkpoint", "c", "--out", str(tmp_path), "--notes", "own.jsonl=0", *options])
    assert reason in capsys.readouterr().err


def test_categories_count_as_trained_where_a_note_with_a_share_has_them(
    tiny_checkpoint: Path, notes_file: Path, tmp_path: Path
) -> None:
    earlier = Path(shutil.copytree(tiny_checkpoint, tmp_path / "earlier"))
    replace(NoteLLMConfig.load(earlier), trained_categories=("Shown to an earlier adapter",)).save(earlier)
    write_notes_file(tmp_path / "other.jsonl.gz", [Note(title=f"{i}", category="No share") for i in range(20)], "other")
    recipe = GenerationRecipe(shares={"own": 1.0, "other": 0.0, LINES: 0.0}, rank=1, batch=2, steps=1)
    files = {"own": notes_file, "other": tmp_path / "other.jsonl.gz"}
    GenerationTrainer(recipe, earlier, files, tmp_path / "run", tmp_path).run(60)
    trained = NoteLLMConfig.load(tmp_path / "run" / "checkpoint").trained_categories
    assert set(trained) == {"Food", "Hill walks", *category_synonyms()["Food"]}


def test_synonym_that_is_a_category_of_the_notes_is_not_taught(
    tiny_checkpoint: Path, notes_file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.jsonl.gz"
    write_notes_file(other, [Note(title=f"{i}", category="street Food") for i in range(20)], "other")
    recipe = GenerationRecipe(shares={"own": 0.5, "other": 0.5, LINES: 0.0}, rank=1, batch=2, steps=1)
    trainer = GenerationTrainer(
        recipe, tiny_checkpoint, {"own": notes_file, "other": other}, tmp_path / "run", tmp_path
    )
    assert "Street food" in category_synonyms()["Food"]
    assert trainer.names["Food"] == [name for name in category_synonyms()["Food"] if name != "Street food"]
    trainer.run(60)
    trained = NoteLLMConfig.load(tmp_path / "run" / "checkpoint").trained_categories
    assert {"street Food", "Cooking"} <= set(trained)
    assert "Street food" not in trained


def test_categories_count_as_unseen_where_no_note_has_one() -> None:
    assert shown_categories([([replace(NOTE, category=None)], category_synonyms())]) == ("",)


def test_shipped_mix_shows_all_default_categories_and_their_synonyms() -> None:
    shipped = NoteLLMConfig.load(SHIPPED_CHECKPOINT).trained_categories
    assert shown_categories([(list(labelled_notes()), category_synonyms())]) == shipped


def test_adapter_of_another_trunk_is_replaced(tiny_checkpoint: Path, notes_file: Path, tmp_path: Path) -> None:
    stale = Path(shutil.copytree(tiny_checkpoint, tmp_path / "stale"))
    add_random_generation_adapter(stale)
    replace(NoteLLMConfig.load(stale), generation_trunk="0" * 64).save(stale)
    start(stale, notes_file, tmp_path / "run", steps=1).run(60)
    anew = Engine.load(str(tmp_path / "run" / "checkpoint"), cache=tmp_path, device="cpu", runtime="torch")
    assert anew.generate([NOTE], GenerationRequest(categories=("Food", "Travel")))[0].categories


@pytest.mark.slow
def test_checkpoint_has_the_trunks_vectors_and_writes_anew(
    tiny_checkpoint: Path, notes_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--checkpoint", str(tiny_checkpoint), "--out", str(tmp_path / "run"), "--cache", str(tmp_path)]
    options += ["--notes", f"{notes_file}=1", "--lines", "0.2", "--steps", "10", "--batch", "16", "--rank", "4"]
    main([*options, "--learning-rate", "0.01"])
    folder = tmp_path / "run" / "checkpoint"
    assert (folder / GENERATION_FOLDER / "adapter_model.safetensors").is_file()
    config = NoteLLMConfig.load(folder)
    assert config.generation_adapter
    assert {"Cooking", "Hill walks", *DEFAULT_CATEGORIES} <= set(config.trained_categories)
    trunk, taught = (
        Engine.load(str(path), cache=tmp_path, device="cpu", runtime="torch") for path in (tiny_checkpoint, folder)
    )
    assert taught.space == trunk.space
    assert taught.embed([NOTE]) == pytest.approx(trunk.embed([NOTE]), abs=1e-6)
    main([*options, "--learning-rate", "0.01"])
    assert "is complete at step 10: choose a new folder" in capsys.readouterr().out
