"""Export of a NoteLLM to OpenVINO graphs: the layers with paged attention, the same with the generation adapter if
there is one, and the output layer.

The backbone is traced with one token per row, so the graph accepts tokens of any sequences, and each traced attention
is replaced by a paged one. Model families with plain softmax attention can be exported; others are refused with a
reason, and PyTorch runs them.

Shapes: T tokens of a forward, N queries, M tokens that queries name, H hidden size, E size of a head.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as ops
import torch
from openvino.op import _PagedAttentionExtension as PagedAttention
from torch import Tensor, nn
from transformers import AttentionInterface

from model.config import CheckpointError
from model.inference.openvino.runtime import DECODER, HEAD, LAYERS, MAX_TOP_K, OUTPUT, SHAPES
from model.inference.openvino.window import WINDOW, check_window
from model.inference.torch_runtime import using_attention
from model.notellm import NoteLLM
from model.weights import Progress, silent, unfinished_folder

TRACED = "notellm-traced"
ACTIVATIONS = {"Gelu", "Relu", "Swish"}
"""OpenVINO's names of the activation functions that backbones apply to the result of a product."""
OUTPUT_GROUP = 64
"""Number of inputs that share a scale in an 8-bit output layer after a decoder: one scale per channel changed the
category of two sample notes in 164 (docs/log/engine.md)."""
MIN_WEIGHT_SIZE = 4096
"""Minimum elements of a weight to be stored in fewer bits: smaller ones save nothing."""


def export(checkpoint: str, folder: Path, *, cache: Path, precision: str, progress: Progress = silent) -> None:
    """Write the graphs of a checkpoint into `folder`, completely or not at all.

    `precision`: the one that the graphs will run in. float32: weights as they are. bfloat16: weights as half floats,
    which have as many bits and more digits, but 8 bits for the decoder and its output layer, which do not affect
    vectors. int8: the weights of all matrix products in 8 bits. Raises CheckpointError, also where the backbone's
    family cannot be exported.
    """
    model = NoteLLM.load(checkpoint, cache=cache, device=torch.device("cpu"), dtype=torch.float32, progress=progress)
    progress(f"Exporting {model.config.name} to OpenVINO (once, about 20 s)")
    unfinished = unfinished_folder(folder)
    window = getattr(model.backbone.config.get_text_config(), "sliding_window", None)
    try:
        check_window(window, model.prompt)
        layers, shapes = _layers(model)
        graphs = {LAYERS: layers, OUTPUT: _output(model)}
        if model.decoder is not None:
            graphs[DECODER], _ = _layers(model, decode=True)
            _join_products(graphs[DECODER])
        for path, graph in graphs.items():
            if precision == "int8" or (precision == "bfloat16" and path == DECODER):
                _quantise(graph)
            elif precision == "bfloat16" and path == OUTPUT and DECODER in graphs:
                _quantise(graph, OUTPUT_GROUP)
            ov.save_model(graph, unfinished / path, compress_to_fp16=precision == "bfloat16")
        (unfinished / SHAPES).write_text(json.dumps(shapes))
        (unfinished / WINDOW).write_text(json.dumps(window))
        if model.projection is not None:
            np.save(unfinished / HEAD, model.projection.weight.detach().float().numpy())
        os.rename(unfinished, folder)
    except CheckpointError:
        raise
    except Exception as error:  # OpenVINO has no exception class of its own
        if not folder.is_dir():  # else another process has finished the same export
            raise CheckpointError(f"{model.config.name} cannot be exported to OpenVINO: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


class _Traced(nn.Module):
    """Module to trace: input_ids and position_ids (T,) to states (T, H), by the trunk or the decoder."""

    def __init__(self, model: NoteLLM, decode: bool) -> None:
        super().__init__()
        self.model = model
        self.decode = decode

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        # A dummy, since transformers builds a mask if none is passed. The traced attention ignores it.
        any_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool)
        mask = self.model.mask_by_layer(any_mask, torch.zeros(1, 1, 1, 1, dtype=torch.int64))
        states: Tensor = self.model(input_ids[:, None], mask, position_ids[:, None], decode=self.decode)[:, 0]
        return states


def traced_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, None]:
    """Plain attention without a mask, with the signature that transformers calls. `_make_paged` replaces it in the
    graph and relies on its operations. Raises CheckpointError where paged attention lacks a feature that the family
    needs."""
    if options.get("softcap") is not None or options.get("s_aux") is not None:
        raise CheckpointError(f"OpenVINO has no paged attention for {type(module).__name__}")
    groups = query.shape[1] // key.shape[1]
    shape = (-1, -1, groups, -1, -1)
    key = key[:, :, None].expand(shape).flatten(1, 2)
    value = value[:, :, None].expand(shape).flatten(1, 2)
    out = nn.functional.scaled_dot_product_attention(query, key, value, scale=options.get("scaling"))
    return out.transpose(1, 2), None


AttentionInterface.register(TRACED, traced_attention)


def _layers(model: NoteLLM, decode: bool = False) -> tuple[ov.Model, list[dict[str, Any]]]:
    """Return the graph of all layers, the trunk's or the decoder's, and for each layer the shapes to set on its
    attention when the graph is loaded."""
    config = model.backbone.config.get_text_config()
    example = {"input_ids": torch.arange(5), "position_ids": torch.arange(5)}
    inputs = [(name, [-1], ov.Type.i64) for name in example]
    with using_attention(model, TRACED), _quiet(), torch.inference_mode():
        graph = ov.convert_model(_Traced(model, decode), example_input=example, input=inputs)
    _narrow_embedding(graph)
    shared = [_parameter(name, [-1], ov.Type.i32) for name in ("past_lens", "subsequence_begins")]
    shared += [_parameter(name, [-1], ov.Type.i32) for name in ("block_indices", "block_indices_begins")]
    max_context_len = _parameter("max_context_len", [], ov.Type.i32)
    trees = [_parameter("qq_bias", [-1], ov.Type.u8), _parameter("qq_bias_begins", [-1], ov.Type.i32)]
    caches: list[Any] = []
    shapes = []
    attentions = [node for node in graph.get_ordered_ops() if node.get_type_name() == "ScaledDotProductAttention"]
    if len(attentions) != config.num_hidden_layers:
        raise CheckpointError(
            f"OpenVINO found {len(attentions)} attention operations in {config.num_hidden_layers} layers"
        )
    for layer, node in enumerate(attentions):
        names = (f"key_cache.{layer}", f"value_cache.{layer}")
        layer_caches = [_parameter(name, ov.PartialShape.dynamic(4), ov.Type.dynamic) for name in names]
        shapes.append(_make_paged(node, layer_caches, shared, max_context_len, trees))
        caches += layer_caches
    graph.add_parameters([*shared, max_context_len, *trees, *caches])
    graph.outputs[0].get_tensor().set_names({"states"})
    graph.validate_nodes_and_infer_types()
    return graph, shapes


def _make_paged(
    node: Any, caches: Sequence[Any], shared: Sequence[Any], max_context_len: Any, trees: Sequence[Any]
) -> dict[str, int]:
    """Replace a traced attention by a paged one. Returns the head counts and sizes, which a saved graph does not
    contain."""
    query, key, value = (_source(node, i) for i in range(3))
    key, value = _without_repeats(key), _without_repeats(value)
    scale = _source(node, 4) if len(node.inputs()) > 4 else _number(1 / np.sqrt(_dim(query, 3)), np.float32)
    arguments = [
        _rows(query), _rows(key), _rows(value),
        *(parameter.output(0) for parameter in caches),
        *(parameter.output(0) for parameter in shared),
        scale, _number(0, np.int32), _empty(np.float32), max_context_len.output(0),
        _empty(np.int32),  # aggregation of scores
        _empty(np.int32), _empty(np.int32), _empty(np.float32),  # rotation of the cache
        _empty(np.float32), _number(0, np.int32), _number(0, np.int32),  # sparse attention
        ops.constant(np.zeros((0, 0, 0, 0), np.float32)).output(0),  # sinks
        _number(0, np.int32), _empty(np.int32), _empty(np.int32), _empty(np.int32),  # eviction
        _empty(np.int32),  # token types
        *(parameter.output(0) for parameter in trees),
    ]  # fmt: skip
    paged = PagedAttention(arguments)
    shapes = {
        "num_k_heads": _dim(key, 1), "k_head_size": _dim(key, 3),
        "num_v_heads": _dim(value, 1), "v_head_size": _dim(value, 3),
    }  # fmt: skip
    split = ops.reshape(paged.output(0), ops.constant(np.array([0, 1, -1, shapes["v_head_size"]])), True)
    node.output(0).replace(ops.transpose(split, ops.constant(np.array([0, 2, 1, 3]))).output(0))
    return shapes


def _output(model: NoteLLM) -> ov.Model:
    """Return the graph that answers queries about the next token.

    Inputs: `states` (N, H); `mask` (N, 1), 1 where tokens that end a hashtag are left out of the most probable ones,
    else 0; `rows` and `tokens` (M,), the query and the id of each named token. Outputs: `likeliest` (N, MAX_TOP_K), the
    most probable token ids, best first; and log probabilities: `log_probs`, those of `likeliest`; `ended` (N, 1), that
    of all end tokens together; `of_tokens` (M,), those of the named tokens.
    """
    config = model.backbone.config.get_text_config()
    weight = model.output_layer.weight.detach().float().numpy()
    states = _parameter("states", [-1, weight.shape[1]], ov.Type.f32)
    mask = _parameter("mask", [-1, 1], ov.Type.f32)
    rows, tokens = (_parameter(name, [-1], ov.Type.i64) for name in ("rows", "tokens"))
    logits = ops.matmul(states, ops.constant(weight), False, True)
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = ops.multiply(ops.tanh(ops.divide(logits, _number(cap, np.float32))), _number(cap, np.float32))
    log_total = _log_sum_exp(logits)
    ends = np.array(model.prompt.hashtag_ends, np.int32)
    end_logits = _log_sum_exp(ops.gather(logits, ops.constant(ends), _number(1, np.int32)))
    penalty = np.zeros((1, len(weight)), np.float32)
    penalty[0, ends] = -1e30
    without_ends = ops.add(logits, ops.multiply(mask, ops.constant(penalty)))
    top = ops.topk(without_ends, _number(min(MAX_TOP_K, len(weight)), np.int32), 1, "max", "value")
    indices = ops.add(ops.multiply(rows, _number(len(weight), np.int64)), tokens)
    token_log_probs = ops.subtract(_gather_flat(logits, indices), _gather_flat(log_total, rows))
    results = {
        "log_probs": ops.subtract(top.output(0), log_total), "likeliest": top.output(1),
        "ended": ops.subtract(end_logits, log_total), "of_tokens": token_log_probs,
    }  # fmt: skip
    outputs = []
    for name, node in results.items():
        outputs.append(ops.result(node))
        outputs[-1].output(0).get_tensor().set_names({name})
    return ov.Model(outputs, [states, mask, rows, tokens], "output")


def _gather_flat(table: Any, indices: Any) -> Any:
    """Return the elements at flat `indices` of a table."""
    return ops.gather(ops.reshape(table, ops.constant(np.array([-1])), False), indices, _number(0, np.int32))


def _log_sum_exp(logits: Any) -> Any:
    """Return log(sum(exp(logits))) over the last axis, shape (N, 1)."""
    axis = ops.constant(np.array([1]))
    largest = ops.reduce_max(logits, axis, keep_dims=True)
    return ops.add(ops.log(ops.reduce_sum(ops.exp(ops.subtract(logits, largest)), axis, keep_dims=True)), largest)


def _join_products(graph: ov.Model) -> None:
    """Fuse the matrix products that read the same input, such as those for queries, keys and values: in a decode step,
    which reads all weights for a few rows, each product has a fixed overhead. Products with an activation function
    after them stay separate, since OpenVINO computes it within the product, in float32."""
    products = defaultdict(list)
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        weight = _source(node, 1).get_node()
        if weight.get_type_name() == "Constant" and weight.data.ndim == 2:
            source = _source(node, 0)
            products[source.get_node().get_friendly_name(), source.get_index()].append(node)
    for nodes in products.values():
        users = {user.get_node().get_type_name() for node in nodes for user in node.output(0).get_target_inputs()}
        if len(nodes) == 1 or users & ACTIVATIONS or not all(node.get_attributes()["transpose_b"] for node in nodes):
            continue
        weights = [_source(node, 1).get_node().data for node in nodes]
        joined = ops.matmul(_source(nodes[0], 0), ops.constant(np.concatenate(weights)), False, True)
        sizes = ops.constant(np.array([len(weight) for weight in weights]))
        parts = ops.variadic_split(joined, _number(-1, np.int64), sizes)
        for node, part in zip(nodes, parts.outputs(), strict=True):
            node.output(0).replace(part)


def _quantise(graph: ov.Model, group: int | None = None) -> None:
    """Store the weights of matrix products as 8-bit integers, symmetric, with one scale per output channel, or per
    `group` of its inputs if `group` divides their number."""
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        weight = node.input(1).get_source_output().get_node()
        if weight.get_type_name() != "Constant" or weight.data.ndim != 2 or weight.data.size < MIN_WEIGHT_SIZE:
            continue
        input_axis = 1 if node.get_attributes()["transpose_b"] else 0
        values = weight.data.astype(np.float32)
        shape = values.shape
        if group is not None and input_axis == 1 and shape[1] % group == 0:
            values, input_axis = values.reshape(shape[0], -1, group), 2
        scale = np.abs(values).max(input_axis, keepdims=True).clip(1e-12) / 127
        quantised = ops.constant(np.round(values / scale).astype(np.int8))
        restored = ops.multiply(ops.convert(quantised, ov.Type.f32), ops.constant(scale.astype(np.float32)))
        if values.ndim == 3:
            restored = ops.reshape(restored, ops.constant(np.array(shape)), False)
        node.input(1).replace_source_output(restored.output(0))


def _narrow_embedding(graph: ov.Model) -> None:
    """Store the table of token embeddings as bfloat16, if that is lossless."""
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "Gather":
            continue
        table = node.input(0).get_source_output().get_node()
        if table.get_type_name() != "Constant" or table.data.ndim != 2 or table.data.size < MIN_WEIGHT_SIZE:
            continue
        values = torch.from_numpy(np.array(table.data, np.float32))
        narrow = values.bfloat16()
        if not torch.equal(narrow.float(), values):
            continue
        tensor = ov.Tensor(ov.Type.bf16, ov.Shape(list(narrow.shape)))
        tensor.data.view(np.int16)[:] = narrow.view(torch.int16).numpy()
        constant = ov.op.Constant(tensor, shared_memory=False)
        users = list(node.output(0).get_target_inputs())
        gathered = ops.gather(constant, _source(node, 1), _source(node, 2))
        widened = ops.convert(gathered, ov.Type.f32)
        for user in users:
            user.replace_source_output(widened.output(0))


def _without_repeats(repeated: Any) -> Any:
    """Return keys or values as they are before they are repeated for the query heads that share them."""
    node = repeated.get_node()
    for kind in ("Reshape", "Broadcast", "Unsqueeze"):
        if node.get_type_name() != kind:
            return repeated
        source = _source(node, 0)
        node = source.get_node()
    return source


def _rows(heads: Any) -> Any:
    """Reshape (T, heads, 1, E) to (T, heads * E)."""
    order = ops.transpose(heads, ops.constant(np.array([0, 2, 1, 3])))
    return ops.reshape(order, ops.constant(np.array([0, -1])), True).output(0)


def _source(node: Any, index: int) -> Any:
    return node.input(index).get_source_output()


def _dim(output: Any, axis: int) -> int:
    length: int = output.get_partial_shape()[axis].get_length()
    return length


def _parameter(name: str, shape: Any, kind: ov.Type) -> Any:
    parameter = ops.parameter(shape, kind, name=name)
    parameter.output(0).get_tensor().set_names({name})
    return parameter


def _number(value: float, kind: Any) -> Any:
    return ops.constant(np.array(value, kind)).output(0)


def _empty(kind: Any) -> Any:
    """Value of an optional input that is not used."""
    return ops.constant(np.zeros(0, kind)).output(0)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the tracer's warnings about values that depend on shapes: this graph has no such values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
