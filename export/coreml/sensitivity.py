"""Mixed Core ML W8A8: which activations cost so much accuracy that they stay float16."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from edgekit.export.calibration.measured import Ranges, Values, noise_share
from edgekit.export.choice.sensitivity import MOST, worst_layers
from edgekit.export.coreml.measured import outputs, with_ranges
from edgekit.export.mil.interpreter import MilProgram
from edgekit.export.mil.package import Package, read_package
from edgekit.export.mil.program import Operation
from edgekit.export.session import FloatArray

TENSORS = 2 * MOST
"""Tensors that stay float16 at most: a layer with a SiLU behind it has two, before and after."""


def worst_tensors(coded: Path, ranges: Ranges, images: FloatArray) -> tuple[str, ...]:
    """Return the activations that should stay float16, by name, the worst first.

    Each of them alone is rounded, and the noise of the outputs measured; `worst_layers` says which to keep. Weights are
    in 8 bits either way. What holds the same numbers in another shape, and so has the same range, stays with it.

    Args:
        coded: a W8A8 package with all codes in.
        ranges: of the activations that are coded, by name.
        images: (N, 3, H, W) float32 in [0, 1], calibration images.
    """
    # as they are: coremltools divides the scales about a sum by one of them, which is no range for one tensor alone
    package = with_ranges(read_package(coded), ranges)
    alike: dict[tuple[float, float], list[str]] = {}
    for name in sorted(_coded_tensors(package) & ranges.keys()):
        alike.setdefault(ranges[name], []).append(name)

    def outputs_with(some: Collection[str]) -> list[Values]:
        return outputs(MilProgram(with_codes_of(package, some)), images)

    want = outputs_with(())
    noises = {tuple(names): noise_share(want, outputs_with(names)) for names in alike.values()}
    return tuple(name for names in worst_layers(noises, most=TENSORS) for name in names)


def _coded_tensors(package: Package) -> set[str]:
    sources = (op.inputs["input"][0] for op in package.program.operations if op.type == "quantize")
    return {source for source in sources if isinstance(source, str)}


def with_codes_of(package: Package, tensors: Collection[str]) -> Package:
    """Return a package in which only some tensors are rounded to codes, by the names of what is quantized."""
    program = package.program
    passed: dict[str, str] = {}
    operations: list[Operation] = []
    for operation in program.operations:
        source = operation.inputs.get("input", (None,))[0]
        if operation.type == "quantize" and isinstance(source, str) and source not in tensors:
            passed[operation.outputs[0][0]] = source
        elif operation.type == "dequantize" and source in passed:
            operations.append(replace(operation, type="identity", inputs={"x": (passed[str(source)],)}))
        else:
            operations.append(operation)
    return replace(package, program=replace(program, operations=tuple(operations)))
