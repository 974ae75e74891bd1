"""Pictures with captions, from a CSV: one row per caption, so a picture may have several."""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from edgekit.data import Sample
from edgekit.errors import DataError
from edgekit.listing import name_some

_PICTURE_COLUMNS = ("image", "path", "filename", "file_name")
_CAPTION_COLUMNS = ("caption", "text")


@dataclass(frozen=True)
class CaptionedSet:
    """Pictures and what is said of them.

    Attributes:
        samples: the pictures, sorted by key, without labels.
        captions: one or more captions per picture, in the file's order.
    """

    samples: tuple[Sample, ...]
    captions: tuple[tuple[str, ...], ...]

    def texts(self) -> list[str]:
        """Return all captions in one list."""
        return [caption for captions in self.captions for caption in captions]

    def take(self, keys: set[str]) -> CaptionedSet:
        """Return the pictures of these keys."""
        kept = [pair for pair in zip(self.samples, self.captions, strict=True) if pair[0].key in keys]
        return CaptionedSet(tuple(sample for sample, _ in kept), tuple(captions for _, captions in kept))


def load_captions(file: Path, pictures: Path | None = None) -> CaptionedSet:
    """Read a CSV with an image and a caption column.

    Args:
        file: the CSV, UTF-8; the columns may be called image, path, filename or file_name, and caption or text.
        pictures: the folder that image paths are relative to; the CSV's own where not given.

    Raises:
        DataError: not such a CSV, an empty caption, a picture that is not there, or no rows.
    """
    root = pictures or file.parent
    captions: dict[str, list[str]] = defaultdict(list)
    for line, name, caption in _rows(file):
        if not name or not caption:
            raise DataError(
                f"{file}, line {line}: the {'caption' if name else 'image'} is empty. Fill it, or drop the row."
            )
        captions[name].append(caption)
    if not captions:
        raise DataError(f"{file} has no rows below its header; expected one row image,caption per caption.")
    missing = [name for name in captions if not (root / name).is_file()]
    if missing:
        raise DataError(f"{file} names {len(missing)} pictures that are not in {root}: {name_some(missing)}.")
    names = sorted(captions)
    samples = tuple(Sample(name, root / name, None) for name in names)
    return CaptionedSet(samples, tuple(tuple(captions[name]) for name in names))


def _rows(file: Path) -> list[tuple[int, str, str]]:
    """Return (line, image, caption) of each row that is not blank."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = [name.strip().lower() for name in next(reader, [])]
            picture, caption = (_column(file, header, allowed) for allowed in (_PICTURE_COLUMNS, _CAPTION_COLUMNS))
            rows = []
            for row in reader:
                if not any(row):
                    continue
                if len(row) <= max(picture, caption):
                    raise DataError(
                        f"{file}, line {reader.line_num}: {len(row)} columns, the header has {len(header)}."
                    )
                rows.append((reader.line_num, row[picture].strip(), row[caption].strip()))
    except UnicodeDecodeError as e:
        raise DataError(f"{file} is not UTF-8 (byte 0x{e.object[e.start]:02x}). Save it again as 'CSV UTF-8'.") from e
    except csv.Error as e:
        raise DataError(f"{file}: {e}. Write it as a CSV with commas and closed quotes.") from e
    except OSError as e:
        raise DataError(f"cannot read {file}: {e.strerror or e}. Check the path and its permissions.") from e
    return rows


def _column(file: Path, header: list[str], allowed: tuple[str, ...]) -> int:
    found = [header.index(name) for name in allowed if name in header]
    if not found:
        raise DataError(f"{file} has no column {' or '.join(allowed)}; its header is: {', '.join(header) or 'empty'}.")
    return found[0]
