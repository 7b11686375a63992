"""Size of the packaged model's weights."""

from __future__ import annotations

MILLION_WEIGHTS = 134.5
MILLION_LAYER_WEIGHTS = 106.2
"""Weights of the layers: all but the embedding, which shares its weights with the output layer."""
BYTES_PER_WEIGHT = {"float32": 4, "bfloat16": 2, "int8": 1}
"""Bytes of a weight, by the number format that the engine runs in."""


def size_mib(million_weights: float, bytes_per_weight: int) -> float:
    """Return the size of some weights in MiB."""
    return million_weights * 1e6 * bytes_per_weight / 2**20


def model_mib(number_format: str) -> float:
    """Return the size of the packaged model's weights in MiB."""
    return size_mib(MILLION_WEIGHTS, BYTES_PER_WEIGHT[number_format])
