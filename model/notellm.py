"""NoteLLM: one forward -> embedding and logits; save, load. Knows token ids; not notes' text, not serving.

Shapes: B rows, T tokens, H hidden size, D embedding dimension, V vocabulary.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Iterator
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
    ADAPTER_FILE,
    ADAPTER_FOLDER,
    BACKBONE_FOLDER,
    HEAD_FILE,
    CheckpointFiles,
    Progress,
    load_tokenizer,
    loading_errors,
    silent,
    space_of,
)

if TYPE_CHECKING:
    from peft import PeftModel

INITIAL_TAU = 3.0
"""Start of the learnable temperature, used as exp(tau) (paper section 4)."""


class NoteLLM(nn.Module):
    """A causal LM whose last hidden state at the read-out position, projected and normalised, is the embedding.

    `weights_digest` names the weights and the head; "" for a model that was never saved or loaded.
    """

    def __init__(
        self,
        config: NoteLLMConfig,
        backbone: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        weights_digest: str = "",
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
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
        """Names the vector space; see `space_of`."""
        return space_of(self.config, self.weights_digest, self.dimension)

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    def forward(
        self, input_ids: Tensor, attention_mask: Any, position_ids: Tensor, cache: Cache | None = None
    ) -> Tensor:
        """Last-layer hidden states after the final norm, (B, T, H); `cache`, when given, grows by T.

        input_ids, position_ids: (B, T) int64. attention_mask: (B, cached + T) of 0 and 1, or what
        `mask_by_layer` gives.
        """
        output: Any = self.backbone.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=cache is not None,
            **{self._cache_argument: cache},
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def mask_by_layer(self, looks: Tensor, distance: Tensor) -> Any:
        """A 4D mask in the form that the backbone takes, a sliding window kept where it has one. Plain attention adds
        it to the scores, so there it holds numbers.

        looks: bool, True where a token may look; distance: positions between the two; both (B, 1, T, cached + T).
        """
        config = self.backbone.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        types = set(getattr(config, "layer_types", None) or ())
        near = looks if window is None else looks & (distance < window)
        if config._attn_implementation == "eager":
            dtype = self.backbone.dtype
            looks, near = (
                torch.zeros(m.shape, dtype=dtype, device=m.device).masked_fill(~m, torch.finfo(dtype).min)
                for m in (looks, near)
            )
        if window is None or types == {"full_attention"}:
            return looks
        return {"full_attention": looks, "sliding_attention": near} if types else near

    def embed(self, hidden: Tensor) -> Tensor:
        """Hidden states at the read-out positions (B, H) -> unit embeddings (B, D), float32."""
        projected = hidden if self.projection is None else self.projection(hidden.to(self.projection.weight.dtype))
        return nn.functional.normalize(projected.float(), dim=-1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., H) -> next-token logits (..., V), float32."""
        logits: Tensor = self.backbone.get_output_embeddings()(hidden).float()
        cap = getattr(self.backbone.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def add_adapter(self, rank: int) -> PeftModel:
        """Freeze the backbone and put a LoRA of `rank` beside each of its linear layers, in place."""
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
        with quiet_peft():
            adapter: PeftModel = get_peft_model(self.backbone, config)
        return adapter

    def start_adapter(self, adapter: PeftModel, checkpoint: Path) -> None:
        """Give adapter and head the weights of an earlier checkpoint of the same shape, to train on from there."""
        from peft import set_peft_model_state_dict

        with loading_errors(checkpoint):
            set_peft_model_state_dict(adapter, load_file(checkpoint / ADAPTER_FOLDER / ADAPTER_FILE))
        self._load_head(checkpoint / HEAD_FILE)

    def save(self, folder: Path, adapter: PeftModel | None = None, state: dict[str, Tensor] | None = None) -> None:
        """Write a checkpoint: notellm.json, head.safetensors, and either backbone/ with the tokenizer, which stands on
        its own, or adapter/ to the backbone that the configuration names.

        `state`: all weights by name, where this process holds only its shard of them.
        """
        folder.mkdir(parents=True, exist_ok=True)
        inner = state and {name.removeprefix("backbone."): tensor for name, tensor in state.items()}
        if adapter is not None:
            inner = inner and {f"base_model.model.{name}": tensor for name, tensor in inner.items()}
            adapter.active_peft_config.base_model_name_or_path = (
                self.config.backbone
            )  # not the folder that it came from
            adapter.save_pretrained(str(folder / ADAPTER_FOLDER), state_dict=inner)
            (folder / ADAPTER_FOLDER / "README.md").unlink(missing_ok=True)  # peft's empty form
        else:
            self.backbone.save_pretrained(folder / BACKBONE_FOLDER, state_dict=inner)
            self.tokenizer.save_pretrained(folder / BACKBONE_FOLDER)
        head = {"tau": self.tau.detach()}
        if self.projection is not None:
            head["projection"] = self.projection.weight.detach()
        save_file(head, folder / HEAD_FILE)
        config = self.config if adapter is not None else replace(self.config, backbone=BACKBONE_FOLDER)
        config.save(folder)

    @classmethod
    def load(
        cls,
        checkpoint: str,
        *,
        cache: Path,
        device: torch.device,
        dtype: torch.dtype,
        progress: Progress = silent,
    ) -> NoteLLM:
        """Load for inference: a checkpoint folder, or anything that `weights.resolve` takes as a bare backbone.

        Raises CheckpointError when it does not exist, is incomplete, or its parts do not fit each other.
        """
        parts = CheckpointFiles.of(checkpoint, cache, progress)
        config, weights = parts.config, parts.weights
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
            if info["missing_keys"]:  # they would be random numbers
                raise CheckpointError(f"{weights} lacks {sorted(info['missing_keys'])}")
            tokenizer = load_tokenizer(weights)
            if parts.adapter:
                backbone = _with_adapter(backbone, parts.adapter)
        model = cls(config, backbone, tokenizer)
        if parts.head:
            model._load_head(parts.head)
        model.weights_digest = parts.digest()
        return model.to(device).eval().requires_grad_(False)

    def _load_head(self, path: Path) -> None:
        with loading_errors(path):
            head = load_file(path)
            projection, tau = head["projection"], head["tau"]
        assert self.projection is not None
        if projection.shape != self.projection.weight.shape:
            raise CheckpointError(f"{path} does not fit the backbone: {tuple(projection.shape)}")
        self.projection.weight.data.copy_(projection)
        self.tau.data.copy_(tau)


def _with_adapter(backbone: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """`backbone` with the adapter's weights added to its own."""
    from peft import PeftModel

    with quiet_peft():
        merged: PreTrainedModel = PeftModel.from_pretrained(backbone, str(folder)).merge_and_unload()
    return merged


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """Without the warning that peft 0.21 earns from transformers 5.24 by asking it by an old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


@contextlib.contextmanager
def no_loading_bars() -> Iterator[None]:
    """Without transformers' own bars and advice: a local load takes under a second."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()
