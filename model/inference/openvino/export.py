"""A NoteLLM as OpenVINO graphs: the layers with paged attention, and the output layer.

The backbone is traced one token a row, so that what it computes is a row of tokens of any sequences; each attention of
the trace then becomes a paged one. Of the families that transformers has, those whose attention is plain softmax
attention can be exported; others are refused with a reason, and PyTorch runs them.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
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
from model.inference.openvino.runtime import HEAD, LAYERS, MAX_LIKELIEST, OUTPUT, SHAPES
from model.inference.torch_runtime import using_attention
from model.notellm import NoteLLM
from model.weights import Progress, silent

TRACED = "notellm-traced"
AFTER_NOTE = 64
"""Most tokens that any task and its output put behind a note's prompt."""
SMALLEST = 4096
"""Elements of a matrix that is worth quantising."""


def export(checkpoint: str, folder: Path, *, cache: Path, precision: str, progress: Progress = silent) -> None:
    """Write the graphs of a checkpoint into `folder`; whole or not at all. `precision`: in which they will run. For
    bfloat16 the weights are kept in 16 bits, as half floats, which have more digits; for int8 those of products in 8.

    Raises CheckpointError, also where its family cannot be exported.
    """
    model = NoteLLM.load(checkpoint, cache=cache, device=torch.device("cpu"), dtype=torch.float32, progress=progress)
    progress(f"Exporting {model.config.name} to OpenVINO (once, about 20 s)")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise CheckpointError(f"the cache {folder.parent} cannot be written: {error}") from error
    try:
        layers, shapes = _layers(model)
        output = _output(model)
        for graph, path in ((layers, LAYERS), (output, OUTPUT)):
            if precision == "int8":
                _quantise(graph)
            ov.save_model(graph, unfinished / path, compress_to_fp16=precision == "bfloat16")
        (unfinished / SHAPES).write_text(json.dumps(shapes))
        if model.projection is not None:
            np.save(unfinished / HEAD, model.projection.weight.detach().float().numpy())
        os.rename(unfinished, folder)
    except CheckpointError:
        raise
    except Exception as error:  # OpenVINO has no error of its own: whatever it meets, it raises
        if not folder.is_dir():  # another process may have been first: its result is the same
            raise CheckpointError(f"{model.config.name} cannot be exported to OpenVINO: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


class _Traced(nn.Module):
    """input_ids, position_ids: (T,) -> states (T, H)."""

    def __init__(self, model: NoteLLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        none = torch.ones(1, 1, 1, 1, dtype=torch.bool)  # a mask that is given is not made
        mask = self.model.mask_by_layer(none, torch.zeros(1, 1, 1, 1, dtype=torch.int64))
        states: Tensor = self.model(input_ids[:, None], mask, position_ids[:, None])[:, 0]
        return states


def traced_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, None]:
    """A plain one, in whose place the paged one is put: `_page` knows its form."""
    if options.get("softcap") is not None or options.get("s_aux") is not None:
        raise CheckpointError(f"OpenVINO has no paged attention like that of {type(module).__name__}")
    groups = query.shape[1] // key.shape[1]
    shape = (-1, -1, groups, -1, -1)
    key, value = (each[:, :, None].expand(shape).flatten(1, 2) for each in (key, value))
    out = nn.functional.scaled_dot_product_attention(query, key, value, scale=options.get("scaling"))
    return out.transpose(1, 2), None


AttentionInterface.register(TRACED, traced_attention)


def _layers(model: NoteLLM) -> tuple[ov.Model, list[dict[str, Any]]]:
    """The graph of all layers, and of each the shapes that its attention is told when it is loaded."""
    config = model.backbone.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if window is not None and window < model.prompt.max_note_tokens() + AFTER_NOTE:
        raise CheckpointError(f"a window of {window} tokens is shorter than a note's prompt, which OpenVINO cannot run")
    example = {"input_ids": torch.arange(5), "position_ids": torch.arange(5)}
    inputs = [(name, [-1], ov.Type.i64) for name in example]
    with using_attention(model, TRACED), _quiet(), torch.inference_mode():
        graph = ov.convert_model(_Traced(model), example_input=example, input=inputs)
    _store_embedding_small(graph)
    shared = [_parameter(name, [-1], ov.Type.i32) for name in ("past_lens", "subsequence_begins")]
    shared += [_parameter(name, [-1], ov.Type.i32) for name in ("block_indices", "block_indices_begins")]
    longest = _parameter("max_context_len", [], ov.Type.i32)
    trees = [_parameter("qq_bias", [-1], ov.Type.u8), _parameter("qq_bias_begins", [-1], ov.Type.i32)]
    caches: list[Any] = []
    shapes = []
    found = [node for node in graph.get_ordered_ops() if node.get_type_name() == "ScaledDotProductAttention"]
    if len(found) != config.num_hidden_layers:
        raise CheckpointError(f"OpenVINO found {len(found)} attentions in {config.num_hidden_layers} layers")
    for layer, node in enumerate(found):
        names = (f"key_cache.{layer}", f"value_cache.{layer}")
        pair = [_parameter(name, ov.PartialShape.dynamic(4), ov.Type.dynamic) for name in names]
        shapes.append(_page(node, pair, shared, longest, trees))
        caches += pair
    graph.add_parameters([*shared, longest, *trees, *caches])
    graph.outputs[0].get_tensor().set_names({"states"})
    graph.validate_nodes_and_infer_types()
    return graph, shapes


def _page(
    node: Any, caches: Sequence[Any], shared: Sequence[Any], longest: Any, trees: Sequence[Any]
) -> dict[str, int]:
    """Put a paged attention in the place of a traced one. The numbers of heads and their sizes, which the graph's file
    does not keep."""
    query, key, value = (_source(node, i) for i in range(3))
    key, value = _unrepeated(key), _unrepeated(value)
    scale = _source(node, 4) if len(node.inputs()) > 4 else _number(1 / np.sqrt(_dim(query, 3)), np.float32)
    arguments = [
        *(_rows(each) for each in (query, key, value)),
        *(each.output(0) for each in caches),
        *(each.output(0) for each in shared),
        scale, _number(0, np.int32), _none(np.float32), longest.output(0),
        _none(np.int32),  # aggregation of scores
        _none(np.int32), _none(np.int32), _none(np.float32),  # rotation of the cache
        _none(np.float32), _number(0, np.int32), _number(0, np.int32),  # sparse attention
        ops.constant(np.zeros((0, 0, 0, 0), np.float32)).output(0),  # sinks
        _number(0, np.int32), _none(np.int32), _none(np.int32), _none(np.int32),  # eviction
        _none(np.int32),  # token types
        *(each.output(0) for each in trees),
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
    """states (N, H), mask (N, 1) of 0 and 1, rows and tokens (M,) -> the likeliest MOST_NEXT tokens, which are no ends
    where mask is 1, and log probabilities: theirs (N, MOST_NEXT), of all ends together (N, 1), of the tokens (M,)."""
    config = model.backbone.config.get_text_config()
    weight = model.backbone.get_output_embeddings().weight.detach().float().numpy()
    states = _parameter("states", [-1, weight.shape[1]], ov.Type.f32)
    mask = _parameter("mask", [-1, 1], ov.Type.f32)
    rows, tokens = (_parameter(name, [-1], ov.Type.i64) for name in ("rows", "tokens"))
    logits = ops.matmul(states, ops.constant(weight), False, True)
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = ops.multiply(ops.tanh(ops.divide(logits, _number(cap, np.float32))), _number(cap, np.float32))
    total = _log_sum_exp(logits)
    ends = np.array(model.prompt.hashtag_ends, np.int32)
    ended = _log_sum_exp(ops.gather(logits, ops.constant(ends), _number(1, np.int32)))
    penalty = np.zeros((1, len(weight)), np.float32)
    penalty[0, ends] = -1e30
    apart = ops.add(logits, ops.multiply(mask, ops.constant(penalty)))
    best = ops.topk(apart, _number(min(MAX_LIKELIEST, len(weight)), np.int32), 1, "max", "value")
    places = ops.add(ops.multiply(rows, _number(len(weight), np.int64)), tokens)
    of_tokens = ops.subtract(_flat(logits, places), _flat(total, rows))
    results = {
        "log_probs": ops.subtract(best.output(0), total), "likeliest": best.output(1),
        "ended": ops.subtract(ended, total), "of_tokens": of_tokens,
    }  # fmt: skip
    made = []
    for name, node in results.items():
        made.append(ops.result(node))
        made[-1].output(0).get_tensor().set_names({name})
    return ov.Model(made, [states, mask, rows, tokens], "output")


def _flat(table: Any, places: Any) -> Any:
    """The numbers at `places` of a table read as one row."""
    return ops.gather(ops.reshape(table, ops.constant(np.array([-1])), False), places, _number(0, np.int32))


def _log_sum_exp(logits: Any) -> Any:
    """Over the last axis, kept: (N, 1)."""
    axis = ops.constant(np.array([1]))
    most = ops.reduce_max(logits, axis, keep_dims=True)
    return ops.add(ops.log(ops.reduce_sum(ops.exp(ops.subtract(logits, most)), axis, keep_dims=True)), most)


def _quantise(graph: ov.Model) -> None:
    """Weights of matrix products as 8-bit integers, symmetric, with a scale for each output channel."""
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        weight = node.input(1).get_source_output().get_node()
        if weight.get_type_name() != "Constant" or weight.data.ndim != 2 or weight.data.size < SMALLEST:
            continue
        rows = 1 if node.get_attributes()["transpose_b"] else 0
        values = weight.data.astype(np.float32)
        scale = np.abs(values).max(rows, keepdims=True).clip(1e-12) / 127
        whole = ops.constant(np.round(values / scale).astype(np.int8))
        node.input(1).replace_source_output(
            ops.multiply(ops.convert(whole, ov.Type.f32), ops.constant(scale.astype(np.float32))).output(0)
        )


def _store_embedding_small(graph: ov.Model) -> None:
    """The table of token embeddings as bfloat16, where that loses nothing."""
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "Gather":
            continue
        table = node.input(0).get_source_output().get_node()
        if table.get_type_name() != "Constant" or table.data.ndim != 2 or table.data.size < SMALLEST:
            continue
        values = torch.from_numpy(np.array(table.data, np.float32))
        small = values.bfloat16()
        if not torch.equal(small.float(), values):
            continue
        tensor = ov.Tensor(ov.Type.bf16, ov.Shape(list(small.shape)))
        tensor.data.view(np.int16)[:] = small.view(torch.int16).numpy()
        constant = ov.op.Constant(tensor, shared_memory=False)
        users = list(node.output(0).get_target_inputs())
        gathered = ops.gather(constant, _source(node, 1), _source(node, 2))
        widened = ops.convert(gathered, ov.Type.f32)
        for user in users:
            user.replace_source_output(widened.output(0))


def _unrepeated(repeated: Any) -> Any:
    """Keys or values as they were before each was repeated for its group of queries."""
    node = repeated.get_node()
    for kind in ("Reshape", "Broadcast", "Unsqueeze"):
        if node.get_type_name() != kind:
            return repeated
        source = _source(node, 0)
        node = source.get_node()
    return source


def _rows(heads: Any) -> Any:
    """(T, heads, 1, E) -> (T, heads * E)."""
    order = ops.transpose(heads, ops.constant(np.array([0, 2, 1, 3])))
    return ops.reshape(order, ops.constant(np.array([0, -1])), True).output(0)


def _source(node: Any, place: int) -> Any:
    return node.input(place).get_source_output()


def _dim(output: Any, axis: int) -> int:
    length: int = output.get_partial_shape()[axis].get_length()
    return length


def _parameter(name: str, shape: Any, kind: ov.Type) -> Any:
    parameter = ops.parameter(shape, kind, name=name)
    parameter.output(0).get_tensor().set_names({name})
    return parameter


def _number(value: float, kind: Any) -> Any:
    return ops.constant(np.array(value, kind)).output(0)


def _none(kind: Any) -> Any:
    return ops.constant(np.zeros(0, kind)).output(0)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the tracer's warnings on what depends on shapes: nothing here does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
