"""Half precision for TFLite: float16 weights, float32 arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgekit.export.tflite.graph import Graph
from edgekit.export.tflite.plan import WEIGHTED

_LIMIT = float(np.finfo(np.float16).max)
_DEQUANTIZE_FLOAT16 = 3
"""Version of DEQUANTIZE from which it takes float16 (TensorFlow Lite's op version table)."""


def halve_tflite(float_path: Path, out: Path) -> int:
    """Write `out`, the float model with float16 weights; return how many tensors were halved.

    The weights of convolutions and linear layers are stored as float16 behind a DEQUANTIZE, which XNNPACK folds when it
    loads the file: half the size at float32 speed. GPU delegates compute in float16. Biases stay float32.

    Args:
        float_path: a model of `export_tflite`; it is not changed.
        out: the .tflite file, written whole or not at all; it keeps the metadata.

    Raises:
        MissingExtraError: ai-edge-litert is not installed.
        LoadError: `float_path` is no TFLite model.
    """
    graph = Graph.read(float_path)
    weights = {int(operator.inputs[1]) for operator in graph.operators if graph.name(operator) in WEIGHTED}
    widened, left = [], set()
    for index in sorted(weights):
        tensor = graph.tensors[index]
        content = graph.constant(index) if tensor.type == graph.schema.TensorType.FLOAT32 else None
        if content is None:  # a product of two computed tensors
            continue
        half = graph.add_tensor(index, "FLOAT16", ".float16", np.clip(content, -_LIMIT, _LIMIT).astype(np.float16))
        left.add(tensor.buffer)
        tensor.buffer = 0  # no longer a constant, but what DEQUANTIZE gives
        widened.append(graph.operator("DEQUANTIZE", _DEQUANTIZE_FLOAT16, [half], [index]))
    for number in left:  # emptied last: constants of equal content share one
        graph.model.buffers[number].data = None
    graph.operators = [*widened, *graph.operators]
    for index, tensor in enumerate(graph.tensors):
        if index not in (*graph.inputs, *graph.outputs):
            tensor.name = str(index).encode()  # the converter's paths are a twelfth of the file
    graph.write(out)
    return len(widened)
