"""Export of a distillation's state as a checkpoint to serve: the difference from the backbone as a small adapter.

    python -m model.training.export --state FILE --out FOLDER [--rank N] [--dimension N --corpus FOLDER] ...

Of the averaged weights W' of each linear layer, the difference W' - W is replaced by B A, its best approximation at the
adapter's rank. A run that has trained an adapter (`rank` of its recipe) is exported with that. Serving reads the state
at the prompt's last position, so other poolings are refused. With --dimension, the projection is whitened by texts of
the corpus (model/training/whiten.py).

Shapes of a layer: O outputs, I inputs, R rank.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from model.cache_option import add_cache_option
from model.config import CheckpointError, NoteLLMConfig
from model.count_option import at_least_one
from model.notellm import NoteLLM
from model.training.distil import Distillation
from model.training.student import Student, linear_layers, trainable_weights
from model.training.texts import Texts
from model.training.whiten import whiten
from model.weights import adaptable
from model.whole_file import whole_folder

RANK = 32
"""Default rank: an adapter of 20 MB for the packaged backbone, in bfloat16. Twice the rank gives no higher recall
(docs/log/distillation.md)."""
WHITENING_POWER = 0.2
"""Power of the variances (model/training/whiten.py). At 256 and 384 dimensions it is better than 0 and 0.1 on the
validation notes of both held-out domains together (docs/log/distillation.md)."""
WHITENING_NOTES = 4096
"""Corpus notes from whose vectors the whitening is estimated: many times a vector's 960 numbers."""


def low_rank_factors(difference: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return B (O, R) and A (R, I), whose product is the best approximation of `difference` (O, I) at that rank.

    They come from its truncated singular value decomposition (Eckart and Young 1936), with the square root of the
    singular values in each factor. Ranks beyond the smaller side of the matrix are zero.
    """
    left, values, right = torch.linalg.svd(difference.float(), full_matrices=False)
    root = values[:rank].sqrt()
    missing = rank - len(root)
    b, a = left[:, :rank] * root, root[:, None] * right[:rank]
    return nn.functional.pad(b, (0, missing)), nn.functional.pad(a, (0, 0, 0, missing))


def load_state(state: Path, cache: Path, rank: int | None = None) -> tuple[NoteLLM, Any, Distillation]:
    """Load the backbone with the adapter and the projection of a state file; returns model, adapter and recipe.

    `rank`: rank of the adapter; None for that of the adapter which the run trained, or RANK if it trained all weights.

    Raises CheckpointError for a file that is not a distillation's state, and where the state does not record its
    teachers, as in earlier versions, has another pooling than "read-out", another number of layers than the backbone,
    or an adapter of its own, of another rank.
    """
    try:
        stored = torch.load(state, map_location="cpu", weights_only=True, mmap=True)
        recipe = Distillation(**stored["recipe"])
        trained_weights, head = stored["masters"]["averages"], stored["head"]
    except (OSError, RuntimeError, UnpicklingError, EOFError, KeyError, TypeError) as error:
        raise CheckpointError(f"{state} is not a state.<step>.pt of model.training.distil: {error}") from error
    if "teachers" not in stored["recipe"]:
        raise CheckpointError(f"{state} does not record its teachers: export it with the version that made it")
    if recipe.pooling != "read-out":
        raise CheckpointError(f"{state} was trained with pooling {recipe.pooling!r}: only 'read-out' can be served")
    if recipe.rank and rank not in (None, recipe.rank):
        raise CheckpointError(
            f"{state} has an adapter of rank {recipe.rank}: export that, and reduce it with model.training.cut_adapter"
        )
    loaded = NoteLLM.load(recipe.backbone, cache=cache, device=torch.device("cpu"), dtype=torch.float32)
    config = NoteLLMConfig(
        name="distilled",
        backbone=adaptable(recipe.backbone),
        licence=loaded.config.licence,
        dimension=len(head),
        adapter=True,
        prompt_version=recipe.prompt_version,
    )
    model = NoteLLM(config, loaded.backbone, loaded.tokenizer)
    assert model.projection is not None
    model.projection.weight.data.copy_(head)
    return model, _add_adapter(model, trained_weights, recipe.rank, RANK if rank is None else rank, state), recipe


def _add_adapter(model: NoteLLM, trained: Sequence[Tensor], trained_rank: int, rank: int, state: Path) -> Any:
    """Add the adapter that a run has trained, in bfloat16, or one of `rank` that stands for the weights that it has
    trained. Raises CheckpointError for a backbone with another number of layers."""
    linear = linear_layers(model)
    layers = len(trained) // 2 if trained_rank else len(trained)  # of an adapter, A and B of each layer
    if layers != len(linear):
        raise CheckpointError(f"{state} has {layers} layers and {model.config.backbone} {len(linear)}")
    if trained_rank:
        adapter = model.add_adapter(trained_rank)
        for weight, value in zip(trainable_weights(model), trained, strict=True):
            weight.data = value.to(torch.bfloat16)
        return adapter
    differences = (weight - layer.weight for weight, layer in zip(trained, linear, strict=True))
    factors = [low_rank_factors(difference, rank) for difference in differences]
    adapter = model.add_adapter(rank)
    adapted = [layer for layer in model.backbone.base_model.modules() if hasattr(layer, "lora_A")]
    for layer, (b, a) in zip(adapted, factors, strict=True):
        _set_adapter(layer, b, a)
    return adapter


def _set_adapter(layer: Any, b: Tensor, a: Tensor) -> None:
    """Set one layer's adapter in bfloat16, divided by its LoRA scaling factor."""
    for matrix, value in ((layer.lora_A, a), (layer.lora_B, b / layer.scaling["default"])):
        matrix["default"].to(torch.bfloat16).weight.data.copy_(value)


def whiten_by_corpus(
    checkpoint: Path, corpus: Path, recipe: Distillation, dimension: int, cache: Path, device: str = "cpu"
) -> None:
    """Whiten a checkpoint's projection to `dimension` by its vectors of the corpus's texts, in the run's mix.

    `device`: "cpu" or "cuda", where the texts are embedded. Raises what Texts and `whitening` raise.
    """
    texts = Texts(corpus, recipe.teachers, recipe.shares, recipe.seed)
    model = NoteLLM.load(str(checkpoint), cache=cache, device=torch.device(device), dtype=torch.float32)
    student = Student(model, model.dimension).to(device)
    assert model.projection is not None
    student.head.weight.data.copy_(model.projection.weight)
    with ThreadPoolExecutor(torch.get_num_threads() if device == "cpu" else 1) as threads:
        vectors = student.embed([texts.notes[row] for row in texts.sample(WHITENING_NOTES)], threads)
    whiten(checkpoint, [vectors], dimension, WHITENING_POWER)


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(description="Create a checkpoint from a state of a distillation.")
    parser.add_argument("--state", type=Path, required=True, help="state.<step>.pt of model.training.distil")
    parser.add_argument("--out", type=Path, required=True, help="new checkpoint folder")
    parser.add_argument(
        "--rank", type=at_least_one, help=f"rank of the adapter (default: that of the run's adapter, else {RANK})"
    )
    parser.add_argument("--name", default="distilled", help="name of the model (default: %(default)s)")
    parser.add_argument(
        "--licence", help="licence of the weights in one line, shown at startup; default: that of the backbone"
    )
    parser.add_argument(
        "--windows",
        type=at_least_one,
        default=1,
        help="number of windows in which long content is read (default: %(default)s)",
    )
    parser.add_argument(
        "--script",
        action="append",
        default=[],
        help="Unicode script that the model reads; may be repeated; default: all",
    )
    parser.add_argument(
        "--language",
        action="append",
        default=[],
        help="ISO 639 code of a language that the model writes; may be repeated",
    )
    parser.add_argument(
        "--name-cosine-weight",
        type=float,
        default=NoteLLMConfig().name_cosine_weight,
        help="weight of the cosine between a note and the name of an untrained category (default: %(default)s)",
    )
    parser.add_argument(
        "--mean-share",
        type=float,
        default=NoteLLMConfig().mean_share,
        help="share of the mean vector of all notes that is subtracted from queries by a note (default: %(default)s)",
    )
    parser.add_argument(
        "--title-mean-share",
        type=float,
        default=NoteLLMConfig().title_mean_share,
        help="share of the mean vector of titles that is subtracted from queries by a title (default: %(default)s)",
    )
    parser.add_argument(
        "--written-weights",
        type=float,
        nargs=2,
        metavar=("FEW", "MANY"),
        default=NoteLLMConfig().written_weights,
        help="exponents of the model's probability in the score of a grounded hashtag, among few and among many stored "
        "notes (default: %(default)s)",
    )
    parser.add_argument(
        "--agreed-written-weights",
        type=float,
        nargs=2,
        metavar=("FEW", "MANY"),
        default=NoteLLMConfig().agreed_written_weights,
        help="the same for a note whose neighbours carry what the model would write, too (default: %(default)s)",
    )
    parser.add_argument(
        "--dimension", type=at_least_one, help="whiten the projection to this dimension; requires --corpus"
    )
    parser.add_argument("--corpus", type=Path, help="folder of the run's corpus, used for whitening")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="device that embeds the corpus (default: %(default)s)"
    )
    add_cache_option(parser)
    return parser


def with_settings(config: NoteLLMConfig, options: argparse.Namespace) -> NoteLLMConfig:
    """Return the configuration with the settings that are not learnt. Raises CheckpointError for an invalid one."""
    return replace(
        config,
        name=options.name,
        licence=config.licence if options.licence is None else options.licence,
        max_content_windows=options.windows,
        scripts=tuple(options.script),
        languages=tuple(options.language),
        name_cosine_weight=options.name_cosine_weight,
        mean_share=options.mean_share,
        title_mean_share=options.title_mean_share,
        written_weights=tuple(options.written_weights),
        agreed_written_weights=tuple(options.agreed_written_weights),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command of the module's docstring."""
    parser = argument_parser()
    options = parser.parse_args(arguments)
    if (options.dimension is None) != (options.corpus is None):
        parser.error("--dimension and --corpus must be given together")
    if options.out.exists():
        parser.error(f"{options.out} already exists: choose a new folder")
    try:
        model, adapter, recipe = load_state(options.state, options.cache, options.rank)
        model.config = with_settings(model.config, options)
        with whole_folder(options.out) as out:
            model.save(out, adapter)
            if options.dimension is not None:
                whiten_by_corpus(out, options.corpus, recipe, options.dimension, options.cache, options.device)
    except (ValueError, OSError) as error:  # CheckpointError and DatasetError are ValueErrors
        parser.error(str(error))
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(f"{options.out}: rank {adapter.active_peft_config.r}, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
