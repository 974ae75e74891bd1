"""Classifiers as other tools write them: uint8 pixels in, 8-bit scores out, labels inside the file."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.export.tflite.graph import schema
from tests.bench.tiny_for_tests import SIZE

LABELS = ("background", "c blue", "B_Green", "nothing, empty", "a red, scarlet")
"""The labels of the classifiers, in another order and spelling than the folders of the data, and more of them."""


def colour_weights() -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return (3, 5) weights from mean colours in [0, 1] to scores of `LABELS`."""
    weights = np.zeros((3, 5), np.float32)
    weights[2, 1] = weights[1, 2] = weights[0, 4] = 4.0
    return weights


def write_uint8_onnx(path: Path, *, channels_last: bool, names: Sequence[str] | None = None) -> Path:
    """Write a classifier of uint8 pixels, NHWC or NCHW, whose scores went through a softmax."""
    from onnx import TensorProto, helper, numpy_helper, save

    shape = [1, SIZE, SIZE, 3] if channels_last else [1, 3, SIZE, SIZE]
    axes = [1, 2] if channels_last else [2, 3]
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["mean"], axes=axes, keepdims=0),
        helper.make_node("Mul", ["mean", "scale"], ["colour"]),
        helper.make_node("MatMul", ["colour", "weights"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
    ]
    constants = [
        numpy_helper.from_array(np.float32(1 / 255), "scale"),
        numpy_helper.from_array(colour_weights(), "weights"),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [1, 5])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if names is not None:  # as the YOLO family writes them
        model.metadata_props.add(key="names", value=str(dict(enumerate(names))))
    save(model, path)
    return path


def write_uint8_tflite(path: Path, *, scale: float, zero_point: int, labels: Sequence[str] | None = None) -> Path:
    """Write a classifier of uint8 NHWC pixels that stand for scale * (q - zero point), with uint8 scores."""
    import flatbuffers

    names = schema()
    low, high = scale * (0 - zero_point), scale * (255 - zero_point)
    # colours in [0, 1] are (real - low) / (high - low), which the weights and biases of the layer undo
    weights = (colour_weights() / np.float32(high - low)).T
    bias = -low * weights.sum(axis=1)
    tensors = [
        ("pixels", names.TensorType.UINT8, (1, SIZE, SIZE, 3), (scale, zero_point), None),
        ("floats", names.TensorType.FLOAT32, (1, SIZE, SIZE, 3), None, None),
        ("axes", names.TensorType.INT32, (2,), None, np.array([1, 2], np.int32)),
        ("mean", names.TensorType.FLOAT32, (1, 3), None, None),
        ("weights", names.TensorType.FLOAT32, weights.shape, None, weights.astype(np.float32)),
        ("bias", names.TensorType.FLOAT32, bias.shape, None, bias.astype(np.float32)),
        ("scores", names.TensorType.FLOAT32, (1, 5), None, None),
        ("codes", names.TensorType.UINT8, (1, 5), (1 / 32, 0), None),
    ]
    model = names.ModelT()
    model.version, model.description = 3, "colours of another tool"
    model.buffers = [names.BufferT()]
    graph = names.SubGraphT()
    graph.tensors = [_tensor(names, model.buffers, *one) for one in tensors]
    graph.inputs, graph.outputs, graph.name = [0], [7], "main"
    operators = [("DEQUANTIZE", [0], 1), ("MEAN", [1, 2], 3), ("FULLY_CONNECTED", [3, 4, 5], 6), ("QUANTIZE", [6], 7)]
    model.operatorCodes = [_code(names, kind) for kind, _, _ in operators]
    graph.operators = [_operator(names, number, *one) for number, one in enumerate(operators)]
    model.subgraphs = [graph]
    builder = flatbuffers.Builder(4096)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    if labels is not None:  # TensorFlow Lite's metadata packs files behind the model
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("labels.txt", "\n".join(labels) + "\n")
    return path


def _tensor(names: Any, buffers: list[Any], name: str, kind: int, shape: Sequence[int], grid: Any, values: Any) -> Any:
    tensor = names.TensorT()
    tensor.name, tensor.type, tensor.shape = name, kind, list(shape)
    tensor.buffer = 0
    if values is not None:
        buffer = names.BufferT()
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
        tensor.buffer = len(buffers)
        buffers.append(buffer)
    if grid is not None:
        tensor.quantization = names.QuantizationParametersT()
        tensor.quantization.scale, tensor.quantization.zeroPoint = [grid[0]], [grid[1]]
    return tensor


def _code(names: Any, kind: str) -> Any:
    code = names.OperatorCodeT()
    code.builtinCode = getattr(names.BuiltinOperator, kind)
    code.deprecatedBuiltinCode, code.version = code.builtinCode, 1
    return code


def _operator(names: Any, number: int, kind: str, inputs: list[int], output: int) -> Any:
    operator = names.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = number, inputs, [output]
    if kind == "MEAN":
        operator.builtinOptionsType = names.BuiltinOptions.ReducerOptions
        operator.builtinOptions = names.ReducerOptionsT()
    elif kind == "FULLY_CONNECTED":
        operator.builtinOptionsType = names.BuiltinOptions.FullyConnectedOptions
        operator.builtinOptions = names.FullyConnectedOptionsT()
    return operator
