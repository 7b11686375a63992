"""A checkpoint whose adapter has a lower rank: smaller, and less overfitted to the texts that it was trained on.

    python -m model.training.cut_adapter --checkpoint FOLDER --rank N --out FOLDER

Each product B A of the adapter becomes its best approximation at the lower rank; the projection is unchanged. The
shipped checkpoint was whitened at rank 32, cut to rank 1 and whitened again, since the cut moves the mean of the
vectors. A lower rank has higher recall in domains that training has not seen (docs/log/distillation.md).

Shapes of a layer: O outputs, I inputs, R rank, r the lower rank.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import CheckpointError, NoteLLMConfig
from model.count_option import at_least_one
from model.weights import ADAPTER_CONFIG_FILE, ADAPTER_FILE, ADAPTER_FOLDER, HEAD_FILE, loading_errors
from model.whole_file import whole_folder

A, B = "lora_A.weight", "lora_B.weight"
"""Suffixes of the names of a layer's factors."""


def cut_product(b: Tensor, a: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return B (O, r) and A (r, I), whose product best approximates the product of `b` (O, R) and `a` (R, I).

    They come from the product's truncated singular value decomposition (Eckart and Young 1936), with the square root of
    the singular values in each factor, computed from the factors without the product itself.
    """
    b_basis, b_rest = torch.linalg.qr(b.float())
    a_basis, a_rest = torch.linalg.qr(a.float().T)
    left, values, right = torch.linalg.svd(b_rest @ a_rest.T)
    root = values[:rank].sqrt()
    return b_basis @ left[:, :rank] * root, root[:, None] * (right[:rank] @ a_basis.T)


def cut_adapter(checkpoint: Path, rank: int, out: Path) -> None:
    """Write a copy of a checkpoint, with its adapter cut to `rank` in bfloat16, to the new folder `out`.

    The copy has no generation adapter and no category head: both were fitted to the states and vectors before the cut.
    Raises CheckpointError for a checkpoint without an adapter or with one of no higher rank, and where `out` exists;
    OSError.
    """
    folder = checkpoint / ADAPTER_FOLDER
    if not (folder / ADAPTER_FILE).is_file():
        raise CheckpointError(f"{checkpoint} has no adapter to cut")
    with loading_errors(folder):
        settings = json.loads((folder / ADAPTER_CONFIG_FILE).read_text("utf-8"))
        weights = load_file(folder / ADAPTER_FILE)
        own_rank, scale = settings["r"], settings["lora_alpha"] / settings["r"]  # the factor of B A in LoRA
        layers = [name.removesuffix(A) for name in weights if name.endswith(A)]
        factors = {name: (scale * weights[name + B], weights[name + A]) for name in layers}
    if not 1 <= rank < own_rank:
        raise CheckpointError(f"{checkpoint} has an adapter of rank {own_rank}: choose a lower rank, at least 1")
    if out.exists():
        raise CheckpointError(f"{out} already exists: choose a new folder")
    cut = {}
    for name, (b, a) in factors.items():
        cut[name + B], cut[name + A] = cut_product(b, a, rank)
    stored = {name: weight.to(torch.bfloat16).contiguous() for name, weight in sorted(cut.items())}
    settings |= {"r": rank, "lora_alpha": rank}
    with whole_folder(out) as unfinished:
        shutil.copytree(folder, unfinished / ADAPTER_FOLDER)
        if (checkpoint / HEAD_FILE).is_file():
            shutil.copy(checkpoint / HEAD_FILE, unfinished)
        save_file(stored, unfinished / ADAPTER_FOLDER / ADAPTER_FILE, metadata={"format": "pt"})
        (unfinished / ADAPTER_FOLDER / ADAPTER_CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
        config = NoteLLMConfig.load(checkpoint)
        # The names that a generation adapter has learnt do not count, since the copy has none.
        names = ("",) if config.generation_adapter else config.trained_categories
        replace(config, generation_adapter=False, generation_trunk="", trained_categories=names).save(unfinished)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command of the module's docstring."""
    parser = argparse.ArgumentParser(description="Reduce the rank of a checkpoint's adapter.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint folder, which is not changed")
    parser.add_argument("--rank", type=at_least_one, required=True, help="new rank")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the copy; it must not exist")
    options = parser.parse_args(arguments)
    try:
        cut_adapter(options.checkpoint, options.rank, options.out)
    except (CheckpointError, OSError) as error:
        parser.error(str(error))
    print(f"{options.out}: rank {options.rank}")


if __name__ == "__main__":
    main()
