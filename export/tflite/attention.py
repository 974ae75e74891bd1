"""Cut quantized attention into pieces whose scores stay in the processor's second-level cache."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from edgekit.export.tflite.graph import Graph

SCORE_BYTES = 2**19
"""Float scores of one piece: half of the 1 MiB second-level cache of current server and desktop cores, and what the
big cores of a phone have. Measured: 0.433 → 0.382 ms for 16 products of 256 × 256 scores; no gain below 256 tokens."""

CONCATENATION_INPUTS = 4
"""XNNPACK concatenates at most five tensors; with more the graph is cut."""


class _Attention(NamedTuple):
    """The five operators from queries and keys to mixed values, all on (products, N, N) scores."""

    scores: Any
    to_float: Any
    softmax: Any
    to_codes: Any
    mix: Any


def split_attention(graph: Graph, score_bytes: int = SCORE_BYTES) -> int:
    """Run each int8 attention in pieces of at most `score_bytes` of float scores; return how many were cut.

    The products of a batch (image × patch position × head) are independent, so any cut along the batch is exact.
    """
    count = 0
    for attention in _find(graph):
        products, rows, columns = graph.shape(attention.softmax.outputs[0])
        each = 4 * rows * columns
        pieces = min(products, -(-products * each // score_bytes))
        while products % pieces:
            pieces += 1
        if pieces > 1:
            _split(graph, attention, pieces)
            count += 1
    return count


def _find(graph: Graph) -> list[_Attention]:
    """Find the five operators in a row, each the only reader of the one before."""
    readers: dict[int, list[Any]] = {}
    producers: dict[int, Any] = {}
    for operator in graph.operators:
        producers[int(operator.outputs[0])] = operator
        for tensor in operator.inputs:
            readers.setdefault(int(tensor), []).append(operator)

    def behind(operator: Any, name: str) -> Any:
        found = readers.get(int(operator.outputs[0]), []) if operator is not None else []
        return found[0] if len(found) == 1 and graph.name(found[0]) == name else None

    attentions = []
    for softmax in graph.operators:
        to_float = producers.get(int(softmax.inputs[0])) if graph.name(softmax) == "SOFTMAX" else None
        scores = producers.get(int(to_float.inputs[0])) if to_float is not None else None
        to_codes = behind(softmax, "QUANTIZE")
        mix = behind(to_codes, "BATCH_MATMUL")
        if scores is None or mix is None or graph.name(scores) != "BATCH_MATMUL":
            continue
        if behind(scores, "DEQUANTIZE") is to_float and len(graph.shape(softmax.outputs[0])) == 3:
            attentions.append(_Attention(scores, to_float, softmax, to_codes, mix))
    return attentions


def _split(graph: Graph, attention: _Attention, pieces: int) -> None:
    """Replace the five operators by `pieces` times five, slices before them and a concatenation behind."""
    left, right = (int(tensor) for tensor in attention.scores.inputs)
    values, output = int(attention.mix.inputs[1]), int(attention.mix.outputs[0])
    new: list[Any] = []
    parts = []
    for piece in range(pieces):
        tensors = [_slice(graph, tensor, piece, pieces, new) for tensor in (left, right, values)]
        carried = tensors[:2]
        for operator in attention:
            if operator is attention.mix:
                carried = [carried[0], tensors[2]]
            result = _part(graph, int(operator.outputs[0]), pieces)
            clone = graph.operator_like(operator, carried, [result])
            new.append(clone)
            carried = [result]
        parts.append(carried[0])
    _concatenate(graph, parts, output, new)
    place = next(at for at, operator in enumerate(graph.operators) if operator is attention.mix)
    gone = {id(operator) for operator in attention}
    before = [operator for operator in graph.operators[: place + 1] if id(operator) not in gone]
    graph.operators = [*before, *new, *graph.operators[place + 1 :]]


def _part(graph: Graph, tensor: int, pieces: int) -> int:
    """Add a tensor like `tensor` with a `pieces`-th of its first axis, the same type and the same codes."""
    part = graph.add_tensor_like(tensor)
    shape = graph.shape(tensor)
    graph.tensors[part].shape = [shape[0] // pieces, *shape[1:]]
    return part


def _slice(graph: Graph, tensor: int, piece: int, pieces: int, new: list[Any]) -> int:
    """Cut one piece out of the first axis."""
    part = _part(graph, tensor, pieces)
    size = graph.shape(part)
    begin = graph.add_constant(np.array([piece * size[0], *(0 for _ in size[1:])], np.int32))
    extent = graph.add_constant(np.array(size, np.int32))
    operator = graph.operator("SLICE", 2, [tensor, begin, extent], [part])
    operator.builtinOptionsType = graph.schema.BuiltinOptions.SliceOptions
    operator.builtinOptions = graph.schema.SliceOptionsT()
    new.append(operator)
    return part


def _concatenate(graph: Graph, parts: list[int], output: int, new: list[Any]) -> None:
    """Join the pieces along the first axis, a few at a time."""
    while len(parts) > 1:
        joined = []
        for at in range(0, len(parts), CONCATENATION_INPUTS):
            some = parts[at : at + CONCATENATION_INPUTS]
            if len(some) == len(parts):
                result = output
            else:
                result = graph.add_tensor_like(output)
                rows = sum(graph.shape(part)[0] for part in some)
                graph.tensors[result].shape = [rows, *graph.shape(output)[1:]]
            operator = graph.operator("CONCATENATION", 2, some, [result])
            operator.builtinOptionsType = graph.schema.BuiltinOptions.ConcatenationOptions
            operator.builtinOptions = graph.schema.ConcatenationOptionsT()
            operator.builtinOptions.axis = 0
            new.append(operator)
            joined.append(result)
        parts = joined
