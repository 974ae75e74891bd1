"""What a .tflite file is, read from the file itself, and how LiteRT cuts it into partitions. Needs no torch."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgekit.errors import LoadError
from edgekit.export.audit.record import (
    CONVERT,
    DYNAMIC,
    INT8,
    UNKNOWN,
    UNPACK,
    Audit,
    Op,
    Port,
    RuntimeAudit,
    WeightCounter,
)
from edgekit.export.tflite.graph import Graph

COUNTED = (
    "int8: 8-bit codes in and out; int8-dynamic: products of float activations with 8-bit weights, whose activations "
    "the runtime quantizes as it goes"
)
_TYPES: Mapping[str, str] = {
    "FLOAT32": "fp32", "FLOAT16": "fp16", "FLOAT64": "fp64", "BFLOAT16": "bf16", "RESOURCE": UNKNOWN,
    "VARIANT": UNKNOWN, "COMPLEX64": UNKNOWN, "COMPLEX128": UNKNOWN,
}  # fmt: skip
_CODES = ("int8", "uint8", "int4", "uint4", "int2", "uint2")
_CONVERSIONS = ("QUANTIZE", "DEQUANTIZE", "FAKE_QUANT")
_PRODUCTS: Mapping[str, tuple[int, int]] = {
    # operator -> its input and its weight
    "CONV_2D": (0, 1), "CONV_3D": (0, 1), "DEPTHWISE_CONV_2D": (0, 1), "FULLY_CONNECTED": (0, 1),
    "BATCH_MATMUL": (0, 1), "TRANSPOSE_CONV": (2, 1), "CONV_3D_TRANSPOSE": (2, 1),
}  # fmt: skip
_UNCOUNTED = ("BIDIRECTIONAL_SEQUENCE_LSTM", "CUSTOM", "LSTM", "RNN", "SVDF", "UNIDIRECTIONAL_SEQUENCE_LSTM",
              "UNIDIRECTIONAL_SEQUENCE_RNN", "STABLEHLO_DOT_GENERAL", "STABLEHLO_CONVOLUTION", "STABLEHLO_COMPOSITE",
              "STABLEHLO_CUSTOM_CALL", "SPARSE_TO_DENSE")  # fmt: skip


def read_tflite(path: Path) -> Graph:
    """Parse a file.

    Raises:
        LoadError: not there, damaged, or not a TFLite model.
        MissingExtraError: ai-edge-litert is not installed.
    """
    if not path.is_file():
        raise LoadError(f"{path} is not a file")
    try:
        graph = Graph.read(path)
        if not graph.model.subgraphs:
            raise LoadError(f"{path} holds no graph: it is damaged or of another type")
    except (struct.error, AttributeError, OverflowError, RecursionError, KeyError, MemoryError) as e:
        raise LoadError(f"{path} is not a TFLite model that can be read: it is damaged or of another type") from e
    return graph


def audit_tflite(path: Path) -> Audit:
    """Audit a .tflite file. Raises as `read_tflite`."""
    graph = read_tflite(path)
    try:
        return _audit(graph, path)
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as e:
        raise LoadError(f"{path} is damaged: its tensors, buffers and operators do not fit together") from e


def audit_litert(path: Path) -> RuntimeAudit:
    """Open a file with LiteRT and tell its XNNPACK partitions.

    Raises:
        LoadError: the runtime rejects the file.
        MissingExtraError: ai-edge-litert is not installed.
    """
    from edgekit.export.tflite.session import partitions

    try:
        report = partitions(path)
    except UnicodeDecodeError as e:
        raise LoadError(f"LiteRT cannot read the names in {path}: it is damaged") from e
    facts = {"partitions": report.partitions, "delegated": report.delegated, "outside": dict(report.outside)}
    return RuntimeAudit("litert", version("ai-edge-litert"), "XNNPACK", facts=facts, note=str(report))


def _audit(graph: Graph, path: Path) -> Audit:
    readers = [_Subgraph(graph, subgraph) for subgraph in graph.model.subgraphs]
    counter = WeightCounter()
    seen: set[int] = set()
    for reader in readers:
        reader.count_weights(counter, seen)
    ops = tuple(op for reader in readers for op in reader.ops())
    notes = []
    if len(readers) > 1:
        notes.append(f"{len(readers)} subgraphs, counted together; inputs and outputs are those of the first")
    signatures = [_text(definition.signatureKey) for definition in graph.model.signatureDefs or []]
    codes = [code for code in graph.model.operatorCodes if code.customCode]
    if codes:
        notes.append(f"custom operators: {', '.join(sorted(_text(code.customCode) for code in codes))}")
    return Audit(
        path=str(path),
        format="tflite",
        size_bytes=path.stat().st_size,
        made_by={
            "description": _text(graph.model.description) or "unknown",
            "schema": str(graph.model.version),
            "signatures": ", ".join(signatures) or "none",
        },
        inputs=tuple(readers[0].port(index, names) for names in [_names(graph, "inputs")] for index in graph.inputs),
        outputs=tuple(readers[0].port(index, names) for names in [_names(graph, "outputs")] for index in graph.outputs),
        metadata=graph.metadata(),
        weights=counter.weights(),
        quantization_bytes=counter.quantization_bytes,
        ops=ops,
        boundaries=_boundaries(readers),
        counted=COUNTED,
        notes=tuple(notes),
    )


class _Subgraph:
    """One subgraph: its tensors and operators."""

    def __init__(self, graph: Graph, subgraph: Any) -> None:
        self.graph = graph
        self.tensors: list[Any] = subgraph.tensors
        self.operators: list[Any] = subgraph.operators or []
        self._dtypes = {code: name for name, code in vars(graph.schema.TensorType).items() if name[0] != "_"}
        # constants that are made float before use, as in files with float16 weights
        self._made_from = {int(op.outputs[0]): int(op.inputs[0]) for op in self.operators if self._widens(op)}

    def count_weights(self, counter: WeightCounter, seen: set[int]) -> None:
        """Count the constants that operators multiply or add: all float and coded ones, and quantized int32 biases."""
        for index in sorted({int(i) for op in self.operators for i in _list(op.inputs) if i >= 0}):
            tensor, size = self.tensors[index], self.stored_size(index)
            if not size or tensor.buffer in seen:
                continue
            seen.add(tensor.buffer)
            dtype, scales = self.dtype(index), _list(tensor.quantization.scale if tensor.quantization else None)
            if dtype in ("fp64", "fp32", "bf16", "fp16", *_CODES) or (dtype in ("int32", "int64") and len(scales)):
                counter.add(dtype, math.prod(self.shape(index)), size)
                counter.quantization_bytes += 12 * len(scales)  # a float32 scale and an int64 zero point

    def ops(self) -> Iterator[Op]:
        """Yield the operators in order."""
        for operator in self.operators:
            kind = self.graph.name(operator)
            weighted = kind in _PRODUCTS and self._is_constant(self._input(operator, _PRODUCTS[kind][1]))
            yield Op(kind, self._arithmetic(operator, kind), self._macs(operator, kind), weighted)

    def converts(self, operator: Any) -> str:
        """Return "quantize", "dequantize", "requantize", "dequantize weights", or "" for any other operator."""
        kind = self.graph.name(operator)
        if kind not in _CONVERSIONS:
            return ""
        if kind == "DEQUANTIZE":
            return "dequantize weights" if self.stored_size(int(operator.inputs[0])) else "dequantize"
        return "quantize" if self.dtype(int(operator.inputs[0])).startswith("fp") else "requantize"

    def port(self, index: int, names: Mapping[int, str]) -> Port:
        """Return an input or output; its name is the signature's, where there is one."""
        tensor = self.tensors[index]
        free = _list(tensor.shapeSignature)
        shape = [None if at < len(free) and free[at] < 0 else side for at, side in enumerate(self.shape(index))]
        scales = _list(tensor.quantization.scale if tensor.quantization else None)
        note = ""
        if scales:
            zero = _list(tensor.quantization.zeroPoint)
            note = f"scale {float(scales[0]):.4g}, zero point {int(zero[0]) if zero else 0}"
        return Port(names.get(index, _text(tensor.name)), tuple(shape), self.dtype(index), note)

    def dtype(self, index: int) -> str:
        """Return a tensor's dtype."""
        name = self._dtypes.get(self.tensors[index].type, UNKNOWN)
        return _TYPES.get(name, name.lower())

    def shape(self, index: int) -> list[int]:
        """Return a tensor's shape; a free batch is 1 in it."""
        return [int(side) for side in _list(self.tensors[index].shape)]

    def stored_size(self, index: int) -> int:
        """Return the bytes of a constant tensor, 0 for a computed one."""
        buffer = self.graph.model.buffers[self.tensors[index].buffer]
        return len(_list(buffer.data)) or int(getattr(buffer, "size", 0) or 0)

    def _widens(self, operator: Any) -> bool:
        return self.graph.name(operator) == "DEQUANTIZE" and self.stored_size(int(operator.inputs[0])) > 0

    def _input(self, operator: Any, at: int) -> int:
        inputs = _list(operator.inputs)
        return int(inputs[at]) if at < len(inputs) else -1

    def _is_constant(self, index: int) -> bool:
        return index >= 0 and (self.stored_size(index) > 0 or index in self._made_from)

    def _arithmetic(self, operator: Any, kind: str) -> str:
        if kind in _CONVERSIONS:
            return UNPACK if self._widens(operator) else CONVERT
        inputs, outputs = _list(operator.inputs), _list(operator.outputs)
        data = self._input(operator, _PRODUCTS.get(kind, (0, 0))[0])
        out = self.dtype(int(outputs[0])) if len(outputs) else UNKNOWN
        first = self.dtype(data) if data >= 0 and len(inputs) else out
        if first in _CODES and out in _CODES:
            return INT8
        if kind in _PRODUCTS and first.startswith("fp"):
            weight = self._input(operator, _PRODUCTS[kind][1])
            if weight >= 0 and self.dtype(weight) in _CODES:
                return DYNAMIC
        return out

    def _macs(self, operator: Any, kind: str) -> int | None:
        if kind not in _PRODUCTS:
            return None if kind in _UNCOUNTED else 0
        first, second = (self._input(operator, at) for at in _PRODUCTS[kind])
        if first < 0 or second < 0 or not len(_list(operator.outputs)):
            return None
        x, weight, out = self.shape(first), self.shape(second), self.shape(int(operator.outputs[0]))
        if kind == "BATCH_MATMUL":
            options = operator.builtinOptions
            return math.prod(out) * x[-2 if options is not None and options.adjX else -1]
        if kind == "FULLY_CONNECTED":
            return math.prod(out) * weight[-1]
        if kind == "DEPTHWISE_CONV_2D":
            return math.prod(out) * math.prod(weight[1:3])
        if kind == "CONV_3D":  # weights are (D, H, W, in, out)
            return math.prod(out) * math.prod(weight[:4])
        if kind == "CONV_3D_TRANSPOSE":  # (D, H, W, out, in)
            return math.prod(x) * math.prod(weight[:4])
        if kind == "TRANSPOSE_CONV":  # (out, H, W, in)
            return math.prod(x) * math.prod(weight[:3])
        return math.prod(out) * math.prod(weight[1:])


def _boundaries(readers: list[_Subgraph]) -> dict[str, int]:
    found: dict[str, int] = {}
    for reader in readers:
        for operator in reader.operators:
            if kind := reader.converts(operator):
                found[kind] = found.get(kind, 0) + 1
    return found


def _names(graph: Graph, side: str) -> dict[int, str]:
    """Return tensor index -> name in the first signature."""
    definitions = graph.model.signatureDefs or []
    return {int(entry.tensorIndex): _text(entry.name) for entry in getattr(definitions[0], side)} if definitions else {}


def _list(values: Any) -> Any:
    """Return a FlatBuffer vector, empty where the file has none."""
    return [] if values is None else values


def _text(value: bytes | str | None) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else (value or "")
