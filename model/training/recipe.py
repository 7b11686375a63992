"""The recipe of a training run, read from a TOML file: the single definition of its fields and their defaults."""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from model.config import DEFAULT_PROMPT, PACKAGED_BACKBONE
from model.prompt import TEMPLATES

MIN_VALIDATION_NOTES = 4
"""Smallest validation pool that contains a pair: at most half of the pool are notes of pairs."""


class RecipeError(ValueError):
    """The recipe cannot be run; the message names the field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """One data set of the mix.

    `pairs`: a file written by `notellm pairs`; without it the data set trains CSFT alone. `min_score`: pairs with a
    lower score are not trained on, but still count as related. `share`: share of the steps on this data set, relative
    to the others. `teacher`: another model's vectors of its notes (`notellm embed`), to distil from in addition to
    behaviour. `terms`: the data's licence in a few words, for the model card. `category_names`: synonyms of its
    categories. In half of the examples a synonym is the target, so that a deployment may name its categories
    differently.
    """

    notes: Path
    pairs: Path | None = None
    min_score: float = 0.0
    share: float = 1.0
    teacher: Path | None = None
    terms: str = ""
    category_names: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.pairs is None and (self.teacher or self.min_score):
            raise RecipeError(f"teacher and min_score require `pairs`, which the [[data]] of {self.notes} lacks")
        if not 0 <= self.share < math.inf:
            raise RecipeError(f"share must be 0 or more and finite, not {self.share} (of {self.notes})")
        if not math.isfinite(self.min_score):
            raise RecipeError(f"min_score must be finite, not {self.min_score} (of {self.notes})")
        for category, names in self.category_names.items():
            if not isinstance(names, list) or not names:
                raise RecipeError(f"category_names: {category} must be a list of names, not empty")
            if not all(isinstance(name, str) and name.strip() for name in names):
                raise RecipeError(f"category_names: {category} must be a list of names, and none may be blank")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One training run. The defaults of `hashtag_share` (r) and `alpha` are the paper's (section 4).

    The model. `start`: an earlier checkpoint to continue from. `lora_rank`: 0 is full fine-tuning, of the weights of
    `start` with its adapter merged or, without a `start`, of those of `backbone`. `frozen_embeddings`: full fine-tuning
    leaves the token embeddings as they are, which saves memory and time where the vocabulary is large. `shard`: shard a
    large backbone over the processes (FSDP).

    The losses. `hashtag_share`: probability that a note gets the hashtag task, otherwise the category task.
    `hide_hashtags`: probability that a note is shown without hashtags and without a task. `input_hashtags`: also
    predict the hashtags in the input, where the prompt version puts them last. `alpha`: weight of CSFT. `distillation`:
    share of the related-notes loss that is distilled from a teacher; 0 is the paper's loss. `memory`: the negatives are
    the batch and the latest vectors of all notes of the data set that training has read. `reread_notes`: notes of the
    data set whose memory vectors each step refreshes, without gradients, cycling through a random order.
    `unpaired_notes`: notes added to each batch of pairs, drawn from the whole data set. They learn from the teacher
    alone, without CSFT, and are negatives of the pairs, except for texts of model/data/recombined_notes.py.

    Speed and memory. `micro_batch_tokens`: token budget of one forward; it does not change the contrastive batch of
    `batch_pairs`. `kept_tokens`: a batch of at most this many tokens (padded, on each process) keeps the activations of
    all its micro-batches, which takes memory and saves the second forward. `bfloat16`: use autocast where it is faster.

    Evaluation. `evaluate_every` and `save_every` count steps. `patience`: evaluations without a higher validation
    recall after which training ends. `validation_notes`: size of the validation pool; k of Recall@k is 100, or a tenth
    of a pool of fewer than 1,000 notes. `validation_min_score`: minimum score of the pool's pairs.
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
    reread_notes: int = 0
    unpaired_notes: int = 0
    hide_hashtags: float = 0.0

    lora_rank: int = 16
    frozen_embeddings: bool = False
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
        check_counts(self, positive)
        check_counts(self, ("seed",), minimum=0)
        check_fractions(self, ("hashtag_share", "hide_hashtags", "warmup", "distillation"))
        if not self.data or sum(d.share for d in self.data) <= 0:
            raise RecipeError("data: at least one [[data]] with a share above 0 is required")
        if self.contrastive and not any(d.pairs for d in self.data):
            raise RecipeError("data: contrastive training requires pairs; make them with `notellm pairs`")
        if not self.alpha and not (self.contrastive and all(d.pairs for d in self.data)):
            raise RecipeError(
                "alpha: 0 requires contrastive = true and pairs in every [[data]], since nothing else is trained on"
            )
        if not self.distillation and any(d.teacher for d in self.data):
            raise RecipeError("teacher: its vectors are only used if distillation is above 0")
        if self.reread_notes < 0 or (self.reread_notes and not self.memory):
            raise RecipeError("reread_notes must be 0 or more, and 0 without memory = true")
        if self.unpaired_notes < 0 or (self.unpaired_notes and not (self.contrastive and self.distillation)):
            raise RecipeError(
                "unpaired_notes must be 0 or more, and 0 without contrastive = true and a distillation above 0"
            )
        if self.validation_notes < MIN_VALIDATION_NOTES:
            raise RecipeError(f"validation_notes must be at least {MIN_VALIDATION_NOTES}")
        check_positive(self, ("distillation_temperature",))
        if not math.isfinite(self.validation_min_score):
            raise RecipeError(f"validation_min_score must be finite, not {self.validation_min_score}")
        if self.lora_rank < 0:
            raise RecipeError("lora_rank must be 0 or more")
        if self.frozen_embeddings and self.lora_rank:
            raise RecipeError("frozen_embeddings requires lora_rank = 0: an adapter never changes the token embeddings")
        check_rates(self, ("alpha", "learning_rate", "head_learning_rate", "weight_decay"))
        if not self.contrastive and (self.distillation or self.memory):
            raise RecipeError("distillation and memory require contrastive = true, since their losses are of pairs")
        self._check_input_hashtags()

    def _check_input_hashtags(self) -> None:
        """Raise RecipeError where `input_hashtags` would have no effect."""
        if not self.input_hashtags:
            return
        template = TEMPLATES.get(self.prompt_version)  # an unknown version is an error of the Prompt
        if template is not None and not template.hashtags_last:
            last = [version for version, other in TEMPLATES.items() if other.hashtags_last]
            raise RecipeError(
                f"input_hashtags requires a prompt_version with the hashtags last ({', '.join(last)}), not "
                f"{self.prompt_version}"
            )
        if not self.teaches_categories:
            raise RecipeError(
                "input_hashtags requires alpha above 0, and hashtag_share and hide_hashtags below 1, since it adds "
                "targets to the category task"
            )

    @property
    def teaches_categories(self) -> bool:
        """Whether some note gets the category task."""
        return self.alpha > 0 and self.hashtag_share < 1 and self.hide_hashtags < 1

    @classmethod
    def load(cls, path: Path, changes: Mapping[str, Any] | None = None) -> Recipe:
        """Read a TOML file; `changes` replace its fields. $NAMES in paths and in `backbone` are environment variables.

        Raises RecipeError.
        """
        try:
            table = {**tomllib.loads(path.read_text("utf-8")), **(changes or {})}
        except OSError as error:
            raise RecipeError(f"{path} cannot be read: {error}") from error
        except UnicodeDecodeError as error:
            raise RecipeError(f"{path} is not UTF-8: {error}") from error
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"{path} is not TOML: {error}") from error
        rows = table.get("data", ())
        if not isinstance(rows, list | tuple) or not all(isinstance(row, dict) for row in rows):
            raise RecipeError(f"{path}: data must be a list of tables, each under [[data]]")
        table["data"] = tuple(from_table(Data, f"{path}, [[data]]", row) for row in rows)
        recipe: Recipe = from_table(cls, str(path), table)
        return recipe


def check_rates(recipe: Any, names: Sequence[str] = ("learning_rate", "weight_decay")) -> None:
    """Raise RecipeError where a field in `names` is negative or not finite, or `clip` is not above 0. `recipe`: the
    recipe of any trainer."""
    for name in names:
        if not 0 <= getattr(recipe, name) < math.inf:
            raise RecipeError(f"{name} must be 0 or more and finite, not {getattr(recipe, name)}")
    if not recipe.clip > 0:
        raise RecipeError(f"clip, the maximum norm of the gradient, must be above 0, not {recipe.clip}")


def check_positive(recipe: Any, names: Sequence[str]) -> None:
    """Raise RecipeError where a field in `names` is not above 0 or not finite. `recipe`: the recipe of any trainer."""
    for name in names:
        if not 0 < getattr(recipe, name) < math.inf:
            raise RecipeError(f"{name} must be above 0 and finite, not {getattr(recipe, name)}")


def check_counts(recipe: Any, names: Sequence[str], minimum: int = 1) -> None:
    """Raise RecipeError where a field in `names` is less than `minimum` or does not fit into 63 bits, which no seed of
    torch may exceed. `recipe`: the recipe of any trainer."""
    for name in names:
        if getattr(recipe, name) < minimum:
            raise RecipeError(f"{name} must be at least {minimum}, not {getattr(recipe, name)}")
        if getattr(recipe, name) >= 2**63:
            raise RecipeError(f"{name} must be less than 2**63, not {getattr(recipe, name)}")


def check_fractions(recipe: Any, names: Sequence[str]) -> None:
    """Raise RecipeError where a field in `names` is not in [0, 1]. `recipe`: the recipe of any trainer."""
    for name in names:
        if not 0 <= getattr(recipe, name) <= 1:
            raise RecipeError(f"{name} must be between 0 and 1, not {getattr(recipe, name)}")


def check_shares(shares: Mapping[str, float]) -> None:
    """Raise RecipeError where the share of a source is not a number, negative or not finite, or none is above 0."""
    for source, share in shares.items():
        if type(share) not in (int, float) or not 0 <= share < math.inf:
            raise RecipeError(f"shares: that of {source} must be 0 or more and finite, not {share!r}")
    if not any(shares.values()):
        raise RecipeError("shares: no source has a share above 0")


def parse_change(text: str) -> tuple[str, Any]:
    """Split `name=value` and parse the value as TOML; a value that is not TOML stays text."""
    name, _, value = text.partition("=")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value


def from_table(kind: type[Any], where: str, table: Mapping[str, Any]) -> Any:
    """Build a dataclass from a TOML table. Raises RecipeError for unknown or missing fields and for wrong types."""
    types = {column.name: str(column.type) for column in fields(kind)}
    if unknown := sorted(set(table) - set(types)):
        raise RecipeError(f"{where}: unknown fields {unknown}")
    try:
        return kind(**{name: _value(name, types[name], value) for name, value in table.items()})
    except TypeError as error:
        raise RecipeError(f"{where}: {error}") from error


def _value(name: str, kind: str, value: Any) -> Any:
    accepted: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}
    if kind.startswith("Path"):
        return Path(_expanded(name, str(value))).expanduser()
    if kind.startswith(("Mapping", "dict")) and not isinstance(value, dict):
        raise RecipeError(f"{name} must be a table, not {value!r}")
    if kind == "list[str]" and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        raise RecipeError(f"{name} must be a list of names, not {value!r}")
    if kind in accepted and type(value) not in accepted[kind]:  # not isinstance: True is an int
        raise RecipeError(f"{name} must be {kind}, not {value!r}")
    if name == "backbone":
        return _expanded(name, value)
    return float(value) if kind == "float" else value


def _expanded(name: str, value: str) -> str:
    """Replace $NAMES by environment variables. Raises RecipeError, with the field's `name`, where one is not set."""
    expanded = os.path.expandvars(value)
    if "$" in expanded:
        raise RecipeError(f"{name}: {value} contains an environment variable that is not set")
    return expanded
