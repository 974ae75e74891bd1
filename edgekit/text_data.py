"""Texts with hard or soft labels out of CSV, TSV or JSONL files, checked line by line."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError, UsageError
from edgekit.printable import printable

SOFT_PREFIX = "p_"
"""Columns `p_<class>` hold the probabilities of soft labels."""
SUM_TOLERANCE = 1e-3
"""Soft labels are written with some three digits; what is farther from 1 is no distribution."""
MAX_CLASSES = 10_000
_SUFFIXES = (".csv", ".tsv", ".jsonl")


@dataclass(frozen=True)
class TextFiles:
    """Where texts come from.

    Attributes:
        train: CSV, TSV or JSONL.
        val: likewise; None takes `val_fraction` of the training texts.
        test: likewise, or None.
        val_fraction: share of each class kept for validation, where there is no `val`.
        classes: names of the classes 0, 1, …; none takes the labels themselves.
        text_column, label_column: names in a header or a JSON object; a file without a header has the text first.
    """

    train: Path
    val: Path | None = None
    test: Path | None = None
    val_fraction: float = 0.1
    classes: tuple[str, ...] = ()
    text_column: str = "text"
    label_column: str = "label"


@dataclass(frozen=True)
class TextSplit:
    """Texts and what they are.

    Attributes:
        texts: N texts.
        targets: (N, C) float32 probabilities; one-hot rows for hard labels.
    """

    texts: tuple[str, ...]
    targets: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def labels(self) -> NDArray[np.int64]:
        """The most probable class (N,) of each text."""
        return np.asarray(self.targets.argmax(axis=1), np.int64)

    def take(self, rows: NDArray[np.int64]) -> TextSplit:
        """Return the texts of these rows."""
        return TextSplit(tuple(self.texts[row] for row in rows), self.targets[rows])


@dataclass(frozen=True)
class TextDataset:
    """Splits with the same classes.

    Attributes:
        train, val, test: the splits; `test` may be absent.
        classes: class names in the order of the logits.
        soft: whether the labels are probabilities.
        notes: what a user must know: empty texts, texts in two splits.
    """

    train: TextSplit
    val: TextSplit
    test: TextSplit | None
    classes: tuple[str, ...]
    soft: bool
    notes: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """Return a hash of all texts and labels."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for split in (self.train, self.val, self.test):
            if split is not None:
                digest.update(json.dumps(split.texts).encode())
                digest.update(np.ascontiguousarray(split.targets).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class _Row:
    """A line of a file: its place for messages, its text, and a class name or the probabilities by class name."""

    place: str
    text: str
    label: str | Mapping[str, float]


def load_texts(files: TextFiles, seed: int = 0) -> TextDataset:
    """Read all splits.

    Args:
        files: where they are.
        seed: of the choice of validation texts.

    Raises:
        DataError: a file or a line of it cannot be used; it is named.
        UsageError: impossible settings.
    """
    if files.val is None and not 0 < files.val_fraction < 1:
        raise UsageError(f"--val-fraction {files.val_fraction}; needed is a share between 0 and 1")
    rows = {name: list(_read(path, files)) for name, path in _paths(files)}
    soft = not isinstance(rows["train"][0].label, str)
    classes = _classes(rows["train"], files)
    splits = {name: _split(found, classes, soft=soft) for name, found in rows.items()}
    notes = []
    filled = np.flatnonzero([bool(text.strip()) for text in splits["train"].texts])
    if empty := len(splits["train"]) - len(filled):
        splits["train"] = splits["train"].take(filled)
        notes.append(f"{empty} training texts are empty and left out")
    notes += [
        f"{count} {name} texts are empty; they count as they are, and the model can only guess"
        for name in ("val", "test")
        if name in splits and (count := sum(not text.strip() for text in splits[name].texts))
    ]
    _refuse_one_class(splits["train"], classes, files.train)
    if "val" not in splits:
        splits["train"], splits["val"] = _hold_out(splits["train"], files.val_fraction, seed)
    known = set(splits["train"].texts)
    notes += [
        f"{shared} of {len(splits[name])} {name} texts are training texts, too: the numbers are too good by them"
        for name in ("val", "test")
        if name in splits and (shared := sum(text in known for text in splits[name].texts))
    ]
    return TextDataset(splits["train"], splits["val"], splits.get("test"), classes, soft, tuple(notes))


def _paths(files: TextFiles) -> Iterator[tuple[str, Path]]:
    for name, path in (("train", files.train), ("val", files.val), ("test", files.test)):
        if path is not None:
            yield name, path


def _read(path: Path, files: TextFiles) -> Iterator[_Row]:
    """Yield the rows of a file.

    Raises:
        DataError: unreadable, empty, or a line of another form.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise DataError(f"{path}: texts come as {', '.join(_SUFFIXES)}; the suffix says which")
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except OSError as e:
        raise DataError(f"{path} cannot be read: {e.strerror or e}") from e
    except UnicodeDecodeError as e:
        line = 1 + e.object[: e.start].count(b"\n")
        raise DataError(f"{path}:{line} is not UTF-8 (byte {e.start}); convert the file: iconv -t UTF-8") from e
    # not `splitlines`, for which letters like U+2028 end a line, too
    lines = list(io.StringIO(content, newline=""))
    records = _json_records(path, lines) if path.suffix.lower() == ".jsonl" else _table_records(path, lines, files)
    none = True
    for place, record in records:
        none = False
        yield _row(place, record, files)
    if none:
        raise DataError(f"{path} holds no texts")


def _json_records(path: Path, lines: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise DataError(f"{path}:{number} is not JSON: {e}") from e
        if not isinstance(record, dict):
            raise DataError(f'{path}:{number} holds no JSON object like {{"text": …, "label": …}}')
        yield f"{path}:{number}", record


def _table_records(path: Path, lines: Sequence[str], files: TextFiles) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the rows of a table by column name; without a header they are (text, label).

    A quote is a letter in TSV, where the texts of most corpora have stray ones, and a quote in CSV.
    """
    tabs = path.suffix.lower() == ".tsv"
    limit = csv.field_size_limit(max(map(len, lines), default=0) + 2**20)
    reader = csv.reader(lines, delimiter="\t" if tabs else ",", quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL)
    columns: list[str] | None = None
    try:
        for cells in reader:
            if not cells:
                continue
            if columns is None:
                header = files.text_column in cells
                columns = cells if header else [files.text_column, files.label_column]
                if header:
                    continue
            if len(cells) != len(columns):
                raise DataError(
                    f"{path}:{reader.line_num} has {len(cells)} columns, not {len(columns)} "
                    f"({', '.join(columns)}); without a header a file has the text and then the label"
                )
            yield f"{path}:{reader.line_num}", dict(zip(columns, cells, strict=True))
    except csv.Error as e:
        raise DataError(f"{path}:{reader.line_num} is no line of a table: {e}") from e
    finally:
        csv.field_size_limit(limit)


def _row(place: str, record: Mapping[str, Any], files: TextFiles) -> _Row:
    text = record.get(files.text_column)
    if not isinstance(text, str):
        raise DataError(f"{place} has no text under '{files.text_column}'; name the column with --text-column")
    soft = {name[len(SOFT_PREFIX) :]: value for name, value in record.items() if name.startswith(SOFT_PREFIX)}
    value = record.get(files.label_column)
    if soft:
        return _Row(place, text, _probabilities(place, soft))
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as e:
            raise DataError(f"{place}: the label {printable(value, 60)} is no JSON list of probabilities") from e
    if isinstance(value, list):
        names = files.classes or tuple(map(str, range(len(value))))
        if len(names) != len(value):
            raise DataError(f"{place} has {len(value)} probabilities for the {len(names)} classes")
        value = dict(zip(names, value, strict=True))
    if isinstance(value, dict):
        return _Row(place, text, _probabilities(place, value))
    if value is None or str(value).strip() == "":
        raise DataError(f"{place} has no label under '{files.label_column}'; name the column with --label-column")
    if isinstance(value, float) and not value.is_integer():
        raise DataError(
            f"{place}: the label {value} is no class; soft labels are a list, or columns {SOFT_PREFIX}<class>"
        )
    return _Row(place, text, str(int(value)) if isinstance(value, float) else str(value).strip())


def _probabilities(place: str, values: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for name, value in values.items():
        try:
            found[name] = float(value)
        except (TypeError, ValueError) as e:
            raise DataError(f"{place}: the probability of '{name}' is {printable(str(value), 40)!r}, no number") from e
        if not 0 <= found[name] <= 1 + SUM_TOLERANCE:
            raise DataError(f"{place}: the probability of '{name}' is {found[name]}, not between 0 and 1")
    total = math.fsum(found.values())
    if abs(total - 1) > SUM_TOLERANCE:
        raise DataError(f"{place}: the soft label sums to {total:.6g}, not to 1")
    return {name: value / total for name, value in found.items()}


def _classes(rows: Sequence[_Row], files: TextFiles) -> tuple[str, ...]:
    """Return the class names in the order of the logits."""
    first = rows[0].label
    found = set(first) if not isinstance(first, str) else {row.label for row in rows if isinstance(row.label, str)}
    numbers = {name for name in found if name.lstrip("-").isdecimal()}
    if files.classes:
        if len(set(files.classes)) != len(files.classes):
            raise UsageError(f"--classes {','.join(files.classes)} names a class twice")
        return files.classes
    if len(found) > MAX_CLASSES:
        raise DataError(f"{files.train} has {len(found)} different labels, more than {MAX_CLASSES}: are these classes?")
    if numbers and numbers != found:
        odd = next(row for row in rows if isinstance(row.label, str) and row.label not in numbers)
        raise DataError(
            f"{odd.place}: the label {printable(str(odd.label), 40)!r} is no number, while {len(numbers)} other labels "
            f"of the file are; mend the line, or write names throughout"
        )
    if not isinstance(first, str):
        return tuple(first)
    return tuple(sorted(found, key=int) if numbers else sorted(found))


def _split(rows: Sequence[_Row], classes: tuple[str, ...], *, soft: bool) -> TextSplit:
    """Turn rows into targets; class numbers stand for the names that --classes gave."""
    place_of = {str(number): number for number in range(len(classes))} | {name: n for n, name in enumerate(classes)}
    targets = np.zeros((len(rows), len(classes)), np.float32)
    for target, row in zip(targets, rows, strict=True):
        if isinstance(row.label, str) and soft:
            raise DataError(f"{row.place} has the hard label '{printable(row.label, 40)}' among soft ones")
        weights = {row.label: 1.0} if isinstance(row.label, str) else row.label
        for name, weight in weights.items():
            if name not in place_of:
                known = ", ".join(classes[:8]) + (", …" if len(classes) > 8 else "")
                raise DataError(f"{row.place}: the label '{printable(name, 40)}' is not known; the classes are {known}")
            target[place_of[name]] = weight
        if not isinstance(row.label, str) and not soft and max(row.label.values()) < 1:
            raise DataError(f"{row.place} has a soft label, while the training labels are hard")
    return TextSplit(tuple(_mended(row.text) for row in rows), targets)


def _mended(text: str) -> str:
    """Replace lone surrogates, which JSON can hold and no encoding can."""
    return text.encode("utf-8", errors="replace").decode()


def _refuse_one_class(train: TextSplit, classes: tuple[str, ...], path: Path) -> None:
    counts = Counter(train.labels.tolist())
    if len(train) == 0:
        raise DataError(f"{path} holds no text that is not empty")
    if len(classes) < 2 or len(counts) < 2:
        only = classes[next(iter(counts))]
        raise DataError(
            f"{path}: all {len(train)} texts are of the class '{printable(only, 40)}': nothing to tell apart"
        )


def _hold_out(train: TextSplit, fraction: float, seed: int) -> tuple[TextSplit, TextSplit]:
    """Split off a share of each class; equal texts stay on one side."""
    order = sorted(range(len(train)), key=lambda row: _rank(seed, train.texts[row]))
    seen: dict[str, bool] = {}
    taken: Counter[int] = Counter()
    counts = Counter(train.labels.tolist())
    held = np.zeros(len(train), bool)
    for row in order:
        label, text = int(train.labels[row]), train.texts[row]
        if text not in seen:
            seen[text] = taken[label] < max(1, round(fraction * counts[label])) and counts[label] > 1
        held[row] = seen[text]
        taken[label] += held[row]
    if held.all() or not held.any():
        raise DataError(f"{len(train)} training texts are too few to hold out {fraction:g} of them; give --val FILE")
    return train.take(np.flatnonzero(~held)), train.take(np.flatnonzero(held))


def _rank(seed: int, text: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{text}".encode(), digest_size=16).digest()


def load_split(path: Path, files: TextFiles, classes: tuple[str, ...]) -> TextSplit:
    """Read one file whose classes are known; `files` names its columns.

    Raises:
        DataError: a line cannot be used, or has another class; it is named.
    """
    rows = list(_read(path, files))
    return _split(rows, classes, soft=not isinstance(rows[0].label, str))


def limited(split: TextSplit, most: int) -> TextSplit:
    """Return evenly spaced rows of a split, at most `most`."""
    if len(split) <= most:
        return split
    return split.take(np.linspace(0, len(split) - 1, most).astype(np.int64))
