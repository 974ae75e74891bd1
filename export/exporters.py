"""One exporter per format: how a deployed student becomes a file of a given precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from edgekit.export.deploy import DeployModel
from edgekit.export.parity import Precision
from edgekit.export.runtimes import SUFFIX_OF, Format
from edgekit.export.session import FloatArray

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class Conversion:
    """What is converted.

    Attributes:
        model: the deployed student, in eval mode.
        calibration: (N, 3, H, W) float32 in [0, 1] training pictures, or the frames of clips one clip after the other,
            that set the INT8 ranges.
        work: folder for the float files that INT8 starts from; each is made once.
        metadata: texts kept inside the file.
        dynamic_batch: take any batch size, where the format can.
    """

    model: DeployModel
    calibration: FloatArray
    work: Path
    metadata: Mapping[str, str] = field(default_factory=dict)
    dynamic_batch: bool = False

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return self.model.student.spec.image_size

    def base(self, form: Format, make: Callable[[Path], object]) -> Path:
        """Return the float file that INT8 starts from; `make` writes it the first time."""
        path = self.work / f"base{SUFFIX_OF[form]}"
        if not path.exists():
            make(path)
        return path

    def batches(self) -> Iterator[FloatArray]:
        """Yield the calibration pictures one by one, as (1, 3, H, W); of clips as (F, 3, H, W)."""
        rows = self.model.rows
        for at in range(0, len(self.calibration), rows):
            yield self.calibration[at : at + rows]


class Exporter(Protocol):
    """Write `out` at `precision`; return what a reader of the table must know about how.

    Raises:
        MissingExtraError: the format's packages are not installed.
    """

    def __call__(self, conversion: Conversion, precision: Precision, out: Path) -> str: ...


def _onnx(conversion: Conversion, precision: Precision, out: Path) -> str:
    from edgekit.export.onnx import export_onnx

    def make_float(path: Path) -> None:
        export_onnx(
            conversion.model,
            conversion.image_size,
            path,
            rows=conversion.model.rows,
            dynamic_batch=conversion.dynamic_batch,
            output_names=conversion.model.outputs,
            metadata=conversion.metadata,
        )

    if precision == "fp32":
        make_float(out)
        return "float32 weights and arithmetic"
    base = conversion.base("onnx", make_float)
    if precision == "fp16":
        from edgekit.export.onnx_fp16 import halve_onnx

        halve_onnx(base, out)
        return "float16 weights, float32 arithmetic"
    from edgekit.export.onnx_int8 import quantize_onnx

    quantize_onnx(base, out, conversion.batches)
    return "static: 8-bit weights per channel and 8-bit activations in convolutions and linear layers, the rest float"


def _tflite(conversion: Conversion, precision: Precision, out: Path) -> str:
    from edgekit.export.tflite import export_tflite

    def make_float(path: Path) -> None:
        export_tflite(
            conversion.model,
            conversion.image_size,
            path,
            rows=conversion.model.rows,
            output_names=conversion.model.outputs,
            metadata=conversion.metadata,
        )

    if precision == "fp32":
        make_float(out)
        return "float32 weights and arithmetic"
    base = conversion.base("tflite", make_float)
    if precision == "fp16":
        from edgekit.export.tflite_fp16 import halve_tflite

        halve_tflite(base, out)
        return "float16 weights, float32 arithmetic"
    from edgekit.export.tflite_int8 import quantize_tflite

    quantize_tflite(base, out, conversion.batches)
    return "static: 8-bit convolutions, linear layers, attention products and activations; softmax and norms float"


def _coreml(conversion: Conversion, precision: Precision, out: Path) -> str:
    from edgekit.export.coreml import export_coreml, quantize_weights

    def make_float(path: Path, arithmetic: Precision = "fp16") -> None:
        export_coreml(
            conversion.model,
            conversion.image_size,
            path,
            rows=conversion.model.rows,
            precision="fp32" if arithmetic == "fp32" else "fp16",
            output_names=conversion.model.outputs,
            metadata=conversion.metadata,
        )

    if precision != "int8":
        make_float(out, precision)
        return f"{'float32' if precision == 'fp32' else 'float16'} weights and arithmetic"
    quantize_weights(conversion.base("coreml", make_float), out)
    return "8-bit weights per channel, float16 arithmetic"


EXPORTERS: Mapping[Format, Exporter] = {"onnx": _onnx, "coreml": _coreml, "tflite": _tflite}
DYNAMIC_BATCH: Mapping[Format, bool] = {"onnx": True, "coreml": False, "tflite": False}
"""Core ML: a flexible batch leaves the Neural Engine (apple/coremltools#2022). TFLite: XNNPACK plans for one shape."""
