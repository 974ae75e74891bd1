"""Which runtime opens which file. Torch-free: a device that verifies or benches needs only numpy and its runtime."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from edgekit.errors import LoadError, MissingExtraError, UsageError, did_you_mean
from edgekit.export.session import Session

Format = Literal["onnx", "coreml", "tflite", "saved_model"]
Runtime = Literal["onnxruntime", "litert", "mil", "tensorflow"]

FORMATS: tuple[Format, ...] = ("onnx", "coreml", "tflite")
"""What "all" means. A SavedModel is made where it is asked for by name: it needs TensorFlow, and no phone takes it."""

KNOWN: tuple[Format, ...] = (*FORMATS, "saved_model")
ALIASES: Mapping[str, Format] = {"mlpackage": "coreml", "litert": "tflite"}
SUFFIXES: Mapping[str, Format] = {
    ".onnx": "onnx",
    ".mlpackage": "coreml",
    ".tflite": "tflite",
    ".savedmodel": "saved_model",
}
FOLDERS: tuple[Format, ...] = ("coreml", "saved_model")
"""Formats whose artifact is a folder."""

SUFFIX_OF: Mapping[Format, str] = {form: suffix for suffix, form in SUFFIXES.items()}


def _onnxruntime(path: Path, threads: int) -> Session:
    from edgekit.export.onnx.session import OnnxSession

    return OnnxSession(path, threads)


def _litert(path: Path, threads: int) -> Session:
    from edgekit.export.tflite.session import LiteRTSession

    return LiteRTSession(path, threads)


def _mil(path: Path, threads: int) -> Session:
    try:
        from edgekit.export.mil.interpreter import MilSession
    except ModuleNotFoundError as e:
        raise MissingExtraError(e.name or "torch", "coreml", "Running an .mlpackage away from a Mac") from e
    return MilSession(path, threads)


def _tensorflow(path: Path, threads: int) -> Session:
    from edgekit.export.saved_model.convert import SavedModelSession

    return SavedModelSession(path, threads)


RUNTIMES: Mapping[Runtime, Callable[[Path, int], Session]] = {
    "onnxruntime": _onnxruntime,
    "litert": _litert,
    "mil": _mil,
    "tensorflow": _tensorflow,
}
DEFAULT_RUNTIME: Mapping[Format, Runtime] = {
    "onnx": "onnxruntime",
    "tflite": "litert",
    "coreml": "mil",
    "saved_model": "tensorflow",
}
CAN_BE_TIMED: Mapping[Runtime, bool] = {"onnxruntime": True, "litert": True, "mil": False, "tensorflow": False}
"""The MIL interpreter shows what a Core ML package computes; its speed says nothing of Apple hardware. TensorFlow runs
in another process, and its time would be that of the pipe."""


def parse_formats(text: str) -> tuple[Format, ...]:
    """Return the formats of a comma-separated list, or all of them for "all".

    Raises:
        UsageError: a name that is no format.
    """
    if text == "all":
        return FORMATS
    found: list[Format] = []
    for name in (part.strip() for part in text.split(",") if part.strip()):
        form = ALIASES.get(name, name)
        if form not in KNOWN:
            raise UsageError(f"--format '{name}' is not known; {did_you_mean(name, [*KNOWN, *ALIASES, 'all'])}")
        if form not in found:
            found.append(form)
    if not found:
        raise UsageError(f"--format names nothing; give one or more of {', '.join(KNOWN)}, or all")
    return tuple(found)


def format_of(path: Path) -> Format:
    """Return the format that a file's suffix names.

    Raises:
        LoadError: another suffix.
    """
    form = SUFFIXES.get(path.suffix.lower())
    if form is None:
        raise LoadError(f"{path} is no artifact that edgekit knows; expected one of {', '.join(SUFFIXES)}")
    return form


def is_package(path: Path) -> bool:
    """Whether a folder is one artifact, by its suffix."""
    return path.is_dir() and SUFFIXES.get(path.suffix) in FOLDERS


def open_session(path: Path, threads: int = 1) -> Session:
    """Open an artifact in the runtime of its format.

    Raises:
        LoadError: not there, no such format, or the runtime rejects it.
    """
    form = format_of(path)
    if not path.exists():
        raise LoadError(f"{path} is not there")
    return RUNTIMES[DEFAULT_RUNTIME[form]](path, threads)


def size_bytes(path: Path) -> int:
    """Return the size of a file, or of all files of a package."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def on_macos() -> bool:
    """Whether Apple's own Core ML runtime is here."""
    return sys.platform == "darwin"
