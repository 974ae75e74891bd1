"""INT8 without calibration: weights alone, or activations quantized anew for every picture."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from edgekit.errors import MissingExtraError
from edgekit.export.onnx.convert import save_onnx
from edgekit.export.onnx.graph import OnnxGraph, of_kind
from edgekit.export.onnx.qdq import QdqWriter


def quantize_onnx_weights(float_path: Path, out: Path) -> int:
    """Store the weights of every Conv, Gemm and MatMul as int8 per output channel; return how many.

    Arithmetic stays float: ONNX Runtime widens the weights when it loads the file. Small and accurate, not faster.

    Raises:
        LoadError: `float_path` cannot be read.
        MissingExtraError: onnx is not installed.
    """
    graph = OnnxGraph.read(float_path)
    layers = [n for n in of_kind(graph.nodes, "Conv", "Gemm", "MatMul") if n.input[1] in graph.constants]
    QdqWriter(graph, {}).write((), {node.name for node in layers})
    save_onnx(graph.model, out)
    return len(layers)


def quantize_onnx_dynamic(float_path: Path, out: Path) -> int:
    """Quantize the linear layers, with ranges taken from each picture as it comes; return how many.

    Convolutions get 8-bit weights and keep float arithmetic: their dynamic form, ConvInteger, is slower than float.
    Needs no calibration images.

    Raises:
        LoadError: `float_path` cannot be read.
        MissingExtraError: onnx or onnxruntime is not installed.
    """
    graph = OnnxGraph.read(float_path)
    del graph.model.graph.value_info[:]  # onnxruntime 1.31 takes them for conflicting types and fails
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as e:
        raise MissingExtraError("onnxruntime", "onnx", "Quantizing to int8") from e
    import onnx

    with TemporaryDirectory() as folder, without_advice():
        quantized = Path(folder) / "dynamic.onnx"
        quantize_dynamic(
            graph.model,
            quantized,
            op_types_to_quantize=["MatMul", "Gemm"],
            weight_type=QuantType.QInt8,
            per_channel=True,
            # shape inference of onnx gives up at the runtime's own operators
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT, "MatMulConstBOnly": True},
        )
        result = OnnxGraph.read(quantized)
    linear = sum(1 for _ in of_kind(result.nodes, "MatMulInteger"))
    convolutions = [node.name for node in of_kind(result.nodes, "Conv") if node.input[1] in result.constants]
    QdqWriter(result, {}).write((), convolutions)
    save_onnx(result.model, out)
    return linear


@contextmanager
def without_advice() -> Iterator[None]:
    """Keep "Please consider to run pre-processing" of onnxruntime.quantization 1.31 off: folding is done already."""

    def passes(record: logging.LogRecord) -> bool:
        return "pre-processing before quantization" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(passes)
    try:
        yield
    finally:
        root.removeFilter(passes)
