"""Ranges of Core ML activations by measurement: a converted program is tried with other ranges without converting it.

The scales and zero points of a package are numbers beside its `quantize` and `dequantize` operations. So the package is
converted once, read, and interpreted with the numbers of each way of choosing ranges in their place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.export.calibration.measured import Ranges, Values, noise_share
from edgekit.export.mil.interpreter import MilProgram
from edgekit.export.mil.package import Package, read_package
from edgekit.export.mil.program import Constant, Operation, Program, TensorType
from edgekit.export.session import FloatArray


class TriedRanges:
    """A W8A8 package whose ranges are tried.

    Args:
        coded: the package, with any ranges.
        float_package: what it was made from.
        images: (N, 3, H, W) float32 in [0, 1] that the outputs are compared on.
    """

    def __init__(self, coded: Path, float_package: Path, images: FloatArray) -> None:
        self._package, self._images = read_package(coded), images
        self._want = outputs(MilProgram.load(float_package), images)

    def noise(self, ranges: Ranges) -> float:
        """Return what the package with these ranges is off the float one; see `noise_share`."""
        return noise_share(self._want, outputs(MilProgram(with_ranges(self._package, ranges)), self._images))


def with_ranges(package: Package, ranges: Mapping[str, tuple[float, float]]) -> Package:
    """Return a package whose activations' codes span other ranges, by the names of the tensors that are coded.

    What `ranges` does not name stays.
    """
    program = package.program
    codes: dict[str, dict[str, tuple[Constant]]] = {}
    operations = []
    for operation in program.operations:
        source = operation.inputs.get("input", (None,))[0]
        if operation.type == "quantize" and source in ranges:
            assert isinstance(source, str)
            codes[operation.outputs[0][0]] = _codes(program, operation, ranges[source])
        known = codes.get(operation.outputs[0][0]) or codes.get(str(source))
        if known is not None and operation.type in ("quantize", "dequantize"):
            operation = replace(operation, inputs={**operation.inputs, **known})
        operations.append(operation)
    return replace(package, program=replace(program, operations=tuple(operations)))


def _codes(program: Program, operation: Operation, bounds: tuple[float, float]) -> dict[str, tuple[Constant]]:
    """Return the parameters `scale` and `zero_point` that span some bounds, as coremltools 9.0 computes them: all of it
    in float16, so that a scale is off by up to a thousandth (`coremltools.optimize._utils`)."""
    low, high = np.asarray(bounds, np.float16)
    scale = (high - low) / np.float16(255)
    with np.errstate(over="ignore", invalid="ignore"):  # beyond ±511 it overflows there, and is worthless here, too
        zero_point = np.round((np.float16(-128) * high - np.float16(127) * low) / (high - low))
    whole = np.clip(np.nan_to_num(zero_point), -128, 127).astype(np.int8)
    half = _type(program, operation, "scale").dtype == "fp16"
    unsigned = operation.outputs[0][1].dtype == "uint8"
    point = np.asarray(whole.astype(np.int16) + 128, np.uint8) if unsigned else np.asarray(whole)
    return {
        "scale": (_constant(np.asarray(scale, np.float16 if half else np.float32), "fp16" if half else "fp32"),),
        "zero_point": (_constant(point, "uint8" if unsigned else "int8"),),
    }


def _type(program: Program, operation: Operation, parameter: str) -> TensorType:
    argument = operation.inputs[parameter][0]
    return (program.constants[argument] if isinstance(argument, str) else argument).type


def _constant(value: NDArray[np.generic], dtype: str) -> Constant:
    return Constant(TensorType(dtype), value, value.nbytes)


def outputs(program: MilProgram, images: FloatArray) -> list[Values]:
    """Return the outputs of a program that are tensors, (N, values) each, for images (N, 3, H, W) in [0, 1]."""
    (entry,) = program.inputs.values()
    names = [name for name, feature in program.outputs.items() if feature.kind == "tensor"]
    rows = entry.shape[0] or 1
    found: dict[str, list[Values]] = {name: [] for name in names}
    for at in range(0, len(images), rows):
        pixels = images[at : at + rows]
        if entry.kind == "image":
            pixels = np.rint(pixels * np.float32(255))
        results = program.run({entry.name: pixels})
        for name in names:
            found[name].append(results[name].astype(np.float64))
    return [np.concatenate(parts) for parts in found.values()]
