"""Data sets in tar shards by the WebDataset convention: which files, which split, which classes, how many pictures."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from edgekit.errors import DataError, LoadError
from edgekit.listing import VAL_NAMES, Split, name_some
from edgekit.tars import list_tar

INDEX = "index.json"
KIND = "edgekit shards"
SCHEMA_VERSION = 1
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")
_MOST_FILES = 1_000_000


@dataclass(frozen=True)
class Shard:
    """One tar.

    Attributes:
        path: the file.
        split: of its pictures.
        pictures: how many it holds, or should hold.
        labelled: how many of them have a label.
        digest: sha256 where an index names it, else its size; for the fingerprint.
    """

    path: Path
    split: Split
    pictures: int
    labelled: int
    digest: str


@dataclass(frozen=True)
class ShardSplit:
    """The shards of one split."""

    shards: tuple[Shard, ...]

    def __len__(self) -> int:
        """Return the number of pictures."""
        return sum(shard.pictures for shard in self.shards)


@dataclass(frozen=True)
class ShardDataset:
    """A data set in tars.

    Attributes:
        root: the folder of the first shard.
        classes: class names; a label's number is its place here.
        train, val: the shards of each split.
        broken: what was found damaged already.
    """

    root: Path
    classes: tuple[str, ...]
    train: ShardSplit
    val: ShardSplit
    broken: Mapping[str, str]

    def fingerprint(self) -> str:
        """Return the sha256 (hex) of classes and shards; equal wherever the folder lies."""
        rows = [(s.path.name, s.split, s.pictures, s.digest) for s in (*self.train.shards, *self.val.shards)]
        return hashlib.sha256(json.dumps([self.classes, rows]).encode()).hexdigest()

    def label_of(self, text: str | None) -> int | None:
        """Return the class index that a label stands for; None for none.

        Raises:
            DataError: it is no class of this data set.
        """
        return class_index(text, self.classes)


def is_shards(source: Path) -> bool:
    """Return whether --data names tar shards: a pattern, a .tar, or a folder that `edgekit data shard` wrote."""
    return source.suffix == ".tar" or "{" in source.name or has_magic(str(source)) or (source / INDEX).is_file()


def refuse_shards(source: Path, said: str) -> None:
    """Refuse tar shards where pictures must be files.

    Args:
        source: of a data set.
        said: begins the message, e.g. "--data names".

    Raises:
        DataError: it names shards. A folder whose name looks like a pattern is a folder.
    """
    if is_shards(source) and (not source.is_dir() or (source / INDEX).is_file()):
        raise DataError(
            f"{said} tar shards ({source}), which only training reads; pass --data with the pictures as files, in "
            "folders or listed in a CSV"
        )


def class_index(text: str | None, classes: Sequence[str]) -> int | None:
    """Return a label's class index: of a whole number itself, of any other text its place in `classes`."""
    if text is None:
        return None
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
    if number is None and text in classes:
        number = classes.index(text)
    if number is None or number >= len(classes):
        raise DataError(f"the label '{text[:60]}' is none of the {len(classes)} classes ({name_some(classes)})")
    return number


def expand(pattern: str) -> list[Path]:
    """Return the files that a pattern names: `{000..127}` and `{a,b}` are written out, then * ? [ ] looked up.

    Raises:
        DataError: a range is backwards or too long; nothing is there.
    """
    found: list[Path] = []
    for name in _braces(pattern):
        if has_magic(name):
            found += [Path(match) for match in sorted(glob(name, recursive=True))]  # noqa: PTH207 - it may be absolute
        else:
            found.append(Path(name))
    missing = [str(path) for path in found if not path.is_file()]
    if not found or missing:
        what = (
            f"{len(missing)} of {len(found)} shards are not there: {name_some(missing)}" if missing else "no such file"
        )
        raise DataError(f"--data {pattern}: {what}. Give e.g. 'shards/train-{{000000..000127}}.tar' or 'shards/*.tar'")
    return list(dict.fromkeys(found))


def _braces(pattern: str) -> Iterator[str]:
    match = _RANGE.search(pattern)
    if match is not None:
        first, last = int(match[1]), int(match[2])
        if not first <= last < first + _MOST_FILES:
            raise DataError(f"--data {pattern}: the range {match[0]} must go up, by fewer than {_MOST_FILES} files")
        names = [f"{number:0{len(match[1])}d}" for number in range(first, last + 1)]
    else:
        match = _CHOICE.search(pattern)
        if match is None:
            yield pattern
            return
        names = match[1].split(",")
    for name in names:
        yield from _braces(pattern[: match.start()] + name + pattern[match.end() :])


def load_shards(source: Path, *, labels: bool = True) -> ShardDataset:
    """Return the data set that `source` names; counts come from the index, or where there is none from the tars.

    Args:
        source: a folder with index.json, one .tar, or a pattern of them. Validation shards are those that the index or
            their names (val-…, test-…) say; where the pattern names none, those beside the training shards.
        labels: whether classes are needed; without, none are read.

    Raises:
        DataError: no shards, no validation shards, fewer than two classes.
        LoadError: an index or a tar cannot be read.
    """
    indexes: dict[Path, dict[str, Any] | None] = {}
    paths = _from_index(source, indexes) if (source / INDEX).is_file() else expand(str(source))
    for folder in {path.parent for path in paths} - indexes.keys():
        indexes[folder] = _read_index(folder)
    split_of = {path: _split(path, indexes[path.parent]) for path in paths}
    if "val" not in split_of.values():
        beside = [path for folder in indexes for path in sorted(folder.glob("*.tar"))]
        split_of |= {path: "val" for path in beside if _split(path, indexes[path.parent]) == "val"}
    broken: dict[str, str] = {}
    shards, seen = [], Counter[str]()
    for path, split in split_of.items():
        shards.append(_shard(path, split, indexes[path.parent], broken, seen))
    train, val = (ShardSplit(tuple(s for s in shards if s.split == side)) for side in ("train", "val"))
    if not len(train) or not len(val):
        side = "validation" if len(train) else "training"
        raise DataError(
            f"--data {source}: no {side} shards with pictures. Name them train-*.tar and val-*.tar in one folder, as "
            f"`edgekit data shard` does"
        )
    classes = _classes([index for index in indexes.values() if index is not None], seen) if labels else ()
    if labels and len(classes) < 2:
        raise DataError(f"--data {source} has {len(classes)} class(es); at least two are needed, in .cls files")
    return ShardDataset(paths[0].parent, classes, train, val, broken)


def write_index(folder: Path, classes: Sequence[str], shards: Sequence[Mapping[str, Any]]) -> None:
    """Write index.json; each shard has file, split, pictures, labelled, size_bytes and sha256."""
    content = {"kind": KIND, "schema_version": SCHEMA_VERSION, "classes": list(classes), "shards": list(shards)}
    (folder / INDEX).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_index(folder: Path) -> dict[str, Any] | None:
    """Return {"classes": [...], "shards": {file: entry}}; None where there is no index."""
    path = folder / INDEX
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_bytes())
        if values["kind"] != KIND or values["schema_version"] != SCHEMA_VERSION:
            raise LoadError(f"kind {values['kind']!r}, version {values['schema_version']!r}")
        entries = {}
        for entry in values["shards"]:
            numbers = {name: int(entry[name]) for name in ("pictures", "labelled", "size_bytes")}
            if min(numbers.values()) < 0 or entry["split"] not in ("train", "val"):
                raise LoadError(f"shard {entry['file']}")
            if Path(entry["file"]).name != entry["file"]:
                raise LoadError(f"shard {entry['file']} lies elsewhere")
            entries[str(entry["file"])] = {**numbers, "split": entry["split"], "sha256": str(entry["sha256"])}
        return {"classes": [str(name) for name in values["classes"]], "shards": entries}
    except (OSError, LoadError, ValueError, KeyError, TypeError) as e:
        raise LoadError(
            f"{path} is not an index of `edgekit data shard` ({' '.join(str(e).split())[:120]}); write the "
            f"shards anew, or remove it and name the tars: the pictures are then counted"
        ) from e


def _from_index(folder: Path, indexes: dict[Path, dict[str, Any] | None]) -> list[Path]:
    index = indexes[folder] = _read_index(folder)
    assert index is not None, "the caller has looked"
    paths = [folder / file for file in index["shards"]]
    missing = [path.name for path in paths if not path.is_file()]
    if missing or not paths:
        raise DataError(f"--data {folder}: of {len(paths)} shards, {len(missing)} are not there: {name_some(missing)}")
    return paths


def _split(path: Path, index: Mapping[str, Any] | None) -> Split:
    """Return the split that the index says, else the one that the file's name begins with."""
    if index is not None and path.name in index["shards"]:
        split: Split = index["shards"][path.name]["split"]
        return split
    return "val" if re.split(r"[^a-z]", path.name.lower())[0] in VAL_NAMES else "train"


def _shard(
    path: Path, split: Split, index: Mapping[str, Any] | None, broken: dict[str, str], seen: Counter[str]
) -> Shard:
    """Describe a shard; one that no index vouches for is listed, and the labels in it are counted in `seen`."""
    entry = index["shards"].get(path.name) if index is not None else None
    size = path.stat().st_size
    if entry is not None and entry["size_bytes"] == size:
        return Shard(path, split, entry["pictures"], entry["labelled"], entry["sha256"])
    listing = list_tar(path)
    broken |= listing.broken
    if entry is not None:
        lost = max(0, entry["pictures"] - len(listing.pictures) - len(listing.broken))
        broken |= {f"{path.name}:lost {number}": "lost with the end of the tar" for number in range(lost)}
    labels = [picture.label for picture in listing.pictures if picture.label is not None]
    seen.update(labels)
    return Shard(path, split, len(listing.pictures), len(labels), str(size))


def _classes(indexes: Sequence[Mapping[str, Any]], seen: Counter[str]) -> tuple[str, ...]:
    """Return the class names: of the index, else as the labels themselves say."""
    if indexes:
        if any(index["classes"] != indexes[0]["classes"] for index in indexes):
            raise DataError("the shards come from folders whose indexes name different classes")
        return tuple(indexes[0]["classes"])
    if all(label.isascii() and label.isdigit() for label in seen):
        return tuple(str(number) for number in range(1 + max(map(int, seen), default=-1)))
    return tuple(sorted(seen))
