"""GenerationRecipe: what decides the result of a run of `model.training.writing`, besides its files."""

from __future__ import annotations

from dataclasses import dataclass, field

from model.training.recipe import check_counts, check_fractions, check_rates, check_shares

CHANGEABLE = ("learning_rate", "steps", "save_every")
"""Fields of the recipe that may change when a run is resumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRecipe:
    """The recipe of one run; state files hold it under these names. Raises RecipeError for an invalid value."""

    shares: dict[str, float] = field(default_factory=dict)
    """Relative frequency with which each source is drawn."""
    language: str = "en"
    """Language of our labelled lines."""
    continue_adapter: bool = False
    """Whether the run starts with the checkpoint's own generation adapter instead of an untrained one."""
    rank: int = 16
    """Rank of the adapter; 16 has 9.8 MB in bfloat16 for the packaged backbone."""
    seed: int = 0
    threads: int = 2
    """Threads of one core each; each takes a part of the batch."""
    batch: int = 32
    learning_rate: float = 1e-3
    final_rate: float = 0.1
    """Learning rate at the end of `steps`, as a share of `learning_rate`; it falls linearly."""
    steps: int = 600
    weight_decay: float = 0.01
    warmup_steps: int = 10
    clip: float = 1.0
    """Maximum norm of the gradient."""
    averaged: int = 20
    """Approximate number of steps over which the weights are averaged."""
    shown_hashtags: float = 0.2
    """Share of the notes that are read with some of their hashtags; only the remaining hashtags are targets then."""
    subject_names: float = 0.25
    """Share of the notes whose first hashtag is also a category target, so that further category names are learnt."""
    save_every: float = 10.0
    """Minutes between two states."""

    def __post_init__(self) -> None:
        check_rates(self, ("learning_rate", "final_rate", "weight_decay", "save_every"))
        check_counts(self, ("rank", "threads", "batch", "steps", "warmup_steps", "averaged"))
        check_counts(self, ("seed",), minimum=0)
        check_fractions(self, ("shown_hashtags", "subject_names"))
        check_shares(self.shares)
