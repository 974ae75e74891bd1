"""Find the pictures in a tar of samples by the WebDataset convention, without unpacking anything.

Files that share their path up to the first dot of the name are one sample: `000012.jpg`, `000012.cls` (class number or
name), `000012.txt` (captions, one per line) and `000012.json` (with `key`, the picture's name in the data set it came
from). Nothing is ever written, so a
hostile path has no power; it is refused all the same, as such a tar is not what it says.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath

from edgekit.errors import LoadError, first_line
from edgekit.images import IMAGE_SUFFIXES, ImageError

MAX_PICTURE_BYTES = 256 << 20
_MAX_NOTE_BYTES = 1 << 20


@dataclass(frozen=True)
class TarPicture:
    """A picture in a tar.

    Attributes:
        key: its name in the data set.
        label: what its .cls says, or the `label` of its .json; None where there is none.
        tar: the file.
        offset, size: where its bytes are.
        captions: the lines of its .txt, or the `caption` of its .json.
    """

    key: str
    label: str | None
    tar: Path
    offset: int
    size: int
    captions: tuple[str, ...] = ()

    def read(self) -> bytes:
        """Return the picture's bytes.

        Raises:
            ImageError: they cannot be read.
        """
        try:
            with self.tar.open("rb") as file:
                file.seek(self.offset)
                content = file.read(self.size)
        except OSError as e:
            reason = e.strerror or str(e)
            raise ImageError(f"cannot read the picture {self.tar}:{self.key}: {reason}", reason=reason) from e
        if len(content) < self.size:
            raise ImageError(f"cannot read the picture {self.tar}:{self.key}: the tar is cut off", reason="cut off")
        return content


@dataclass(frozen=True)
class TarListing:
    """What one tar holds.

    Attributes:
        pictures: in the order of the tar.
        broken: member → reason of what cannot be used.
    """

    pictures: tuple[TarPicture, ...]
    broken: dict[str, str]


def list_tar(path: Path) -> TarListing:
    """List the samples of a tar; what is damaged is named, and the rest listed.

    Raises:
        LoadError: it is not there, is compressed, or is no tar at all.
    """
    broken: dict[str, str] = {}
    try:
        with path.open("rb") as file:
            if file.read(2) == b"\x1f\x8b":
                raise LoadError(f"{path} is compressed; samples are read in any order, so unpack it first: gunzip")
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                members = list(_members(tar, path, broken))
                pictures = tuple(_pictures(tar, path, members, broken))
    except (OSError, tarfile.TarError) as e:
        raise LoadError(f"{path} cannot be read as a tar: {first_line(e)}") from e
    return TarListing(pictures, broken)


def _members(tar: tarfile.TarFile, path: Path, broken: dict[str, str]) -> Iterator[tarfile.TarInfo]:
    """Yield the usable members; a damaged or missing end is noted, as tarfile itself passes over it in silence."""
    size_bytes = path.stat().st_size
    try:
        for member in tar:
            reason = _refusal(member, size_bytes)
            if reason is None:
                yield member
            elif not member.isdir():
                broken[f"{path.name}:{member.name}"] = reason
        end = tar.offset
        assert tar.fileobj is not None
        tar.fileobj.seek(end)
        if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0") or tar.fileobj.tell() == end:
            broken[path.name] = f"damaged or cut off at byte {end}; what follows is lost"
    # damaged headers raise nearly anything: ReadError, ValueError, UnicodeDecodeError, OverflowError, …
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as e:
        broken[path.name] = f"damaged or cut off: {first_line(e)}; what follows is lost"


def _refusal(member: tarfile.TarInfo, size_bytes: int) -> str | None:
    if member.isdir():
        return "a folder"
    if not member.isreg() or member.issparse():
        return "not a regular file"
    if member.offset_data + member.size > size_bytes:
        return "the tar is cut off"
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or "\\" in member.name:
        return "its path leads out of the tar"
    return None


def _pictures(
    tar: tarfile.TarFile, path: Path, members: list[tarfile.TarInfo], broken: dict[str, str]
) -> Iterator[TarPicture]:
    for key, group in groupby(members, key=lambda member: _key(member.name)):
        files = {PurePosixPath(member.name).suffix.lower(): member for member in group}
        pictures = [member for suffix, member in files.items() if suffix in IMAGE_SUFFIXES]
        reason = None
        if len(pictures) != 1:
            reason = f"{len(pictures)} pictures in one sample"
        elif pictures[0].size > MAX_PICTURE_BYTES:
            reason = f"{pictures[0].size} bytes, at most {MAX_PICTURE_BYTES} are read"
        if reason is not None:
            broken[f"{path.name}:{key}"] = reason
            continue
        note = _note(tar, files.get(".json"))
        label = _text(tar, files.get(".cls"))
        named = note.get("key")
        picture = pictures[0]
        yield TarPicture(
            named if isinstance(named, str) and named else key,
            label if label is not None else _label(note),
            path,
            picture.offset_data,
            picture.size,
            _captions(_text(tar, files.get(".txt")), note),
        )


def _key(name: str) -> str:
    """Return a member's path up to the first dot of its name."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo | None) -> str | None:
    if member is None or member.size > _MAX_NOTE_BYTES:
        return None
    file = tar.extractfile(member)
    return file.read().decode("utf-8", errors="replace").strip() or None if file is not None else None


def _note(tar: tarfile.TarFile, member: tarfile.TarInfo | None) -> dict[str, object]:
    try:
        values = json.loads(_text(tar, member) or "{}")
    except (ValueError, RecursionError):  # somebody else's notes need not be JSON objects of ours
        return {}
    return values if isinstance(values, dict) else {}


def _captions(text: str | None, note: dict[str, object]) -> tuple[str, ...]:
    caption = note.get("caption")
    said = text if text is not None else caption if isinstance(caption, str) else ""
    return tuple(line.strip() for line in said.splitlines() if line.strip())


def _label(note: dict[str, object]) -> str | None:
    label = note.get("label")
    return label if isinstance(label, str) and label else None
