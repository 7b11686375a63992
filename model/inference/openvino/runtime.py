"""The model's layers in OpenVINO, on a CPU: exported once (openvino_export.py), and loaded without PyTorch.

Shapes: T tokens of a forward, H hidden size, D dimension.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from model.config import NoteLLMConfig
from model.inference.kv_cache import BLOCKS, BlockPool
from model.inference.runtime import Floats, OutputRows, PackedSpans, Span, SpanOutput
from model.prompt import Prompt
from model.weights import space_of

LAYERS, OUTPUT, SHAPES, HEAD = "layers.xml", "output.xml", "shapes.json", "projection.npy"
MAX_LIKELIEST = 32
"""Most next tokens that a forward can tell of a place."""
DONTNEED = 4
"""MADV_DONTNEED of Linux: what is mapped read-only from a file loses nothing."""
PRECISIONS: Mapping[str, Mapping[str, Any]] = {
    "float32": {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"},
    "bfloat16": {"INFERENCE_PRECISION_HINT": "bf16", "KV_CACHE_PRECISION": "bf16"},
    "int8": {
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 32,
    },
}
"""OpenVINO's options by the name of a precision. With int8 each row of a product is quantised on its way, by groups of
32 numbers, so that a vector does not depend on its batch."""


class OpenVinoRuntime:
    """`folder`: what `export` wrote. `options` are OpenVINO's own, for the layers and the output alike."""

    def __init__(
        self,
        config: NoteLLMConfig,
        prompt: Prompt,
        digest: str,
        folder: Path,
        precision: str,
        blocks: int = BLOCKS,
    ) -> None:
        self.config = config
        self.prompt = prompt
        self.precision = f"OpenVINO {precision}"
        self._folder = folder.resolve()  # as the system names it
        options = dict(PRECISIONS[precision])
        core = ov.Core()
        # Loads the plugin: without it the paged attention in a file is unknown.
        core.get_property("CPU", "FULL_DEVICE_NAME")
        layers = core.read_model(folder / LAYERS)
        _tell_shapes(layers, json.loads((folder / SHAPES).read_text()))
        self._layers = core.compile_model(layers, "CPU", options).create_infer_request()
        self._output = core.compile_model(core.read_model(folder / OUTPUT), "CPU", options).create_infer_request()
        self._packed: list[Any] = []
        """Of the two, who has its weights in the order of its products, made when it was first asked."""
        self._projection = np.load(folder / HEAD) if (folder / HEAD).exists() else None
        self._caches: list[Any] = []
        tokens = 0
        for port in self._layers.model_inputs:
            for name in port.get_names():
                if "_cache." in name:
                    shape = [blocks, *(dim.get_length() for dim in list(port.partial_shape)[1:])]
                    tokens = shape[2]
                    cache = ov.Tensor(port.element_type, ov.Shape(shape))
                    self._layers.set_tensor(name, cache)
                    self._caches.append(_bytes(cache))
        self.pool = BlockPool(blocks, tokens)
        hidden_size = self._layers.model_outputs[0].partial_shape[1].get_length()
        self.dimension: int = hidden_size if self._projection is None else len(self._projection)
        self.space = space_of(config, digest, self.dimension)

    def forward(self, spans: Sequence[Span]) -> list[SpanOutput]:
        self._copy()
        flat = PackedSpans.of(spans)
        blocks = [span.table.blocks for span in spans]
        trees = [np.zeros(0, np.uint8) if looks is None else looks.reshape(-1).view(np.uint8) for looks in flat.trees]
        any_tree = any(len(tree) for tree in trees)
        states = self._infer(
            self._layers,
            {
                "input_ids": flat.ids,
                "position_ids": flat.positions,
                "past_lens": flat.past.astype(np.int32),
                "subsequence_begins": flat.begins.astype(np.int32),
                "block_indices": np.concatenate([np.array(each, np.int32) for each in blocks]),
                "block_indices_begins": _begins(blocks),
                "max_context_len": np.array(max(span.past + len(span.ids) for span in spans), np.int32),
                "qq_bias": np.concatenate(trees),
                "qq_bias_begins": _begins(trees) if any_tree else np.zeros(0, np.int32),
            },
        )["states"]
        return self._read(spans, OutputRows.of(spans, flat.begins), states)

    def _read(self, spans: Sequence[Span], asked: OutputRows, states: Floats) -> list[SpanOutput]:
        vectors = states[asked.vectors]
        if self._projection is not None:
            vectors = vectors @ self._projection.T
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
        if asked.width > MAX_LIKELIEST:
            raise ValueError(f"at most {MAX_LIKELIEST} next tokens can be told, not {asked.width}")
        return asked.told(spans, vectors, [self._look(part, states) for part in asked.parts()])

    def _look(self, asked: OutputRows, states: Floats) -> tuple[Any, ...]:
        asks = {
            "states": states[asked.looks],
            "mask": asked.ends_apart.astype(np.float32)[:, None],
            "rows": asked.token_looks,
            "tokens": asked.tokens,
        }
        told = self._infer(self._output, asks)
        return told["likeliest"], told["log_probs"], told["ended"][:, 0], told["of_tokens"]

    def _infer(self, request: Any, inputs: Mapping[str, Any]) -> Any:
        told = request.infer(inputs, share_inputs=True)
        if request not in self._packed:
            self._packed.append(request)
            forget_files(self._folder)
        return told

    def _copy(self) -> None:
        for of, to in self.pool.take_copies():
            for cache in self._caches:
                cache[to] = cache[of]


def forget_files(folder: Path) -> None:
    """Give back the memory of what this process has read of the files in `folder`, which it maps: what is still needed,
    such as the rows of a table, is read again. Does nothing where the system is not Linux."""
    with suppress(OSError, AttributeError):
        advise = ctypes.CDLL("libc.so.6").madvise
        advise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        for mapping in Path("/proc/self/maps").read_text().splitlines():
            place, rights, *_ = mapping.split()
            if rights.startswith("r--") and f" {folder}/" in mapping:
                begin, end = (int(address, 16) for address in place.split("-"))
                advise(begin, end - begin, DONTNEED)


def _tell_shapes(layers: ov.Model, shapes: Sequence[dict[str, int]]) -> None:
    """Of each attention, in their order, which the file does not keep."""
    of_layer = iter(shapes)
    for node in layers.get_ordered_ops():
        if node.get_type_name() == "PagedAttentionExtension":
            for name, value in next(of_layer).items():
                node.get_rt_info()[name] = value


def _bytes(tensor: ov.Tensor) -> Any:
    """A view (blocks, bytes of a block), whatever the element type."""
    return tensor.data.view(np.uint8).reshape(tensor.shape[0], -1)


def _begins(parts: Sequence[Any]) -> Any:
    return np.cumsum([0, *map(len, parts)], dtype=np.int32)
