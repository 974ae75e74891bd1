"""INT8 of a float .tflite file that is faster than the float file, and the usual ways beside it for comparison."""

from __future__ import annotations

import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import MissingExtraError, UsageError
from edgekit.export.calibration import Histograms, Observe, Run, collect
from edgekit.export.chatter import native_output_captured
from edgekit.export.ranges import RangeConfig
from edgekit.export.session import FloatArray
from edgekit.export.tflite_attention import split_attention
from edgekit.export.tflite_graph import Graph
from edgekit.export.tflite_peephole import transpose_right_operands
from edgekit.export.tflite_plan import WEIGHTED, plan_static
from edgekit.export.tflite_session import PartitionReport, partitions
from edgekit.export.tflite_static import StaticQuantizer

TfliteMode = Literal["static", "dynamic", "weight-only", "naive"]
Batches = Callable[[], Iterable[FloatArray]]

MODES: Mapping[TfliteMode, str] = {
    "static": "int8 wherever XNNPACK runs it, in one partition: convolutions, linear layers, attention products, SiLU",
    "dynamic": "int8 weights; the runtime quantizes activations anew for each run",
    "weight-only": "int8 weights, dequantized to float arithmetic: for size alone",
    "naive": "ai-edge-quantizer's default static recipe with its own calibration: the baseline to compare with",
}


@dataclass(frozen=True)
class TfliteQuantConfig:
    """How a .tflite file is quantized.

    Attributes:
        mode: see `MODES`.
        ranges: how activation ranges are chosen; for "static".
        keep_float: numbers of operators of the float file that stay float; for "static".
        threads: threads for running the calibration images.
    """

    mode: TfliteMode = "static"
    ranges: RangeConfig = field(default_factory=RangeConfig)
    keep_float: frozenset[int] = frozenset()
    threads: int = 1


@dataclass(frozen=True)
class QuantReport:
    """What came out.

    Attributes:
        mode: how the file was quantized.
        int8_operators: operators that compute on int8 codes or int8 weights, by name, with their number.
        float_operators: operators with weights that stayed float, by name, with their number.
        partitions: how LiteRT cuts the file.
        size_bytes, float_size_bytes: size of the file, and of the float file it was made from.
        images: calibration images used.
        always_zero: activations that were never anything but zero on them.
    """

    mode: TfliteMode
    int8_operators: Mapping[str, int]
    float_operators: Mapping[str, int]
    partitions: PartitionReport
    size_bytes: int
    float_size_bytes: int
    images: int
    always_zero: tuple[str, ...]


def quantize_tflite(
    float_path: Path, out: Path, calibration: Batches | Histograms | None, config: TfliteQuantConfig | None = None
) -> QuantReport:
    """Quantize `float_path` into `out`, which is written whole or not at all; the float file is not touched.

    Args:
        float_path: a .tflite file of `export_tflite`, or any float one with one picture input.
        out: the quantized file; float32 inputs and outputs, same signature, same metadata.
        calibration: images of the training split, or the statistics that `calibrate_tflite` took of this very file;
            "dynamic" and "weight-only" need none, "naive" needs images.
        config: see `TfliteQuantConfig`.

    Raises:
        DataError: unusable calibration images; see `edgekit.export.calibration.collect`.
        UsageError: the mode needs calibration and got none, or nothing in the net can be quantized.
        LoadError: `float_path` is no TFLite model.
    """
    config = config or TfliteQuantConfig()
    statistics = Histograms()
    if config.mode == "static":
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
        images=statistics.images,
        always_zero=statistics.always_zero,
    )


def calibrate_tflite(float_path: Path, batches: Batches, *, threads: int = 1) -> Histograms:
    """Take the activation statistics of every tensor that `mode="static"` will quantize.

    Raises:
        DataError: see `edgekit.export.calibration.collect`.
    """
    graph = Graph.read(float_path)
    tensors = plan_static(graph).tensors(graph)
    return collect(_runner(graph, tensors, threads), batches)


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


def tensor_key(graph: Graph, tensor: int) -> str:
    """Return the name under which statistics of a tensor are kept: unique, and readable in a report."""
    name = bytes(graph.tensors[tensor].name).decode(errors="replace")
    return f"{tensor}:{name.rsplit('/', 2)[-1][-60:]}"


def _static(
    float_path: Path, out: Path, calibration: Batches | Histograms | None, config: TfliteQuantConfig
) -> Histograms:
    """Quantize by our own plan; return the statistics used."""
    if calibration is None:
        raise UsageError("static INT8 needs calibration images of the training split; 'dynamic' needs none.")
    graph = Graph.read(float_path)
    keys = {tensor: tensor_key(graph, tensor) for tensor in range(len(graph.tensors))}
    if not plan_static(graph).static:
        raise UsageError(f"{float_path} holds no operator that runs in int8; the float file stays as it is.")
    statistics = (
        calibration
        if isinstance(calibration, Histograms)
        else calibrate_tflite(float_path, calibration, threads=config.threads)
    )
    named = statistics.ranges(config.ranges)
    ranges = {tensor: named[key] for tensor, key in keys.items() if key in named}
    transpose_right_operands(graph)
    plan = plan_static(graph, keep_float=config.keep_float)
    StaticQuantizer(graph, plan, ranges).run()
    split_attention(graph)
    graph.compact()
    graph.write(out)
    return statistics


def _runner(graph: Graph, tensors: list[int], threads: int) -> Run:
    """Make the tensors outputs of the graph, so that the fast float kernels compute them, and return its `Run`.

    `experimental_preserve_all_tensors` would turn XNNPACK off, which is ten times slower.
    """
    from ai_edge_litert.interpreter import Interpreter

    keys = {tensor: tensor_key(graph, tensor) for tensor in tensors}
    graph.model.subgraphs[0].outputs = list(tensors)
    graph.model.signatureDefs = None
    content = graph.content()
    with native_output_captured():
        interpreter = Interpreter(model_content=content, num_threads=threads)
        interpreter.allocate_tensors()
    detail = interpreter.get_input_details()[0]

    def run(images: FloatArray, observe: Observe) -> None:
        for image in images:
            interpreter.set_tensor(detail["index"], _for_input(image, detail))
            interpreter.invoke()
            for tensor, key in keys.items():
                observe(key, interpreter.get_tensor(tensor))

    return run


def _for_input(image: FloatArray, detail: Mapping[str, Any]) -> NDArray[np.float32]:
    """Lay out one image (3, H, W) as the file takes it.

    Raises:
        UsageError: the file takes another size.
    """
    laid_out = np.ascontiguousarray(image.transpose(1, 2, 0)[None])
    if laid_out.shape != tuple(detail["shape"]):
        raise UsageError(
            f"calibration images of {laid_out.shape[1]}×{laid_out.shape[2]} pixels do not fit this model, which takes "
            f"{detail['shape'][1]}×{detail['shape'][2]}."
        )
    return laid_out


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
