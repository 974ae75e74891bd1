"""Turn a folder or a CSV of labelled pictures, or clips, into a checked data set with training and validation split."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import stat
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.clips import frame_files
from edgekit.errors import DataError
from edgekit.listing import LAYOUTS, Kind, Listed, Split, list_csv, list_folder, name_some


@dataclass(frozen=True)
class Sample:
    """One picture, or one clip.

    Attributes:
        key: posix path relative to the data set's root; its name in stores and reports.
        path: where to read it; of a clip, the video or the folder of its frames.
        label: index into the data set's classes; None for a training picture without label.
    """

    key: str
    path: Path
    label: int | None


@dataclass(frozen=True)
class ImageDataset:
    """A checked data set: at least two classes, each with training and validation pictures.

    Attributes:
        root: the folder that keys are relative to.
        classes: class names in plain sorted order (by code point: "class10" < "class2", "Z" < "a").
        train: training pictures sorted by key, some perhaps without label.
        val: validation pictures sorted by key, all labelled.
        kind: whether the samples are pictures or clips.
    """

    root: Path
    classes: tuple[str, ...]
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    kind: Kind = "pictures"

    def fingerprint(self) -> str:
        """Return the sha256 (hex) of classes, split, keys, labels and file sizes; equal wherever the folder lies."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for split, samples in (("train", self.train), ("val", self.val)):
            for sample in samples:
                # JSON, because any separator of our own could be part of a file name
                row = (split, sample.key, sample.label, _size_bytes(sample.path))
                digest.update(json.dumps(row).encode() + b"\n")
        return digest.hexdigest()

    def without(self, keys: Collection[str]) -> ImageDataset:
        """Return the data set without the pictures of these keys, such as broken ones; classes keep their indices.

        Raises:
            DataError: a class is left without training or validation pictures.
        """
        left_out = frozenset(keys)
        train = tuple(sample for sample in self.train if sample.key not in left_out)
        val = tuple(sample for sample in self.val if sample.key not in left_out)
        _check_classes(f"{self.root} without {len(left_out)} broken files", self.classes, (train, val), self.kind)
        return dataclasses.replace(self, train=train, val=val)


def load_dataset(
    source: Path, *, val_fraction: float | None = None, seed: int = 0, kind: Kind = "pictures"
) -> ImageDataset:
    """Find and check the pictures, or clips, of a data set; none is opened.

    `source` is one of
    - `DIR/{train,val}/<class>/**`; where there is no `val`, `valid`, `validation` or `test` is taken;
    - `DIR/<class>/**`, of which `val_fraction` of each class is held out;
    - a CSV with the columns path,label[,split], paths relative to its folder; without split, `val_fraction` is needed.

    Training pictures without label lie in `train/_unlabeled/` (`DIR/_unlabeled/`), or have an empty label in the CSV.

    Args:
        source: the folder or the CSV.
        val_fraction: expected share of the validation split, in (0, 1), where the source does not split by itself.
            The side of a picture depends on (seed, key) only, so further pictures move no other one to the other side.
        seed: another seed, another split.
        kind: "clips" looks for videos and folders of frames.

    Raises:
        DataError: no pictures, one class only, a class missing in a split, a picture in both splits, a file or folder
            that cannot be read, a CSV that does not say what it must.
    """
    listed, root = _list(source, kind)
    splits = any(picture.split for picture in listed)
    if splits and val_fraction is not None:
        raise DataError(f"{source} has its own train and val split: leave --val-fraction {val_fraction} out.")
    if not splits and val_fraction is None:
        raise DataError(f"{source} is not split: add --val-fraction 0.1 to hold out a tenth of each class. {LAYOUTS}")
    if val_fraction is not None:
        if not 0 < val_fraction < 1:
            raise DataError(f"--val-fraction is {val_fraction}; it must lie between 0 and 1, such as 0.1.")
        listed = _hold_out(listed, val_fraction, seed)
    _refuse_contradictions(source, listed, kind)
    classes = tuple(sorted({picture.label for picture in listed if picture.label is not None}))
    train, val = (_samples(listed, split, classes) for split in ("train", "val"))
    _check_classes(str(source), classes, (train, val), kind)
    return ImageDataset(root, classes, train, val, kind)


def check_broken(broken: Mapping[str, str], total: int, max_broken: float = 0.01, kind: Kind = "pictures") -> None:
    """Raise if more than the share `max_broken` of `total` pictures is broken.

    Args:
        broken: reason by key.
        total: number of pictures, the broken ones included.
        max_broken: largest share that is accepted, in [0, 1].
        kind: what they are called.

    Raises:
        DataError: naming up to 5 files with their reasons.
    """
    if not 0 <= max_broken <= 1:
        raise DataError(f"--max-broken is {max_broken}; it must lie between 0 and 1, such as 0.01.")
    if len(broken) <= max_broken * total:
        return
    files = name_some([f"{key} ({reason})" for key, reason in sorted(broken.items())])
    raise DataError(
        f"{len(broken)} of {total} {kind} cannot be read, more than --max-broken {max_broken} allows: {files}. "
        f"Repair or remove them, or accept them with --max-broken {min(1.0, len(broken) / total + 0.01):.2f}."
    )


def content_hashes(samples: Iterable[Sample]) -> dict[str, str]:
    """Return the sha256 (hex) of each file's bytes by key; equal hashes are copies of one picture.

    Raises:
        DataError: a file cannot be read.
    """
    return {sample.key: _hash_file(sample.path) for sample in samples}


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        if path.is_dir():  # a clip's frames: their contents in their order, whatever they are called
            for frame in frame_files(path):
                digest.update(bytes.fromhex(_hash_file(frame)))
            return digest.hexdigest()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as e:
        raise DataError(f"cannot read {path}: {e.strerror or e}.") from e
    return digest.hexdigest()


def _size_bytes(path: Path) -> int:
    try:
        if path.is_dir():
            return sum(frame.stat().st_size for frame in frame_files(path))
        return path.stat().st_size
    except OSError:
        return -1  # a dangling link: reported as broken when it is read, not here


def _list(source: Path, kind: Kind) -> tuple[list[Listed], Path]:
    try:
        is_folder = stat.S_ISDIR(source.stat().st_mode)
    except OSError as e:
        raise DataError(f"cannot read the data set {source}: {e.strerror or e}. {LAYOUTS}") from e
    if is_folder:
        return list_folder(source, kind), source
    if source.suffix.lower() == ".csv":
        return list_csv(source, kind), source.parent
    raise DataError(f"the data set {source} is a file of type '{source.suffix}'. {LAYOUTS}")


def _hold_out(listed: Sequence[Listed], val_fraction: float, seed: int) -> list[Listed]:
    """Put each labelled picture on its side; one picture of a class crosses over where a side would stay empty."""
    ranks: dict[str, dict[str, float]] = defaultdict(dict)
    for picture in listed:
        if picture.label is not None:
            # further names of a file (links) must land on the side of the first one
            ranks[picture.label].setdefault(picture.real, _rank(seed, picture.key))
    held_out: set[str] = set()
    for rank in ranks.values():
        ranked = sorted(rank, key=rank.__getitem__)
        below = sum(value < val_fraction for value in rank.values())
        held_out.update(ranked[: max(1, min(below, len(ranked) - 1))])
    return [dataclasses.replace(picture, split="val" if picture.real in held_out else "train") for picture in listed]


def _rank(seed: int, key: str) -> float:
    """Return a number in [0, 1) that looks random and depends on nothing else; unlike hash(), equal in every run."""
    digest = hashlib.sha256(json.dumps((seed, key)).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _samples(listed: Iterable[Listed], split: Split, classes: Sequence[str]) -> tuple[Sample, ...]:
    index = {name: number for number, name in enumerate(classes)}
    return tuple(
        Sample(picture.key, picture.path, None if picture.label is None else index[picture.label])
        for picture in listed
        if picture.split == split
    )


def _refuse_contradictions(source: Path, listed: Sequence[Listed], kind: Kind) -> None:
    """Raise if one file is in both splits, has two labels, or is to validate without label."""
    names: dict[str, list[Listed]] = defaultdict(list)
    for picture in listed:
        names[picture.real].append(picture)
    shared = [pictures for pictures in names.values() if len(pictures) > 1]
    labels = [" = ".join(p.key for p in same) for same in shared if len({p.label for p in same}) > 1]
    if labels:
        raise DataError(f"{source}: {len(labels)} {kind} have two labels: {name_some(labels)}. Keep one of them.")
    leaked = [" = ".join(p.key for p in same) for same in shared if len({p.split for p in same}) > 1]
    if leaked:
        raise DataError(
            f"{source}: {len(leaked)} {kind} are in train and in val, through links or different names of one file: "
            f"{name_some(leaked)}. Keep each in one of them."
        )
    nameless = [picture.key for picture in listed if picture.split == "val" and picture.label is None]
    if nameless:
        raise DataError(
            f"{source}: {len(nameless)} validation {kind} have no label: {name_some(nameless)}. "
            f"Label them, or move them to the training split, where {kind} without label are welcome."
        )


def _check_classes(
    source: str, classes: Sequence[str], splits: tuple[Iterable[Sample], Iterable[Sample]], kind: Kind
) -> None:
    if len(classes) < 2:
        there = f"one class only ({classes[0]})" if classes else f"no labelled {kind}"
        raise DataError(f"{source} has {there}; at least two are needed. {LAYOUTS}")
    for split, samples in zip(("training", "validation"), splits, strict=True):
        present = {sample.label for sample in samples}
        empty = [name for index, name in enumerate(classes) if index not in present]
        if empty:
            raise DataError(
                f"{source}: {len(empty)} classes have no {split} {kind}: {name_some(empty)}. "
                f"Every class needs at least one for training and one for validation: add {kind} or remove the class."
            )
