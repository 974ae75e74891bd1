"""Halve an ONNX file: float16 weights with float32 or float16 arithmetic."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

import numpy as np

from edgekit.errors import MissingExtraError
from edgekit.export.onnx.convert import save_onnx
from edgekit.export.onnx.graph import FLOAT, OnnxGraph

Arithmetic = Literal["float32", "float16"]


def halve_onnx(float_path: Path, out: Path, *, arithmetic: Arithmetic = "float32") -> None:
    """Write the float32 model `float_path` with float16 weights to `out`; input and outputs stay float32.

    Args:
        float_path: a float32 model. It is not changed.
        out: the .onnx file, written whole or not at all.
        arithmetic: "float32" widens the weights once, when the file is loaded: as fast as the float32 file anywhere,
            and only the weights are rounded. "float16" computes in float16, for runtimes with such kernels (GPUs,
            NPUs); ONNX Runtime's CPU kernels have few, and convert around the rest.

    Raises:
        LoadError: `float_path` cannot be read.
        MissingExtraError: onnx or onnxruntime is not installed.
    """
    graph = OnnxGraph.read(float_path)
    if arithmetic == "float32":
        _narrow_weights(graph)
        save_onnx(graph.model, out)
        return
    try:
        from onnxruntime.transformers.float16 import convert_float_to_float16
    except ImportError as e:
        raise MissingExtraError("onnxruntime", "onnx", "Exporting to float16 ONNX") from e
    with warnings.catch_warnings():
        # weights below 6e-8 become the smallest float16; BatchNorm folding leaves some of no effect
        warnings.filterwarnings("ignore", message="the float32 number .* will be truncated", category=UserWarning)
        # shape inference of onnx knows nothing of com.microsoft and is not needed: every weight is converted
        half = OnnxGraph(convert_float_to_float16(graph.model, keep_io_types=True, disable_shape_infer=True))
    half.sort()  # the converter puts the cast of the input last
    save_onnx(half.model, out)


def _narrow_weights(graph: OnnxGraph) -> None:
    """Store each float32 constant of more than one number as float16, and cast it back before its readers."""
    casts = []
    for name, tensor in list(graph.constants.items()):
        values = graph.array(name) if tensor.data_type == FLOAT else None
        if values is None or values.size < 2:
            continue
        limit = np.finfo(np.float16).max
        narrow = graph.constant(f"{name}.float16", np.clip(values, -limit, limit).astype(np.float16))
        casts.append(graph.node("Cast", [narrow], name, output=name, to=FLOAT))
        casts[-1].name = ""
    readers = list(graph.nodes)
    _forget(graph, {cast.output[0] for cast in casts})
    graph.rebuild([*casts, *readers])


def _forget(graph: OnnxGraph, names: set[str]) -> None:
    """Drop the constants `names`; nodes make tensors of these names instead."""
    kept = [tensor for tensor in graph.model.graph.initializer if tensor.name not in names]
    del graph.model.graph.initializer[:]
    graph.model.graph.initializer.extend(kept)
    graph.constants = {tensor.name: tensor for tensor in graph.model.graph.initializer}
