"""What one training run is made of, read from a TOML file. Every field and its default is here and nowhere else."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from model.config import DEFAULT_PROMPT, PACKAGED_BACKBONE


class RecipeError(ValueError):
    """A recipe that cannot be run; the message names the field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """One data set of the mix. `share`: how many of the steps are its, relative to the others'.

    Without `pairs` it teaches only CSFT. `teacher`: what `notellm embed` made of its notes with another model, to
    distil from beside behaviour. Pairs below `min_score` are not trained on, but known as related. `terms`:
    the data's licence in a few words, for the model card. `category_names`: other names of its categories; one of them
    is to be written as often as the category's own, so that a deployment's names need not be those of the data.
    """

    notes: Path
    pairs: Path | None = None
    min_score: float = 0.0
    share: float = 1.0
    teacher: Path | None = None
    terms: str = ""
    category_names: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for category, names in self.category_names.items():
            if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
                raise RecipeError(f"category_names: {category} must have a list of names")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One training run. Paper section 4 gives r, alpha and tau; docs/experiments.md says what the others did.

    `lora_rank` 0 is full fine-tuning. `micro_batch_tokens` bounds one forward; the contrastive batch is as large as
    `batch_pairs` says all the same. A batch of at most `kept_tokens` (padded, on each process) keeps the activations of
    all its micro-batches, which takes memory and saves a second forward. `bfloat16`: autocast, where that
    is faster. `distillation`: share of the loss of related notes that goes to what a teacher says of all notes;
    0 is the paper's loss alone. `memory`: negatives are all notes of the data set, as training last saw them, not only
    those of the batch. `input_hashtags`: where a prompt version has them last, hashtags that are shown are learnt too,
    as what follows the rest of the note. `evaluate_every` and `save_every` are in steps; training ends after `patience`
    evaluations without a better validation recall. `shard` spreads a large backbone over the processes (FSDP).
    """

    name: str
    data: tuple[Data, ...]
    backbone: str = PACKAGED_BACKBONE
    start: Path | None = None
    prompt_version: str = DEFAULT_PROMPT
    dimension: int = 128
    seed: int = 0

    batch_pairs: int = 64
    steps: int = 500
    contrastive: bool = True
    hashtag_share: float = 0.4
    input_hashtags: bool = False
    alpha: float = 0.01
    mask_false_negatives: bool = True
    distillation: float = 0.0
    distillation_temperature: float = 0.1
    memory: bool = False
    hide_hashtags: float = 0.0

    lora_rank: int = 16
    learning_rate: float = 2e-4
    head_learning_rate: float = 1e-3
    weight_decay: float = 1e-3
    warmup: float = 0.1
    clip: float = 1.0
    bfloat16: bool = True
    micro_batch_tokens: int = 2048
    kept_tokens: int = 0
    checkpoint_activations: bool = False
    shard: bool = False

    evaluate_every: int = 100
    patience: int = 3
    validation_notes: int = 1000
    validation_min_score: float = 0.3
    save_every: int = 50

    def __post_init__(self) -> None:
        positive = (
            "batch_pairs",
            "steps",
            "dimension",
            "micro_batch_tokens",
            "evaluate_every",
            "patience",
            "save_every",
        )
        for name in positive:
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} must be at least 1")
        for name in ("hashtag_share", "hide_hashtags", "warmup", "distillation"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"{name} must be between 0 and 1")
        if not self.data or sum(d.share for d in self.data) <= 0:
            raise RecipeError("data: at least one [[data]] with a share above 0 is needed")
        if self.contrastive and not any(d.pairs for d in self.data):
            raise RecipeError("data: contrastive training needs pairs; make them with `notellm pairs`")
        if self.start and not self.lora_rank:
            raise RecipeError("start gives an adapter its weights; with lora_rank = 0 name a backbone folder")
        if self.distillation_temperature <= 0:
            raise RecipeError("distillation_temperature must be above 0")
        if self.alpha < 0 or self.lora_rank < 0:
            raise RecipeError("alpha and lora_rank cannot be negative")

    @classmethod
    def load(cls, path: Path, changes: Mapping[str, Any] | None = None) -> Recipe:
        """From a TOML file; `changes` replace its fields. $NAMES in paths are environment variables. RecipeError."""
        try:
            table = {**tomllib.loads(path.read_text("utf-8")), **(changes or {})}
        except OSError as error:
            raise RecipeError(f"{path} cannot be read: {error}") from error
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"{path} is not TOML: {error}") from error
        table["data"] = tuple(_table(Data, f"{path}, [[data]]", row) for row in table.get("data", ()))
        recipe: Recipe = _table(cls, str(path), table)
        return recipe


def _table(kind: type[Any], where: str, table: Mapping[str, Any]) -> Any:
    """A dataclass from a TOML table: unknown and missing fields are named, and types are checked."""
    known = {f.name: str(f.type) for f in fields(kind)}
    if unknown := sorted(set(table) - set(known)):
        raise RecipeError(f"{where}: unknown fields {unknown}")
    try:
        return kind(**{name: _value(name, known[name], value) for name, value in table.items()})
    except TypeError as error:
        raise RecipeError(f"{where}: {error}") from error


def _value(name: str, kind: str, value: Any) -> Any:
    accepted: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}
    if kind.startswith("Path"):
        expanded = os.path.expandvars(str(value))
        if "$" in expanded:
            raise RecipeError(f"{name}: {value} names an environment variable that is not set")
        return Path(expanded).expanduser()
    if kind.startswith("Mapping") and not isinstance(value, dict):
        raise RecipeError(f"{name} must be a table, not {value!r}")
    if kind in accepted and type(value) not in accepted[kind]:  # not isinstance: True is an int
        raise RecipeError(f"{name} must be {kind}, not {value!r}")
    return float(value) if kind == "float" else value
