"""INT8 of a float .tflite file that is faster than the float file, and the usual ways beside it for comparison."""

from __future__ import annotations

import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgekit.errors import MissingExtraError, UsageError
from edgekit.export.calibration.ranges import RangeConfig
from edgekit.export.calibration.statistics import Histograms, collect
from edgekit.export.calibration.trained import TrainedCodes
from edgekit.export.chatter import native_output_captured
from edgekit.export.session import FloatArray
from edgekit.export.tflite.attention import split_attention
from edgekit.export.tflite.graph import Graph
from edgekit.export.tflite.plan import WEIGHTED, plan_static
from edgekit.export.tflite.repair import FloatSource, correct_heads, measured_ranges, worst_operators
from edgekit.export.tflite.reshapes import drop_reshapes
from edgekit.export.tflite.run import tensor_runner
from edgekit.export.tflite.session import PartitionReport, partitions
from edgekit.export.tflite.trained import trained_source

TfliteMode = Literal["static", "mixed", "dynamic", "weight-only", "naive"]
Batches = Callable[[], Iterable[FloatArray]]

MODES: Mapping[TfliteMode, str] = {
    "static": "int8 wherever XNNPACK runs it, in one partition: convolutions, linear layers, attention products, SiLU; "
    "linear layers that read and give float take a range per row",
    "mixed": "static, but the convolutions that cost most accuracy stay float, as measured on calibration images",
    "dynamic": "int8 weights; the runtime quantizes activations anew for each run",
    "weight-only": "int8 weights, dequantized to float arithmetic: for size alone",
    "naive": "ai-edge-quantizer's default static recipe with its own calibration: the baseline to compare with",
}


@dataclass(frozen=True)
class TfliteQuantConfig:
    """How a .tflite file is quantized.

    Attributes:
        mode: see `MODES`.
        ranges: how activation ranges are chosen, for "static" and "mixed"; None tries some ways on calibration images.
        keep_float: numbers of operators of the float file that stay float; for "static" and "mixed".
        repair: shift the biases of the heads by what quantization moves their outputs, on calibration images.
        threads: threads for running the calibration images.
        trained: ranges, and with "mixed" layers to leave float, that the weights were trained with; for this file.
    """

    mode: TfliteMode = "static"
    ranges: RangeConfig | None = None
    keep_float: frozenset[int] = frozenset()
    repair: bool = True
    threads: int = 1
    trained: TrainedCodes | None = None


@dataclass(frozen=True)
class QuantReport:
    """What came out.

    Attributes:
        mode: how the file was quantized.
        int8_operators: operators that compute on int8 codes or int8 weights, by name, with their number.
        float_operators: operators with weights that stayed float, by name, with their number.
        partitions: how LiteRT cuts the file.
        size_bytes, float_size_bytes: size of the file, and of the float file it was made from.
        statistics: of the activations on the calibration images; empty where none were needed.
    """

    mode: TfliteMode
    int8_operators: Mapping[str, int]
    float_operators: Mapping[str, int]
    partitions: PartitionReport
    size_bytes: int
    float_size_bytes: int
    statistics: Histograms


def quantize_tflite(
    float_path: Path, out: Path, calibration: Batches | Histograms | None, config: TfliteQuantConfig | None = None
) -> QuantReport:
    """Quantize `float_path` into `out`, which is written whole or not at all; the float file is not touched.

    Args:
        float_path: a .tflite file of `export_tflite`, or any float one with one picture input.
        out: the quantized file; float32 inputs and outputs, same signature, same metadata.
        calibration: images of the training split, or the statistics that `calibrate_tflite` took of this very file,
            which leave nothing to repair biases by; "dynamic" and "weight-only" need none, "mixed" and "naive" images.
        config: see `TfliteQuantConfig`.

    Raises:
        DataError: unusable calibration images; see `edgekit.export.calibration.statistics.collect`.
        UsageError: the mode needs calibration and got none, or nothing in the net can be quantized.
        LoadError: `float_path` is no TFLite model.
    """
    config = config or TfliteQuantConfig()
    statistics = Histograms()
    if config.mode in ("static", "mixed"):
        statistics = _static(float_path, out, calibration, config)
    elif config.mode in MODES:
        _with_ai_edge_quantizer(float_path, out, calibration, config.mode)
    else:
        raise UsageError(f"TFLite quantization mode '{config.mode}'; allowed: {', '.join(MODES)}")
    int8, floating = precision_of(out)
    return QuantReport(
        mode=config.mode,
        int8_operators=int8,
        float_operators=floating,
        partitions=partitions(out),
        size_bytes=out.stat().st_size,
        float_size_bytes=float_path.stat().st_size,
        statistics=statistics,
    )


def calibrate_tflite(float_path: Path, batches: Batches, *, threads: int = 1) -> Histograms:
    """Take the activation statistics of every tensor that `mode="static"` will quantize.

    Raises:
        DataError: see `edgekit.export.calibration.statistics.collect`.
    """
    graph = Graph.read(float_path)
    tensors = plan_static(graph).tensors(graph)
    return collect(tensor_runner(graph, tensors, threads), batches)


def precision_of(path: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Read back what the file really does: (operators on int8 codes or weights, weighted operators in float)."""
    graph = Graph.read(path)
    int8: Counter[str] = Counter()
    floating: Counter[str] = Counter()
    for operator in graph.operators:
        name = graph.name(operator)
        if name in ("QUANTIZE", "DEQUANTIZE"):
            continue
        types = {graph.tensors[int(tensor)].type for tensor in (*operator.inputs, *operator.outputs) if tensor >= 0}
        if graph.schema.TensorType.INT8 in types:
            int8[name] += 1
        elif name in WEIGHTED:
            floating[name] += 1
    return dict(int8), dict(floating)


def _static(
    float_path: Path, out: Path, calibration: Batches | Histograms | None, config: TfliteQuantConfig
) -> Histograms:
    """Quantize by our own plan; return the statistics used."""
    if calibration is None:
        raise UsageError("static INT8 needs calibration images of the training split; 'dynamic' needs none.")
    if not plan_static(Graph.read(float_path)).static:
        raise UsageError(f"{float_path} holds no operator that runs in int8; the float file stays as it is.")
    statistics = (
        calibration
        if isinstance(calibration, Histograms)
        else calibrate_tflite(float_path, calibration, threads=config.threads)
    )
    images = None if isinstance(calibration, Histograms) else calibration
    source, keep_float = _source(float_path, statistics, images, config)
    graph, plan = source.quantized(keep_float)
    if images is not None and config.repair and config.trained is None:
        correct_heads(source, graph, plan, images)
    split_attention(graph)
    drop_reshapes(graph)
    graph.compact()
    graph.write(out)
    return statistics


def _source(
    float_path: Path, statistics: Histograms, images: Batches | None, config: TfliteQuantConfig
) -> tuple[FloatSource, frozenset[int]]:
    """Return the float file with its ranges, and the operators that stay float."""
    if config.trained is not None:
        source, left = trained_source(float_path, statistics.ranges(config.ranges), config.trained, config.threads)
        return source, config.keep_float | left
    if images is None or config.ranges is not None:
        ranges = statistics.ranges(config.ranges)
    else:
        ranges = measured_ranges(statistics, float_path, images, config.keep_float, config.threads)
    source = FloatSource(float_path, ranges, config.threads)
    if config.mode != "mixed":
        return source, config.keep_float
    if images is None:
        raise UsageError("mixed INT8 measures its layers on calibration images; statistics alone do not do.")
    return source, config.keep_float | worst_operators(source, images)


def _with_ai_edge_quantizer(
    float_path: Path, out: Path, calibration: Batches | Histograms | None, mode: TfliteMode
) -> None:
    """Quantize by one of ai-edge-quantizer's own recipes."""
    try:
        with native_output_captured():
            from ai_edge_quantizer import quantizer, recipe
    except ImportError as e:
        raise MissingExtraError("ai-edge-quantizer", "tflite", f"TFLite INT8 '{mode}'") from e
    recipes: Mapping[str, Callable[[], Any]] = {
        "dynamic": recipe.dynamic_wi8_afp32,
        "weight-only": recipe.weight_only_wi8_afp32,
        "naive": recipe.static_wi8_ai8,
    }
    with tempfile.TemporaryDirectory() as folder, native_output_captured(), warnings.catch_warnings():
        # ai-edge-quantizer 0.10 turns preserve_all_tensors on and LiteRT warns that this is for debugging
        warnings.filterwarnings("ignore", message="Warning: Enabling `experimental_preserve_all_tensors`")
        engine = quantizer.Quantizer(str(float_path), recipes[mode]())
        measured = _calibrate_naively(engine, float_path, calibration) if mode == "naive" else None
        raw = Path(folder) / "raw.tflite"
        engine.quantize(measured, enable_progress_report=False).export_model(str(raw))
        graph = Graph.read(raw)
    graph.compact()
    graph.write(out)


def _calibrate_naively(engine: Any, float_path: Path, calibration: Batches | Histograms | None) -> Any:
    """Run ai-edge-quantizer's own calibrator (a moving average of minimum and maximum) over the images."""
    if calibration is None or isinstance(calibration, Histograms):
        raise UsageError("the naive INT8 baseline calibrates by itself and needs calibration images.")
    from ai_edge_litert.interpreter import Interpreter

    signatures = Interpreter(str(float_path)).get_signature_list()
    key, tensors = next(iter(signatures.items()))
    images = (np.ascontiguousarray(image.transpose(1, 2, 0)[None]) for batch in calibration() for image in batch)
    return engine.calibrate({key: [{tensors["inputs"][0]: image} for image in images]})
