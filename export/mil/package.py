"""Open an .mlpackage: find its model specification and its weights, with limits on sizes and on where paths lead."""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import MissingExtraError
from edgekit.export.mil.blob import BlobFile, PackageError
from edgekit.export.mil.program import Program, parse_program

MAX_SPEC_BYTES = 256 * 2**20
"""The specification holds the graph and small constants: 0.3 MB for MobileViT-S, 1 MB for CLIP ViT-B/32."""
MAX_WEIGHT_BYTES = 4 * 2**30
"""The weight file; CLIP ViT-L/14 in fp32 takes 1.7 GB."""
MAX_MANIFEST_BYTES = 2**20
MAX_DECODED_BYTES = 8 * 2**30
"""All constants decoded: a small file could name one large tensor a thousand times."""
_WEIGHTS_PREFIX = "@model_path/"
_PROTOCOL = "edgekit_coremltools_proto"


@dataclass(frozen=True)
class Package:
    """A parsed package.

    Attributes:
        path: the folder.
        description: the specification's ModelDescription message: features, metadata, classifier outputs.
        program: the main function.
        coremltools_version: what read it.
    """

    path: Path
    description: Any
    program: Program
    coremltools_version: str


def read_package(path: Path) -> Package:
    """Read an .mlpackage folder.

    Raises:
        PackageError: the package is damaged, incomplete, too large, or not an ML Program; the message says which.
        MissingExtraError: coremltools is not installed.
    """
    spec_path = _specification_path(path)
    content = _read_limited(spec_path, MAX_SPEC_BYTES)
    message = _specification_message()
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    spec = message()
    try:
        spec.ParseFromString(content)
    except DecodeError as e:
        raise PackageError(f"{spec_path} is not a Core ML specification, or is cut short. Export it again.") from e
    kind = spec.WhichOneof("Type")
    if kind != "mlProgram":
        raise PackageError(f"{path} holds a model of type '{kind}'; only ML Programs (mlProgram) can be interpreted.")
    function = spec.description.defaultFunctionName or "main"
    try:
        program = parse_program(spec.mlProgram, function, _BlobReader(spec_path.parent))
    except PackageError as e:
        raise PackageError(f"{path}: {e}") from e
    return Package(path, spec.description, program, version("coremltools"))


@functools.cache
def _specification_message() -> Any:
    """Return coremltools' Model message, without importing coremltools.

    That imports torch, torchvision, scikit-learn and transformers, 7 s of processor time, for converters that reading
    needs nothing of. Its generated modules import each other alone, so they load as a package of our own name; where
    coremltools is imported, too, before or after, protobuf gives both the same classes.

    Raises:
        MissingExtraError: coremltools is not installed.
    """
    found = importlib.util.find_spec("coremltools")
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError("coremltools", "coreml", "reading .mlpackage files")
    package = ModuleType(_PROTOCOL)
    package.__path__ = [str(Path(place) / "proto") for place in found.submodule_search_locations]
    sys.modules[_PROTOCOL] = package
    try:
        return importlib.import_module(f"{_PROTOCOL}.Model_pb2").Model
    except ModuleNotFoundError as e:  # of protobuf, or a broken installation
        raise MissingExtraError(e.name or "coremltools", "coreml", "reading .mlpackage files") from e


class _BlobReader:
    """Read tensors by the file names that a program uses, "@model_path/weights/weight.bin"; open each file once."""

    def __init__(self, model_folder: Path) -> None:
        self._folder = model_folder
        self._files: dict[str, BlobFile] = {}
        self._decoded_bytes = 0

    def __call__(self, name: str, offset: int, dtype: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
        if name not in self._files:
            path = _inside(self._folder, name.removeprefix(_WEIGHTS_PREFIX))
            if path.exists() and path.stat().st_size > MAX_WEIGHT_BYTES:
                raise PackageError(f"{path} is larger than the allowed {MAX_WEIGHT_BYTES} bytes")
            self._files[name] = BlobFile.open(path)
        array = self._files[name].read(offset, dtype, shape)
        self._decoded_bytes += array.nbytes
        if self._decoded_bytes > MAX_DECODED_BYTES:
            raise PackageError(f"the constants decode to more than the allowed {MAX_DECODED_BYTES} bytes")
        return array


def _specification_path(path: Path) -> Path:
    """Follow Manifest.json to the specification."""
    if path.is_file():
        raise PackageError(f"{path} is a file; an .mlpackage is a folder. Unpack it first if it is an archive.")
    if not path.is_dir():
        raise PackageError(f"{path} does not exist.")
    manifest_path = path / "Manifest.json"
    try:
        manifest = json.loads(_read_limited(manifest_path, MAX_MANIFEST_BYTES))
        relative = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise PackageError(f"{manifest_path} does not name a model; the package is damaged. Export it again.") from e
    return _inside(path / "Data", str(relative))


def _inside(folder: Path, relative: str) -> Path:
    """Return folder/relative, which may not lead out of the folder."""
    parts = PurePosixPath(relative)
    if parts.is_absolute() or ".." in parts.parts or "\\" in relative or "\0" in relative:
        raise PackageError(f"'{relative}' leads out of the package")
    target = folder / parts
    if not target.resolve().is_relative_to(folder.resolve()):
        raise PackageError(f"'{relative}' leads out of the package through a link")
    return target


def _read_limited(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as e:
        raise PackageError(f"cannot read {path}: {e.strerror or e}. The package is incomplete; export it again.") from e
    if len(content) > limit:
        raise PackageError(f"{path} is larger than the allowed {limit} bytes")
    return content
