"""Exact changes to a converted TFLite graph that cannot be said in PyTorch: which form of an op the runtime gets."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.export.tflite.graph import Graph


def power_to_square_root(graph: Graph) -> int:
    """Replace POW(x, 1/2) by SQRT(x); return how many. Vector norms arrive as POW, which XNNPACK does not take."""
    count = 0
    for operator in graph.operators:
        exponent = graph.constant(int(operator.inputs[1])) if graph.name(operator) == "POW" else None
        if exponent is not None and exponent.size == 1 and float(exponent.ravel()[0]) == 0.5:
            operator.opcodeIndex = graph.code("SQRT", 1)
            operator.inputs = [operator.inputs[0]]
            operator.builtinOptions, operator.builtinOptionsType = None, 0
            count += 1
    return count


def transpose_right_operands(graph: Graph) -> int:
    """Hand each BATCH_MATMUL its right operand as (…, N, K) with adj_y, not (…, K, N); return how many.

    The operand is split into heads by RESHAPE, TRANSPOSE, RESHAPE anyway; swapping the last two axes of that transpose
    costs nothing. XNNPACK packs int8 operands of the form (N, K) with vector code and (K, N) with scalar code.
    """
    producers = {int(tensor): operator for operator in graph.operators for tensor in operator.outputs}
    readers = [int(tensor) for operator in graph.operators for tensor in operator.inputs]
    count = 0
    for operator in graph.operators:
        if graph.name(operator) != "BATCH_MATMUL" or operator.builtinOptions.adjY:
            continue
        right = int(operator.inputs[1])
        chain = _transpose_chain(graph, right, producers)
        if chain is None or readers.count(right) != 1 or readers.count(int(chain[0].outputs[0])) != 1:
            continue
        transpose, reshape = chain
        permutation = graph.constant(int(transpose.inputs[1]))
        assert permutation is not None
        swapped = permutation.copy()
        swapped[-2:] = swapped[-2:][::-1]
        transpose.inputs = [transpose.inputs[0], _constant_like(graph, int(transpose.inputs[1]), swapped)]
        for tensor in (int(transpose.outputs[0]), right):
            shape = list(graph.tensors[tensor].shape)
            graph.tensors[tensor].shape = [*shape[:-2], shape[-1], shape[-2]]
        target = np.array(graph.tensors[right].shape, np.int32)
        reshape.inputs = [reshape.inputs[0], _constant_like(graph, int(reshape.inputs[1]), target)]
        if reshape.builtinOptions is not None:
            reshape.builtinOptions.newShape = target.tolist()
        operator.builtinOptions.adjY = True
        count += 1
    return count


def _transpose_chain(graph: Graph, tensor: int, producers: dict[int, Any]) -> tuple[Any, Any] | None:
    """Return the TRANSPOSE and the RESHAPE that made `tensor`, if the reshape only merged leading axes."""
    reshape = producers.get(tensor)
    if reshape is None or graph.name(reshape) != "RESHAPE":
        return None
    transpose = producers.get(int(reshape.inputs[0]))
    if transpose is None or graph.name(transpose) != "TRANSPOSE":
        return None
    before, after = graph.tensors[int(reshape.inputs[0])].shape, graph.tensors[tensor].shape
    return (transpose, reshape) if list(before[-2:]) == list(after[-2:]) else None


def _constant_like(graph: Graph, tensor: int, content: Any) -> int:
    """Add an int32 constant of the shape of `tensor`; the old one may have other readers."""
    return graph.add_tensor(tensor, "INT32", "_swapped", content)
