"""What an .onnx file is, read from the file itself, and what ONNX Runtime makes of it. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgekit.errors import LoadError, MissingExtraError
from edgekit.export.audit.record import (
    CONVERT,
    DYNAMIC,
    INT8,
    UNKNOWN,
    UNPACK,
    Audit,
    Op,
    Port,
    WeightCounter,
)
from edgekit.export.onnx.graph import OnnxGraph
from edgekit.export.onnx.macs import PRODUCTS, multiply_accumulates
from edgekit.export.onnx.shapes import tensor_types

COUNTED = (
    "int8: integer operators (QLinear…, …Integer), and float ones between DequantizeLinear inputs and a "
    "QuantizeLinear output (products: inputs are enough), which runtimes fuse into integer kernels"
)
METADATA_PREFIX = "edgekit."
_NAMES: Mapping[int, str] = {
    1: "fp32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "fp16", 11: "fp64", 12: "uint32", 13: "uint64", 16: "bf16", 17: "fp8", 18: "fp8", 19: "fp8", 20: "fp8",
    21: "uint4", 22: "int4", 23: "fp4", 24: "fp8", 25: "uint2", 26: "int2",
}  # fmt: skip
"""TensorProto.DataType; the kinds of 8-bit floats are one here."""

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_DYNAMIC_CODES = "DynamicQuantizeLinear"
_CONVERSIONS = (_QUANTIZE, _DEQUANTIZE, _DYNAMIC_CODES)
_FOLDED = ("Relu", "Clip")  # between a product and its QuantizeLinear: the codes' own limits do their work
_MOVES = ("Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze", _DEQUANTIZE)
_FLOAT_OUT = ("Gemm", "MatMul")  # runtimes have integer kernels of these with float output
_INTEGER_KINDS = (
    "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "QGemm", "QAttention", "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM", "ConvTransposeInteger",
)  # fmt: skip


def read_onnx(path: Path) -> OnnxGraph:
    """Parse a file without its external data.

    Raises:
        LoadError: not there, or not an ONNX model.
        MissingExtraError: onnx is not installed.
    """
    try:
        import onnx
    except ImportError as e:
        raise MissingExtraError("onnx", "onnx", "Reading an .onnx file") from e
    if not path.is_file():
        raise LoadError(f"{path} is not a file")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as e:  # protobuf's own error class differs between its backends
        raise LoadError(f"{path} is not an ONNX model that can be read: it is damaged or of another type") from e
    if not model.graph.node and not model.graph.output:
        raise LoadError(f"{path} holds no ONNX graph: it is damaged or of another type")
    return OnnxGraph(model)


def audit_onnx(path: Path) -> Audit:
    """Audit an .onnx file. Raises as `read_onnx`."""
    graph = read_onnx(path)
    try:
        return _audit(graph, path)
    # a damaged name is no string any more, a damaged size not what it counts
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as e:
        raise LoadError(f"{path} is damaged: its nodes, names and tensors do not fit together") from e


def _audit(graph: OnnxGraph, path: Path) -> Audit:
    reader = _Reader(graph)
    external = _external_files(graph, path)
    counter = reader.weights()
    texts = {entry.key: entry.value for entry in graph.model.metadata_props}
    opsets = ", ".join(f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in graph.model.opset_import)
    producer = f"{graph.model.producer_name} {graph.model.producer_version}".strip()
    return Audit(
        path=str(path),
        format="onnx",
        size_bytes=path.stat().st_size + sum(size for size in external.values() if size),
        made_by={"producer": producer or "unknown", "opset": opsets, "IR": str(graph.model.ir_version)},
        inputs=tuple(_port(entry) for entry in graph.model.graph.input if entry.name not in graph.constants),
        outputs=tuple(_port(entry) for entry in graph.model.graph.output),
        metadata={k.removeprefix(METADATA_PREFIX): v for k, v in texts.items() if k.startswith(METADATA_PREFIX)},
        weights=counter.weights(),
        quantization_bytes=counter.quantization_bytes,
        ops=tuple(reader.ops()),
        boundaries=reader.boundaries(),
        counted=COUNTED,
        notes=(*reader.notes(), *_external_notes(external)),
    )


class _Reader:
    """Walks one model; nodes of subgraphs (If, Loop) are counted with those of the main graph."""

    def __init__(self, graph: OnnxGraph) -> None:
        self.graph = graph
        self.nodes = list(_all_nodes(graph.model.graph))
        self.tensors = dict(_all_constants(graph.model.graph))
        self.producers = {name: node for node in self.nodes for name in node.output if name}
        self.consumers: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        self._notes: list[str] = []
        try:
            self.types = tensor_types(graph.model)
        except Exception as e:  # shape inference raises what it likes on graphs of odd or damaged content
            self.types = {}
            self._notes.append(f"shapes cannot be inferred: {str(e).strip().splitlines()[0][:200]}")
        self._outputs = {entry.name for entry in graph.model.graph.output}

    def notes(self) -> tuple[str, ...]:
        """Return what a reader must know."""
        return tuple(self._notes)

    # ---- weights

    def weights(self) -> WeightCounter:
        """Count the constants by dtype, those that are scales, zero points, shapes and the like apart."""
        counter = WeightCounter()
        for name, tensor in self.tensors.items():
            dtype, count = _NAMES.get(tensor.data_type, UNKNOWN), math.prod(tensor.dims)
            size = len(tensor.raw_data) or None
            if self._is_quantization(name, tensor):
                counter.quantization_bytes += size or count * 4
            elif dtype not in ("int64", "bool", "string", UNKNOWN) and (dtype != "int32" or self._is_bias(name)):
                counter.add(dtype, count, size)
        return counter

    def _is_quantization(self, name: str, tensor: Any) -> bool:
        readers = self.consumers.get(name, ())
        if any(r.op_type in (_QUANTIZE, _DEQUANTIZE) and name in list(r.input)[1:] for r in readers):
            return True
        return len(tensor.dims) <= 1 and tensor.data_type != 6 and any(is_integer(r) for r in readers)

    def _is_bias(self, name: str) -> bool:
        return any(r.op_type == _DEQUANTIZE or is_integer(r) for r in self.consumers.get(name, ()))

    # ---- operations

    def ops(self) -> Iterator[Op]:
        """Yield the operations in order."""
        for node in self.nodes:
            if node.op_type == "Constant":
                continue
            weight = self._weight_shape(node)
            macs = multiply_accumulates(node, self._shape, weight)
            yield Op(node.op_type, self.arithmetic(node), macs, weight is not None)

    def arithmetic(self, node: Any) -> str:
        """Return what a node computes in."""
        if node.op_type in _CONVERSIONS:
            return UNPACK if node.op_type == _DEQUANTIZE and node.input[0] in self.tensors else CONVERT
        if node.op_type.startswith("Dynamic"):
            return DYNAMIC
        if is_integer(node):
            return DYNAMIC if self._source(node.input[0], _DYNAMIC_CODES) else INT8
        return INT8 if self._between_codes(node) else self._plain_dtype(node)

    def _between_codes(self, node: Any) -> bool:
        """Whether the node stands between dequantized inputs and a quantized output."""
        data = [name for name in node.input if name and not self._is_small(name)]
        if node.op_type in PRODUCTS:
            data = list(node.input[:2])
        if not data or not all(self._source(name, _DEQUANTIZE) for name in data):
            return False
        if all(self.producers[name].input[0] in self.tensors for name in data):
            return False  # weights alone in codes are storage: their product is of floats
        return node.op_type in _FLOAT_OUT or all(self._goes_to_codes(name) for name in node.output if name)

    def _goes_to_codes(self, name: str) -> bool:
        readers = self.consumers.get(name, [])
        if not readers or name in self._outputs:
            return False
        return all(
            r.op_type == _QUANTIZE or (r.op_type in _FOLDED and all(map(self._goes_to_codes, r.output)))
            for r in readers
        )

    def _source(self, name: str, kind: str) -> bool:
        node = self.producers.get(name)
        return node is not None and node.op_type == kind

    def _is_small(self, name: str) -> bool:
        tensor = self.tensors.get(name)
        return tensor is not None and (tensor.data_type in (6, 7, 9) or math.prod(tensor.dims) <= 1)

    def _plain_dtype(self, node: Any) -> str:
        for name in (*node.output, *node.input):
            code = self.types.get(name, (0, None))[0] or (self.tensors[name].data_type if name in self.tensors else 0)
            if code:
                return _NAMES.get(code, UNKNOWN)
        return UNKNOWN

    # ---- shapes

    def _shape(self, name: str) -> tuple[int, ...] | None:
        shape = self.types.get(name, (0, None))[1]
        if shape is None or any(side is None for side in shape):
            return None
        return tuple(side for side in shape if side is not None)

    def _weight_shape(self, node: Any) -> tuple[int, ...] | None:
        """Return the shape of the stored weight, seen through dequantizing and reshaping; None for computed ones."""
        if node.op_type not in PRODUCTS:
            return None
        at = PRODUCTS[node.op_type][1]
        name = node.input[at] if len(node.input) > at else ""
        origin, steps = name, 0
        while origin not in self.tensors and origin in self.producers and steps < 8:
            producer = self.producers[origin]
            if producer.op_type not in _MOVES:
                return None
            origin, steps = producer.input[0], steps + 1
        if origin not in self.tensors:
            return None
        return self._shape(name) or tuple(self.tensors[origin].dims)

    def boundaries(self) -> dict[str, int]:
        """Count changes of representation."""
        found = {"quantize": 0, "dequantize": 0, "dequantize weights": 0, "quantize at run time": 0}
        for node in self.nodes:
            if node.op_type == _QUANTIZE:
                found["quantize"] += 1
            elif node.op_type == _DYNAMIC_CODES:
                found["quantize at run time"] += 1
            elif node.op_type == _DEQUANTIZE:
                found["dequantize weights" if node.input[0] in self.tensors else "dequantize"] += 1
        return {name: count for name, count in found.items() if count}


def is_integer(node: Any) -> bool:
    """Whether a node computes with 8-bit codes."""
    return node.op_type.startswith("QLinear") or node.op_type in _INTEGER_KINDS


def _all_nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for entry in node.attribute:
            for inner in (*([entry.g] if entry.HasField("g") else []), *entry.graphs):
                yield from _all_nodes(inner)


def _all_constants(graph: Any) -> Iterator[tuple[str, Any]]:
    """Yield initializers and tensor-valued Constant nodes, subgraphs included."""
    yield from ((tensor.name, tensor) for tensor in graph.initializer)
    for node in _all_nodes(graph):
        for entry in node.attribute:
            if node.op_type == "Constant" and entry.HasField("t"):
                yield node.output[0], entry.t
            for inner in (*([entry.g] if entry.HasField("g") else []), *entry.graphs):
                yield from ((tensor.name, tensor) for tensor in inner.initializer)


def _port(entry: Any) -> Port:
    tensor = entry.type.tensor_type
    sides = [
        int(side.dim_value) if side.HasField("dim_value") else (str(side.dim_param) or None)
        for side in tensor.shape.dim
    ]
    return Port(entry.name, tuple(sides), _NAMES.get(tensor.elem_type, UNKNOWN))


def _external_files(graph: OnnxGraph, path: Path) -> dict[str, int | None]:
    """Return the sizes of the files beside the model that hold its weights; None where one is not there."""
    found: dict[str, int | None] = {}
    for _, tensor in _all_constants(graph.model.graph):
        for entry in tensor.external_data:
            if entry.key == "location" and entry.value not in found:
                inside = ".." not in Path(entry.value).parts and not Path(entry.value).is_absolute()
                file = path.parent / entry.value
                found[entry.value] = file.stat().st_size if inside and file.is_file() else None
    return found


def _external_notes(files: Mapping[str, int | None]) -> tuple[str, ...]:
    notes = [f"weights lie in {len(files)} more file{'s' * (len(files) > 1)} beside this one"] if files else []
    missing = [name for name, size in files.items() if size is None]
    if missing:
        notes.append(f"not there, or outside the folder: {', '.join(missing[:3])}")
    return tuple(notes)
