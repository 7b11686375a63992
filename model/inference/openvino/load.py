"""Loading of a checkpoint into OpenVINO.

The graphs are exported into the cache once. From then on they load without PyTorch, whose import alone takes seconds
and 250 MB.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import shutil
import time
from pathlib import Path

import openvino as ov

from model.inference.kv_cache import DEFAULT_BLOCKS
from model.inference.openvino.export_process import export_in_process
from model.inference.openvino.exported import VERSION, load_exported
from model.inference.openvino.runtime import OpenVinoRuntime
from model.inference.openvino.window import check_window, stored_window
from model.precision import bfloat16_pays
from model.prompt import Prompt
from model.weights import (
    CheckpointFiles,
    Progress,
    file_digest,
    folder_digest,
    is_exported,
    load_tokenizer,
    loading_errors,
    needs_conversion,
    silent,
)

KEPT_EXPORTS = 8
"""Number of exports in a cache that are never removed, the last used ones: one of the shipped checkpoint takes 315 MB,
and each training run and each version of OpenVINO needs new ones."""
UNUSED_SECONDS = 3600.0
"""Seconds for which a further export must not have been loaded, so that none is removed that a process loads now."""


def settings_digest(files: CheckpointFiles) -> str:
    """Return a digest of the JSON settings of the backbone, its tokenizer and the adapters, on which the graphs depend
    besides the weights."""
    folders = [folder for folder in (files.weights, files.adapter, files.generation) if folder]
    paths = [path for folder in folders for path in sorted(folder.glob("*.json"))]
    return hashlib.sha256(" ".join(file_digest(path) for path in paths).encode()).hexdigest()


def load(
    checkpoint: str,
    precision: str,
    *,
    cache: Path,
    progress: Progress = silent,
    blocks: int = DEFAULT_BLOCKS,
    isolated_export: bool = False,
) -> OpenVinoRuntime:
    """Load an exported checkpoint, or one in any form that `NoteLLM.load` takes. The latter is exported into `cache`
    the first time.

    `precision`: one of PRECISIONS, or "auto": int8 for an int8 export, else bfloat16 where that is faster, else
    float32. `blocks`: size of the KV cache. `isolated_export`: convert and export in a separate process. Raises
    CheckpointError.
    """
    if is_exported(checkpoint):
        return load_exported(checkpoint, precision, blocks, progress)
    if precision == "auto":
        precision = "bfloat16" if bfloat16_pays("cpu") else "float32"
    isolated = isolated_export and importlib.util.find_spec("torch") is not None
    if isolated and needs_conversion(checkpoint, cache):
        export_in_process(checkpoint, precision, cache=cache, progress=progress)
    files, digest, folder = find_graphs(checkpoint, precision, cache, progress)
    if not folder.is_dir():
        if isolated:
            export_in_process(checkpoint, precision, cache=cache, progress=progress)
        else:
            export_to_cache(checkpoint, precision, cache=cache, progress=progress)
    progress(f"Loading {files.config.name} in OpenVINO as {precision}")
    with contextlib.suppress(OSError):  # a cache that may only be read
        folder.touch()
    with loading_errors(files.weights):
        prompt = Prompt(load_tokenizer(files.weights), files.config)
    with loading_errors(folder):
        check_window(stored_window(folder, files.weights), prompt)
        return OpenVinoRuntime(files.config, prompt, digest, folder, precision, blocks)


def export_to_cache(checkpoint: str, precision: str, *, cache: Path, progress: Progress = silent) -> None:
    """Convert and export a checkpoint, unless `cache` has the result already. Imports PyTorch. Raises
    CheckpointError."""
    from model.inference.openvino.export import export

    _, _, folder = find_graphs(checkpoint, precision, cache, progress)
    if not folder.is_dir():
        export(checkpoint, folder, cache=cache, precision=precision, progress=progress)
        remove_unused_exports(cache)


def remove_unused_exports(cache: Path) -> None:
    """Remove the exports in `cache` that were not loaded for UNUSED_SECONDS, except the KEPT_EXPORTS last used ones."""
    with contextlib.suppress(OSError):  # another process removes them, or they are another user's
        exports = sorted(cache.glob("openvino-*"), key=lambda folder: folder.stat().st_mtime, reverse=True)
        for folder in exports[KEPT_EXPORTS:]:
            if folder.stat().st_mtime < time.time() - UNUSED_SECONDS:
                shutil.rmtree(folder)


def find_graphs(
    checkpoint: str, precision: str, cache: Path, progress: Progress = silent
) -> tuple[CheckpointFiles, str, Path]:
    """Return the files of a checkpoint, the digest of its weights, and the folder in `cache` of its graphs, which
    exists once they are exported."""
    files = CheckpointFiles.of(checkpoint, cache, progress)
    digest = files.digest()
    weights = f"{digest}+{folder_digest(files.generation)}" if files.generation else digest
    name = hashlib.sha256(f"{weights} {settings_digest(files)} {VERSION} {ov.__version__}".encode()).hexdigest()[:16]
    return files, digest, cache / f"openvino-{precision}-{name}"
