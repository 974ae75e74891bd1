"""Exact changes of a quantized ONNX graph after which ONNX Runtime converts nothing twice.

The codes and the arithmetic stay; what goes are conversions that the runtime's own optimizer would put in. Measured on
mobilevit_s at 256 px, one thread (AVX512-VNNI, ONNX Runtime 1.31; per node, from the runtime's profile).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgekit.export.onnx.graph import OnnxGraph, attribute, of_kind
from edgekit.export.onnx.surgery import Shapes

CHANNELS_LAST = [0, 2, 3, 1]
CHANNELS_FIRST = [0, 3, 1, 2]

ACTIVATIONS = ("QuickGelu", "Relu", "Clip")
"""What the runtime computes in the blocked layout of the float convolution before it."""


def arrange(graph: OnnxGraph, shapes: Shapes) -> None:
    """Carry out every change below on `graph`, which `QdqWriter` has quantized.

    Args:
        graph: changed in place.
        shapes: of the activations of the float graph; a free batch may be unknown.
    """
    merge_reshapes(graph)
    narrow_concatenations(graph)
    free_int8_codes(graph)
    queries_by_convolution(graph)
    enter_channels_last(graph, shapes)


def merge_reshapes(graph: OnnxGraph) -> int:
    """Let a Reshape read what the one before it reads; return how many."""
    producers, count = graph.producers(), 0
    for node in of_kind(graph.nodes, "Reshape"):
        before = producers.get(node.input[0])
        if before is None or before.op_type != "Reshape" or node.input[1] not in graph.constants:
            continue
        if 0 not in graph.array(node.input[1]):  # 0 stands for the side that the first Reshape gave
            node.input[0] = before.input[0]
            count += 1
    graph.rebuild(list(graph.nodes))
    return count


def narrow_concatenations(graph: OnnxGraph) -> int:
    """Round what is concatenated, not the result: bytes are joined in place of floats; return how many.

    36 and 15 us became 16 and 10, and the permutation of one part before it 12 in place of 20.
    """
    changes: dict[str, list[Any]] = {}
    for node in of_kind(graph.nodes, "Concat"):
        quantize = _only_reader(graph, node)
        if quantize is None or quantize.op_type != "QuantizeLinear":
            continue
        parts = [graph.node("QuantizeLinear", [part, *quantize.input[1:]], node.name) for part in node.input]
        codes = [part.output[0] for part in parts]
        joined = graph.node("Concat", codes, node.name, output=quantize.output[0], axis=attribute(node, "axis"))
        changes[node.name], changes[quantize.name] = [], [*parts, joined]
    return _replace(graph, changes)


def free_int8_codes(graph: OnnxGraph) -> int:
    """Keep the runtime from making keys and values uint8 first and int8 then; return how many.

    It moves a QuantizeLinear up through Reshape and Transpose, here to the Gemm behind them. There the int8 codes
    become uint8, as x86 builds have it, and a DequantizeLinear and a QuantizeLinear make them int8 again: 117 us with
    the product. It does not look through Flatten, which of a matrix changes nothing: 84 us.
    """
    changes: dict[str, list[Any]] = {}
    for gemm, reshape, quantize in _coded_gemms(graph, np.int8):
        flat = graph.node("Flatten", [gemm.output[0]], gemm.name, axis=1)
        codes = graph.node("QuantizeLinear", [flat.output[0], *quantize.input[1:]], gemm.name)
        shaped = graph.node("Reshape", [codes.output[0], reshape.input[1]], gemm.name, output=quantize.output[0])
        changes[reshape.name], changes[quantize.name] = [], [flat, codes, shaped]
    return _replace(graph, changes)


def queries_by_convolution(graph: OnnxGraph) -> int:
    """Compute uint8 queries x W + b as a pointwise convolution over tokens; return how many.

    The runtime's int8 convolution writes codes at 420 GMAC/s, its int8 Gemm at 270: 53 in place of 78 us for 1024
    tokens of 144 channels. The permutations around it cancel against those of the runtime's own layout.
    """
    producers = graph.producers()
    changes: dict[str, list[Any]] = {}
    for gemm, reshape, quantize in _coded_gemms(graph, np.uint8):
        wide, weights = (producers.get(name) for name in gemm.input[:2])
        if wide is None or weights is None or {wide.op_type, weights.op_type} != {"DequantizeLinear"}:
            continue
        changes[gemm.name] = _convolution(graph, gemm, wide, weights, quantize)
        last = changes[gemm.name][-1].output[0]
        shaped = graph.node("Reshape", [last, reshape.input[1]], gemm.name, output=quantize.output[0])
        changes[reshape.name], changes[quantize.name] = [], [shaped]
    return _replace(graph, changes)


def _convolution(graph: OnnxGraph, gemm: Any, wide: Any, weights: Any, quantize: Any) -> list[Any]:
    """Return the nodes from the codes of the rows (T, K) to those of the convolution's result, (1, 1, T, N)."""
    stem = gemm.name
    codes = graph.array(weights.input[0])
    codes = codes if attribute(gemm, "transB", 0) else codes.T
    outputs, inputs = codes.shape
    rows = graph.constant(f"{stem}.rows", np.array([1, 1, -1, inputs]))
    kernel = graph.constant(f"{stem}.kernel", codes.reshape(outputs, inputs, 1, 1))
    grid = graph.node("Reshape", [wide.input[0], rows], stem)
    first = graph.node("Transpose", [grid.output[0]], stem, perm=CHANNELS_FIRST)
    x = graph.node("DequantizeLinear", [first.output[0], *wide.input[1:]], stem)
    w = graph.node("DequantizeLinear", [kernel, *weights.input[1:]], stem, axis=0)
    conv = graph.node("Conv", [x.output[0], w.output[0], *gemm.input[2:]], stem, kernel_shape=[1, 1])
    narrow = graph.node("QuantizeLinear", [conv.output[0], *quantize.input[1:]], stem)
    last = graph.node("Transpose", [narrow.output[0]], stem, perm=CHANNELS_LAST)
    return [grid, first, x, w, conv, narrow, last]


def enter_channels_last(graph: OnnxGraph, shapes: Shapes) -> int:
    """Permute a feature map to channels last before it is rounded for int8 convolutions; return how many.

    Float convolutions leave the runtime's blocked layout, (B, C/16, H, W, 16), and int8 ones read (B, H, W, C). In one
    step that is 52 us for 32 × 128 × 128 floats; the runtime goes by way of (B, C, H, W): 90 us for the floats and 78
    for the bytes. Flatten keeps it from moving the rounding up.
    """
    producers = graph.producers()
    changes: dict[str, list[Any]] = {}
    for quantize in of_kind(graph.nodes, "QuantizeLinear"):
        source = quantize.input[0]
        sides = list(shapes.get(source, ()))
        known = len(sides) == 4 and all(isinstance(side, int) for side in sides[1:])
        if not known or not _is_float_convolution(producers, source) or not _feeds_convolutions(graph, quantize):
            continue
        _, channels, height, width = sides
        shape = graph.constant(f"{source}.map", np.array([-1, height, width, channels]))
        last = graph.node("Transpose", [source], source, perm=CHANNELS_LAST)
        flat = graph.node("Flatten", [last.output[0]], source, axis=3)
        codes = graph.node("QuantizeLinear", [flat.output[0], *quantize.input[1:]], source)
        shaped = graph.node("Reshape", [codes.output[0], shape], source)
        first = graph.node("Transpose", [shaped.output[0]], source, perm=CHANNELS_FIRST, output=quantize.output[0])
        changes[quantize.name] = [last, flat, codes, shaped, first]
    return _replace(graph, changes)


def _is_float_convolution(producers: Mapping[str, Any], tensor: str) -> bool:
    """Tell whether a convolution in float, or the activation after one, makes `tensor`."""
    node = producers.get(tensor)
    if node is not None and node.op_type in ACTIVATIONS:
        node = producers.get(node.input[0])
    before = producers.get(node.input[0]) if node is not None and node.op_type == "Conv" else None
    return node is not None and node.op_type == "Conv" and (before is None or before.op_type != "DequantizeLinear")


def _feeds_convolutions(graph: OnnxGraph, quantize: Any) -> bool:
    """Tell whether only convolutions read the dequantized codes."""
    wide = _only_reader(graph, quantize)
    readers = graph.consumers().get(wide.output[0], []) if wide is not None else []
    return bool(readers) and all(reader.op_type == "Conv" for reader in readers)


def _coded_gemms(graph: OnnxGraph, code: type[np.int8] | type[np.uint8]) -> list[tuple[Any, Any, Any]]:
    """Return (Gemm, Reshape, QuantizeLinear) in a row, each the only reader of the one before, with codes as `code`.

    These are the queries, keys and values of attention whose products run in int8: no reader of the codes widens them.
    """
    found = []
    for gemm in of_kind(graph.nodes, "Gemm"):
        reshape = _only_reader(graph, gemm)
        quantize = _only_reader(graph, reshape) if reshape is not None and reshape.op_type == "Reshape" else None
        if quantize is None or quantize.op_type != "QuantizeLinear":
            continue
        readers = graph.consumers().get(quantize.output[0], [])
        if graph.array(quantize.input[2]).dtype == code and all(r.op_type != "DequantizeLinear" for r in readers):
            found.append((gemm, reshape, quantize))
    return found


def _only_reader(graph: OnnxGraph, node: Any) -> Any | None:
    """Return the one node that reads the one output of `node`, None where there are more or it is an output."""
    readers = graph.consumers().get(node.output[0], [])
    return readers[0] if len(readers) == 1 and node.output[0] not in graph.outputs else None


def _replace(graph: OnnxGraph, changes: Mapping[str, list[Any]]) -> int:
    """Put lists of nodes in the place of the nodes of these names; return how many lists hold any."""
    graph.rebuild([new for node in graph.nodes for new in changes.get(node.name, [node])])
    return sum(bool(nodes) for nodes in changes.values())
