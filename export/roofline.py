"""How far a file is from the limit of its runtime on this machine: the roof, the share that is reached, and the rest.

The roof is what the same runtime reaches in one large matrix product, in float32 and in 8 bits (the compute part of the
roofline model, Williams et al. 2009). A net has small products, and work that multiplies nothing: no net reaches it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np

from edgekit.errors import UsageError
from edgekit.export.audit.audit import audit
from edgekit.export.audit.record import DYNAMIC, INT8
from edgekit.export.contained import call_contained
from edgekit.export.onnx.session import KernelTime, profile
from edgekit.export.runtimes import format_of, open_session

SIDE = 768
"""Rows, columns and depth of the product: 0.45 G multiply-accumulates, whose operands fit into a core's cache."""

ROUNDS = 30


@dataclass(frozen=True)
class Roofline:
    """One file on one runtime.

    Attributes:
        runtime: its name.
        threads: used.
        peaks: multiply-accumulates per second in the large product, by "fp32" and "int8".
        macs: of the file for one picture, by the same names: what it computes in.
        measured_s: median time of one picture.
        kernels: the slowest first; empty where the runtime tells no times.
    """

    runtime: str
    threads: int
    peaks: Mapping[str, float]
    macs: Mapping[str, int]
    measured_s: float
    kernels: tuple[KernelTime, ...]

    @property
    def roof_s(self) -> float:
        """The time that the file's products would take at the roof."""
        return sum(count / self.peaks[dtype] for dtype, count in self.macs.items())

    @property
    def reached(self) -> float:
        """Share of the roof that is reached."""
        return self.roof_s / self.measured_s

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return {**asdict(self), "roof_s": self.roof_s, "reached": self.reached}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Roofline:
        """Build from what `to_dict` made."""
        fields = {name: values[name] for name in cls.__dataclass_fields__}
        return cls(**{**fields, "kernels": tuple(KernelTime(**kernel) for kernel in values["kernels"])})


def roofline_contained(path: Path, threads: int = 1) -> Roofline:
    """Measure in a child process: a crash there is a LoadError."""
    values = call_contained("edgekit.export.roofline:roofline_values", str(path.absolute()), threads)
    return Roofline.from_dict(values)


def roofline_values(path: str, threads: int) -> dict[str, Any]:
    """Return `roofline` as JSON-ready values, for a child process."""
    return roofline(Path(path), threads).to_dict()


def roofline(path: Path, threads: int = 1) -> Roofline:
    """Time one file and the large products of its runtime in turns, the file's input being random pixels.

    Raises:
        LoadError: the file cannot be read or run.
        UsageError: its runtime's time on this machine says nothing (Core ML, SavedModel).
    """
    form = format_of(path)
    if form not in _PRODUCTS:
        raise UsageError(f"--roofline is for {' and '.join(_PRODUCTS)} files: the others are not timed on this machine")
    session = open_session(path, threads)
    _, *picture = session.input_shape
    images = np.random.default_rng(0).random((session.input_shape[0] or 1, *picture), dtype=np.float32)
    with TemporaryDirectory(prefix="edgekit-") as folder:
        products = _PRODUCTS[form](Path(folder), threads)
        measured, *times = _medians([lambda: session(images), *products.values()])
    peaks = {dtype: SIDE**3 / time_s for dtype, time_s in zip(products, times, strict=True)}
    macs = {"fp32": 0, "int8": 0}
    for dtype, count in audit(path).macs_by_dtype().items():
        macs["int8" if dtype in (INT8, DYNAMIC) else "fp32"] += count
    kernels = profile(path, threads, ROUNDS) if form == "onnx" else ()
    return Roofline(session.info.runtime, threads, peaks, macs, measured / len(images), kernels)


def _medians(calls: list[Callable[[], object]]) -> list[float]:
    """Return the median seconds of each call, taken in turns so that all see the same machine."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(-3, ROUNDS):
        for call, seen in zip(calls, times, strict=True):
            start = perf_counter()
            call()
            if number >= 0:
                seen.append(perf_counter() - start)
    return [median(seen) for seen in times]


def _operands() -> dict[str, Any]:
    generator = np.random.default_rng(0)
    return {
        "fp32": generator.standard_normal((SIDE, SIDE), dtype=np.float32),
        "int8": generator.integers(-127, 128, (SIDE, SIDE)).astype(np.int8),
        "uint8": generator.integers(0, 256, (SIDE, SIDE)).astype(np.uint8),
    }


def _onnx_products(folder: Path, threads: int) -> dict[str, Callable[[], object]]:
    """Return the product in ONNX Runtime: float32, and unsigned by signed 8 bits, as its int8 layers are."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    values = _operands()
    shape = [SIDE, SIDE]
    scale = numpy_helper.from_array(np.float32(0.01), "scale")
    zeros = [numpy_helper.from_array(np.array(0, dtype), name) for dtype, name in ((np.uint8, "u"), (np.int8, "s"))]
    quantized = helper.make_node("QLinearMatMul", ["x", "scale", "u", "w", "scale", "s", "scale", "u"], ["y"])
    plans = {
        "fp32": (helper.make_node("MatMul", ["x", "w"], ["y"]), TensorProto.FLOAT, values["fp32"], values["fp32"]),
        "int8": (quantized, TensorProto.UINT8, values["uint8"], values["int8"]),
    }
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    calls: dict[str, Callable[[], object]] = {}
    for name, (node, kind, x, weights) in plans.items():
        constants = [numpy_helper.from_array(weights, "w"), *([scale, *zeros] if name == "int8" else [])]
        taken, given = (helper.make_tensor_value_info(port, kind, shape) for port in ("x", "y"))
        model = helper.make_model(
            helper.make_graph([node], name, [taken], [given], constants),
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=8,
        )
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        calls[name] = lambda session=session, x=x: session.run(None, {"x": x})  # type: ignore[misc]
    return calls


def _tflite_products(folder: Path, threads: int) -> dict[str, Callable[[], object]]:
    """Return the product in LiteRT (XNNPACK): a fully connected layer in float32, and in signed 8 bits."""
    from edgekit.export.tflite.session import LiteRTModel

    values = _operands()
    calls: dict[str, Callable[[], object]] = {}
    for name in ("fp32", "int8"):
        path = folder / f"{name}.tflite"
        path.write_bytes(_fully_connected(values[name], coded=name == "int8"))
        model = LiteRTModel(path, threads)
        calls[name] = lambda model=model, x=values[name]: model.run(x)  # type: ignore[misc]
    return calls


def _fully_connected(weights: Any, *, coded: bool) -> bytes:
    """Return a .tflite file of one layer, (SIDE, SIDE) by (SIDE, SIDE), with a bias."""
    from ai_edge_litert.tools import flatbuffer_utils

    from edgekit.export.tflite.graph import Graph, schema

    made = schema()
    model, subgraph, code = made.ModelT(), made.SubGraphT(), made.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = made.BuiltinOperator.FULLY_CONNECTED
    code.version = 4 if coded else 1
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [subgraph]
    bias = np.zeros(SIDE, np.int32 if coded else np.float32)
    model.buffers = [made.BufferT() for _ in range(3)]
    for buffer, content in zip(model.buffers[1:], (weights, bias), strict=True):
        buffer.data = np.frombuffer(content.tobytes(), np.uint8)
    kind = made.TensorType.INT8 if coded else made.TensorType.FLOAT32
    bias_kind = made.TensorType.INT32 if coded else kind
    plan = (
        ("x", [SIDE, SIDE], 0, kind),
        ("w", [SIDE, SIDE], 1, kind),
        ("b", [SIDE], 2, bias_kind),
        ("y", [SIDE, SIDE], 0, kind),
    )
    subgraph.tensors = []
    for name, shape, buffer_index, dtype in plan:
        tensor = made.TensorT()
        tensor.name, tensor.shape, tensor.buffer, tensor.type = name.encode(), shape, buffer_index, dtype
        subgraph.tensors.append(tensor)
    operator = made.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0, 1, 2], [3]
    operator.builtinOptionsType = made.BuiltinOptions.FullyConnectedOptions
    operator.builtinOptions = made.FullyConnectedOptionsT()
    subgraph.operators, subgraph.inputs, subgraph.outputs = [operator], [0], [3]
    if coded:
        graph = Graph(model)
        for index, scale in ((0, 0.01), (1, 0.01), (2, 1e-4), (3, 0.5)):
            graph.set_quantization(index, [scale], 0)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


_PRODUCTS: Mapping[str, Callable[[Path, int], dict[str, Callable[[], object]]]] = {
    "onnx": _onnx_products,
    "tflite": _tflite_products,
}
