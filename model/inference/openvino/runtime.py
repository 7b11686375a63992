"""OpenVinoRuntime: the model's layers in OpenVINO, on a CPU, from graphs that `export` wrote. Needs no PyTorch.

Shapes: T tokens of a forward, H hidden size, D dimension.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from threadpoolctl import ThreadpoolController

from model.config import NoteLLMConfig
from model.cores import quota_cores, usable_cores
from model.inference.kv_cache import DEFAULT_BLOCKS, BlockPool
from model.inference.runtime import BatchLogProbs, Floats, OutputRows, PackedSpans, Span, SpanOutput, forward_in_two
from model.precision import cpu_features
from model.prompt import Prompt
from model.weights import space_of

LAYERS, DECODER, OUTPUT, SHAPES, HEAD = "layers.xml", "decoder.xml", "output.xml", "shapes.json", "projection.npy"
"""Names of the exported files; only a checkpoint with a generation adapter has DECODER. OpenVINO stores the weights of
a graph in a second file beside it."""
MAX_TOP_K = 32
"""Maximum `top_k` of a query: the exported output graph returns this many tokens for each query."""
MADV_DONTNEED = 4
"""Advice to madvise to drop pages. Pages mapped read-only from a file lose nothing: they are read again when needed."""
IN_FLOAT32: Mapping[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
"""OpenVINO's options to compute in float32, whatever the weights are stored as."""
PRECISIONS: Mapping[str, Mapping[str, Any]] = {
    "float32": IN_FLOAT32,
    "bfloat16": {
        "INFERENCE_PRECISION_HINT": "bf16",
        "KV_CACHE_PRECISION": "bf16",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 64,
    },
    "int8": {**IN_FLOAT32, "DYNAMIC_QUANTIZATION_GROUP_SIZE": 32},
}
"""OpenVINO's options for each precision; `_compile` changes some for an 8-bit output layer, and where bfloat16 has to
be computed in float32. Where the weights of a product are in 8 bits (all with int8; with bfloat16 those of the decoder
and its output layer), its activations are quantised row by row in groups of DYNAMIC_QUANTIZATION_GROUP_SIZE, so results
do not depend on the batch. Groups of 32 are a little closer to float32, groups of 64 faster."""


def use_one_blas_thread() -> None:
    """Limit every loaded OpenBLAS, NumPy's and others', to the calling thread, for the whole process. After a product
    its other threads would busy-wait for longer than the product took, on cores that OpenVINO needs
    (docs/log/operations.md)."""
    ThreadpoolController().select(internal_api="openblas").limit(limits=1)


def computes_bfloat16(core: ov.Core) -> bool:
    """Return whether OpenVINO computes in bfloat16 on this CPU. It cannot on one with AVX2 and no AVX-512: paged
    attention then takes a KV cache in float32 only. With AMX and a single core, OpenVINO 2026.4 ends the process with
    SIGFPE when it compiles the shipped checkpoint's layers for bfloat16 (docs/log/engine.md)."""
    if usable_cores() == 1 and "amx_bf16" in cpu_features():
        return False
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoRuntime:
    """Runtime of the graphs in `folder`, which `export` wrote. `digest` identifies the checkpoint's weights."""

    def __init__(
        self,
        config: NoteLLMConfig,
        prompt: Prompt,
        digest: str,
        folder: Path,
        precision: str,
        blocks: int = DEFAULT_BLOCKS,
    ) -> None:
        self.config = config
        self.prompt = prompt
        self.number_format = precision
        self.precision = f"OpenVINO {precision}"
        """Precision of the trunk, and that of the computation and of the decoder's weights where these differ."""
        use_one_blas_thread()
        self._folder = folder.resolve()  # as it appears in /proc/self/maps
        core = ov.Core()
        # Asking for a property loads the CPU plugin, without which a graph with paged attention cannot be read.
        core.get_property("CPU", "FULL_DEVICE_NAME")
        self._in_float32 = precision == "bfloat16" and not computes_bfloat16(core)
        if self._in_float32:
            self.precision += " computed in float32"
        self._trunk = self._compile(core, LAYERS, precision)
        self._decoder = self._compile(core, DECODER, precision) if config.generation_adapter else None
        self._output = self._compile(core, OUTPUT, precision)
        self._packed: list[Any] = []
        """Infer requests that have run. The first run packs the weights; afterwards their files are not needed."""
        self._projection = np.load(folder / HEAD) if (folder / HEAD).exists() else None
        self._caches: list[Any] = []
        """Keys and values of each layer as (blocks, bytes of a block)."""
        self.pool = BlockPool(blocks, self._allocate_caches(blocks))
        hidden_size = self._trunk.model_outputs[0].partial_shape[1].get_length()
        self.dimension: int = hidden_size if self._projection is None else len(self._projection)
        self.space = space_of(config, digest, self.dimension)

    def _compile(self, core: ov.Core, file: str, precision: str) -> Any:
        """Return an infer request of one exported graph."""
        graph = core.read_model(self._folder / file)
        options, in_8_bits = dict(PRECISIONS[precision]), _has_8_bit_weights(graph)
        if self._in_float32:
            options |= IN_FLOAT32
        if cores := quota_cores():
            options["INFERENCE_NUM_THREADS"] = cores
        if file != OUTPUT:
            _set_attention_shapes(graph, json.loads((self._folder / SHAPES).read_text()))
        elif in_8_bits:
            options["INFERENCE_PRECISION_HINT"] = "f32"  # bfloat16 logits would gain nothing
        if file == DECODER and in_8_bits and precision != "int8":
            self.precision += " with an 8-bit decoder"
        return core.compile_model(graph, "CPU", options).create_infer_request()

    def _allocate_caches(self, blocks: int) -> int:
        """Allocate the KV cache of all layers, which trunk and decoder share, and return the number of tokens per
        block, which OpenVINO chooses."""
        block_tokens = 0
        for port in self._trunk.model_inputs:
            for name in port.get_names():
                if "_cache." in name:
                    shape = [blocks, *(dim.get_length() for dim in list(port.partial_shape)[1:])]
                    block_tokens = shape[2]
                    cache = ov.Tensor(port.element_type, ov.Shape(shape))
                    self._trunk.set_tensor(name, cache)
                    if self._decoder is not None:
                        self._decoder.set_tensor(name, cache)
                    self._caches.append(_block_bytes(cache))
        return block_tokens

    def forward(self, spans: Sequence[Span]) -> list[SpanOutput]:
        self._copy_blocks()
        if self._decoder is None:
            return self._forward(self._trunk, spans)
        return forward_in_two(spans, partial(self._forward, self._trunk), partial(self._forward, self._decoder))

    def _forward(self, layers: Any, spans: Sequence[Span]) -> list[SpanOutput]:
        """Run all tokens of `spans` through one graph of layers."""
        packed = PackedSpans.of(spans)
        blocks = [span.table.blocks for span in spans]
        tree_masks = [
            np.zeros(0, np.uint8) if mask is None else mask.reshape(-1).view(np.uint8)
            for mask in packed.attention_masks
        ]
        has_tree = any(len(mask) for mask in tree_masks)
        inputs = {
            "input_ids": packed.ids,
            "position_ids": packed.positions,
            "past_lens": packed.past.astype(np.int32),
            "subsequence_begins": packed.begins.astype(np.int32),
            "block_indices": np.array([block for indices in blocks for block in indices], np.int32),
            "block_indices_begins": _begins(blocks),
            "max_context_len": np.array(max(span.past + len(span.ids) for span in spans), np.int32),
            "qq_bias": np.concatenate(tree_masks),
            "qq_bias_begins": _begins(tree_masks) if has_tree else np.zeros(0, np.int32),
        }
        states = self._infer(layers, inputs)["states"]
        return self._read(spans, OutputRows.of(spans, packed.begins), states)

    def _read(self, spans: Sequence[Span], rows: OutputRows, states: Floats) -> list[SpanOutput]:
        """Read what `spans` ask for from the hidden states (T, H)."""
        vectors = states[rows.vectors]
        if self._projection is not None:
            vectors = vectors @ self._projection.T
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
        if rows.top_k > MAX_TOP_K:
            raise ValueError(f"a query returns at most {MAX_TOP_K} next tokens, not {rows.top_k}")
        return rows.span_outputs(spans, vectors, [self._answer(batch, states) for batch in rows.batches()])

    def _answer(self, batch: OutputRows, states: Floats) -> BatchLogProbs:
        """Answer one batch of queries."""
        inputs = {
            "states": states[batch.queries],
            "mask": batch.exclude_ends.astype(np.float32)[:, None],
            "rows": batch.token_queries,
            "tokens": batch.tokens,
        }
        results = self._infer(self._output, inputs)
        return BatchLogProbs(results["likeliest"], results["log_probs"], results["ended"][:, 0], results["of_tokens"])

    def _infer(self, request: Any, inputs: Mapping[str, Any]) -> Any:
        """Run a graph; return its results by the names of its outputs."""
        tensors = {name: ov.Tensor(array, shared_memory=True) for name, array in inputs.items()}
        results = request.infer(tensors)
        if request not in self._packed:
            self._packed.append(request)
            forget_files(self._folder)
        return results

    def _copy_blocks(self) -> None:
        """Execute the block copies that `pool` has queued (copy-on-write)."""
        for source, target in self.pool.take_copies():
            for blocks in self._caches:
                blocks[target] = blocks[source]


def forget_files(folder: Path) -> None:
    """Drop the pages of the mapped files in `folder` from the memory of this process. Pages still needed, such as rows
    of the embedding table, are read again. Does nothing on systems other than Linux."""
    with suppress(OSError, AttributeError):
        madvise = ctypes.CDLL("libc.so.6").madvise
        madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        for mapping in Path("/proc/self/maps").read_text().splitlines():
            addresses, permissions, *_ = mapping.split()
            if permissions.startswith("r--") and f" {folder}/" in mapping:
                begin, end = (int(address, 16) for address in addresses.split("-"))
                madvise(begin, end - begin, MADV_DONTNEED)


def _has_8_bit_weights(graph: ov.Model) -> bool:
    constants = (node for node in graph.get_ops() if node.get_type_name() == "Constant")
    return any(constant.get_element_type() == ov.Type.i8 for constant in constants)


def _set_attention_shapes(layers: ov.Model, shapes: Sequence[dict[str, int]]) -> None:
    """Set the head counts and sizes of each paged attention, in order: a saved graph does not contain them."""
    attentions = [node for node in layers.get_ordered_ops() if node.get_type_name() == "PagedAttentionExtension"]
    for node, shape in zip(attentions, shapes, strict=True):
        for name, value in shape.items():
            node.get_rt_info()[name] = value


def _block_bytes(tensor: ov.Tensor) -> Any:
    """Return a view of a cache tensor as (blocks, bytes of a block), whatever its element type."""
    return tensor.data.view(np.uint8).reshape(tensor.shape[0], -1)


def _begins(parts: Sequence[Any]) -> Any:
    """Return the index at which each of `parts` begins in their concatenation, then its length, shape (parts + 1,)."""
    return np.cumsum([0, *map(len, parts)], dtype=np.int32)
