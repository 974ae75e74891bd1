"""Which class each score of a model is: from a file of labels, or from what the model's file carries.

Names of the data's folders are matched to a model's labels as they are, else in a common spelling: small letters, with
underscores for spaces and hyphens; a label such as "tench, Tinca tinca" goes by each of its names.
"""

from __future__ import annotations

import ast
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError, LoadError, MissingExtraError
from edgekit.listing import name_some
from edgekit.printable import printable

_MAX_BYTES = 4 * 2**20
_MAX_LABELS = 100_000
_NUMBERED = re.compile(r"(\d+)[\s:,]+(\S.*)")
_KEYS = ("names", "labels", "classes", "class_names")
"""Where exporters put class names in an ONNX file's metadata; "names" is that of the YOLO family."""


def read_labels(path: Path) -> tuple[str, ...]:
    """Read a file of labels: one a line, in the order of the scores; numbers in front, 0 1 2 …, are left out.

    Raises:
        DataError: it is not there, no text, too large, empty, or names a class twice.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"--labels {path} is {path.stat().st_size} bytes, more than any list of labels")
        return _labels(path.read_text(encoding="utf-8-sig"), f"--labels {path}")
    except OSError as e:
        raise DataError(f"--labels {path} cannot be read: {e.strerror}; give one label a line") from e
    except UnicodeDecodeError as e:
        raise DataError(f"--labels {path} is no text in UTF-8; give one label a line") from e


def labels_in(path: str) -> list[str] | None:
    """Return the labels that a model's file carries, None where it carries none. Run it in a child process.

    A .tflite has them in a text file that its metadata packs behind the model, an .onnx in its own metadata.

    Raises:
        MissingExtraError: the runtime is not installed.
    """
    file = Path(path)
    found = _packed(file) if file.suffix.lower() == ".tflite" else _metadata(file)
    return list(found) if found else None


def class_numbers(wanted: Sequence[str], labels: Sequence[str]) -> NDArray[np.int64]:
    """Return for each wanted class its number among a model's labels.

    Raises:
        DataError: the model does not know a class, or knows it by several labels.
    """
    exact = _numbers((label,) for label in labels)
    common = _numbers({_common(name) for name in (label, *label.split(","))} for label in labels)
    numbers: list[int] = []
    unknown: list[str] = []
    for name in wanted:
        found = exact.get(name) or common.get(_common(name)) or ()
        if len(found) > 1:
            several = name_some([labels[number] for number in found])
            raise DataError(f"the class '{name}' may be any of the model's labels {several}; name the folder in full")
        numbers += found
        unknown += [] if found else [name]
    if unknown:
        raise DataError(
            f"the model does not know {len(unknown)} of the data's classes: {name_some(unknown)}. Its labels: "
            f"{name_some(list(labels))}"
        )
    return np.array(numbers, np.int64)


def _numbers(names: Any) -> dict[str, tuple[int, ...]]:
    """Map every name to the numbers of the labels that go by it."""
    found: dict[str, tuple[int, ...]] = {}
    for number, known in enumerate(names):
        for name in known:
            found[name] = (*found.get(name, ()), number)
    return found


def _common(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name.strip().casefold())


def _labels(text: str, source: str) -> tuple[str, ...]:
    lines = [line.strip() for line in text.rstrip().splitlines()]
    numbered = [_NUMBERED.fullmatch(line) for line in lines]
    if lines and all(found and int(found[1]) == number for number, found in enumerate(numbered)):
        lines = [found[2].strip() for found in numbered if found]
    if not lines or len(lines) > _MAX_LABELS:
        raise DataError(f"{source} holds {len(lines)} labels; give one a line, in the order of the model's scores")
    if "" in lines:
        raise DataError(f"{source}: line {lines.index('') + 1} is empty; every score needs a label, such as '???'")
    return tuple(printable(line, 200) for line in lines)


def _packed(path: Path) -> Sequence[str] | None:
    """Return the labels in the zip archive behind a .tflite, where there is one."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        texts = [m for m in archive.infolist() if m.filename.endswith(".txt") and m.file_size <= _MAX_BYTES]
        labels = [m for m in texts if "label" in m.filename.lower()] or texts
        if len(labels) != 1:
            return None
        try:
            return _labels(archive.read(labels[0]).decode("utf-8"), labels[0].filename)
        except (UnicodeDecodeError, DataError):
            return None


def _metadata(path: Path) -> Sequence[str] | None:
    """Return the labels in an ONNX file's metadata: a list, a mapping from numbers, or names with commas between."""
    try:
        import onnxruntime
    except ModuleNotFoundError as e:
        raise MissingExtraError("onnxruntime", "onnx", "Reading an .onnx file") from e
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as e:  # the runtime's exceptions have no common base but Exception
        raise LoadError(f"{path} is not a model that ONNX Runtime can load") from e
    held: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
    for key in _KEYS:
        if held.get(key):
            return _written(held[key])
    return None


def _written(text: str) -> Sequence[str] | None:
    values: object = None
    for read in (json.loads, ast.literal_eval):
        try:
            values = read(text)
            break
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    if isinstance(values, Mapping):
        numbers = {int(str(number)): str(name) for number, name in values.items() if str(number).isdigit()}
        return (
            [printable(numbers[n], 200) for n in range(len(numbers))]
            if set(numbers) == set(range(len(values)))
            else None
        )
    if isinstance(values, list | tuple):
        return [printable(str(name), 200) for name in values]
    parts = [part.strip() for part in re.split(r"[,\n]", text) if part.strip()]
    return [printable(part, 200) for part in parts] if len(parts) > 1 else None
