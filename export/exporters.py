"""One writer per format: how a deployed student becomes a file of a given precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.export.deploy import DeployedPictures
from edgekit.export.manifest import statistics_name
from edgekit.export.parity import Precision
from edgekit.export.precisions import MEANING, check_pairs, in_format
from edgekit.export.runtimes import SUFFIX_OF, Format
from edgekit.export.session import FloatArray

if TYPE_CHECKING:
    from torch import nn

    from edgekit.export.calibration.statistics import Histograms
    from edgekit.export.calibration.trained import TrainedCodes


@dataclass(frozen=True)
class Conversion:
    """What is converted.

    Attributes:
        model: the deployed student or tower, in eval mode.
        calibration: (N, 3, H, W) float32 in [0, 1] training pictures, or the frames of clips one clip after the other,
            that set the INT8 ranges.
        work: folder for the float files that INT8 starts from; each is made once.
        metadata: texts kept inside the file.
        dynamic_batch: take any batch size, where the format can.
        trained: how the student was trained for 8 bits, if it was.
    """

    model: DeployedPictures
    calibration: FloatArray
    work: Path
    metadata: Mapping[str, str] = field(default_factory=dict)
    dynamic_batch: bool = False
    trained: TrainedCodes | None = None

    def trained_for(self, form: Format, precision: Precision) -> TrainedCodes | None:
        """Return how the student was trained, if it was for this very file."""
        known = self.trained
        return known if known is not None and (known.runtime, known.precision) == (form, precision) else None

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return self.model.image_size

    def rounded(self, least: int) -> nn.Module:
        """Return the model with the weights of layers of at least so many on the grid of 8 bits, the outputs in mind
        (`edgekit.export.calibration.weight_rounding`)."""
        from edgekit.export.calibration.weight_rounding import with_rounded_weights

        return with_rounded_weights(self.model, self.batches(), least)

    def keep(self, form: Format, statistics: Histograms) -> None:
        """Keep the activation statistics that a file's ranges come from, for the bundle."""
        if statistics.images:
            statistics.save(self.work / statistics_name(form))

    def batches(self) -> Iterator[FloatArray]:
        """Yield the calibration pictures one by one, as (1, 3, H, W); of clips as (F, 3, H, W)."""
        rows = self.model.rows
        for at in range(0, len(self.calibration), rows):
            yield self.calibration[at : at + rows]


def float_file(work: Path, form: Format, make: Callable[[Path], object], name: str = "base") -> Path:
    """Return the float file that other precisions start from; `make` writes it the first time."""
    path = work / f"{name}{SUFFIX_OF[form]}"
    if not path.exists():
        make(path)
    return path


def _onnx(conversion: Conversion, precision: Precision, out: Path) -> None:
    from edgekit.export.onnx.convert import export_onnx

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
        return
    base = float_file(conversion.work, "onnx", make_float)
    from edgekit.export.onnx.fp16 import halve_onnx
    from edgekit.export.onnx.int8 import Int8Config, quantize_onnx
    from edgekit.export.onnx.weights import quantize_onnx_dynamic, quantize_onnx_weights

    def static(config: Int8Config) -> None:
        conversion.keep("onnx", quantize_onnx(base, out, conversion.batches, config).statistics)

    writers: Mapping[Precision, Callable[[], object]] = {
        "fp16": lambda: halve_onnx(base, out),
        "int8": lambda: static(Int8Config(trained=conversion.trained_for("onnx", "int8"))),
        "mixed": lambda: static(Int8Config(mixed=True)),
        "dynamic": lambda: quantize_onnx_dynamic(base, out),
        "w8": lambda: quantize_onnx_weights(base, out),
    }
    writers[precision]()


def _tflite(conversion: Conversion, precision: Precision, out: Path) -> None:
    from edgekit.export.tflite.convert import export_tflite

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
        return
    base = float_file(conversion.work, "tflite", make_float)
    if precision == "fp16":
        from edgekit.export.tflite.fp16 import halve_tflite

        halve_tflite(base, out)
        return
    from edgekit.export.tflite.int8 import TfliteMode, TfliteQuantConfig, quantize_tflite

    modes: Mapping[Precision, TfliteMode] = {
        "int8": "static",
        "mixed": "mixed",
        "dynamic": "dynamic",
        "w8": "weight-only",
    }
    config = TfliteQuantConfig(mode=modes[precision], trained=conversion.trained_for("tflite", precision))
    report = quantize_tflite(base, out, conversion.batches, config)
    conversion.keep("tflite", report.statistics)


def _coreml(conversion: Conversion, precision: Precision, out: Path) -> None:
    from edgekit.export.calibration.weight_rounding import least_palettized, least_quantized
    from edgekit.export.coreml.convert import export_coreml, palettize_weights, quantize_weights

    def make_float(path: Path, arithmetic: Precision = "fp16", model: nn.Module = conversion.model) -> None:
        export_coreml(
            model,
            conversion.image_size,
            path,
            rows=conversion.model.rows,
            precision="fp32" if arithmetic == "fp32" else "fp16",
            output_names=conversion.model.outputs,
            metadata=conversion.metadata,
        )

    if precision in ("fp32", "fp16"):
        make_float(out, precision)
        return

    def make_rounded(least: int) -> Path:
        return float_file(
            conversion.work,
            "coreml",
            lambda path: make_float(path, "fp16", conversion.rounded(least)),
            f"rounded-{least}",
        )

    if precision in ("w8a8", "mixed"):
        from edgekit.export.coreml.activations import ActivationConfig, quantize_activations

        trained = conversion.trained_for("coreml", precision)
        # trained weights have made good what plain rounding takes; here all layers are in 8 bits
        base = make_rounded(1) if trained is None else float_file(conversion.work, "coreml", make_float)
        report = quantize_activations(
            base, out, conversion.batches, ActivationConfig(mixed=precision == "mixed", trained=trained)
        )
        conversion.keep("coreml", report.statistics)
    elif precision in ("int8", "w8"):
        least = least_quantized(conversion.model)
        quantize_weights(make_rounded(least), out, least)
    else:
        base, bits = float_file(conversion.work, "coreml", make_float), int(precision.removeprefix("palette"))
        palettize_weights(base, out, bits, least_palettized(conversion.model, bits))


def _saved_model(conversion: Conversion, precision: Precision, out: Path) -> None:
    from edgekit.export.saved_model.convert import export_saved_model

    base = conversion.work / "of-saved-model.tflite"
    _tflite(conversion, precision, base)
    export_saved_model(base, out)


_WRITERS: Mapping[Format, Callable[[Conversion, Precision, Path], None]] = {
    "onnx": _onnx,
    "coreml": _coreml,
    "tflite": _tflite,
    "saved_model": _saved_model,
}
DYNAMIC_BATCH: Mapping[Format, bool] = {
    "onnx": True,
    "coreml": False,
    "tflite": False,
    "saved_model": False,
}
"""Core ML: a flexible batch leaves the Neural Engine (apple/coremltools#2022). TFLite: XNNPACK plans for one shape, as
SavedModels do, which are made from its files."""


def write_file(conversion: Conversion, form: Format, precision: Precision, out: Path) -> str:
    """Write `out` in a format and a precision that it can have; return what a reader of the table must know about how.

    Raises:
        MissingExtraError: the format's packages are not installed.
        UsageError: the format cannot have this precision.
    """
    check_pairs((form,), (precision,), conversion.model.outputs)
    precision = in_format(form, precision)
    _WRITERS[form](conversion, precision, out)
    trained = conversion.trained_for(form, precision)
    return MEANING[form][precision] + ("" if trained is None else "; ranges and float layers as trained")
