"""A checkpoint in OpenVINO: exported into the cache once, and from then on loaded without PyTorch, whose import alone
takes seconds and 250 MB."""

from __future__ import annotations

import hashlib
from pathlib import Path

import openvino as ov

from model.inference.kv_cache import BLOCKS
from model.inference.openvino.runtime import OpenVinoRuntime
from model.precision import bfloat16_pays
from model.prompt import Prompt
from model.weights import CheckpointFiles, Progress, file_digest, load_tokenizer, loading_errors, silent

VERSION = 3
"""Of the files: raise it when the graphs change."""


def settings_digest(parts: CheckpointFiles) -> str:
    """Of what the graphs are made of beside the weights: the settings of the backbone, of its tokenizer and adapter."""
    folders = [parts.weights, *([parts.adapter] if parts.adapter else [])]
    files = [path for folder in folders for path in sorted(folder.glob("*.json"))]
    return hashlib.sha256(" ".join(file_digest(path) for path in files).encode()).hexdigest()


def load(
    checkpoint: str, precision: str, *, cache: Path, progress: Progress = silent, blocks: int = BLOCKS
) -> OpenVinoRuntime:
    """A checkpoint as `NoteLLM.load` takes it, exported into `cache` where that was not done yet.

    `precision`: one of PRECISIONS, or "auto": bfloat16 where that is faster, else float32.
    Raises CheckpointError.
    """
    if precision == "auto":
        precision = "bfloat16" if bfloat16_pays("cpu") else "float32"
    parts = CheckpointFiles.of(checkpoint, cache, progress)
    digest = parts.digest()
    name = hashlib.sha256(f"{digest} {settings_digest(parts)} {VERSION} {ov.__version__}".encode()).hexdigest()[:16]
    folder = cache / f"openvino-{precision}-{name}"
    if not folder.is_dir():
        from model.inference.openvino.export import export  # imports PyTorch

        export(checkpoint, folder, cache=cache, precision=precision, progress=progress)
    progress(f"Loading {parts.config.name} in OpenVINO as {precision}")
    with loading_errors(folder):
        prompt = Prompt(load_tokenizer(parts.weights), parts.config)
        return OpenVinoRuntime(parts.config, prompt, digest, folder, precision, blocks)
