"""Core ML on this Mac: an .mlpackage on the CPU, the GPU or the Neural Engine, and where its operations really run.

Written against the sources of coremltools 9.0 and tested on Linux up to where Apple's framework begins; it has not
been run on a Mac.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import DataError, LoadError, MissingExtraError
from edgekit.export.quiet import quiet
from edgekit.export.runtimes import on_macos
from edgekit.export.session import FloatArray, RuntimeInfo

UNITS: Mapping[str, str] = {"CPU": "CPU_ONLY", "GPU": "CPU_AND_GPU", "Neural Engine": "CPU_AND_NE"}
"""What may run a model beside the CPU, and coremltools' name of it."""
_DEVICES = {"MLCPUComputeDevice": "CPU", "MLGPUComputeDevice": "GPU", "MLNeuralEngineComputeDevice": "Neural Engine"}


@dataclass(frozen=True)
class PictureInput:
    """How a package takes its picture.

    Attributes:
        name: of the input.
        image: whether it takes a picture of 8-bit pixels rather than an array.
        batch, height, width: its size.
    """

    name: str
    image: bool
    batch: int
    height: int
    width: int

    def feed(self, images: FloatArray) -> dict[str, Any]:
        """Return what `predict` takes for (B, 3, H, W) float32 RGB in [0, 1]."""
        if not self.image:
            return {self.name: np.ascontiguousarray(images, np.float32)}
        from PIL import Image

        pixels = np.rint(np.clip(images[0], 0.0, 1.0) * 255).astype(np.uint8)
        return {self.name: Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)), "RGB")}


def open_package(path: Path, unit: str) -> Any:
    """Return coremltools' model of a package, its spec read; on a Mac it is loaded as well.

    Raises:
        LoadError: it cannot be read.
        MissingExtraError: coremltools is not installed.
    """
    try:
        import coremltools
    except ModuleNotFoundError as e:
        raise MissingExtraError("coremltools", "coreml", "Running an .mlpackage") from e
    try:
        with quiet():
            return coremltools.models.MLModel(str(path), compute_units=coremltools.ComputeUnit[UNITS[unit]])
    except Exception as e:  # Apple's errors come as RuntimeError, a damaged spec's as protobuf's own
        raise LoadError(f"{path} is no package that Core ML can load: {str(e).splitlines()[0][:200]}") from e


def picture_input(model: Any, path: Path) -> PictureInput:
    """Return how a package takes its one picture.

    Raises:
        LoadError: it takes something else.
    """
    inputs = list(model.get_spec().description.input)
    feature = inputs[0].type if len(inputs) == 1 else None
    if feature is not None and feature.WhichOneof("Type") == "imageType":
        image = feature.imageType
        return PictureInput(inputs[0].name, True, 1, int(image.height), int(image.width))
    shape = tuple(int(side) for side in feature.multiArrayType.shape) if feature is not None else ()
    if len(shape) == 4 and shape[1] == 3:
        return PictureInput(inputs[0].name, False, shape[0], shape[2], shape[3])
    raise LoadError(f"{path} takes {', '.join(one.name for one in inputs)}; one picture (B, 3, H, W) is needed")


class CoreMLSession:
    """A package on this Mac, as a Session (edgekit.export.session).

    Args:
        path: the .mlpackage folder.
        unit: one of `UNITS`.

    Raises:
        LoadError: this is no Mac, or Core ML rejects the package.
        MissingExtraError: coremltools is not installed.
    """

    def __init__(self, path: Path, unit: str) -> None:
        if not on_macos():
            raise LoadError("Core ML runs on a Mac alone; elsewhere a package can be verified, but not timed")
        self._model = open_package(path, unit)
        self._input = picture_input(self._model, path)
        self.input_shape = (self._input.batch, 3, self._input.height, self._input.width)
        self.info = RuntimeInfo("Core ML", version("coremltools"), 0, unit, placed(self._model, unit))

    def __call__(self, images: FloatArray) -> dict[str, FloatArray]:
        """Run one batch; see `edgekit.export.session.Session`.

        Raises:
            DataError: `images` has another shape than the package takes.
        """
        if images.shape != self.input_shape:
            raise DataError(f"images have the shape {images.shape}; this model takes {self.input_shape}")
        return outputs_of(self._model.predict(self._input.feed(images)))


def outputs_of(found: Mapping[str, Any]) -> dict[str, FloatArray]:
    """Return a prediction's arrays; a classifier's label is left out, and its scores are in the classes' order."""
    arrays: dict[str, FloatArray] = {}
    for name, value in found.items():
        if isinstance(value, Mapping):  # class name -> score
            arrays["logits"] = np.asarray([list(value.values())], np.float32)
        elif isinstance(value, np.ndarray) and value.dtype.kind == "f":
            arrays[name] = value.astype(np.float32).reshape(len(value), -1)
    return arrays


def placed(model: Any, unit: str) -> str:
    """Return which devices Core ML means to run how many operations on, e.g. "Neural Engine 60, CPU 3 operations"."""
    from coremltools import ComputeUnit
    from coremltools.models.compute_plan import MLComputePlan

    plan = MLComputePlan.load_from_path(model.get_compiled_model_path(), compute_units=ComputeUnit[UNITS[unit]])
    program = plan.model_structure.program
    if program is None:
        return "no ML Program: Core ML does not tell where it runs"
    return counted(plan, program.functions["main"].block.operations)


def counted(plan: Any, operations: Any) -> str:
    """Count the operations of a compute plan by their preferred device; constants have none."""
    counts: Counter[str] = Counter()
    for operation in operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        if usage is not None:
            kind = type(usage.preferred_compute_device).__name__
            counts[_DEVICES.get(kind, kind)] += 1
    return ", ".join(f"{name} {count}" for name, count in counts.most_common()) + " operations"
