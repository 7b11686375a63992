"""Training on several processes: joining them, sharding a backbone, and sums over their results.

Without torchrun there is one process, and nothing here communicates.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor


@contextmanager
def processes(device: str) -> Iterator[tuple[int, str]]:
    """Join the other processes of torchrun inside the context; yields this process's rank and device."""
    if "RANK" not in os.environ:
        yield 0, device
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield dist.get_rank(), device
    finally:
        dist.destroy_process_group()


def has_process_group() -> bool:
    """Return whether this process was started by torchrun, alone or with others, and is inside of `processes`."""
    return dist.is_initialized()


def rank_and_size() -> tuple[int, int]:
    """Return this process's rank and the number of processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def shard_layers(backbone: Any) -> None:
    """Shard the weights of each transformer layer over the processes (FSDP)."""
    for layer in backbone.modules():
        if type(layer).__name__ in (backbone._no_split_modules or ()):
            sharded = fully_shard(layer)
            sharded.set_gradient_divide_factor(1.0)  # sum the gradients, as for unsharded weights
            sharded.set_force_sum_reduction_for_comms(True)  # gloo has no other reduction


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate each process's rows ((2B + U) / processes, D) to (2B + U, D), by rank. No gradient passes through."""
    _, size = rank_and_size()
    if size == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(size)]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


def sum_over_processes(loss: Tensor, parameters: Iterable[nn.Parameter]) -> None:
    """Sum a loss and the gradients of `parameters` over the processes, in place.

    Sharded parameters are skipped: FSDP has summed their gradients in the backward pass.
    """
    _, size = rank_and_size()
    if size == 1:
        return
    dist.all_reduce(loss)
    for parameter in parameters:
        if parameter.grad is not None and not isinstance(parameter, DTensor):
            dist.all_reduce(parameter.grad)


def any_process(flag: bool, device: torch.device) -> bool:
    """Return whether `flag` is true in any process. Called by all of them, with the device of their tensors."""
    _, size = rank_and_size()
    if size == 1:
        return flag
    count = torch.tensor(int(flag), device=device)
    dist.all_reduce(count)
    return bool(count)


def value_of_the_first_process(value: float, device: torch.device) -> float:
    """Return the `value` of the first process. Called by all of them, with the device of their tensors, where they must
    decide the same."""
    _, size = rank_and_size()
    if size == 1:
        return value
    shared = torch.tensor(value, dtype=torch.float64, device=device)
    dist.broadcast(shared, src=0)
    return float(shared)


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients so that their joint norm is at most `max_norm`; returns the norm before scaling.

    Sharded and unsharded weights are scaled by the same norm, but in separate calls: torch cannot mix them.
    """
    weights = [parameter for parameter in parameters if parameter.grad is not None]
    squares = [parameter.grad.norm().square() for parameter in weights if parameter.grad is not None]
    norm = torch.stack([square.full_tensor() if isinstance(square, DTensor) else square for square in squares])
    norm = norm.sum().sqrt()
    for sharded in (False, True):
        group = [parameter for parameter in weights if isinstance(parameter, DTensor) == sharded]
        nn.utils.clip_grads_with_norm_(group, max_norm, norm, foreach=False)
    return norm
