"""NoteLLMConfig: the settings stored in a checkpoint. Serving reads them from here, never from flags."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from model.generation import ReadTokens
from model.whole_file import whole_file

CONFIG_FILE = "notellm.json"
LIST_FIELDS = (
    "categories", "trained_categories", "scripts", "languages", "written_weights", "agreed_written_weights",
)  # fmt: skip
"""Fields that notellm.json holds as lists and NoteLLMConfig as tuples."""
PACKAGED_BACKBONE = "packaged:SmolLM2-135M-Instruct"
GEMMA_BACKBONE = "packaged:gemma-3-270m"
"""Alternative backbone, which reads Chinese. Only `model.gemma` fetches it, under Google's terms; it is never a
default."""
GEMMA_LICENCE = "Gemma Terms of Use, https://ai.google.dev/gemma/terms: restrictions on use, to be passed on"
DEFAULT_PROMPT = "note-first/1"
DEFAULT_CATEGORIES = (
    "Travel", "Food", "Fashion", "Beauty", "Fitness", "Home", "Pets", "Parenting", "Study", "Tech",
    "Photography", "Reading", "Music", "Film", "Gaming", "Crafts", "Gardening", "Career", "Health", "Outdoors",
)  # fmt: skip


class CheckpointError(ValueError):
    """Raised for a checkpoint or backbone that cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteLLMConfig:
    """Everything in a checkpoint besides its tensors, stored as notellm.json. Raises CheckpointError for a bad value.

    `licence`: a line on the terms of the weights and of what they were trained on; shown when they are loaded.
    `backbone`: "backbone" for the folder inside the checkpoint, else an argument of `weights.resolve`.
    `dimension`: length of the embedding; None means the hidden size, without a projection (an untrained model).
    `adapter`: whether the checkpoint holds a LoRA adapter, which is merged into the backbone when it is loaded.
    `generation_adapter`: whether it holds a second LoRA adapter, which is active only after the read-out position
    (docs/decisions/0019-activated-adapter.md). It needs a prompt version whose tasks follow the note.
    `generation_trunk`: digest of the trunk that the generation adapter was trained on (`CheckpointFiles.trunk_digest`),
    "" if not recorded. Any other trunk is refused, since the adapter's output on it would be noise.
    `prompt_version`: a key of `prompt.TEMPLATES`.
    `max_title_tokens`, `max_hashtag_tokens`, `max_content_tokens`: maximum length of each field in the prompt, in
    tokens.
    `max_content_windows`: longer content is read in at most this many windows of `max_content_tokens`.
    `mean_share`: share of the mean vector of all notes that is subtracted from a note's vector to search for related
    notes (docs/decisions/0037-centre.md); `title_mean_share`: the same for a title read alone, in a search by title.
    `scripts`: Unicode scripts that the model reads, as in `model.scripts`; () for all.
    `languages`: ISO 639 codes of the languages that the model writes hashtags in; () if not stated.
    `categories`: the closed set that is scored unless a request names another.
    `min_hashtag_score`: minimum probability that the model writes a hashtag first. Less likely ones are dropped unless
    their candidate is near (`hashtags.grounding.Candidate`); 0 drops none. `notellm fit-hashtags` chooses it on
    validation notes.
    `written_weights`: exponents of the model's probability in the score of a grounded hashtag, where the neighbours'
    share has exponent 1 (`hashtags.grounding.rerank`): in a small and in a large community
    (`hashtags.grounding.written_weight`). `agreed_written_weights`: the same for a note whose neighbours carry what the
    model would write, too (`hashtags.grounding.agreed_weight`); they count where they are above the others;
    0 changes nothing.
    `category_temperature`: divides the log probabilities of categories; `notellm calibrate` fits it on validation
    notes.
    `name_cosine_weight`: weight of the cosine between the vectors of a note and a category's name, added to the log
    probabilities where not all names were seen in training (docs/log/categories.md has two sweeps).
    `trained_categories`: all category names seen in training, ("",) if there were none. From the scores of a closed set
    with other names its label prior is subtracted (docs/decisions/0008-unseen-categories.md). () counts as trained on
    all names.
    """

    name: str = "smollm2-135m-base"
    licence: str = ""
    backbone: str = PACKAGED_BACKBONE
    dimension: int | None = None
    adapter: bool = False
    generation_adapter: bool = False
    generation_trunk: str = ""
    prompt_version: str = DEFAULT_PROMPT
    max_title_tokens: int = 32
    max_hashtag_tokens: int = 40
    max_content_tokens: int = 96
    max_content_windows: int = 1
    mean_share: float = 0.0
    title_mean_share: float = 0.0
    scripts: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    categories: tuple[str, ...] = DEFAULT_CATEGORIES
    min_hashtag_score: float = 0.0
    written_weights: tuple[float, float] = (0.1, 0.1)
    agreed_written_weights: tuple[float, float] = (0.0, 0.0)
    category_temperature: float = 1.0
    name_cosine_weight: float = 16.0
    trained_categories: tuple[str, ...] = ()

    def categories_after(self, taught: Sequence[str]) -> tuple[str, ...]:
        """Return `trained_categories` after further training of this checkpoint, which shows the `taught` names: these
        and its own. Where it lists none, its own are unknown, and only the taught names count, if there are any."""
        names = {*taught, *self.trained_categories} - {""}
        return tuple(sorted(names)) or self.trained_categories

    def __post_init__(self) -> None:
        bounds = (self.max_title_tokens, self.max_hashtag_tokens, self.max_content_tokens, self.max_content_windows)
        names = (*self.categories, *self.trained_categories, *self.scripts, *self.languages)
        texts = (self.name, self.licence, self.backbone, self.prompt_version, self.generation_trunk, *names)
        if not all(isinstance(text, str) for text in texts):
            raise CheckpointError(
                "name, licence, backbone, prompt_version, generation_trunk, categories, trained_categories, scripts "
                "and languages must be strings"
            )
        if not all(type(flag) is bool for flag in (self.adapter, self.generation_adapter)):
            raise CheckpointError("adapter and generation_adapter must be true or false")
        if not all(type(bound) is int for bound in bounds) or type(self.dimension) not in (int, type(None)):
            raise CheckpointError("dimension, the max_*_tokens and max_content_windows must be integers")
        if self.dimension is not None and self.dimension < 1:
            raise CheckpointError(f"dimension must be at least 1, not {self.dimension}")
        if min(bounds) < 1:
            raise CheckpointError("the max_*_tokens and max_content_windows must be at least 1")
        for share in (self.mean_share, self.title_mean_share):
            if type(share) not in (int, float) or not 0 <= share < 1:
                raise CheckpointError(f"mean_share and title_mean_share must be in [0, 1), not {share!r}")
        if self.title_mean_share and not self.mean_share:
            raise CheckpointError("title_mean_share requires a mean_share above 0")
        if type(self.category_temperature) not in (int, float) or not self.category_temperature > 0:
            raise CheckpointError(f"category_temperature must be above 0, not {self.category_temperature!r}")
        if type(self.min_hashtag_score) not in (int, float) or not 0 <= self.min_hashtag_score < 1:
            raise CheckpointError(f"min_hashtag_score must be in [0, 1), not {self.min_hashtag_score!r}")
        if not _are_weights(self.written_weights) or min(self.written_weights) == 0:
            raise CheckpointError(f"written_weights must be two numbers above 0, not {list(self.written_weights)}")
        if not _are_weights(self.agreed_written_weights):
            weights = list(self.agreed_written_weights)
            raise CheckpointError(f"agreed_written_weights must be two numbers of at least 0, not {weights}")
        if type(self.name_cosine_weight) not in (int, float) or not self.name_cosine_weight >= 0:
            raise CheckpointError(f"name_cosine_weight must be at least 0, not {self.name_cosine_weight!r}")
        if len(set(self.categories)) != len(self.categories) or not all(name.strip() for name in self.categories):
            raise CheckpointError("categories must be unique and not blank")

    @property
    def read_tokens(self) -> ReadTokens:
        """Maximum tokens read from each field, over all windows."""
        content = self.max_content_tokens * self.max_content_windows
        return ReadTokens(self.max_title_tokens, self.max_hashtag_tokens, content)

    def save(self, folder: Path) -> None:
        """Write `notellm.json` into `folder`, which is created if needed. The write is atomic: a killed process leaves
        the old file or the new one."""
        with whole_file(folder / CONFIG_FILE) as file:
            file.write((json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> NoteLLMConfig:
        """Read `notellm.json`. Raises CheckpointError when it is missing, broken or has unknown fields."""
        path = folder / CONFIG_FILE
        try:
            stored = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{folder} is not a NoteLLM checkpoint: it has no {CONFIG_FILE}") from None
        except ValueError as error:
            raise CheckpointError(f"{path} is not JSON: {error}") from error
        if not isinstance(stored, dict) or not all(isinstance(stored.get(name, []), list) for name in LIST_FIELDS):
            raise CheckpointError(f"{path} must be a JSON object in which {', '.join(LIST_FIELDS)} are lists")
        unknown = set(stored) - {f.name for f in fields(cls)}
        if unknown:
            raise CheckpointError(f"{path} was written by another version: it has the unknown fields {sorted(unknown)}")
        tuples = {name: tuple(stored[name]) for name in LIST_FIELDS if name in stored}
        return cls(**{**stored, **tuples})


def _are_weights(weights: tuple[float, ...]) -> bool:
    """Return whether `weights` are two numbers of at least 0."""
    return len(weights) == 2 and all(type(weight) in (int, float) and weight >= 0 for weight in weights)
