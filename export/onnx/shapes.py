"""Shapes and dtypes of every tensor of an ONNX graph, also behind operators that onnx itself does not know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edgekit.export.onnx.graph import CONTRIB

_STAND_INS: Mapping[str, tuple[str, tuple[int, ...]]] = {
    # ONNX Runtime's own operator -> a standard one that gives the same shape, and the inputs that it takes
    "BiasGelu": ("Add", (0, 1)),
    "DynamicQuantizeMatMul": ("MatMul", (0, 1)),
    "FastGelu": ("Identity", (0,)),
    "DequantizeLinear": ("DequantizeLinear", (0, 1)),
    "FusedConv": ("Conv", (0, 1)),
    "FusedGemm": ("Gemm", (0, 1)),
    "Gelu": ("Identity", (0,)),
    "MatMulIntegerToFloat": ("MatMul", (0, 1)),
    "QGemm": ("Gemm", (0, 3)),
    "QLinearAdd": ("Add", (0, 3)),
    "QLinearAveragePool": ("AveragePool", (0,)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,)),
    "QLinearLeakyRelu": ("Identity", (0,)),
    "QLinearMul": ("Mul", (0, 3)),
    "QLinearSigmoid": ("Identity", (0,)),
    "QLinearSoftmax": ("Identity", (0,)),
    "QuantizeLinear": ("QuantizeLinear", (0, 1)),
    "QuickGelu": ("Identity", (0,)),
    "SimplifiedLayerNormalization": ("Identity", (0,)),
    "SkipLayerNormalization": ("Add", (0, 1)),
}
_LARGE = 1024
"""Elements; larger constants cannot be a shape, an axis or a pad, whose values shape inference needs."""


def tensor_types(model: Any) -> dict[str, tuple[int, tuple[int | None, ...] | None]]:
    """Return (ONNX element type, shape) of each tensor of the main graph; a free batch counts as 1.

    The shape is None where it cannot be told; a size is None where it is free.
    """
    from onnx import shape_inference

    inferred = shape_inference.infer_shapes(_skeleton(model), check_type=False, strict_mode=False, data_prop=True)
    graph = inferred.graph
    found: dict[str, tuple[int, tuple[int | None, ...] | None]] = {
        tensor.name: (tensor.data_type, tuple(tensor.dims)) for tensor in graph.initializer
    }
    for info in (*graph.input, *graph.output, *graph.value_info):
        tensor = info.type.tensor_type
        sides = [int(side.dim_value) if side.HasField("dim_value") else None for side in tensor.shape.dim]
        found[info.name] = (tensor.elem_type, tuple(sides) if tensor.HasField("shape") else None)
    return found


def _skeleton(model: Any) -> Any:
    """Return the model without its large constants, with a batch of 1 and standard operators in contributed places."""
    import onnx

    bare = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = bare.graph
    graph.name = model.graph.name
    graph.input.extend(model.graph.input)
    initializers = {tensor.name for tensor in model.graph.initializer}
    for entry in graph.input:
        sides = entry.type.tensor_type.shape.dim
        if entry.name not in initializers and sides and not sides[0].HasField("dim_value"):
            sides[0].dim_value = 1
    taken = {entry.name for entry in graph.input}
    for tensor in model.graph.initializer:
        count = 1
        for side in tensor.dims:
            count *= side
        if count <= _LARGE and tensor.data_location != onnx.TensorProto.EXTERNAL:
            graph.initializer.append(tensor)
        elif tensor.name not in taken:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    graph.node.extend(_standard(_in_order(model.graph.node)))
    for entry in model.graph.output:  # the type as the file says, the shape to be inferred
        graph.output.append(onnx.ValueInfoProto(name=entry.name))
        graph.output[-1].type.tensor_type.elem_type = entry.type.tensor_type.elem_type
    return bare


def _in_order(nodes: Any) -> list[Any]:
    """Return the nodes with every producer before its readers; float16 converters append their casts at the end."""
    producer = {name: at for at, node in enumerate(nodes) for name in node.output if name}
    order: list[int] = []
    state = [0] * len(nodes)  # 0 new, 1 its producers are waited for, 2 placed
    for root in range(len(nodes)):
        waiting = [root]
        while waiting:
            at = waiting[-1]
            missing = [producer[name] for name in nodes[at].input if name in producer and state[producer[name]] == 0]
            if state[at] == 2:
                waiting.pop()
            elif missing and state[at] == 0:
                waiting += reversed(missing)
                state[at] = 1
            else:
                state[at] = 2
                order.append(at)
                waiting.pop()
    return [nodes[at] for at in order]


def _standard(nodes: Any) -> Iterator[Any]:
    """Yield the nodes, those of ONNX Runtime's domain replaced where a standard one gives the same shape."""
    from onnx import helper

    for node in nodes:
        kind, inputs = _STAND_INS.get(node.op_type, ("", ()))
        if node.domain != CONTRIB or not kind or len(node.input) <= max(inputs):
            yield node
            continue
        names = [node.input[at] for at in inputs]
        kept = [entry for entry in node.attribute if kind in node.op_type and not entry.name.startswith("activation")]
        replaced = helper.make_node(kind, names, list(node.output[:1]), name=node.name)
        replaced.attribute.extend(kept)
        yield replaced
