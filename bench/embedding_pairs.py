"""Embeddings of pictures and captions that others computed, from .npy files and who belongs to whom."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError, LoadError, first_line

IMAGE_FILE, TEXT_FILE, OWNER_FILE = "image_embeddings.npy", "text_embeddings.npy", "image_of_text.npy"
FILES_FILE, CAPTIONS_FILE = "files.json", "captions.json"
LAYOUT = (
    f"Expected {IMAGE_FILE} (N, D) and {TEXT_FILE} (M, D), and who belongs to whom: {OWNER_FILE} (M,) row numbers, or "
    f'{FILES_FILE} (N names) with {CAPTIONS_FILE} (M objects with "file"), or M a multiple of N with the captions of '
    "each picture in a row"
)


@dataclass(frozen=True)
class EmbeddingPairs:
    """Embeddings to search among.

    Attributes:
        images: (N, D) float.
        texts: (M, D) float.
        owner: (M,) int64, the row of `images` that each text describes.
        source: what they are, for the report.
    """

    images: NDArray[np.float32]
    texts: NDArray[np.float32]
    owner: NDArray[np.int64]
    source: str


def read_pairs(folder: Path) -> EmbeddingPairs:
    """Read a folder of embeddings.

    Raises:
        LoadError: a file is missing or damaged.
        DataError: the files do not fit each other.
    """
    images, texts = _array(folder / IMAGE_FILE), _array(folder / TEXT_FILE)
    for name, rows in ((IMAGE_FILE, images), (TEXT_FILE, texts)):
        if rows.ndim != 2 or not len(rows) or not np.issubdtype(rows.dtype, np.floating):
            raise DataError(f"{folder / name} holds {rows.dtype} {rows.shape}. {LAYOUT}")
    owner, how = _owner(folder, len(images), len(texts))
    if owner.shape != (len(texts),):
        raise DataError(f"{folder}: {len(texts)} texts, but an image is named for {owner.shape}. {LAYOUT}")
    return EmbeddingPairs(images.astype(np.float32), texts.astype(np.float32), owner, f"{folder} ({how})")


def _owner(folder: Path, images: int, texts: int) -> tuple[NDArray[np.int64], str]:
    if (folder / OWNER_FILE).is_file():
        rows = _array(folder / OWNER_FILE)
        if not np.issubdtype(rows.dtype, np.integer):
            raise DataError(f"{folder / OWNER_FILE} holds {rows.dtype}, not row numbers. {LAYOUT}")
        return rows.astype(np.int64), f"pairs by {OWNER_FILE}"
    if (folder / FILES_FILE).is_file() and (folder / CAPTIONS_FILE).is_file():
        return _by_name(folder, images), f"pairs by {FILES_FILE} and {CAPTIONS_FILE}"
    if texts % images:
        raise DataError(f"{folder} does not say which of {texts} texts belong to which of {images} images. {LAYOUT}")
    return np.repeat(np.arange(images), texts // images), f"{texts // images} texts in a row for each image"


def _by_name(folder: Path, images: int) -> NDArray[np.int64]:
    files, captions = _json(folder / FILES_FILE), _json(folder / CAPTIONS_FILE)
    if len(files) != images:
        raise DataError(f"{folder / FILES_FILE} names {len(files)} pictures, there are {images} embeddings. {LAYOUT}")
    row_of = {str(name): row for row, name in enumerate(files)}
    if len(row_of) != len(files):
        raise DataError(f"{folder / FILES_FILE} names a picture twice")
    names = [str(caption.get("file")) if isinstance(caption, dict) else "" for caption in captions]
    unknown = sorted({name for name in names if name not in row_of})
    if unknown:
        raise DataError(
            f"{folder / CAPTIONS_FILE}: {len(unknown)} files are not in {FILES_FILE}, the first is {unknown[0]!r}"
        )
    return np.array([row_of[name] for name in names], np.int64)


def _array(path: Path) -> NDArray[Any]:
    try:
        content = np.load(path, allow_pickle=False)
    except FileNotFoundError as e:
        raise LoadError(f"{path} is not there. {LAYOUT}") from e
    except (OSError, ValueError, EOFError) as e:
        raise LoadError(f"{path} is not an array that can be read: {first_line(e)}") from e
    if not isinstance(content, np.ndarray):  # a zip of several, whatever it is called
        raise LoadError(f"{path} holds several arrays; expected one")
    return content


def _json(path: Path) -> list[Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as e:
        raise LoadError(f"{path} cannot be read: {first_line(e)}") from e
    if not isinstance(content, list):
        raise LoadError(f"{path} does not hold a list. {LAYOUT}")
    return content
