"""Multiply-accumulates of ONNX operators, from shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from edgekit.export.onnx.graph import CONTRIB, attribute

Shape = tuple[int, ...]
ShapeOf = Callable[[str], Shape | None]

PRODUCTS: Mapping[str, tuple[int, int]] = {
    # operator -> its input and its weight
    "Conv": (0, 1), "ConvInteger": (0, 1), "ConvTranspose": (0, 1), "FusedConv": (0, 1), "QLinearConv": (0, 3),
    "Gemm": (0, 1), "FusedGemm": (0, 1), "QGemm": (0, 3),
    "MatMul": (0, 1), "FusedMatMul": (0, 1), "MatMulInteger": (0, 1), "QLinearMatMul": (0, 3),
    "MatMulIntegerToFloat": (0, 1), "DynamicQuantizeMatMul": (0, 1),
}  # fmt: skip
"""Convolutions and matrix products, those of ONNX Runtime included."""

_UNCOUNTED = ("Attention", "DeformConv", "Einsum", "GRU", "LSTM", "MatMulNBits", "MultiHeadAttention", "QAttention",
              "RNN", "GroupQueryAttention")  # fmt: skip
"""Operators with products inside that are not counted."""


def multiply_accumulates(node: Any, shape_of: ShapeOf, weight: Shape | None = None) -> int | None:
    """Return the multiply-accumulates of one node; 0 for an operator without products, None where they are unknown.

    Args:
        node: an onnx.NodeProto.
        shape_of: gives a tensor's shape, None where it is not known.
        weight: shape of the stored weight, where there is one.
    """
    if node.op_type in PRODUCTS:
        return _product(node, shape_of, weight)
    if node.op_type == "Attention" and node.domain != CONTRIB:
        return _attention(node, shape_of)
    return None if node.op_type in _UNCOUNTED else 0


def _product(node: Any, shape_of: ShapeOf, weight: Shape | None) -> int | None:
    """Return output elements times the length of each sum."""
    at, weight_at = PRODUCTS[node.op_type]
    out, first = shape_of(node.output[0]), shape_of(node.input[at])
    weight = weight or shape_of(node.input[weight_at])
    if node.op_type == "ConvTranspose":
        return math.prod(first) * math.prod(weight[1:]) if first and weight else None
    if "Conv" in node.op_type:
        return math.prod(out) * math.prod(weight[1:]) if out and weight else None
    if not out or not first:
        return None
    transposed = "transA" if "Gemm" in node.op_type else "trans_a"
    return math.prod(out) * first[-2 if attribute(node, transposed, 0) else -1]


def _attention(node: Any, shape_of: ShapeOf) -> int | None:
    """Return Q·Kᵀ and P·V: B · L · S · q_num_heads · (head size of K + head size of V)."""
    query, key, value = (shape_of(name) for name in node.input[:3])
    if not query or not key or not value:
        return None
    if len(query) == 4:
        batch, heads, length, size = query
        return batch * heads * length * key[2] * (size + value[3])
    heads, shared = int(attribute(node, "q_num_heads", 1)), int(attribute(node, "kv_num_heads", 1))
    return query[0] * query[1] * key[1] * (query[2] + value[2] * heads // shared)
