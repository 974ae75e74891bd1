"""An index of a folder of pictures: their embeddings by one model, kept in a file and brought up to date. No torch."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit import atomic
from edgekit.errors import LoadError
from edgekit.export.session import FloatArray
from edgekit.images import IMAGE_SUFFIXES

INDEX_VERSION = 1
Stamp = tuple[int, int]
"""Size in bytes and time of the last change in ns: a file with the same two is taken for the same picture."""


@dataclass(frozen=True)
class PictureIndex:
    """Embeddings of pictures.

    Attributes:
        model: hash of the image tower and of its preprocessing; rows of another model mean something else.
        keys: N paths below the folder, with "/".
        stamps: of each file when it was embedded.
        rows: (N, D) unit rows.
    """

    model: str
    keys: tuple[str, ...]
    stamps: tuple[Stamp, ...]
    rows: FloatArray

    @classmethod
    def empty(cls, model: str, embed_dim: int) -> PictureIndex:
        """Return an index of nothing."""
        return cls(model, (), (), np.empty((0, embed_dim), np.float32))

    def kept(self, found: Mapping[str, Stamp]) -> PictureIndex:
        """Return the part whose files are still there and unchanged."""
        at = [row for row, key in enumerate(self.keys) if found.get(key) == self.stamps[row]]
        if len(at) == len(self.keys):
            return self
        keys, stamps = tuple(self.keys[row] for row in at), tuple(self.stamps[row] for row in at)
        return PictureIndex(self.model, keys, stamps, self.rows[at])

    def joined(self, keys: tuple[str, ...], stamps: tuple[Stamp, ...], rows: FloatArray) -> PictureIndex:
        """Return the index with more pictures in it."""
        return PictureIndex(
            self.model, self.keys + keys, self.stamps + stamps, np.concatenate([self.rows, rows.astype(np.float32)])
        )

    def best(self, query: FloatArray, count: int) -> list[tuple[str, float]]:
        """Return the `count` pictures nearest to a unit row (D,), best first, with their cosines; ties by key."""
        scores = self.rows @ query
        count = min(count, len(scores))
        if not count:
            return []
        # all that reach the last place's score, so that ties there are broken by key and not by chance
        least = np.partition(scores, -count)[-count]
        near = np.flatnonzero(scores >= least)
        ranked = sorted(near.tolist(), key=lambda row: (-scores[row], self.keys[row]))
        return [(self.keys[row], float(scores[row])) for row in ranked[:count]]


def list_pictures(folder: Path) -> dict[str, Stamp]:
    """Return the pictures below a folder with their stamps, sorted by key; hidden files and folders are left out."""
    found: dict[str, Stamp] = {}
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if name.startswith(".") or Path(name).suffix.lower() not in IMAGE_SUFFIXES:
                continue
            path = Path(place, name)
            try:
                facts = path.stat()
            except OSError:
                continue  # removed since it was listed, or a link to nowhere
            found[path.relative_to(folder).as_posix()] = (facts.st_size, facts.st_mtime_ns)
    return dict(sorted(found.items()))


def write_index(path: Path, index: PictureIndex) -> None:
    """Write an index as .npz, whole or not at all.

    Raises:
        WriteError: the folder cannot be written or the disk is full.
    """
    header = json.dumps({"version": INDEX_VERSION, "model": index.model, "keys": index.keys})
    with atomic.atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez(
            stream,
            # surrogates stand for bytes in a file's name that are no UTF-8; JSON escapes them
            header=np.frombuffer(header.encode(), np.uint8),
            stamps=np.array(index.stamps, np.int64).reshape(-1, 2),
            rows=index.rows,
        )


def read_index(path: Path, model: str, embed_dim: int) -> PictureIndex:
    """Read the index of a model; one that is not there is empty.

    Raises:
        LoadError: damaged, no index, one of a newer edgekit, or that of another model.
    """
    if not path.exists():
        return PictureIndex.empty(model, embed_dim)
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes())
            stamps: NDArray[np.int64] = file["stamps"]
            rows: FloatArray = file["rows"]
        version, made_by, keys = int(header["version"]), str(header["model"]), tuple(map(str, header["keys"]))
        if version <= INDEX_VERSION:
            _check_shapes(keys, stamps, rows)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, MemoryError, RecursionError) as e:
        raise LoadError(
            f"{path} is no index of pictures, or damaged ({e}); give another --index, or --rebuild to replace it"
        ) from e
    if version > INDEX_VERSION:
        raise LoadError(f"{path} was written by a newer edgekit (version {version}); update it, or --rebuild the index")
    if made_by != model or rows.shape[1] != embed_dim:
        raise LoadError(
            f"{path} was made by another model ({made_by[:12]}, this one is {model[:12]}): its embeddings cannot be "
            "compared with this one's. Give another --index for each model, or --rebuild to replace it"
        )
    return PictureIndex(model, keys, tuple((int(size), int(time)) for size, time in stamps), rows)


def _check_shapes(keys: tuple[str, ...], stamps: NDArray[np.int64], rows: FloatArray) -> None:
    count = len(keys)
    if stamps.dtype != np.int64 or stamps.shape != (count, 2):
        raise ValueError(f"stamps {stamps.dtype} {stamps.shape} for {count} pictures")
    if rows.dtype != np.float32 or rows.ndim != 2 or len(rows) != count or not np.isfinite(rows).all():
        raise ValueError(f"rows {rows.dtype} {rows.shape} for {count} pictures, or not finite")
