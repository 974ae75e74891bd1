"""Texts with hard or soft labels out of CSV, TSV or JSONL files, checked line by line."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError, UsageError
from edgekit.printable import printable
from edgekit.text_files import TextFiles, TextRow, read_rows

MAX_CLASSES = 10_000


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
    rows = {name: list(read_rows(path, files)) for name, path in _paths(files)}
    soft = not isinstance(rows["train"][0].label, str)
    classes = _classes(rows["train"], files)
    numbered = bool(files.classes)
    splits = {name: _split(found, classes, soft=soft, numbered=numbered) for name, found in rows.items()}
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


def _classes(rows: Sequence[TextRow], files: TextFiles) -> tuple[str, ...]:
    """Return the class names in the order of the logits."""
    first = rows[0].label
    found = set(first) if not isinstance(first, str) else {row.label for row in rows if isinstance(row.label, str)}
    numbers = {name for name in found if _is_number(name)}
    if files.classes:
        if len(set(files.classes)) != len(files.classes):
            raise UsageError(f"--classes {','.join(files.classes)} names a class twice")
        return files.classes
    if len(found) > MAX_CLASSES:
        raise DataError(f"{files.train} has {len(found)} different labels, more than {MAX_CLASSES}: are these classes?")
    if numbers and numbers != found:
        odd = next(row for row in rows if isinstance(row.label, str) and row.label not in numbers)
        first_line = odd.place == f"{files.train}:1"
        mend = "name a header's columns with --text-column and --label-column" if first_line else "mend the line"
        raise DataError(
            f"{odd.place}: the label {printable(str(odd.label), 40)!r} is no number, while {len(numbers)} other labels "
            f"of the file are; {mend}, or write names throughout"
        )
    if not isinstance(first, str):
        return tuple(first)
    return tuple(sorted(found, key=int) if numbers else sorted(found))


def _is_number(label: str) -> bool:
    return label.lstrip("-").isdecimal()


def _split(rows: Sequence[TextRow], classes: tuple[str, ...], *, soft: bool, numbered: bool) -> TextSplit:
    """Turn rows into targets; if `numbered`, class numbers stand for names, unless the names are numbers themselves."""
    place_of = {name: number for number, name in enumerate(classes)}
    if numbered and not any(map(_is_number, classes)):
        place_of |= {str(number): number for number in range(len(classes))}
    targets = np.zeros((len(rows), len(classes)), np.float32)
    for target, row in zip(targets, rows, strict=True):
        if isinstance(row.label, str) and soft:
            raise DataError(f"{row.place} has the hard label '{printable(row.label, 40)}' among soft ones")
        weights = {row.label: 1.0} if isinstance(row.label, str) else row.label
        if len(weights) > len(classes):
            raise DataError(f"{row.place} has {len(weights)} probabilities for {len(classes)} classes")
        for name, weight in weights.items():
            if name not in place_of:
                raise _unknown_label(row.place, name, classes)
            target[place_of[name]] = weight
        if not isinstance(row.label, str) and not soft and max(row.label.values()) < 1:
            raise DataError(f"{row.place} has a soft label, while the training labels are hard")
    return TextSplit(tuple(_mended(row.text) for row in rows), targets)


def _unknown_label(place: str, label: str, classes: tuple[str, ...]) -> DataError:
    known = ", ".join(classes[:8]) + (", …" if len(classes) > 8 else "")
    way_out = ""
    if _is_number(label) and not any(map(_is_number, classes)):
        way_out = "; numbers stand for names only where --classes gives the names in their order"
    return DataError(f"{place}: the label '{printable(label, 40)}' is not known; the classes are {known}{way_out}")


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

    Numbers stand for the places of the classes where these have names, as they do with --classes in training.

    Raises:
        DataError: a line cannot be used, or has another class; it is named.
    """
    rows = list(read_rows(path, files))
    return _split(rows, classes, soft=not isinstance(rows[0].label, str), numbered=True)


def limited(split: TextSplit, most: int) -> TextSplit:
    """Return evenly spaced rows of a split, at most `most`."""
    if len(split) <= most:
        return split
    return split.take(np.linspace(0, len(split) - 1, most).astype(np.int64))
