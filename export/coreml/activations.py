"""W8A8 for Core ML: activations of convolutions and linear layers as 8-bit codes, on ranges that are our own.

coremltools 9.0 inserts the quantize and dequantize operations, but its calibrator needs macOS, and overwrites a range
with every sample, so that only the last one counts. So the ranges come from `edgekit.export.calibration.statistics`,
fed by the interpreter, which runs the same program on any machine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import LoadError, UsageError
from edgekit.export.calibration.measured import CANDIDATES, MEASURED_IMAGES, Ranges, first_images, nearest_ranges
from edgekit.export.calibration.ranges import RangeConfig
from edgekit.export.calibration.statistics import Histograms, Observe, collect
from edgekit.export.calibration.trained import TrainedCodes
from edgekit.export.choice.sensitivity import SENSITIVITY_IMAGES
from edgekit.export.coreml.convert import coremltools_module, save_package
from edgekit.export.coreml.measured import TriedRanges
from edgekit.export.coreml.sensitivity import worst_tensors
from edgekit.export.mil.interpreter import MilProgram
from edgekit.export.mil.program import Operation
from edgekit.export.quiet import quiet
from edgekit.export.session import FloatArray
from edgekit.export.tflite.repair import SILU_FLOOR

_PASSES = (
    "compression::insert_prefix_quantize_dequantize_pair",
    "compression::insert_suffix_quantize_dequantize_pair",
    "common::dequantize_quantize_pair_elimination",
)
Batches = Callable[[], Iterable[FloatArray]]
CODED = ("conv", "linear", "add", "avg_pool", "max_pool")
"""Operations around which coremltools can put activations in 8 bits."""
FUSED = frozenset({"leaky_relu", "tanh", "scaled_tanh", "sigmoid", "hard_sigmoid", "relu", "relu6"})
"""Activations that coremltools takes for a part of the operation before them: it is their output that is coded."""


@dataclass(frozen=True)
class ActivationConfig:
    """Which activations are coded, and how their ranges are chosen.

    Attributes:
        ranges: from histograms to ranges; None tries some ways on calibration images.
        operations: types of operations whose inputs and outputs are coded, of `CODED`. Sums cost more than they bring:
            residual sums of tokens, which norms read, would be rounded.
        heads: code the linear layers that read one row, too.
        mixed: leave the activations that cost most accuracy float16. An operation that reads one computes in float16;
            one that only gives one still computes in 8 bits.
        trained: ranges that the weights were trained with, for this file, and with `mixed` what stays float16.
    """

    ranges: RangeConfig | None = None
    operations: tuple[str, ...] = ("conv", "linear")
    heads: bool = False
    mixed: bool = False
    trained: TrainedCodes | None = None


@dataclass(frozen=True)
class Coded:
    """Where codes are put in.

    Attributes:
        inputs, outputs: operations whose inputs and outputs become codes, each by the name of its output.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, operations: Iterable[Operation], program: MilProgram) -> Coded:
        """Return where codes go around some operations: not before a `split`, whose parts one range serves badly."""
        cut = {name for op in program.operations if op.type == "split" for name in _names(op, "x")}
        inputs = tuple(op.outputs[0][0] for op in operations)
        return cls(inputs, tuple(name for name in inputs if name not in cut))

    def without(self, tensors: Collection[str], program: MilProgram) -> Coded:
        """Return where codes go if some tensors have none: not behind what reads one of them, either, as coremltools
        wants them before an operation or not at all."""
        reading = {op.outputs[0][0] for op in program.operations if any(name in tensors for name in _names(op, "x"))}
        giving = {op.outputs[0][0] for op in program.operations if _end(op, program) in tensors}
        inputs = tuple(name for name in self.inputs if name not in reading)
        return Coded(inputs, tuple(name for name in self.outputs if name not in reading | giving))


@dataclass(frozen=True)
class ActivationReport:
    """What came out.

    Attributes:
        coded: numbers of operations whose inputs, and mostly outputs, are 8-bit codes, by type.
        statistics: of the activations on the calibration images.
        kept: activations that `mixed` left float16, by the names of the tensors.
    """

    coded: Mapping[str, int]
    statistics: Histograms
    kept: tuple[str, ...] = ()


def quantize_activations(
    float_package: Path, out: Path, batches: Batches, config: ActivationConfig | None = None
) -> ActivationReport:
    """Write `out`, the program of a float16 package with 8-bit activations and 8-bit weights.

    Activations are asymmetric codes of one range per tensor, weights symmetric, one scale per output channel.

    Args:
        float_package: a float16 package of `export_coreml`; it is not changed.
        out: the package, written whole or not at all.
        batches: gives the same calibration images (B, 3, H, W) float32 in [0, 1] each time it is called; from the
            training split.
        config: what is coded.

    Raises:
        DataError: see `edgekit.export.calibration.statistics.collect`.
        LoadError: coremltools does not offer the passes that insert the codes.
        MissingExtraError: coremltools is not installed.
        UsageError: the program has nothing to code, or does not take one picture.
    """
    config = config or ActivationConfig()
    program = MilProgram.load(float_package)
    makers = {op.outputs[0][0]: op for op in program.operations}
    operations = [
        op
        for op in program.operations
        if op.type in config.operations
        and _is_coded(op, program, config)
        and not any(_is_times_sum(name, makers) for name in _names(op, "x"))
    ]
    if not operations:
        raise UsageError(f"{float_package.name} has no {' or '.join(config.operations)} to quantize; use w8 or fp16")
    coded = Coded.of(operations, program)
    tensors = _tensors(operations, coded, program)
    run = _runner(program, tensors)
    statistics = collect(run, batches)
    if config.trained is not None:
        size = next(iter(program.inputs.values())).shape[2] or 0
        ranges = _floored(program, statistics.ranges(config.ranges) | config.trained.ranges_in(run, size))
        kept = tuple(sorted(config.trained.float_tensors_in(run, size))) if config.mixed else ()
    else:
        ranges, kept = _tried(float_package, program, coded, statistics, batches, config)
    coded = coded.without(kept, program)
    _write(float_package, coded, ranges, out)
    reading = [op.type for op in operations if op.outputs[0][0] in coded.inputs]
    counts = {kind: reading.count(kind) for kind in config.operations}
    return ActivationReport(counts, statistics, kept)


def _floored(program: MilProgram, ranges: Ranges) -> Ranges:
    """Return ranges that spend no code where a SiLU is flat."""
    floors = {
        name: (max(ranges[name][0], SILU_FLOOR), ranges[name][1]) for name in _silu_inputs(program) if name in ranges
    }
    return {**ranges, **floors}


def _write(float_package: Path, coded: Coded, ranges: Ranges, out: Path) -> None:
    with quiet(), np.errstate(divide="ignore", invalid="ignore"):
        save_package(_insert(float_package, coded, ranges), out)


def _tried(
    float_package: Path,
    program: MilProgram,
    coded: Coded,
    statistics: Histograms,
    batches: Batches,
    config: ActivationConfig,
) -> tuple[Ranges, tuple[str, ...]]:
    """Return the ranges that config asks for and, for `mixed`, the tensors that cost most on calibration images.

    What has to be measured is measured in one package with all codes in: both kinds of trial put their own ranges in.
    """
    ranges = _floored(program, statistics.ranges(config.ranges or CANDIDATES[0]))
    kept: tuple[str, ...] = ()
    if config.ranges is None or config.mixed:
        with tempfile.TemporaryDirectory() as folder:
            whole = Path(folder) / "whole.mlpackage"
            _write(float_package, coded, ranges, whole)
            if config.ranges is None:
                tried = TriedRanges(whole, float_package, first_images(batches, MEASURED_IMAGES))
                nearest = nearest_ranges(statistics, lambda some: tried.noise(_floored(program, some)))
                ranges = _floored(program, nearest)
            if config.mixed:
                kept = worst_tensors(whole, ranges, first_images(batches, SENSITIVITY_IMAGES))
    return ranges, kept


def _is_coded(op: Operation, program: MilProgram, config: ActivationConfig) -> bool:
    """Return whether an operation reads computed values, many rows of them unless heads are wanted too."""
    if not all(_names(op, key) for key in (("x", "y") if op.type == "add" else ("x",))):
        return False
    if any(name in program.constants for key in ("x", "y") for name in _names(op, key)):
        return False
    shape = op.outputs[0][1].shape
    return config.heads or op.type != "linear" or int(np.prod([side or 1 for side in shape[:-1]])) > 1


def _is_times_sum(name: str, makers: Mapping[str, Operation]) -> bool:
    """Tell whether a tensor is a product with a sum over tokens: MobileViTv2's values times contexts.

    Its rows differ by orders of magnitude, from picture to picture, too; one range for all was a third of the noise of
    one whole W8A8 mobilevitv2_050 (LOG.md).
    """
    product = makers.get(name)
    if product is None or product.type != "mul":
        return False
    factors = [factor for key in ("x", "y") for factor in _names(product, key)]
    spread = [_names(makers[f], "x")[0] if f in makers and makers[f].type == "tile" else f for f in factors]
    return any(factor in makers and makers[factor].type == "reduce_sum" for factor in spread)


def _tensors(operations: Iterable[Operation], coded: Coded, program: MilProgram) -> set[str]:
    """Return the names of all tensors that need a range; of a picture the scaled pixels."""
    found = set(coded.outputs)
    for op in operations:
        found.update(_fused(op, program))
        for key in ("x", "y") if op.type == "add" else ("x",):
            found.update(_names(op, key))
    return found


def _end(op: Operation, program: MilProgram) -> str:
    """Return the name of what an operation gives, with the activation that counts as a part of it."""
    return next(_fused(op, program), op.outputs[0][0])


def _fused(op: Operation, program: MilProgram) -> Iterator[str]:
    return (r.outputs[0][0] for r in program.operations if r.type in FUSED and op.outputs[0][0] in _names(r, "x"))


def _names(op: Operation, key: str) -> list[str]:
    return [name for name in op.inputs.get(key, ()) if isinstance(name, str)]


def _silu_inputs(program: MilProgram) -> Iterator[str]:
    """Yield the tensors that only a SiLU reads."""
    readers: dict[str, list[str]] = {}
    for op in program.operations:
        for key in op.inputs:
            for name in _names(op, key):
                readers.setdefault(name, []).append(op.type)
    yield from (name for name, kinds in readers.items() if set(kinds) == {"silu"})


def _runner(program: MilProgram, tensors: set[str]) -> Callable[[FloatArray, Observe], None]:
    """Return a `Run` of the program for calibration."""
    if len(program.inputs) != 1:
        raise UsageError(f"the package takes {', '.join(program.inputs)}; calibration needs one input of pictures")
    (entry,) = program.inputs.values()
    rows = entry.shape[0] or 1

    def run(images: FloatArray, observe: Observe) -> None:
        for at in range(0, len(images), rows):
            pixels = images[at : at + rows]
            if entry.kind == "image":
                pixels = np.rint(pixels * np.float32(255))
            program.run_observed(
                {entry.name: pixels},
                lambda name, values: observe(name, values.numpy()) if name in tensors else None,
            )

    return run


def _insert(package: Path, coded: Coded, ranges: Mapping[str, tuple[float, float]]) -> Any:
    """Return a coremltools model with codes around the operations of `coded`, and 8-bit weights."""
    coremltools = coremltools_module()
    from coremltools.optimize import coreml as optimize

    try:
        from coremltools.converters.mil.mil.passes.graph_pass import PassOption
        from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY
        from coremltools.models.utils import _apply_graph_pass

        passes = [PASS_REGISTRY[name] for name in _PASSES]
    except (ImportError, KeyError) as e:
        raise LoadError(f"this coremltools has other graph passes than edgekit knows ({e}); use coremltools 9.0") from e
    asymmetric = optimize.OpLinearQuantizerConfig(mode="linear")
    statistics = {name: {"rmin": low, "rmax": high} for name, (low, high) in ranges.items()}
    for step, names in zip(passes[:2], (coded.inputs, coded.outputs), strict=True):
        config = optimize.OptimizationConfig(op_name_configs=dict.fromkeys(names, asymmetric))
        step.set_options([PassOption("config", config), PassOption("activation_stats", statistics)])
    model = coremltools.models.MLModel(str(package), skip_model_load=True)
    target = coremltools.target.iOS17.value
    active = _apply_graph_pass(model, passes, spec_version=target, skip_model_load=True)
    symmetric = optimize.OpLinearQuantizerConfig(  # small layers too: codes times float weights is float arithmetic
        mode="linear_symmetric", dtype="int8", granularity="per_channel", weight_threshold=0
    )
    return optimize.linear_quantize_weights(active, optimize.OptimizationConfig(global_config=symmetric))
