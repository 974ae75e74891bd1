"""Run a Core ML ML Program (.mlpackage) without Apple hardware, by interpreting its MIL operations over torch.

The numbers are those of the program as stored: weights as they decode, every fp16 result rounded to half. Apple's
compiler may fuse, reorder and keep more precision, so say "interpreted, not run on Apple hardware" beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.errors import UsageError
from edgekit.export.mil.blob import PackageError
from edgekit.export.mil.executor import TORCH_TYPES, Executor
from edgekit.export.mil.package import Package, read_package
from edgekit.export.mil.program import Constant, Operation
from edgekit.export.session import FloatArray, RuntimeInfo

NOTE = "interpreted, not run on Apple hardware"
_COLOR_LAYOUTS = {10: "GRAYSCALE", 20: "RGB", 30: "BGR", 40: "GRAYSCALE_FLOAT16"}

FeatureKind = Literal["tensor", "image", "label", "scores"]


@dataclass(frozen=True)
class Feature:
    """An input or output of a package.

    Attributes:
        name: its name.
        kind: "tensor"; "image" for an ImageType input, 8-bit pixels (1, 3, H, W); "label" and "scores" for what a
            classifier gives: the best class's name, and a score for each class.
        dtype: MIL type of its elements.
        shape: sizes, None where free.
        colors: "RGB", "BGR", "GRAYSCALE" or "GRAYSCALE_FLOAT16" for an image, else "".
    """

    name: str
    kind: FeatureKind
    dtype: str
    shape: tuple[int | None, ...]
    colors: str = ""


class MilProgram:
    """A loaded package, ready to run; build it with `load`.

    Attributes:
        inputs, outputs: what it takes and gives, by name.
        classes: a classifier's class names in the order of its scores, else empty.
        operations: what it computes, in order.
        constants: what it stores, by name.
        version: the coremltools version that read it.
    """

    def __init__(self, package: Package) -> None:
        self._executor = Executor(package.program)
        self._classify = next((op for op in package.program.operations if op.type == "classify"), None)
        self._package = package
        self.inputs: Mapping[str, Feature] = {feature.name: feature for feature in _inputs(package)}
        self.outputs: Mapping[str, Feature] = {feature.name: feature for feature in _outputs(package)}
        self.classes: tuple[str, ...] = _classes(self._classify)
        self.operations: tuple[Operation, ...] = package.program.operations
        self.constants: Mapping[str, Constant] = package.program.constants
        self.version = package.coremltools_version

    @classmethod
    def load(cls, path: Path) -> MilProgram:
        """Read and compile an .mlpackage folder.

        Raises:
            PackageError: the package is damaged, incomplete, too large, or not an ML Program.
            UnknownOpError: it uses an operation that the interpreter does not know; named with its place.
            ProgramError: an operation is malformed.
            MissingExtraError: coremltools is not installed.
        """
        return cls(read_package(path))

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once.

        Args:
            feeds: an array for every input; an "image" takes its pixel values 0..255, in its own channel order.

        Returns:
            An array for every output, of its declared type; a "label" gives strings (B,), "scores" (B, classes).

        Raises:
            UsageError: an input is missing, unknown, or of another shape.
            ProgramError: an operation fails; it is named.
        """
        return self._arrays(self._executor.run(self._tensors(feeds)))

    def run_observed(
        self, feeds: Mapping[str, NDArray[Any]], observe: Callable[[str, torch.Tensor], None]
    ) -> dict[str, NDArray[Any]]:
        """Run once as `run` does, and show every floating tensor on the way.

        Args:
            feeds: as for `run`.
            observe: called with name and float32 tensor, for each floating input and each operation's floating results;
                names are those in the package, so activation statistics for coremltools can be keyed by them.
        """
        return self._arrays(self._executor.run(self._tensors(feeds), observe))

    def reads_softmax(self) -> bool:
        """Say whether a classifier's scores come straight from a softmax, casts aside: probabilities, not logits."""
        if self._classify is None:
            return False
        name = self._classify.inputs["probabilities"][0]
        producer = self._package.program.producer(name) if isinstance(name, str) else None
        while producer is not None and producer.type in ("cast", "identity"):
            source = producer.inputs["x"][0]
            producer = self._package.program.producer(source) if isinstance(source, str) else None
        return producer is not None and producer.type == "softmax"

    def _tensors(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
        if set(feeds) != set(self.inputs):
            raise UsageError(f"the program takes {sorted(self.inputs)}, given: {sorted(feeds)}")
        tensors = {}
        for name, array in feeds.items():
            declared = self._package.program.inputs[name]
            if not declared.admits(array.shape):
                raise UsageError(f"input '{name}' has the shape {array.shape}, the program takes {declared.shape}")
            tensor = torch.from_numpy(np.array(array, order="C")).to(TORCH_TYPES[declared.dtype])
            tensors[name] = tensor.half().float() if declared.dtype == "fp16" else tensor
        return tensors

    def _arrays(self, results: Mapping[str, torch.Tensor]) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {}
        for name, feature in self.outputs.items():
            array = results[name].numpy()
            if feature.kind == "label":
                if array.size and array.max() >= len(self.classes):
                    raise PackageError(f"{self._package.path}: more scores than its {len(self.classes)} classes")
                arrays[name] = np.asarray([self.classes[index] for index in array])
            elif feature.kind == "scores":
                arrays[name] = array.reshape(-1, array.shape[-1])
            else:
                arrays[name] = array.astype(np.float16) if feature.dtype == "fp16" else array
        return arrays


class MilSession:
    """A package that takes one picture batch, as a Session (edgekit.export.session).

    An ImageType input is fed what Core ML would hand it: pixels rounded to 8 bits, 0..255, in the channel order of its
    colour layout; scale and bias are operations inside the program. A classifier's scores come out as "logits", or as
    "probabilities" if a softmax made them; its label is left out.

    Args:
        path: the .mlpackage folder.
        threads: torch threads for one inference; 0 leaves torch's own setting.

    Raises:
        PackageError: the package cannot be read, or does not take exactly one RGB or BGR picture.
        UnknownOpError, ProgramError: as in MilProgram.load.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        self.program = MilProgram.load(path)
        self._threads = threads
        self._input = _picture_input(self.program, path)
        self.info = RuntimeInfo("mil", self.program.version, threads, "interpreter", NOTE)
        scores_name = "probabilities" if self.program.reads_softmax() else "logits"
        self._names = {
            name: scores_name if feature.kind == "scores" else name
            for name, feature in self.program.outputs.items()
            if feature.kind != "label"
        }

    @property
    def input_shape(self) -> tuple[int | None, int, int, int]:
        """(B, 3, H, W); B is None where the package takes any batch."""
        batch, _, height, width = self._input.shape
        assert height is not None and width is not None  # checked by _picture_input
        return batch, 3, height, width

    def __call__(self, images: FloatArray) -> dict[str, FloatArray]:
        """Run on images (B, 3, H, W) float32 RGB in [0, 1]; return float32 outputs by name."""
        pixels = images
        if self._input.kind == "image":
            pixels = np.rint(np.clip(images, 0.0, 1.0) * np.float32(255)).astype(np.float32)
            if self._input.colors == "BGR":
                pixels = pixels[:, ::-1]
        with _torch_threads(self._threads):
            results = self.program.run({self._input.name: pixels})
        return {ours: np.asarray(results[name], np.float32) for name, ours in self._names.items()}


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _picture_input(program: MilProgram, path: Path) -> Feature:
    features = list(program.inputs.values())
    if len(features) != 1 or len(features[0].shape) != 4 or features[0].shape[1] != 3 or None in features[0].shape[2:]:
        given = ", ".join(f"{feature.name} {feature.shape}" for feature in features)
        raise PackageError(f"{path} takes {given}; a picture session needs exactly one input (B, 3, H, W)")
    if features[0].kind == "image" and features[0].colors not in ("RGB", "BGR"):
        raise PackageError(f"{path} takes a picture of colour layout {features[0].colors}; allowed: RGB, BGR")
    return features[0]


def _inputs(package: Package) -> Iterator[Feature]:
    declared = package.program.inputs
    for message in package.description.input:
        if message.name not in declared:
            raise PackageError(f"{package.path}: the program does not take the described input '{message.name}'")
        tensor = declared[message.name]
        if tensor.dtype not in TORCH_TYPES:
            raise PackageError(f"{package.path}: the input '{message.name}' is of type {tensor.dtype}, not a tensor")
        if message.type.WhichOneof("Type") == "imageType":
            colors = _COLOR_LAYOUTS.get(message.type.imageType.colorSpace, "unknown")
            yield Feature(message.name, "image", tensor.dtype, tensor.shape, colors)
        else:
            yield Feature(message.name, "tensor", tensor.dtype, tensor.shape)


def _outputs(package: Package) -> Iterator[Feature]:
    types = {name: (op, tensor) for op in package.program.operations for name, tensor in op.outputs}
    for name in package.program.outputs:
        operation, tensor = types.get(name, (None, None))
        if operation is None or tensor is None:
            source = package.program.inputs.get(name) or package.program.constants[name].type
            yield Feature(name, "tensor", source.dtype, source.shape)
        elif operation.type == "classify":
            kind: FeatureKind = "label" if name == operation.outputs[0][0] else "scores"
            yield Feature(name, kind, tensor.dtype, tensor.shape)
        else:
            yield Feature(name, "tensor", tensor.dtype, tensor.shape)


def _classes(classify: Operation | None) -> tuple[str, ...]:
    if classify is None:
        return ()
    given = classify.inputs.get("classes", ())
    if len(given) == 1 and isinstance(given[0], Constant) and isinstance(given[0].value, tuple):
        return given[0].value
    raise PackageError(f"{classify.place} does not list its classes")
