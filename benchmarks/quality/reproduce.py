"""A record of benchmarks/results/records/ again, from the data on: makes pairs, trains what has to be, asks it. Or the
checkpoint that ships.

.venv/bin/python benchmarks/quality/reproduce.py DATA NAME...

DATA is the folder of the data sets. A NAME is a record's, that of a recipe, which is only trained, or `ship`: the
trained checkpoint, calibrated, becomes the one that `make serve` loads. Without a NAME all are printed. What was made
lies in runs/ and is used again; a training of NoteLLM that was broken off goes on. `make quality` makes the tables of
the records.
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
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file

from benchmarks.harness.report import ROOT
from benchmarks.quality.tables import KUAIREC, MICROLENS, MOVIELENS, RECORDS
from model.category_head import CATEGORIES_FILE
from model.config import PACKAGED_BACKBONE
from model.training.trainer import BEST
from model.weights import ADAPTER_FILE, ADAPTER_FOLDER, SHIPPED_CHECKPOINT
from service.samples import SAMPLES

RUNS = ROOT / "runs"
PAIRS = RUNS / "pairs"
RECIPES = ROOT / "model" / "training" / "recipes"
SHIP = "ship"
DIMENSION = 128
AFTERWARDS = (
    "- After the run the adapter was rounded to bfloat16, which halves the file, the vectors were whitened (`notellm "
    "whiten`), the probabilities of categories calibrated (`notellm calibrate`), and what vectors say of them learnt "
    "(`notellm fit-categories`)."
)
START, START_COMMIT = "NOTELLM_START", "39aebd4"
"""What the shipped recipe starts from: the checkpoint that shipped with that commit."""
PAIR_OPTIONS: Mapping[str, Sequence[str]] = {
    MICROLENS: ("--lower", "0.05", "--top", "1000"),
    MOVIELENS: ("--min-rating", "4", "--window", "50", "--lower", "0", "--top", "30"),
}
"""Of the pairs to train on; those that figures count are in model/evaluation/protocol.py."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a record is of: `system` as `notellm evaluate` takes it, or the best checkpoint of a `recipe` with some
    `change`; asked with `options`."""

    data: str
    system: str = ""
    recipe: str = ""
    change: tuple[str, ...] = ()
    options: tuple[str, ...] = ("--split", "test")


TEST = ("--split", "test")
PARTS: Mapping[str, Sequence[str]] = {
    "related": (MICROLENS, MOVIELENS),
    "categories": (MOVIELENS, KUAIREC),
    "hashtags": (MICROLENS, MOVIELENS, KUAIREC),
}
"""Of what the shipped checkpoint is asked, each its own record: what is fitted to it later changes some and not all."""
COPIED = (*TEST, "--part", "related", "--part", "hashtags", "--protocol", "cold-cold", "--copy-hashtags")
POLICIES = ("--split", "validation", "--part", "hashtags", "--most-notes", "1000")
HIDDEN = (*TEST, "--part", "related", "--no-hashtags")
ABLATION = "ablation-smollm2-135m"
SHORT = ("--split", "validation", "--part", "related", "--part", "hashtags", "--protocol", "cold-cold",
         "--most-notes", "400")  # fmt: skip
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
"""Short runs of the recipe of that name, alike but for one thing; of `full` the learning rate is its own. Without CSFT
there is no hashtag task, so that no note hides its hashtags either, as in the paper's ablation, but for `hiding`."""


def short_run(name: str, change: Sequence[str], *options: str) -> Measured:
    """Its system is called as the record is, but for the seed."""
    system = re.sub(r"-seed\d+$", "", f"ablation-{name}")
    return Measured(MICROLENS, recipe=ABLATION, change=(f"name={system}", *change), options=(*SHORT, *options))


RECORDED: Mapping[str, Measured] = {
    "tf-idf-microlens50k": Measured(MICROLENS, "tf-idf"),
    "tf-idf-movielens_tmdb": Measured(MOVIELENS, "tf-idf"),
    "bm25-microlens50k": Measured(MICROLENS, "bm25"),
    "bm25-movielens_tmdb": Measured(MOVIELENS, "bm25"),
    "frequent-microlens50k": Measured(MICROLENS, "frequent"),
    "minilm-zero-shot-microlens50k": Measured(MICROLENS, "minilm"),
    "minilm-zero-shot-movielens_tmdb": Measured(MOVIELENS, "minilm"),
    "minilm-microlens50k-seed0": Measured(MICROLENS, recipe="minilm-microlens50k"),
    "minilm-microlens50k-seed1": Measured(MICROLENS, recipe="minilm-microlens50k", change=("seed=1",)),
    "minilm-microlens50k-seed2": Measured(MICROLENS, recipe="minilm-microlens50k", change=("seed=2",)),
    "minilm-distilled-microlens50k": Measured(MICROLENS, recipe="minilm-distilled-microlens50k"),
    "minilm-movielens_tmdb-seed0": Measured(MOVIELENS, recipe="minilm-movielens_tmdb"),
    "category-minilm-movielens_tmdb": Measured(MOVIELENS, recipe="category-minilm-movielens_tmdb"),
    "category-minilm-kuairec": Measured(KUAIREC, recipe="category-minilm-kuairec"),
    **{
        f"prompt-zero-shot-{data}": Measured(data, PACKAGED_BACKBONE, options=(*TEST, "--part", "related"))
        for data in (MICROLENS, MOVIELENS)
    },
    **{
        f"notellm-{part}-{data}-seed0": Measured(data, str(SHIPPED_CHECKPOINT), options=(*TEST, "--part", part))
        for part, sets in PARTS.items()
        for data in sets
    },
    "notellm-copied-microlens50k": Measured(MICROLENS, str(SHIPPED_CHECKPOINT), options=COPIED),
    "notellm-grounded-microlens50k": Measured(
        MICROLENS, str(SHIPPED_CHECKPOINT), options=(*TEST, "--part", "hashtags", "--hashtag-policy", "grounded")
    ),
    **{
        f"policy-{policy}-microlens50k": Measured(MICROLENS, str(SHIPPED_CHECKPOINT), options=(*POLICIES, *options))
        for policy, options in {
            **{policy: ("--hashtag-policy", policy) for policy in ("open", "known", "grounded")},
            "copied": ("--copy-hashtags",),
        }.items()
    },
    "policy-frequent-microlens50k": Measured(MICROLENS, "frequent", options=POLICIES),
    "notellm-no-hashtags-microlens50k": Measured(MICROLENS, str(SHIPPED_CHECKPOINT), options=HIDDEN),
    "minilm-no-hashtags-microlens50k": Measured(MICROLENS, recipe="minilm-microlens50k", options=HIDDEN),
    **{f"ablation-{name}": short_run(name, change) for name, change in ABLATIONS.items()},
    "ablation-without-hashtags": short_run("joint-seed0", (), "--no-hashtags"),
}


def measure(data: Path, name: str) -> None:
    """Write the record `name`. CalledProcessError when a step fails, which has said why."""
    of = RECORDED[name]
    system = of.system or str(train(data, of.recipe, of.change) / BEST)
    notellm(
        "evaluate", "--checkpoint", system, "--data", data / of.data, *of.options, "--record", RECORDS / f"{name}.json"
    )


def train(data: Path, recipe: str, change: Sequence[str] = ()) -> Path:
    """The folder of a finished run of the recipe, with the pairs and the teachers that it needs."""
    # The folder's name is the encoder's in its record.
    folder = RUNS / (",".join(change).replace("/", "-") or "as-it-is") / recipe
    if (folder / "done").exists():
        return folder
    for entry in tomllib.loads((RECIPES / f"{recipe}.toml").read_text("utf-8"))["data"]:
        if "pairs" in entry:
            make_pairs(data, Path(entry["pairs"]).stem)
        if "teacher" in entry:
            teach(data, Path(entry["teacher"]), Path(entry["notes"]))
    command = "train-encoder" if "minilm" in recipe else "train"
    changes = [part for text in change for part in ("--set", text)]
    notellm(command, "--config", RECIPES / f"{recipe}.toml", "--out", folder, *changes, data=data)
    (folder / "done").touch()
    return folder


def ship(data: Path) -> None:
    """Train the shipped recipe, and put its best checkpoint where `make serve` finds it, in bfloat16, with all that is
    fitted to a finished checkpoint."""
    shutil.copytree(train(data, SHIPPED_CHECKPOINT.name) / BEST, SHIPPED_CHECKPOINT, dirs_exist_ok=True)
    (SHIPPED_CHECKPOINT / CATEGORIES_FILE).unlink(missing_ok=True)  # fitted to what shipped before
    adapter = SHIPPED_CHECKPOINT / ADAPTER_FOLDER / ADAPTER_FILE
    save_file({name: weight.bfloat16() for name, weight in load_file(adapter).items()}, adapter, {"format": "pt"})
    card = SHIPPED_CHECKPOINT / "README.md"
    text = card.read_text("utf-8").replace("\n\n## Terms", f"\n{AFTERWARDS}\n\n## Terms")
    card.write_text(re.sub(r"dimension \d+", f"dimension {DIMENSION}", text), "utf-8")
    categories, everything = (
        [part for of in sets for part in ("--data", of)]
        for sets in ((data / MOVIELENS, data / KUAIREC), (data / MICROLENS, data / MOVIELENS, data / KUAIREC, SAMPLES))
    )
    checkpoint = ("--checkpoint", SHIPPED_CHECKPOINT)
    notellm("whiten", *checkpoint, *everything, "--dimension", f"{DIMENSION}")
    notellm("calibrate", *checkpoint, *categories, "--most-notes", "100")
    notellm("fit-categories", *checkpoint, *categories, "--data", SAMPLES)


def start_checkpoint() -> Path:
    """The shipped checkpoint of an earlier commit, from the history of this checkout."""
    if not (folder := RUNS / "start").exists():
        name = SHIPPED_CHECKPOINT.relative_to(ROOT)
        packed = subprocess.run(["git", "archive", START_COMMIT, name], cwd=ROOT, capture_output=True, check=True)
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            archive.extractall(folder, filter="data")
    return folder / SHIPPED_CHECKPOINT.relative_to(ROOT)


def make_pairs(data: Path, name: str) -> None:
    PAIRS.mkdir(parents=True, exist_ok=True)
    out = PAIRS / f"{name}.parquet"
    if not out.exists():
        notellm("pairs", "--clicks", data / name / "clicks.jsonl.gz", "--out", out, *PAIR_OPTIONS[name])


def teach(data: Path, out: Path, notes: Path) -> None:
    """The vectors that a recipe distils from: `out` is named like the recipe of the model that gives them."""
    if not (PAIRS / out.name).exists():
        checkpoint = train(data, out.stem) / BEST
        notellm("embed", "--checkpoint", checkpoint, "--notes", data / notes.parent.name / notes.name,
                "--out", PAIRS / out.name)  # fmt: skip


def notellm(*arguments: str | Path, data: Path | None = None) -> None:
    """Run the command line that comes with this interpreter; recipes find the data by their variables."""
    # Cards and records name no folder of this machine.
    inside = [a.relative_to(ROOT) if isinstance(a, Path) and a.is_relative_to(ROOT) else a for a in arguments]
    command = [str(Path(sys.executable).with_name("notellm")), *map(str, inside)]
    print("$ notellm", *command[1:], flush=True)
    found = {"NOTELLM_DATA": str(data), "NOTELLM_PAIRS": str(PAIRS), START: str(start_checkpoint())} if data else {}
    subprocess.run(command, cwd=ROOT, env=os.environ | found, check=True)


def main() -> None:
    recipes = sorted(path.stem for path in RECIPES.glob("*-*.toml"))  # 7b.toml is for data of one's own
    names = sys.argv[2:]
    if not names or (unknown := [name for name in names if name not in (*RECORDED, *recipes, SHIP)]):
        print("records:", *RECORDED, "recipes:", *recipes, "and:", SHIP, sep="\n")
        sys.exit(f"there is no record or recipe {', '.join(unknown)}" if names else 0)
    data = Path(sys.argv[1]).resolve()
    for name in names:
        if name in RECORDED:
            measure(data, name)
        elif name == SHIP:
            ship(data)
        else:
            print(train(data, name) / BEST)


if __name__ == "__main__":
    main()
