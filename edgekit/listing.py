"""Find the samples of a data set, in folders of classes or in a CSV: what is there, not yet whether it will do.

A sample is a picture, or a clip: a video file, or a folder of its frames.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgekit.clips import VIDEO_SUFFIXES
from edgekit.errors import DataError, did_you_mean
from edgekit.images import IMAGE_SUFFIXES

Split = Literal["train", "val"]
Kind = Literal["pictures", "clips"]

# Other tools' names of the validation split. The first one that is there is taken, the later ones are left alone.
VAL_NAMES = ("val", "valid", "validation", "test")
UNLABELED = "_unlabeled"
_NOT_DATA = frozenset({"__MACOSX", "Thumbs.db", "@eaDir", "desktop.ini"})  # droppings of archives and file managers

LAYOUTS = (
    "Give DIR/{train,val}/<class>/*, DIR/<class>/* with --val-fraction, or a CSV with the columns path,label[,split]."
)


@dataclass(frozen=True)
class Listed:
    """One picture or clip as the source names it.

    Attributes:
        key: posix path relative to the data set's root; the absolute path where a CSV names a file of another drive.
        path: where to read it.
        real: the path with all links resolved; equal for two names of one file.
        label: class name; None where there is none.
        split: None where the source does not split.
    """

    key: str
    path: Path
    real: str
    label: str | None
    split: Split | None


def name_some(names: Sequence[str], limit: int = 5) -> str:
    """Return the first names in one line, and how many are left."""
    shown = [name if name.isprintable() else repr(name) for name in names[:limit]]
    left = len(names) - len(shown)
    return ", ".join(shown) + (f" and {left} more" if left else "")


def list_folder(root: Path, kind: Kind = "pictures") -> list[Listed]:
    """List the pictures of `root/{train,val}/<class>/**` or of `root/<class>/**`, sorted by key.

    Of clips, a video is one, and a folder below a class that holds pictures is one.

    `val` may be called valid, validation or test. Names of splits and suffixes are matched without regard to case.
    Hidden files, droppings of file managers and files that are no pictures are passed over.

    Raises:
        DataError: a folder cannot be read, one of train and val is missing, or there is no picture at all.
    """
    folders = {entry.name.lower(): entry.name for entry in _entries(root) if _is_folder(entry)}
    val = next((name for name in VAL_NAMES if name in folders), None)
    classes = folders.keys() - {"train", UNLABELED, *VAL_NAMES}
    # "train" may also be a class, next to "car" and "plane"; and "valid" one, next to "invalid".
    splits = "train" in folders and (val or not classes or any(map(_is_folder, _entries(root / folders["train"]))))
    if splits or (val and not classes):
        missing = None if splits and val else ("val" if splits else "train")
        if missing:
            raise _one_split_only(root, folders["train" if splits else str(val)], missing)
        listed = [
            *_list_classes(root, folders["train"], "train", kind),
            *_list_classes(root, folders[str(val)], "val", kind),
        ]
    else:
        listed = list(_list_classes(root, "", None, kind))
    if not listed:
        raise _nothing_found(root, kind)
    return sorted(listed, key=lambda picture: picture.key)


def _one_split_only(root: Path, there: str, missing: str) -> DataError:
    allowed = f"{missing}/ ({', '.join(VAL_NAMES[1:])} will do as well)" if missing == "val" else f"{missing}/"
    return DataError(
        f"{root} has {there}/ but no {allowed}. Add it, or let a part of {there}/ be held out: "
        f"give {root / there} with --val-fraction 0.1."
    )


def _nothing_found(root: Path, kind: Kind) -> DataError:
    suffixes = Counter(Path(name).suffix.lower() or "no suffix" for _, _, files in os.walk(root) for name in files)
    found = ", ".join(f"{count} x {suffix}" for suffix, count in suffixes.most_common(3)) or "no files at all"
    if kind == "clips":
        allowed = f"{' '.join(sorted(VIDEO_SUFFIXES))}, or folders <class>/<clip>/ of frames"
    else:
        allowed = " ".join(sorted(IMAGE_SUFFIXES))
    hint = " Clips train with --frames 8." if kind == "pictures" and suffixes.keys() & VIDEO_SUFFIXES else ""
    return DataError(f"no {kind} in {root} (found {found}; allowed: {allowed}). {LAYOUTS}{hint}")


def _list_classes(root: Path, folder: str, split: Split | None, kind: Kind) -> Iterator[Listed]:
    """List `root/folder/<class>/**`."""
    top = root / folder
    loose: list[str] = []
    walk, is_sample = (_pictures_below, _is_picture) if kind == "pictures" else (_clips_in_class, _is_video)
    for entry in _entries(top):
        if _is_folder(entry):
            label = None if entry.name.lower() == UNLABELED else entry.name
            for path, real in walk(top / entry.name, frozenset()):
                yield Listed(path.relative_to(root).as_posix(), path, real, label, split)
        elif is_sample(entry.name):
            loose.append(entry.name)
    if loose:
        raise DataError(
            f"{len(loose)} {kind} lie in {top} outside of any class folder ({name_some(loose)}). "
            f"Move them into {top / '<class>'}, or for training without labels into {UNLABELED}/."
        )


def _pictures_below(folder: Path, above: frozenset[str]) -> Iterator[tuple[Path, str]]:
    """Walk down, through links too, but never into a folder that we are inside of already."""
    here = os.path.realpath(folder)
    if here in above:
        return
    for entry in _entries(folder):
        path = folder / entry.name
        if _is_folder(entry):
            yield from _pictures_below(path, above | {here})
        elif _is_picture(entry.name):  # a dangling link is listed too: reading it fails, and it is reported as broken
            yield path, os.path.realpath(path) if entry.is_symlink() else os.path.join(here, entry.name)  # noqa: PTH118


def _clips_in_class(folder: Path, above: frozenset[str]) -> Iterator[tuple[Path, str]]:
    """List a class's clips; pictures that lie in it without a folder of their own are of no clip."""
    loose = [entry.name for entry in _entries(folder) if not _is_folder(entry) and _is_picture(entry.name)]
    if loose:
        raise DataError(
            f"{len(loose)} pictures lie in {folder} outside of any clip ({name_some(loose)}). With --frames they lie "
            f"in a folder for each clip, {folder / '<clip>' / '0001.jpg'}; leave --frames out to train on pictures."
        )
    yield from _clips_below(folder, above)


def _clips_below(folder: Path, above: frozenset[str]) -> Iterator[tuple[Path, str]]:
    """Walk down as `_pictures_below` does; a folder that holds pictures is a clip, and is not walked further."""
    here = os.path.realpath(folder)
    if here in above:
        return
    entries = _entries(folder)
    if any(not _is_folder(entry) and _is_picture(entry.name) for entry in entries):
        yield folder, here
        return
    for entry in entries:
        path = folder / entry.name
        if _is_folder(entry):
            yield from _clips_below(path, above | {here})
        elif _is_video(entry.name):
            yield path, os.path.realpath(path) if entry.is_symlink() else os.path.join(here, entry.name)  # noqa: PTH118


def _is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES  # noqa: PTH122  as `_is_picture`


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            kept = [entry for entry in entries if entry.name[0] != "." and entry.name not in _NOT_DATA]
    except OSError as e:
        raise DataError(
            f"cannot read the folder {folder}: {e.strerror or e}. Check the path and its permissions."
        ) from e
    return sorted(kept, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # DirEntry.is_dir raises on a link that points to itself; os.path does not
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()  # noqa: PTH112


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122  twice as fast as Path for each file


def list_csv(file: Path, kind: Kind = "pictures") -> list[Listed]:
    """List the pictures or clips of a CSV with the columns path, label and perhaps split, sorted by key.

    Paths are absolute or relative to the CSV's folder; an empty label means unlabelled; further columns are ignored.

    Raises:
        DataError: not UTF-8, not a CSV, no rows, a needed column, cell or file is missing, a row is there twice, or a
            split has an unknown name.
    """
    rows = _read_rows(file)
    _, header = next(rows, (0, []))
    columns = _columns(file, header)
    table = [(line, _cells(file, line, row, columns)) for line, row in rows]
    if not table:
        raise DataError(f"{file} has no rows below its header. {LAYOUTS}")
    splits = _splits(file, [(line, cells["split"]) for line, cells in table]) if "split" in columns else None
    listed = {}
    lines: dict[str, list[int]] = {}
    for number, (line, cells) in enumerate(table):
        split = splits[number] if splits else None
        if splits and split is None:
            continue  # a test split beside a val split
        label = cells["label"] if cells["label"] not in ("", UNLABELED) else None
        key = _key(cells["path"], file.parent)
        path = file.parent / cells["path"]
        lines.setdefault(key, []).append(line)
        listed[key] = Listed(key, path, os.path.realpath(path), label, split)
    _refuse_repeated(file, lines, kind)
    _refuse_missing(file, listed.values(), kind)
    return sorted(listed.values(), key=lambda picture: picture.key)


def _read_rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)  # strict: an unclosed quote would swallow the rest of the file
            for row in reader:
                if any("\0" in cell for cell in row):  # Python 3.10 says so by itself
                    raise csv.Error("line contains NUL")
                if any(cell.strip() for cell in row):
                    yield reader.line_num, [cell.strip() for cell in row]
    except UnicodeDecodeError as e:
        raise DataError(f"{file} is not UTF-8 (byte 0x{e.object[e.start]:02x}). Save it again as 'CSV UTF-8'.") from e
    except csv.Error as e:
        raise DataError(f"{file}, line {reader.line_num}: {e}. Write it as a CSV with commas and closed quotes.") from e
    except OSError as e:
        raise DataError(f"cannot read {file}: {e.strerror or e}. Check the path and its permissions.") from e


def _columns(file: Path, header: Sequence[str]) -> dict[str, int]:
    """Return the position of each column that we read."""
    names = [name.lower() for name in header]
    missing = [name for name in ("path", "label") if names.count(name) != 1]
    if missing:
        other = next((mark for mark in (";", "\t") if len(header) == 1 and mark in header[0]), None)
        hint = f" Its columns are separated by {other!r}: use commas." if other else ""
        raise DataError(
            f"{file} needs each of the columns path,label[,split] once in its first line; "
            f"{' and '.join(missing)} not so in: {name_some(header) or 'an empty file'}.{hint}"
        )
    return {name: names.index(name) for name in ("path", "label", "split") if name in names}


def _cells(file: Path, line: int, row: Sequence[str], columns: dict[str, int]) -> dict[str, str]:
    if len(row) <= max(columns.values()) or not row[columns["path"]]:
        raise DataError(f"{file}, line {line}: a cell of {','.join(columns)} is missing in: {','.join(row)!r:.100}")
    return {name: row[index] for name, index in columns.items()}


def _key(path: str, folder: Path) -> str:
    plain = Path(os.path.normpath(path))  # "a//./b.jpg" and "a/b.jpg" are one file and get one key
    here = Path(os.path.normpath(folder.absolute()))
    return (plain.relative_to(here) if plain.is_relative_to(here) else plain).as_posix()


def _splits(file: Path, cells: Sequence[tuple[int, str]]) -> list[Split | None]:
    """Return the split of each row; None for those of a second validation split."""
    allowed = ("train", *VAL_NAMES)
    for line, name in cells:
        if name.lower() not in allowed:
            raise DataError(f"{file}, line {line}: unknown split {name!r}, {did_you_mean(name.lower(), allowed)}")
    names = [name.lower() for _, name in cells]
    val = next((name for name in VAL_NAMES if name in names), None)
    return ["train" if name == "train" else "val" if name == val else None for name in names]


def _refuse_repeated(file: Path, lines: dict[str, list[int]], kind: Kind) -> None:
    repeated = [f"{key} (lines {', '.join(map(str, at))})" for key, at in lines.items() if len(at) > 1]
    if repeated:
        raise DataError(
            f"{file} names {len(repeated)} {kind} more than once: {name_some(repeated)}. Keep one row each."
        )


def _refuse_missing(file: Path, listed: Iterable[Listed], kind: Kind) -> None:
    there = os.path.isfile if kind == "pictures" else os.path.exists
    missing = [picture.key for picture in listed if not there(picture.real)]
    if missing:
        raise DataError(
            f"{file} names {len(missing)} files that are not there: {name_some(missing)}. "
            f"Paths are absolute or relative to {file.parent.absolute()}."
        )
