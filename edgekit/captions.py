"""Pictures with captions: from a CSV with a row per caption, or a folder with a text file beside each picture."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.data import Sample
from edgekit.errors import DataError, did_you_mean
from edgekit.images import IMAGE_SUFFIXES
from edgekit.listing import VAL_NAMES, Split, name_some

CAPTION_LAYOUTS = (
    "Give a CSV with the columns image,caption[,split], a folder with such a captions.csv, or a folder in which "
    "every picture has a text file of its name beside it (dog.jpg, dog.txt), one caption per line."
)
_PICTURE_COLUMNS = ("image", "path", "filename", "file_name")
_CAPTION_COLUMNS = ("caption", "text")
_TABLES = ("captions.csv", "captions.txt", "metadata.csv")
_PICTURE_FOLDERS = ("", "images", "Images")


@dataclass(frozen=True)
class CaptionedSet:
    """Pictures and what is said of them.

    Attributes:
        samples: the pictures, sorted by key, without labels.
        captions: one or more captions per picture, in the file's order.
        splits: side of each picture; empty where the source does not split.
        notes: what the user should know of the source, a line each.
        test: pictures of a test split beside a validation split, which neither train nor choose the best epoch; None
            where there is none.
    """

    samples: tuple[Sample, ...]
    captions: tuple[tuple[str, ...], ...]
    splits: tuple[Split, ...] = ()
    notes: tuple[str, ...] = ()
    test: CaptionedSet | None = None

    def texts(self) -> list[str]:
        """Return all captions in one list."""
        return [caption for captions in self.captions for caption in captions]

    def take(self, keys: set[str]) -> CaptionedSet:
        """Return the pictures of these keys."""
        kept = [pair for pair in zip(self.samples, self.captions, strict=True) if pair[0].key in keys]
        return CaptionedSet(tuple(sample for sample, _ in kept), tuple(captions for _, captions in kept))

    def fingerprint(self) -> str:
        """Return the sha256 (hex) of keys, captions and splits; equal wherever the folder lies."""
        digest = hashlib.sha256()
        for at, (sample, captions) in enumerate(zip(self.samples, self.captions, strict=True)):
            row = (sample.key, captions, self.splits[at] if self.splits else None)
            digest.update(json.dumps(row).encode() + b"\n")
        return digest.hexdigest()


@dataclass(frozen=True)
class CaptionSplit:
    """A captioned set, cut by picture: all captions of a picture are on one side."""

    train: CaptionedSet
    val: CaptionedSet

    def fingerprint(self) -> str:
        """Return the sha256 (hex) of both sides."""
        return hashlib.sha256(f"{self.train.fingerprint()} {self.val.fingerprint()}".encode()).hexdigest()


def split_captions(captioned: CaptionedSet, val_fraction: float | None, seed: int) -> CaptionSplit:
    """Cut by picture: as the source says, else the pictures of the lowest hashes of (seed, key) are held out.

    Args:
        captioned: the whole set.
        val_fraction: share of the pictures to hold out; exact up to rounding. None is 0.1 where nothing else splits.
        seed: another seed, another split.

    Raises:
        DataError: the fraction is not between 0 and 1 or not needed, or a side stays empty.
    """
    keys = [sample.key for sample in captioned.samples]
    if captioned.splits:
        if val_fraction is not None:
            raise DataError(f"the captions have a split column: leave --val-fraction {val_fraction} out.")
        held = {key for key, split in zip(keys, captioned.splits, strict=True) if split == "val"}
    else:
        share = 0.1 if val_fraction is None else val_fraction
        if not 0 < share < 1:
            raise DataError(f"--val-fraction is {share}; it must lie between 0 and 1, such as 0.1.")
        ranked = sorted(keys, key=lambda key: hashlib.sha256(json.dumps((seed, key)).encode()).digest())
        held = set(ranked[: round(share * len(keys))])
    sides = CaptionSplit(captioned.take(set(keys) - held), captioned.take(held))
    for name, side in (("training", sides.train), ("validation", sides.val)):
        if len(side.samples) < 2:
            raise DataError(f"{len(side.samples)} of {len(keys)} pictures are for {name}; at least 2 are needed.")
    return sides


def load_captions(source: Path, pictures: Path | None = None) -> CaptionedSet:
    """Read a captions CSV or a folder of pictures with captions.

    Args:
        source: the CSV, UTF-8, whose columns may be called image, path, filename or file_name, and caption or text,
            and perhaps split; or a folder, see `CAPTION_LAYOUTS`. Of several of `VAL_NAMES` the first is for
            validation, the others are left out.
        pictures: the folder that image paths are relative to; where not given, the CSV's own or `images` in it.

    Raises:
        DataError: not such a source, an empty caption, a picture or a caption that is not there, or no rows.
    """
    if not source.is_dir():
        return _from_table(source, pictures)
    table = next((source / name for name in _TABLES if (source / name).is_file()), None)
    return _from_table(table, pictures) if table is not None else _from_folder(source)


def _from_folder(folder: Path) -> CaptionedSet:
    """Read pictures with a text file each, in any subfolder."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    pictures = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES]
    if not pictures:
        raise DataError(f"no pictures with captions in {folder}. {CAPTION_LAYOUTS}")
    names = {path.with_suffix("") for path in pictures}
    mute = [path.relative_to(folder).as_posix() for path in pictures if not path.with_suffix(".txt").is_file()]
    lost = [p.relative_to(folder).as_posix() for p in found if p.suffix == ".txt" and p.with_suffix("") not in names]
    if mute:
        raise DataError(f"{folder}: {len(mute)} pictures have no caption file: {name_some(mute)}. {CAPTION_LAYOUTS}")
    if lost:
        raise DataError(f"{folder}: {len(lost)} caption files have no picture: {name_some(lost)}. {CAPTION_LAYOUTS}")
    samples = tuple(Sample(path.relative_to(folder).as_posix(), path, None) for path in pictures)
    return CaptionedSet(samples, tuple(_lines(path.with_suffix(".txt")) for path in pictures))


def _lines(file: Path) -> tuple[str, ...]:
    try:
        lines = tuple(line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except UnicodeDecodeError as e:
        raise DataError(f"{file} is not UTF-8 (byte 0x{e.object[e.start]:02x}). Save it again as UTF-8.") from e
    except OSError as e:
        raise DataError(f"cannot read {file}: {e.strerror or e}. Check the path and its permissions.") from e
    if not lines:
        raise DataError(f"{file} is empty; write at least one caption into it, or remove it and its picture.")
    return lines


@dataclass(frozen=True)
class _Row:
    line: int
    name: str
    caption: str
    split: str


def _from_table(file: Path, pictures: Path | None) -> CaptionedSet:
    captions: dict[str, list[str]] = defaultdict(list)
    rows = _rows(file)
    for row in rows:
        if not row.name or not row.caption:
            raise DataError(
                f"{file}, line {row.line}: the {'caption' if row.name else 'image'} is empty. Fill it, or drop the row."
            )
        captions[row.name].append(row.caption)
    if not captions:
        raise DataError(f"{file} has no rows below its header; expected one row image,caption per caption.")
    said = _splits(file, rows)
    val = next((name for name in VAL_NAMES if name in said.values()), None)
    aside = {name: split for name, split in said.items() if split not in ("train", val)}
    names = sorted(captions.keys() - aside.keys())
    root = pictures or _picture_folder(file.parent, names)
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        raise DataError(f"{file} names {len(missing)} pictures that are not in {root}: {name_some(missing)}.")
    splits: tuple[Split, ...] = tuple("train" if said[name] == "train" else "val" for name in names) if said else ()
    test = [name for name in sorted(aside) if aside[name] == "test"]
    return CaptionedSet(
        *_named(root, captions, names),
        splits,
        (*_left_out(aside, str(val)), *_mute(file, root, names, aside)),
        CaptionedSet(*_named(root, captions, test)) if test else None,
    )


def _named(
    root: Path, captions: Mapping[str, Sequence[str]], names: Sequence[str]
) -> tuple[tuple[Sample, ...], tuple[tuple[str, ...], ...]]:
    """Return the pictures of these names and their captions."""
    return tuple(Sample(name, root / name, None) for name in names), tuple(tuple(captions[name]) for name in names)


def _picture_folder(parent: Path, names: Sequence[str]) -> Path:
    """Return the usual place, beside the table or in `images`, that holds most of the first pictures."""
    places = [parent / name for name in _PICTURE_FOLDERS]
    return max(places, key=lambda place: sum((place / name).is_file() for name in names[:20]))


def _splits(file: Path, rows: Iterable[_Row]) -> dict[str, str]:
    """Return the split that the file names for each picture; empty where no row says one."""
    said: dict[str, str] = {}
    for row in rows:
        if row.split and row.split not in ("train", *VAL_NAMES):
            hint = did_you_mean(row.split, ("train", *VAL_NAMES))
            raise DataError(f"{file}, line {row.line}: unknown split {row.split!r}, {hint}")
        if said.setdefault(row.name, row.split) != row.split:
            raise DataError(
                f"{file}, line {row.line}: {row.name} is in '{said[row.name]}' and in '{row.split}'; a picture and all "
                "its captions belong to one split."
            )
    if not any(said.values()):
        return {}
    bare = sorted(name for name, split in said.items() if not split)
    if bare:
        raise DataError(f"{file}: {len(bare)} pictures have no split, others do: {name_some(bare)}.")
    return said


def _left_out(aside: Mapping[str, str], val: str) -> Iterator[str]:
    """Say which splits beside the validation split are left out."""
    for split, count in sorted(Counter(aside.values()).items()):
        yield f"{count} pictures of the split '{split}' are left out: those of '{val}' are for validation"


def _mute(file: Path, root: Path, names: Sequence[str], aside: Iterable[str]) -> Iterator[str]:
    """Name the pictures beside the captioned ones that nothing is said of."""
    folders = Counter((root / name).parent for name in names)
    known = {root / name for name in (*names, *aside)}
    mute = sorted(
        (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()  # names may be absolute
        for folder in folders
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path not in known
    )
    if mute:
        yield f"{len(mute)} pictures beside the captioned ones have no caption in {file.name}: {name_some(mute)}"


def _rows(file: Path) -> list[_Row]:
    """Return each row that is not blank."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = [name.strip().lower() for name in next(reader, [])]
            picture, caption = (_column(file, header, allowed) for allowed in (_PICTURE_COLUMNS, _CAPTION_COLUMNS))
            split = header.index("split") if "split" in header else None
            rows = []
            for row in reader:
                if not any(row):
                    continue
                if len(row) != len(header):
                    raise DataError(
                        f"{file}, line {reader.line_num}: {len(row)} columns, the header has {len(header)}. A caption "
                        "with commas needs quotes around it."
                    )
                side = row[split].strip().lower() if split is not None else ""
                rows.append(_Row(reader.line_num, row[picture].strip(), row[caption].strip(), side))
    except UnicodeDecodeError as e:
        raise DataError(f"{file} is not UTF-8 (byte 0x{e.object[e.start]:02x}). Save it again as 'CSV UTF-8'.") from e
    except csv.Error as e:
        raise DataError(f"{file}: {e}. Write it as a CSV with commas and closed quotes.") from e
    except OSError as e:
        raise DataError(f"cannot read {file}: {e.strerror or e}. {CAPTION_LAYOUTS}") from e
    return rows


def _column(file: Path, header: list[str], allowed: tuple[str, ...]) -> int:
    found = [header.index(name) for name in allowed if name in header]
    if not found:
        raise DataError(f"{file} has no column {' or '.join(allowed)}; its header is: {', '.join(header) or 'empty'}.")
    return found[0]
