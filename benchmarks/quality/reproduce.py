"""Reproduces a record of benchmarks/results/records/ from the data; what is measured is trained first.

python -m benchmarks.quality.reproduce DATA NAME...

DATA is the folder of the data sets. NAME is a record, or a recipe, which is trained but not measured; without a NAME
all names are listed. The research checkpoint is trained by the recipe RESEARCH, and more is fitted to it afterwards.
FITTED is a copy of the shipped checkpoint that has learnt the categories of two data sets, by a generation adapter and
a category head; TAUGHT is a copy that has learnt the hashtags of a third data set, by a generation adapter.

Two checkpoints are measured here but not made: other commands make the shipped one (docs/guides/distillation.md), and
`make chinese-checkpoint` makes CHINESE, for those who accept the terms of its backbone.

Pairs, teachers' vectors and trained checkpoints are cached in runs/: delete whatever was made from an input that has
changed. An interrupted training of NoteLLM resumes. `make quality` then makes the tables of the records.
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
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from benchmarks import ROOT
from benchmarks.harness.service_process import NOTELLM
from benchmarks.quality.experiments import EXPERIMENTS, RESEARCH, SHIPPED
from benchmarks.quality.records import (
    CHINESE,
    COMMUNITY,
    FITTED,
    GENERALIST,
    KUAIREC,
    MICROLENS,
    MOVIELENS,
    RECORDS,
    TAUGHT,
)
from model.category_head import CATEGORIES_FILE
from model.config import NoteLLMConfig
from model.training.resume import newest_state
from model.training.trainer import BEST, FINAL
from model.training.writing import CHECKPOINT
from model.weights import ADAPTER_FILE, ADAPTER_FOLDER
from service import SAMPLES

RUNS = ROOT / "runs"
PAIRS = RUNS / "pairs"
RECIPES = ROOT / "model" / "training" / "recipes"
DONE = "done"
"""File that marks the folder of a finished run, which is not repeated: delete the folder after its recipe has
changed."""
DIMENSION = 128
"""Dimension of the research checkpoint's vectors after whitening."""
COMMUNITY_DIMENSION = 256
"""Dimension of the vectors of COMMUNITY after whitening: the best on validation among 128, 256 and 384 without
whitening, for an earlier recipe (docs/log/training.md)."""
LOWER_RATES = ("learning_rate=7e-5", "head_learning_rate=3e-4")
FURTHER: Sequence[Sequence[str]] = (("seed=1", "steps=100", *LOWER_RATES), ("seed=2", "steps=150", *LOWER_RATES))
"""Changes to the recipe COMMUNITY for each of its further runs, which starts from the last step of the previous run.
The first two runs of the stored record were made by earlier code
(docs/log/training.md#texts-in-the-steps-of-the-pairs)."""
MAX_FOLDER_NAME = 150
"""Bound on the characters of a folder's name; file systems take 255 bytes."""
RECOMBINED = "-recombined"
"""Name suffix of a notes file with texts that model/data/recombined_notes.py has added."""
WHITENED, TEACHER_DIMENSION = ".whitened", 256
"""Name suffix of a file with a teacher's whitened vectors, and their dimension."""
WRITING_STEPS: Mapping[str, int] = {FITTED: 800, TAUGHT: 3100}
"""Training steps of the generation adapters."""
HASHTAGS_ALONE = ("--shown-hashtags", "0", "--subject-names", "0")
"""Options with which an adapter learns only to write the hashtags of a note without any."""
CARD_NOTE = (
    "- After the run the adapter was rounded to bfloat16, which halves the file, the vectors were whitened (`notellm "
    "whiten`), the probabilities of categories calibrated (`notellm calibrate`), and what vectors and words say of "
    "them learnt (`notellm fit-categories`)."
)
"""Line added to the model card of the research checkpoint."""
START_VARIABLE = "NOTELLM_START"
STARTS: Mapping[str, tuple[str, str]] = {
    RESEARCH: ("39aebd4", f"model/checkpoints/{RESEARCH}"),
    COMMUNITY: ("9db1be8", f"model/checkpoints/{GENERALIST}"),
}
"""Commit and path of the checkpoint that a recipe starts from; the recipe finds the checkpoint by START_VARIABLE."""
PAIR_OPTIONS: Mapping[str, Sequence[str]] = {
    MICROLENS: ("--lower", "0.05", "--top", "1000"),
    MOVIELENS: ("--min-rating", "4", "--window", "50", "--lower", "0", "--top", "30"),
}
"""Options of the training pairs by data set; those of the evaluation pairs are in model/evaluation/protocol.py."""


def reproduce(data: Path, name: str) -> None:
    """Write the record `name`. CalledProcessError if a step fails; the step has printed the reason."""
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
    folder = RUNS / folder_name(changes) / recipe
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
        shutil.rmtree(folder, ignore_errors=True)  # an interrupted run cannot be resumed
    run_notellm(command, "--config", RECIPES / f"{recipe}.toml", "--out", folder, *settings, inputs=inputs)
    (folder / DONE).touch()
    return folder


def folder_name(changes: Sequence[str]) -> str:
    """Return the folder name of runs with these changes to their recipe. It is a hash if the changes are too long, as
    with a start whose path contains the changes of an earlier run."""
    name = ",".join(changes).replace("/", "-") or "as-it-is"
    return name if len(name) <= MAX_FOLDER_NAME else sha256(name.encode()).hexdigest()[:16]


def make_pairs(data: Path, name: str) -> None:
    """Make the training pairs of a data set, unless they exist."""
    PAIRS.mkdir(parents=True, exist_ok=True)
    out = PAIRS / f"{name}.parquet"
    if not out.exists():
        run_notellm("pairs", "--clicks", data / name / "clicks.jsonl.gz", "--out", out, *PAIR_OPTIONS[name])


def make_notes(data: Path, notes: Path) -> Path:
    """Return the notes file that a recipe calls `notes`: a data set's own, or one whose name ends in RECOMBINED, which
    is made unless it exists."""
    name = notes.name.removesuffix("".join(notes.suffixes))
    if not name.endswith(RECOMBINED):
        return data / notes.parent.name / notes.name
    made = PAIRS / notes.name
    if not made.exists():
        source = data / name.removesuffix(RECOMBINED) / "notes.jsonl.gz"
        run_module("model.data.recombined_notes", "--notes", source, "--out", made)
    return made


def make_teacher_vectors(data: Path, out: Path, notes: Path) -> None:
    """Make the vectors of `notes` that a recipe distils from, unless they exist. The name of `out` is the teacher's
    recipe, followed by RECOMBINED if the notes are recombined and WHITENED if the vectors are whitened."""
    vectors = PAIRS / out.name
    if not vectors.exists():
        whiten = ("--whiten", f"{TEACHER_DIMENSION}") if out.stem.endswith(WHITENED) else ()
        checkpoint = train(data, out.stem.removesuffix(WHITENED).removesuffix(RECOMBINED)) / BEST
        run_notellm("embed", "--checkpoint", checkpoint, "--notes", notes, "--out", vectors, *whiten)


def research_checkpoint(data: Path) -> Path:
    """Return the folder of the research checkpoint: trained, its adapter in bfloat16, with everything fitted
    afterwards."""
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
    generation adapter has learnt their names, and a category head to choose them by vectors and words.

    The copy accepts all scripts, since the head works on Chinese notes, too.
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
    microlens50k, with the least score of a hashtag fitted to them."""
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
    share of our labelled lines. `options`: further options of the training. `changes`: further fields of the copy's
    notellm.json. SystemExit if the training ended early.
    """
    writing, links = RUNS / "writing" / name, RUNS / "writing" / "sources"
    links.mkdir(parents=True, exist_ok=True)
    options = [*options, "--lines", f"{lines}"]
    for source, share in sources.items():
        notes = source
        if not source.suffix:
            notes = links / f"{source.name}.jsonl.gz"  # the training distinguishes sources by file name
            notes.unlink(missing_ok=True)
            notes.symlink_to(source / "notes.jsonl.gz")
        options += ["--notes", f"{notes}={share}"]
    options += ["--steps", f"{WRITING_STEPS[name]}"]
    run_module("model.training.writing", "--checkpoint", SHIPPED, "--out", writing, *options)
    if newest_state(writing) != writing / f"state.{WRITING_STEPS[name]:08}.pt":
        sys.exit("the generation adapter was ended early: run the same command again to go on")
    folder = RUNS / "finished" / name
    shutil.copytree(writing / CHECKPOINT, folder, dirs_exist_ok=True)
    replace(NoteLLMConfig.load(folder), name=name, **changes).save(folder)


def community_checkpoint(data: Path) -> Path:
    """Return the folder of COMMUNITY: its start checkpoint trained further on the clicks of microlens50k in three runs,
    with whitened vectors."""
    folder = RUNS / "finished" / COMMUNITY
    if (folder / DONE).exists():
        return folder
    run = train(data, COMMUNITY)
    for changes in FURTHER:
        run = train(data, COMMUNITY, (f"start={os.path.relpath(run / FINAL, ROOT)}", *changes))
    shutil.rmtree(folder, ignore_errors=True)  # left by an interrupted attempt
    shutil.copytree(run / FINAL, folder)
    by_all_notes = (*data_options(data / MICROLENS), "--max-notes", "20000")  # the set has 11,538 to train on
    run_notellm("whiten", "--checkpoint", folder, *by_all_notes, "--dimension", f"{COMMUNITY_DIMENSION}")
    (folder / DONE).touch()
    return folder


def chinese_checkpoint(data: Path) -> Path:
    """Return the folder of the checkpoint that `make chinese-checkpoint` made from kuairec; SystemExit if missing."""
    folder = RUNS / "chinese" / "writing" / CHECKPOINT
    if not (folder / CATEGORIES_FILE).is_file():
        notes = data / KUAIREC / "notes.jsonl.gz"
        sys.exit(f"first: make chinese-checkpoint KUAIREC={notes} (docs/guides/your-own-backbone.md)")
    return folder


def data_options(*sources: Path) -> list[str | Path]:
    """Return a --data option for each source."""
    return [part for source in sources for part in ("--data", source)]


def start_checkpoint(recipe: str) -> Path:
    """Return the folder of the checkpoint that a recipe starts from, extracted from this checkout's git history."""
    commit, path = STARTS[recipe]
    folder = RUNS / "start" / recipe
    if not folder.exists():
        packed = subprocess.run(["git", "archive", commit, path], cwd=ROOT, capture_output=True, check=True)
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            archive.extractall(folder, filter="data")
    return folder / path


def run_notellm(*arguments: str | Path, inputs: Mapping[str, str] | None = None) -> None:
    """Run the `notellm` of this interpreter. `inputs`: environment variables by which recipes find their inputs."""
    # Paths are relative, so that model cards and records name no folder of this machine.
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
