"""8-bit weights for ONNX files of text classifiers: products by ONNX Runtime's dynamic quantization, tables by row."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import MissingExtraError

_TABLE_ROWS = 256
"""Tables of fewer rows (positions) take no room."""


def quantize_text_onnx(float_path: Path, out: Path) -> None:
    """Quantize the float file `float_path` to 8 bits and write `out`.

    Products with weights take 8-bit weights and activations whose scales are found while they run: no calibration. A
    table of vectors is stored in 8 bits with one scale per row; only the rows of a text are unpacked.

    Raises:
        MissingExtraError: onnx or onnxruntime is not installed.
    """
    try:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as e:
        raise MissingExtraError(e.name or "onnxruntime", "onnx", "Quantizing to int8") from e
    from edgekit.export.onnx.convert import save_onnx
    from edgekit.export.onnx.weights import without_advice

    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        middle = Path(folder) / "tables.onnx"
        model = onnx.load(float_path)
        _quantize_tables(model)
        save_onnx(model, middle)
        done = Path(folder) / "done.onnx"
        with without_advice():
            quantize_dynamic(
                middle,
                done,
                op_types_to_quantize=["MatMul", "Conv"],
                per_channel=True,
                weight_type=QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True},
            )
        model = onnx.load(done)
    model.producer_name = "edgekit"
    save_onnx(model, out)


def _quantize_tables(model: Any) -> None:
    """Store float tables that Gather reads in 8 bits, one scale per row."""
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        table = stored.get(node.input[0]) if node.op_type == "Gather" else None
        if table is None or table.data_type != TensorProto.FLOAT or len(table.dims) != 2 or table.dims[0] < _TABLE_ROWS:
            nodes.append(node)
            continue
        rows = numpy_helper.to_array(table)
        scales = np.maximum(np.abs(rows).max(axis=1, keepdims=True) / 127, np.float32(1e-12)).astype(np.float32)
        codes = np.rint(rows / scales).astype(np.int8)
        graph.initializer.remove(table)
        graph.initializer.append(numpy_helper.from_array(codes, f"{table.name}.codes"))
        graph.initializer.append(numpy_helper.from_array(scales, f"{table.name}.scales"))
        ids, result = node.input[1], node.output[0]
        names = [f"{result}.{part}" for part in ("codes", "scales", "floats")]
        nodes += [
            helper.make_node("Gather", [f"{table.name}.codes", ids], [names[0]], axis=0),
            helper.make_node("Gather", [f"{table.name}.scales", ids], [names[1]], axis=0),
            helper.make_node("Cast", [names[0]], [names[2]], to=TensorProto.FLOAT),
            helper.make_node("Mul", [names[2], names[1]], [result]),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
