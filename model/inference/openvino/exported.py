"""Exported checkpoints: a checkpoint's graphs, tokenizer and settings in one folder, which serves without PyTorch.

    <folder>/notellm.json             the checkpoint's own settings
    <folder>/categories.safetensors   its category head, if it has one
    <folder>/README.md                its card, with the terms of what it was trained on, if it has one
    <folder>/tokenizer/               files of the backbone except its weights
    <folder>/openvino/                graphs; export.json records their origin and is written last

`notellm export` writes one, so that an image needs neither PyTorch nor a backbone.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import openvino as ov

from model.category_head import CATEGORIES_FILE
from model.config import CheckpointError, NoteLLMConfig
from model.inference.openvino.runtime import OpenVinoRuntime
from model.inference.openvino.window import check_window, stored_window
from model.precision import bfloat16_pays
from model.prompt import Prompt
from model.weights import (
    GRAPHS_FOLDER,
    HUB_FILES,
    ORIGIN_FILE,
    CheckpointFiles,
    Progress,
    load_tokenizer,
    loading_errors,
    silent,
)
from model.whole_file import whole_folder

VERSION = 5
"""Version of the exported files, part of their folder's name in a cache. Raise it when the graphs change."""
TOKENIZER_FOLDER = "tokenizer"
CARD_FILE = "README.md"


def _version() -> str:
    """Return the version of the graphs and of OpenVINO, which must be the same when a folder is written and when it is
    served."""
    return f"graphs {VERSION} of OpenVINO {ov.__version__}"


def write_exported(
    checkpoint: str, folder: Path, *, cache: Path, precision: str, progress: Progress = silent
) -> NoteLLMConfig:
    """Export a checkpoint, in any form that `NoteLLM.load` takes, into the new `folder`; return its configuration.

    The folder is written atomically (`whole_folder`), so the call can be repeated after it failed or was killed.
    `precision`: how weights are stored: "float32", "bfloat16" (as half floats) or "int8". Raises CheckpointError,
    OSError.
    """
    from model.inference.openvino.export import export  # imports PyTorch

    if folder.exists():
        raise CheckpointError(f"{folder} already exists: choose a new folder")
    files = CheckpointFiles.of(checkpoint, cache, progress)
    copied = [path for pattern in HUB_FILES for path in files.weights.glob(pattern) if path.suffix != ".safetensors"]
    origin = {"digest": files.digest(), "precision": precision, "version": _version()}
    with whole_folder(folder) as unfinished:
        graphs = unfinished / GRAPHS_FOLDER
        export(checkpoint, graphs, cache=cache, precision=precision, progress=progress)
        files.config.save(unfinished)
        (unfinished / TOKENIZER_FOLDER).mkdir()
        for path in copied:
            shutil.copy(path, unfinished / TOKENIZER_FOLDER)
        for name in (CATEGORIES_FILE, CARD_FILE):
            if (path := Path(checkpoint).expanduser() / name).is_file():
                shutil.copy(path, unfinished)
        (graphs / ORIGIN_FILE).write_text(json.dumps(origin, indent=2) + "\n")
    return files.config


def load_exported(checkpoint: str, precision: str, blocks: int, progress: Progress = silent) -> OpenVinoRuntime:
    """Load a folder of `write_exported`; its vectors are in the space of the checkpoint that it was made from.

    `precision` "auto": int8 for int8 graphs, else bfloat16 where it is faster, else float32. Raises CheckpointError.
    """
    folder = Path(checkpoint).expanduser()
    config = NoteLLMConfig.load(folder)
    with loading_errors(path := folder / GRAPHS_FOLDER / ORIGIN_FILE):
        origin = json.loads(path.read_text("utf-8"))
        version, stored_precision, digest = origin["version"], origin["precision"], origin["digest"]
    if version != _version():
        raise CheckpointError(f"{folder} was exported with {version}, but this is {_version()}: export it again")
    quantised = stored_precision == "int8"
    if precision == "auto":
        precision = "int8" if quantised else "bfloat16" if bfloat16_pays("cpu") else "float32"
    if quantised != (precision == "int8"):
        raise CheckpointError(f"{folder} was exported as {stored_precision}, which cannot run as {precision}")
    progress(f"Loading {config.name} in OpenVINO as {precision}")
    tokenizer, graphs = folder / TOKENIZER_FOLDER, folder / GRAPHS_FOLDER
    with loading_errors(tokenizer):
        prompt = Prompt(load_tokenizer(tokenizer), config)
    with loading_errors(graphs):
        check_window(stored_window(graphs, tokenizer), prompt)
        return OpenVinoRuntime(config, prompt, digest, graphs, precision, blocks)
