"""Half precision for ONNX: weights and arithmetic in float16, float32 in and out."""

from __future__ import annotations

from pathlib import Path

from edgekit.errors import MissingExtraError
from edgekit.export.onnx import save_onnx


def halve_onnx(float_path: Path, out: Path) -> None:
    """Write `out`, the float model with float16 weights and tensors; inputs and outputs stay float32.

    For GPUs and neural engines. ONNX Runtime's CPU kernels are float32: it casts around them, which is no faster.

    Args:
        float_path: a model of `export_onnx`; it is not changed.
        out: the .onnx file, written whole or not at all.

    Raises:
        MissingExtraError: onnx or onnxruntime is not installed.
    """
    try:
        import onnx
        from onnxruntime.transformers.float16 import convert_float_to_float16
    except ImportError as e:
        raise MissingExtraError("onnxruntime", "onnx", "ONNX fp16 export") from e
    save_onnx(convert_float_to_float16(onnx.load(float_path), keep_io_types=True), out)
