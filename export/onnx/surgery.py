"""Exact changes of a float ONNX graph that let more of it run in int8. The function stays the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.export.onnx.graph import CONTRIB, OnnxGraph, attribute

MIN_HEAD_DIM = 32
"""Narrower heads have fewer products than their softmax has conversions: measured, int8 gains nothing there."""

Shapes = Mapping[str, Sequence[int | str | None]]
"""Shape of each tensor; a free batch is a string or None."""


def fuse_silu(graph: OnnxGraph) -> int:
    """Replace x · Sigmoid(x) by one QuickGelu(x; α = 1) node; return how many. For files made elsewhere.

    ONNX Runtime fuses the pair itself in a float graph, but no longer once quantize/dequantize nodes split it.
    """
    producers, consumers = graph.producers(), graph.consumers()
    nodes, count = [], 0
    for node in graph.nodes:
        source = _silu_source(node, producers, consumers)
        if source is None:
            nodes.append(node)
            continue
        nodes.append(graph.node("QuickGelu", [source], node.name, output=node.output[0], alpha=1.0, domain=CONTRIB))
        count += 1
    if count:
        graph.use_domain(CONTRIB)
        graph.rebuild(nodes)
    return count


def _silu_source(node: Any, producers: Mapping[str, Any], consumers: Mapping[str, list[Any]]) -> str | None:
    """Return x where `node` is the Mul of x · Sigmoid(x) and nothing else reads the sigmoid."""
    if node.op_type != "Mul":
        return None
    for x, gate in (node.input, node.input[::-1]):
        sigmoid = producers.get(gate)
        if sigmoid is not None and sigmoid.op_type == "Sigmoid" and sigmoid.input[0] == x and len(consumers[gate]) == 1:
            return str(x)
    return None


def linear_as_gemm(graph: OnnxGraph, shapes: Shapes) -> int:
    """Write each linear layer of tokens, x W + b with x (…, K), as a Gemm of their rows; return how many.

    They arrive as a MatMul and an Add, of which ONNX Runtime 1.31 makes this Gemm by itself. In a quantized graph that
    comes before its int8 kernels are matched and leaves none: a vit_small_patch32_224 took 100 ms with pairs around the
    MatMul, 17 with pairs around this Gemm, 41 in float (one thread, busy machine, in turns). With ranges of the very
    picture (DynamicQuantizeMatMul) it took 15, but was 1.7 dB further from float, and the pictures of a batch change
    each other's answers.
    """
    consumers = graph.consumers()
    replaced: dict[str, list[Any]] = {}
    for node in list(graph.nodes):
        sides = [side if isinstance(side, int) else -1 for side in shapes.get(node.output[0], ())]
        if not _is_linear(graph, node) or len(sides) < 2 or sides.count(-1) > 1:
            continue
        add, bias = _added_bias(graph, consumers, node)
        last = node if add is None else add
        replaced[node.output[0]] = []
        replaced[last.output[0]] = _gemm_of_rows(graph, node, bias, sides[:-1], last.output[0])
    if replaced:
        graph.rebuild([new for node in graph.nodes for new in replaced.get(node.output[0], [node])])
    return sum(bool(nodes) for nodes in replaced.values())


def _gemm_of_rows(graph: OnnxGraph, product: Any, bias: list[str], outer: list[int], output: str) -> list[Any]:
    """Return the nodes that compute `output` (*outer, N) as a Gemm."""
    stem, (x, weight) = product.name or product.output[0], product.input
    if len(outer) == 1:  # rows already
        return [graph.node("Gemm", [x, weight, *bias], stem, output=output)]
    inner, width = graph.constants[weight].dims
    rows = graph.constant(f"{stem}.rows", np.array([-1, inner]))
    shape = graph.constant(f"{stem}.shape", np.array([*outer, width]))
    enter = graph.node("Reshape", [x, rows], stem)
    gemm = graph.node("Gemm", [enter.output[0], weight, *bias], stem)
    return [enter, gemm, graph.node("Reshape", [gemm.output[0], shape], stem, output=output)]


def _is_linear(graph: OnnxGraph, node: Any) -> bool:
    """Tell whether a node is a product with a constant matrix."""
    weight = graph.constants.get(node.input[1]) if node.op_type == "MatMul" else None
    return weight is not None and len(weight.dims) == 2


def _added_bias(graph: OnnxGraph, consumers: Mapping[str, list[Any]], product: Any) -> tuple[Any | None, list[str]]:
    """Return the Add of one number per output, where nothing else reads the product, and the name of these numbers."""
    output, readers = product.output[0], consumers.get(product.output[0], [])
    if len(readers) != 1 or readers[0].op_type != "Add" or output in graph.outputs:
        return None, []
    (bias,) = [name for name in readers[0].input if name != output] or [""]
    width = list(graph.constants[product.input[1]].dims[1:])
    fits = bias in graph.constants and list(graph.constants[bias].dims) == width
    return (readers[0], [bias]) if fits else (None, [])


@dataclass(frozen=True)
class Product:
    """A MatMul of two activations, to be quantized.

    Attributes:
        name: the node.
        sources: the two activations as they are before any permutation; 8-bit codes are permuted at a quarter of the
            cost of floats.
        gates: names of the nodes through which the sources enter; the product's own where nothing stands between.
    """

    name: str
    sources: tuple[str, str]
    gates: tuple[str, str]


def open_attention(graph: OnnxGraph, shapes: Shapes, min_tokens: int) -> list[Product]:
    """Write each Attention over at least `min_tokens` queries and keys as two MatMul around a Softmax; return these.

    Attention(q, k, v) = softmax(scale · q kᵀ) v per head (ONNX opset 23); q is (G, N, heads · d), k and v are
    (G, M, heads · d). As one node its products cannot be quantized. The scale is folded into nothing here: edgekit's
    files carry scale 1.
    """
    nodes: list[Any] = []
    products: list[Product] = []
    for node in graph.nodes:
        if node.op_type != "Attention" or not _can_be_opened(node, shapes, min_tokens):
            nodes.append(node)
            continue
        products.extend(_open_one(graph, node, shapes, nodes))
    if products:
        graph.rebuild(nodes)
    return products


def _can_be_opened(node: Any, shapes: Shapes, min_tokens: int) -> bool:
    plain = len(node.input) == 3 and len(node.output) == 1 and attribute(node, "scale") == 1.0
    sides = [side for name in node.input[:3] for side in shapes.get(name, ())[1:]]
    if not plain or len(sides) != 6 or not all(isinstance(side, int) for side in sides):
        return False
    tokens, width = min(int(sides[0] or 0), int(sides[2] or 0)), int(sides[1] or 0)
    return tokens >= min_tokens and width >= MIN_HEAD_DIM * int(attribute(node, "q_num_heads"))


def _open_one(graph: OnnxGraph, node: Any, shapes: Shapes, nodes: list[Any]) -> list[Product]:
    stem, heads = node.name, attribute(node, "q_num_heads")
    tokens, width = shapes[node.input[0]][1:]
    merge = graph.constant(f"{stem}.merge", np.array([-1, tokens, width]))
    parts, gates = [], []
    for name, perm in zip(node.input, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True):
        split = graph.constant(f"{stem}.split", np.array([-1, shapes[name][1], heads, int(width or 0) // heads]))
        nodes.append(graph.node("Reshape", [name, split], stem))
        gates.append(nodes[-1].name)
        nodes.append(graph.node("Transpose", [nodes[-1].output[0]], stem, perm=perm))
        parts.append(nodes[-1].output[0])
    scores = graph.node("MatMul", parts[:2], stem)
    softmax = graph.node("Softmax", [scores.output[0]], stem, axis=-1)
    mixed = graph.node("MatMul", [softmax.output[0], parts[2]], stem)
    back = graph.node("Transpose", [mixed.output[0]], stem, perm=[0, 2, 1, 3])
    nodes += [scores, softmax, mixed, back]
    nodes.append(graph.node("Reshape", [back.output[0], merge], stem, output=node.output[0]))
    q, k, v = node.input
    return [
        Product(scores.name, (q, k), (gates[0], gates[1])),
        Product(mixed.name, (softmax.output[0], v), (mixed.name, gates[2])),
    ]
