"""Take out RESHAPE operators that a quantized TFLite graph does not need: XNNPACK runs each as a copy.

Of 659 operators of mobilevit_s and 660 of mobilevit_xxs 49 go, of 324 of mobilevit_xxs_int8 36. In one process and in
turns at 256 px that was 0.7 % of the time of s, 1.2 % of xxs and 2.8 % of xxs_int8.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from edgekit.export.tflite.graph import Graph


def drop_reshapes(graph: Graph) -> int:
    """Carry out both changes below; return how many RESHAPE went. The same numbers are computed in the same order."""
    return _keep_axis_of_means(graph) + _attend_on_four_axes(graph)


def _keep_axis_of_means(graph: Graph) -> int:
    """Let MEAN over the last axis keep it, where ADD of a number and a RESHAPE that restores the axis follow."""
    readers = _readers(graph)
    gone = []
    for mean in graph.operators:
        if graph.name(mean) != "MEAN" or mean.builtinOptions.keepDims or not _is_over_last(graph, mean):
            continue
        add = _only(graph, readers, mean, "ADD")
        if add is None or not _adds_number(graph, add):
            continue
        reshape, kept = _only(graph, readers, add, "RESHAPE"), [*graph.shape(mean.outputs[0]), 1]
        if reshape is None or graph.shape(reshape.outputs[0]) != kept:
            continue
        mean.builtinOptions = copy.copy(mean.builtinOptions)  # operators may share their options
        mean.builtinOptions.keepDims = True
        for tensor in (mean.outputs[0], add.outputs[0]):
            graph.tensors[int(tensor)].shape = kept
        add.outputs = [int(reshape.outputs[0])]
        gone.append(reshape)
    graph.remove(gone)
    return len(gone)


def _attend_on_four_axes(graph: Graph) -> int:
    """Let attention read (groups, heads, N, d) and write it, with no RESHAPE to (groups · heads, N, d) and back."""
    readers = _readers(graph)
    producers = {int(tensor): operator for operator in graph.operators for tensor in operator.outputs}
    gone: list[Any] = []
    for scores in graph.operators:
        chain = _attention(graph, readers, scores)
        if chain is None:
            continue
        *inner, mix, back = chain
        merges = [producers.get(int(tensor)) for tensor in (*scores.inputs, mix.inputs[1])]
        axes = graph.shape(back.outputs[0])[:2]
        if not all(merge is not None and _merges(graph, readers, merge, axes) for merge in merges):
            continue
        left, right, values = (int(merge.inputs[0]) for merge in merges if merge is not None)
        scores.inputs, mix.inputs = [left, right], [int(mix.inputs[0]), values]
        for operator in inner:
            tensor = graph.tensors[int(operator.outputs[0])]
            tensor.shape = [*axes, *graph.shape(operator.outputs[0])[1:]]
        mix.outputs = [int(back.outputs[0])]
        gone += [*merges, back]
    graph.remove(gone)
    return len(gone)


def _attention(graph: Graph, readers: Mapping[int, list[Any]], scores: Any) -> list[Any] | None:
    """Return the operators from queries times keys to the RESHAPE behind the mixed values, else None."""
    if graph.name(scores) != "BATCH_MATMUL":
        return None
    chain = [scores]
    for name in ("DEQUANTIZE", "SOFTMAX", "QUANTIZE", "BATCH_MATMUL", "RESHAPE"):
        following = _only(graph, readers, chain[-1], name)
        if following is None or int(following.inputs[0]) != int(chain[-1].outputs[0]):
            return None
        chain.append(following)
    mixed, back = graph.shape(chain[-2].outputs[0]), graph.shape(chain[-1].outputs[0])
    return chain if len(back) == 4 and len(mixed) == 3 and back[2:] == mixed[1:] else None


def _merges(graph: Graph, readers: Mapping[int, list[Any]], reshape: Any, axes: list[int]) -> bool:
    """Tell whether a RESHAPE of one reader only merges the two leading axes `axes`."""
    before, after = graph.shape(reshape.inputs[0]), graph.shape(reshape.outputs[0])
    alone = graph.name(reshape) == "RESHAPE" and len(readers.get(int(reshape.outputs[0]), [])) == 1
    return alone and before[:2] == axes and len(before) == 4 and before[2:] == after[1:]


def _is_over_last(graph: Graph, mean: Any) -> bool:
    axes, rank = graph.constant(int(mean.inputs[1])), len(graph.shape(mean.inputs[0]))
    return axes is not None and [int(axis) % rank for axis in axes.ravel()] == [rank - 1]


def _adds_number(graph: Graph, add: Any) -> bool:
    constants = [graph.constant(int(tensor)) for tensor in add.inputs]
    return [constant.size for constant in constants if constant is not None] == [1]


def _readers(graph: Graph) -> dict[int, list[Any]]:
    """Return tensor → operators that read it, once for each reading; the caller reads the graph's outputs."""
    found: dict[int, list[Any]] = {tensor: [None] for tensor in graph.outputs}
    for operator in graph.operators:
        for tensor in operator.inputs:
            found.setdefault(int(tensor), []).append(operator)
    return found


def _only(graph: Graph, readers: Mapping[int, list[Any]], operator: Any, name: str) -> Any | None:
    """Return the one reader of an operator's output if it is a `name`."""
    found = readers.get(int(operator.outputs[0]), [])
    return found[0] if len(found) == 1 and found[0] is not None and graph.name(found[0]) == name else None
