"""The student of a distillation: the backbone with one linear head.

Shapes: B notes of a batch, N notes, T tokens, H hidden size, K the teacher's dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model.config import NoteLLMConfig
from model.note import Note
from model.notellm import NoteLLM
from model.precision import bfloat16_pays
from model.training.initialise import store_in_bfloat16, turn_dropout_off
from model.weights import BACKBONE_FOLDER, adaptable

POOLINGS = ("read-out", "mean", "both")
FORWARD_BATCH_TOKENS = 2048
"""Token budget of one forward without gradients, including padding."""


class Student(nn.Module):
    """A NoteLLM with a linear head that maps its states, pooled by one of POOLINGS, to the teacher's space.

    `head`: (K, H), or (K, 2H) for the pooling "both". Raises ValueError for an unknown pooling.
    """

    def __init__(self, model: NoteLLM, dimension: int, pooling: str = "read-out") -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {POOLINGS}, not {pooling!r}")
        self.model = model
        self.pooling = pooling
        width: int = model.backbone.config.get_text_config().hidden_size
        self.head = nn.Linear(2 * width if pooling == "both" else width, dimension, bias=False)

    def states(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Pooled states (B, H) or (B, 2H) float32: the read-out state, the mean over the note's own tokens, or both.

        `ids`: (B, T) int64, padded on the right. `lengths`: (B,) tokens of each prompt. Both may be on any device; the
        states are on the model's.
        """
        device = self.model.device
        ids, lengths = ids.to(device), lengths.to(device)
        positions = torch.arange(ids.shape[1], device=device)
        mask = (positions < lengths[:, None]).long()
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16_pays(device.type)):
            hidden = self.model(ids, mask, positions.expand_as(ids)).float()
        read_out: Tensor = hidden[torch.arange(len(ids), device=device), lengths - 1]
        if self.pooling == "read-out":
            return read_out
        note_lengths = lengths - len(self.model.prompt.compress_ids)
        note_mask = (positions < note_lengths[:, None]).float()
        mean: Tensor = (hidden * note_mask[:, :, None]).sum(1) / note_mask.sum(1, keepdim=True).clamp(min=1)
        return mean if self.pooling == "mean" else torch.cat([read_out, mean], 1)

    def project(self, states: Tensor) -> Tensor:
        """Unit vectors (B, K) float32 of pooled states, with gradients."""
        return nn.functional.normalize(self.head(states), dim=-1)

    def trained_weights(self) -> list[nn.Parameter]:
        """Return the weights that gradients train: those of the backbone's linear layers, or of their adapter.

        Embedding and norms stay frozen, so that the difference can be shipped as an adapter. The head is not trained by
        gradients but solved for in closed form.
        """
        return trainable_weights(self.model)

    @torch.no_grad()
    def read_states(self, notes: Sequence[Note], threads: Executor) -> Tensor:
        """Return the pooled states (N, H) or (N, 2H) of notes, in their order, on the CPU, without gradients; each
        thread processes batches."""
        prompts = [self.model.prompt.note(note) for note in notes]
        by_length = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))

        @torch.no_grad()
        def read(rows: Sequence[int]) -> Tensor:
            return self.states(*pad_right([prompts[row] for row in rows])).cpu()

        batches = group_by_tokens(by_length, [len(prompts[row]) for row in by_length], FORWARD_BATCH_TOKENS)
        states = torch.cat([torch.zeros(0, self.head.in_features), *threads.map(read, batches)])
        return states[torch.tensor(by_length, dtype=torch.int64).argsort()]

    def embed(self, notes: Sequence[Note], threads: Executor) -> npt.NDArray[np.float32]:
        """Unit vectors (N, K) of notes, in their order."""
        with torch.no_grad():
            states = self.read_states(notes, threads).to(self.model.device)
            vectors: npt.NDArray[np.float32] = self.project(states).cpu().numpy()
        return vectors


def build_student(
    backbone: str, prompt_version: str, dimension: int, pooling: str, cache: Path, device: str = "cpu", rank: int = 0
) -> Student:
    """Load a student on an unmodified backbone, with a random head, on `device`. `rank`: rank of the trained
    adapter; 0: all weights of the linear layers are trained. Raises CheckpointError, also for a checkpoint instead of a
    backbone: what is exported later is an adapter to the bare backbone."""
    adaptable(backbone)
    loaded = NoteLLM.load(backbone, cache=cache, device=torch.device(device), dtype=torch.float32)
    config = NoteLLMConfig(name="distilled", backbone=BACKBONE_FOLDER, prompt_version=prompt_version)
    model = NoteLLM(config, loaded.backbone, loaded.tokenizer)
    if device == "cpu":
        model.backbone.set_attn_implementation("eager")  # its backward is faster on a CPU
    if bfloat16_pays(device):
        store_in_bfloat16(model)
    model.requires_grad_(False)
    if rank:
        model.add_adapter(rank)
    student = Student(model, dimension, pooling).to(device).train()
    turn_dropout_off(student)
    for layer in linear_layers(model) if not rank else ():
        layer.weight.requires_grad_(True)
    student.head.requires_grad_(False)
    return student


def trainable_weights(model: NoteLLM) -> list[nn.Parameter]:
    """Return the weights of a backbone that require gradients, in the order of their layers."""
    return [weight for weight in model.backbone.parameters() if weight.requires_grad]


def linear_layers(model: NoteLLM) -> list[nn.Linear]:
    """Return the linear layers of a backbone without its output layer."""
    return [layer for layer in model.backbone.base_model.modules() if isinstance(layer, nn.Linear)]


def pad_right(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids (B, T) int64, padded with 0 on the right, and their lengths (B,)."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in prompts])
    return ids, torch.tensor([len(ids) for ids in prompts])


def group_by_tokens(
    rows: Sequence[int], lengths: Sequence[int], max_tokens: int, max_rows: int | None = None
) -> list[list[int]]:
    """Split `rows`, in their order, into groups of at most `max_rows` rows and `max_tokens` tokens when padded.

    `lengths`: tokens of each row, ascending. A row longer than `max_tokens` is a group of its own.
    """
    groups: list[list[int]] = [[]] if rows else []
    for row, length in zip(rows, lengths, strict=True):
        if groups[-1] and (length * (len(groups[-1]) + 1) > max_tokens or len(groups[-1]) == max_rows):
            groups.append([])
        groups[-1].append(row)
    return groups
