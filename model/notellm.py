"""NoteLLM: a causal LM with a projection; one forward gives embedding and logits. Saves and loads checkpoints.

Works on token ids, not on the text of notes; independent of serving.
Shapes: B rows, T tokens, H hidden size, D embedding dimension, V vocabulary.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Cache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from model.config import CheckpointError, NoteLLMConfig
from model.prompt import Prompt
from model.weights import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    ADAPTER_FOLDER,
    BACKBONE_FOLDER,
    GENERATION_FOLDER,
    HEAD_FILE,
    CheckpointFiles,
    Progress,
    load_tokenizer,
    loading_errors,
    silent,
    space_of,
)
from model.whole_file import share_files

if TYPE_CHECKING:
    from peft import PeftModel

INITIAL_TAU = 3.0
"""Initial value of tau, the logarithm of the learnable inverse temperature (paper section 4)."""


class NoteLLM(nn.Module):
    """A causal LM whose last hidden state at the read-out position, projected and normalised, is the embedding.

    `dimension`: D. `projection`: (H -> D) without bias, or None for a bare backbone, where D is H. `weights_digest`:
    digest of backbone, adapter and head; "" for a model that was not loaded. `decoder`: the backbone with the
    checkpoint's generation adapter, which processes all tokens after the read-out position and computes all logits;
    None for a checkpoint without one, whose backbone does both (docs/decisions/0019-activated-adapter.md).
    """

    def __init__(
        self,
        config: NoteLLMConfig,
        backbone: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        weights_digest: str = "",
        decoder: PreTrainedModel | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.decoder = decoder
        self.tokenizer = tokenizer
        self.prompt = Prompt(tokenizer, config)
        self.weights_digest = weights_digest
        hidden_size: int = backbone.config.get_text_config().hidden_size
        self.dimension = config.dimension or hidden_size
        self.projection = nn.Linear(hidden_size, self.dimension, bias=False) if config.dimension else None
        self.tau = nn.Parameter(torch.tensor(INITIAL_TAU))
        accepted = inspect.signature(backbone.base_model.forward).parameters
        self._cache_argument = "cache" if "cache" in accepted else "past_key_values"  # renamed in transformers 5.24

    @property
    def space(self) -> str:
        """Name of the vector space (`space_of`)."""
        return space_of(self.config, self.weights_digest, self.dimension)

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def output_layer(self) -> Any:
        """Layer from hidden states to logits."""
        return (self.backbone if self.decoder is None else self.decoder).get_output_embeddings()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Any,
        position_ids: Tensor,
        cache: Cache | None = None,
        *,
        decode: bool = False,
    ) -> Tensor:
        """Return the last layer's hidden states after the final norm, (B, T, H); `cache`, when given, grows by T.

        `input_ids`, `position_ids`: (B, T) int64. `attention_mask`: (B, cached + T) of 0 and 1, or the result of
        `mask_by_layer`. `decode`: run the `decoder`, if there is one.
        """
        layers = self.decoder if decode and self.decoder is not None else self.backbone
        output: Any = layers.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=cache is not None,
            **{self._cache_argument: cache},
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def mask_by_layer(self, attention_mask: Tensor, distance: Tensor) -> Any:
        """Return a 4D mask as the backbone expects it, with its sliding window if it has one.

        `attention_mask`: bool, True where a token may attend; `distance`: positions between query and key; both
        (B, 1, T, cached + T). The result is a tensor of that shape, or a dict of them by layer type. It is boolean,
        except for eager attention, which adds it to the scores.
        """
        config = self.backbone.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        layer_types = set(getattr(config, "layer_types", None) or ())
        full = self._in_attention_form(attention_mask)
        if window is None or layer_types == {"full_attention"}:
            return full
        sliding = self._in_attention_form(attention_mask & (distance < window))
        return {"full_attention": full, "sliding_attention": sliding} if layer_types else sliding

    def _in_attention_form(self, mask: Tensor) -> Tensor:
        """Return a boolean mask as the backbone's attention expects it: eager attention needs an additive one."""
        if self.backbone.config.get_text_config()._attn_implementation != "eager":
            return mask
        dtype = self.backbone.dtype
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)

    def embed(self, hidden: Tensor) -> Tensor:
        """Project hidden states at the read-out positions, (B, H), to unit embeddings, (B, D) float32."""
        projected = hidden if self.projection is None else self.projection(hidden.to(self.projection.weight.dtype))
        return nn.functional.normalize(projected.float(), dim=-1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return next-token logits, (..., V) float32, of hidden states (..., H)."""
        logits: Tensor = self.output_layer(hidden).float()
        cap = getattr(self.backbone.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def add_adapter(self, rank: int) -> PeftModel:
        """Freeze the backbone and add a LoRA of `rank` to each of its linear layers, in place.

        The adapter is active except inside `with adapter.disable_adapter()`, where the backbone computes as before.
        """
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
        with quiet_peft():
            adapter: PeftModel = get_peft_model(self.backbone, config)
        return adapter

    def start_adapter(self, adapter: PeftModel, checkpoint: Path) -> None:
        """Load adapter and head from an earlier checkpoint, to continue its training. The stored adapter may have a
        lower rank than `adapter`, whose extra directions then start without effect.

        Raises CheckpointError when they do not fit.
        """
        self.start_head(checkpoint)
        _start_from(adapter, checkpoint / ADAPTER_FOLDER)

    def start_head(self, checkpoint: Path) -> None:
        """Load projection and tau from an earlier checkpoint, to continue its training.

        Raises CheckpointError when they do not fit.
        """
        dimension = NoteLLMConfig.load(checkpoint).dimension
        if dimension is not None and dimension != self.dimension:
            raise CheckpointError(
                f"{checkpoint} has vectors of {dimension} numbers, not {self.dimension}: set dimension = {dimension}"
            )
        self._load_head(checkpoint / HEAD_FILE)

    def save(self, folder: Path, adapter: PeftModel | None = None, state: dict[str, Tensor] | None = None) -> None:
        """Write a checkpoint: notellm.json, head.safetensors and the backbone, or only an `adapter` to it.

        Without an adapter the weights and the tokenizer go to backbone/, and the checkpoint needs nothing else. With
        one they go to adapter/, and loading needs the backbone that the configuration names. `save_generation_adapter`
        writes a generation adapter.
        `state`: all weights by name, if this process holds only its shard of them.
        """
        folder.mkdir(parents=True, exist_ok=True)
        weights = state and {name.removeprefix("backbone."): tensor for name, tensor in state.items()}
        if adapter is not None:
            weights = weights and {f"base_model.model.{name}": tensor for name, tensor in weights.items()}
            _save_adapter(adapter, folder / ADAPTER_FOLDER, self.config.backbone, weights)
        else:
            self.backbone.save_pretrained(folder / BACKBONE_FOLDER, state_dict=weights)
            self.tokenizer.save_pretrained(folder / BACKBONE_FOLDER)
        head = {"tau": self.tau.detach()}
        if self.projection is not None:
            head["projection"] = self.projection.weight.detach()
        save_file(head, folder / HEAD_FILE)
        config = self.config
        if adapter is None:  # a loaded adapter is merged into the weights
            config = replace(config, backbone=BACKBONE_FOLDER, adapter=False)
        replace(config, generation_adapter=False, generation_trunk="").save(folder)
        share_files(folder)

    @classmethod
    def load(
        cls,
        checkpoint: str,
        *,
        cache: Path,
        device: torch.device,
        dtype: torch.dtype,
        trunk_alone: bool = False,
        progress: Progress = silent,
    ) -> NoteLLM:
        """Load for inference: a checkpoint folder, or anything that `weights.resolve` takes as a bare backbone.

        An adapter is merged into the backbone, and a generation adapter into a copy of the result, the `decoder`.
        `trunk_alone`: skip the generation adapter, which may then belong to another trunk.
        Raises CheckpointError when the checkpoint does not exist, is incomplete, or its parts do not fit each other.
        """
        files = CheckpointFiles.of(checkpoint, cache, progress)
        if trunk_alone:
            files = files.trunk()
        config, weights = files.config, files.weights
        progress(f"Loading {config.name} on {device} as {str(dtype).removeprefix('torch.')}")
        with no_loading_bars(), loading_errors(weights):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                weights,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
            backbone, info = loaded
            if info["missing_keys"]:  # transformers fills them with random numbers
                raise CheckpointError(f"{weights} lacks {sorted(info['missing_keys'])}")
            tokenizer = load_tokenizer(weights)
            if files.adapter:
                backbone = _merge_adapter(backbone, files.adapter)
            decoder = _decoder(backbone, files.generation) if files.generation else None
        model = cls(config, backbone, tokenizer, decoder=decoder)
        if files.head:
            model._load_head(files.head)
        model.weights_digest = files.digest()
        return model.to(device).eval().requires_grad_(False)

    def _load_head(self, path: Path) -> None:
        with loading_errors(path):
            head = load_file(path)
            projection, tau = head["projection"], head["tau"]
        assert self.projection is not None
        if projection.shape != self.projection.weight.shape:
            raise CheckpointError(
                f"{path} does not fit the backbone: its projection has the shape {tuple(projection.shape)}"
            )
        self.projection.weight.data.copy_(projection)
        self.tau.data.copy_(tau)


def save_generation_adapter(adapter: PeftModel, checkpoint: Path, cache: Path) -> None:
    """Write `adapter` into generation/ of a checkpoint and record it in the configuration, with the digest of the
    trunk. The adapter must have been added by `add_adapter` to the model loaded from that checkpoint, and trained only
    on the tokens after the read-out position."""
    files = CheckpointFiles.of(str(checkpoint), cache)
    _save_adapter(adapter, checkpoint / GENERATION_FOLDER, files.config.backbone)
    replace(files.config, generation_adapter=True, generation_trunk=files.trunk_digest()).save(checkpoint)


def start_generation_adapter(adapter: PeftModel, checkpoint: Path) -> None:
    """Load a checkpoint's generation adapter into `adapter`, to continue its training. The stored adapter may have a
    lower rank than `adapter`, whose extra directions then start without effect.

    Raises CheckpointError when it does not fit.
    """
    _start_from(adapter, checkpoint / GENERATION_FOLDER)


def _start_from(adapter: PeftModel, folder: Path) -> None:
    """Load the adapter in `folder` into `adapter`, of the same or a higher rank. Raises CheckpointError."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    own: Any = adapter.active_peft_config
    with loading_errors(folder):
        settings = json.loads((folder / ADAPTER_CONFIG_FILE).read_text("utf-8"))
        rank, scale = settings["r"], settings["lora_alpha"] / settings["r"]
    if rank > own.r:
        raise CheckpointError(f"{folder} has rank {rank}: choose a rank of at least {rank}")
    with loading_errors(folder):
        fresh, earlier = get_peft_model_state_dict(adapter), load_file(folder / ADAPTER_FILE)
        factors = _at_rank_of(fresh, earlier, scale / (own.lora_alpha / own.r))
        set_peft_model_state_dict(adapter, factors)


def _at_rank_of(fresh: Mapping[str, Tensor], earlier: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Return an earlier adapter's LoRA factors, A (r, I) and B (O, r), at the rank of a `fresh` one, with B times
    `scale`.

    Rows of A beyond r keep their fresh values and columns of B beyond r stay zero, as in every new adapter, so the
    extra directions have no effect. Raises KeyError if the adapters have different layers, RuntimeError if the layers
    have different shapes.
    """
    factors = {name: factor.clone() for name, factor in fresh.items()}
    for name in fresh.keys() | earlier.keys():
        factor = earlier[name]
        if "lora_A" in name:
            factors[name][: len(factor)] = factor
        else:
            factors[name][:, : factor.shape[1]] = scale * factor
    return factors


def _save_adapter(adapter: PeftModel, folder: Path, backbone: str, state: dict[str, Tensor] | None = None) -> None:
    """Write an adapter's files, with `backbone` as the name of its base model: by default peft records the folder it
    was loaded from, which other machines do not have."""
    adapter.active_peft_config.base_model_name_or_path = backbone
    # No embedding is adapted. To find that out itself, peft would ask the model hub for the backbone's configuration.
    adapter.save_pretrained(str(folder), state_dict=state, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # an empty model card, written by peft


def _merge_adapter(backbone: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Return `backbone` with the adapter in `folder` merged into its weights. Raises CheckpointError, which names the
    folder, where the adapter cannot be read or does not fit."""
    from peft import PeftModel

    with quiet_peft(), loading_errors(folder):
        merged: PreTrainedModel = PeftModel.from_pretrained(backbone, str(folder)).merge_and_unload()
    return merged


def _decoder(backbone: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Return a copy of `backbone` with the generation adapter in `folder` merged into its weights.

    The two share one configuration object, so that setting the attention implementation applies to both.
    """
    configs = [backbone.config, backbone.config.get_text_config()]
    return _merge_adapter(copy.deepcopy(backbone, {id(config): config for config in configs}), folder)


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """Suppress a warning: peft 0.21 reads an attribute that transformers 5.24 has renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


@contextlib.contextmanager
def no_loading_bars() -> Iterator[None]:
    """Suppress the progress bars and advice of transformers: a local load takes under a second."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()
