"""What a checkpoint says of itself. Serving reads it from here, never from flags."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

CONFIG_FILE = "notellm.json"
LISTS = ("categories", "trained_categories")
PACKAGED_BACKBONE = "packaged:SmolLM2-135M-Instruct"
DEFAULT_PROMPT = "note-first/1"
DEFAULT_CATEGORIES = (
    "Travel", "Food", "Fashion", "Beauty", "Fitness", "Home", "Pets", "Parenting", "Study", "Tech",
    "Photography", "Reading", "Music", "Film", "Gaming", "Crafts", "Gardening", "Career", "Health", "Outdoors",
)  # fmt: skip


class CheckpointError(ValueError):
    """A checkpoint or backbone that cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteLLMConfig:
    """Everything beside the tensors.

    `backbone`: "backbone" for the folder inside the checkpoint, else what `weights.resolve` takes.
    `dimension`: of the embedding; None means the hidden size, without a projection (an untrained model).
    `adapter`: the checkpoint holds a LoRA adapter, merged into the backbone when it is loaded.
    Token bounds cut each field of the prompt. `category_temperature` calibrates the probabilities of categories;
    `notellm calibrate` fits it on validation. `trained_categories`: all names that training has shown; the engine
    scores a set with other names differently (decision 8), but where this is empty. Checked on construction:
    CheckpointError.
    """

    name: str = "smollm2-135m-base"
    backbone: str = PACKAGED_BACKBONE
    dimension: int | None = None
    adapter: bool = False
    prompt_version: str = DEFAULT_PROMPT
    max_title_tokens: int = 32
    max_hashtag_tokens: int = 40
    max_content_tokens: int = 96
    categories: tuple[str, ...] = DEFAULT_CATEGORIES
    category_temperature: float = 1.0
    trained_categories: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        bounds = (self.max_title_tokens, self.max_hashtag_tokens, self.max_content_tokens)
        texts = (self.name, self.backbone, self.prompt_version, *self.categories, *self.trained_categories)
        if not all(isinstance(text, str) for text in texts):
            raise CheckpointError("name, backbone, prompt_version and categories must be text")
        if not all(type(n) is int for n in bounds) or type(self.dimension) not in (int, type(None)):
            raise CheckpointError("dimension and token bounds must be whole numbers")
        if self.dimension is not None and self.dimension < 1:
            raise CheckpointError(f"dimension must be at least 1, not {self.dimension}")
        if min(self.max_title_tokens, self.max_hashtag_tokens, self.max_content_tokens) < 1:
            raise CheckpointError("every token bound must be at least 1")
        if type(self.category_temperature) not in (int, float) or not self.category_temperature > 0:
            raise CheckpointError(f"category_temperature must be above 0, not {self.category_temperature!r}")
        if len(set(self.categories)) != len(self.categories) or not all(c.strip() for c in self.categories):
            raise CheckpointError("categories must be distinct and not blank")

    def save(self, folder: Path) -> None:
        """Write `notellm.json` into an existing folder."""
        (folder / CONFIG_FILE).write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", "utf-8")

    @classmethod
    def load(cls, folder: Path) -> NoteLLMConfig:
        """Read `notellm.json`; CheckpointError when it is missing, broken or has unknown fields."""
        path = folder / CONFIG_FILE
        try:
            stored = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{folder} is no NoteLLM checkpoint: it has no {CONFIG_FILE}") from None
        except ValueError as error:
            raise CheckpointError(f"{path} is not JSON: {error}") from error
        if not isinstance(stored, dict) or not all(isinstance(stored.get(name, []), list) for name in LISTS):
            raise CheckpointError(f"{path} is not an object with lists of {' and '.join(LISTS)}")
        unknown = set(stored) - {f.name for f in fields(cls)}
        if unknown:
            raise CheckpointError(f"{path} was written by another version: unknown fields {sorted(unknown)}")
        return cls(**{**stored, **{name: tuple(stored[name]) for name in LISTS if name in stored}})
