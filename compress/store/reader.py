"""Read a teacher store: rows by picture, through memory maps that are opened when they are used."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.compress.pictures.views import VIEW_FIELDS, Views
from edgekit.compress.store.format import Manifest, Shard, Split, read_manifest
from edgekit.compress.store.mapped import MappedTensors, TooManyOpenError, file_sha256
from edgekit.errors import LoadError

_ROW_BITS = 32
_ROW_MASK = (1 << _ROW_BITS) - 1
_MOST_OPEN = 64
"""Shards mapped at a time. Each holds a file descriptor, of which macOS gives a process 256, Linux 1024; opening one
again takes 0.05 ms."""


class TeacherStore:
    """A teacher store that is there.

    In memory are 16 bytes per picture (its identity and place); embeddings and views stay in the files.

    Args:
        path: the store's folder.
        manifest: what it holds; None reads it.

    Raises:
        LoadError: the manifest or a shard is missing, truncated or altered.
    """

    def __init__(self, path: Path, manifest: Manifest | None = None) -> None:
        self.path = path
        self.manifest = manifest or read_manifest(path)
        self._open: OrderedDict[int, MappedTensors] = OrderedDict()  # the one used last comes last
        self._whole: set[int] = set()
        self._index: dict[Split, tuple[NDArray[np.uint64], NDArray[np.int64]]] = {}
        for shard in self.manifest.shards:
            self._check_size(shard)

    @property
    def embed_dim(self) -> int:
        """D."""
        return self.manifest.embed_dim

    @property
    def replays(self) -> bool:
        """Whether views were stored; else view 0 is the plain picture and view 1 its flip."""
        return bool(self.manifest.key.views["count"])

    @property
    def num_views(self) -> int:
        """Embeddings per training picture."""
        return int(self.manifest.key.views["count"]) or 2

    def __len__(self) -> int:
        """Return the number of pictures, of both splits."""
        return sum(shard.count for shard in self.manifest.shards)

    def places(self, split: Split, ids: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return where each picture's row is (N,), −1 where there is none.

        Args:
            split: "train" or "val".
            ids: (N,) identities of name and content, column 1 of `picture_ids`.
        """
        known, places = self._indexed(split)
        if not len(known):
            return np.full(len(ids), -1, np.int64)
        found = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        return np.where(known[found] == ids, places[found], -1)

    def names(self, split: Split) -> NDArray[np.uint64]:
        """Return the identities of the pictures' names alone, column 0 of `picture_ids`, unsorted."""
        shards = [n for n, shard in enumerate(self.manifest.shards) if shard.split == split]
        parts = [self._tensors(number).arrays["ids"][:, 0].copy() for number in shards]  # a view would hold the map
        return np.concatenate(parts) if parts else np.empty(0, np.uint64)

    def embeddings(self, places: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.float16]:
        """Return rows (B, D) of pictures at `places` (B,), of view number `numbers` (B,)."""
        return self._gather("embeddings", places, numbers)

    def views(self, places: NDArray[np.int64], numbers: NDArray[np.int64]) -> Views:
        """Return the parameters of stored views."""
        return Views(*(self._gather(f"view.{name}", places, numbers) for name in VIEW_FIELDS))

    def _gather(self, name: str, places: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[Any]:
        result: NDArray[Any] | None = None
        shards = places >> _ROW_BITS
        for number in np.unique(shards):
            tensors = self._tensors(int(number))
            here = np.flatnonzero(shards == number)
            array = tensors.arrays[name]
            if result is None:
                result = np.empty((len(places), *array.shape[2:]), array.dtype)
            result[here] = array[places[here] & _ROW_MASK, numbers[here]]
            tensors.release()
        assert result is not None, "no rows were asked for"
        return result

    def _indexed(self, split: Split) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Return the sorted identities of a split and their places."""
        if split not in self._index:
            ids, places = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
            for number, shard in enumerate(self.manifest.shards):
                if shard.split == split:
                    ids.append(self._tensors(number).arrays["ids"][:, 1].copy())
                    places.append((np.int64(number) << _ROW_BITS) + np.arange(shard.count))
            known, where = np.concatenate(ids), np.concatenate(places)
            order = np.argsort(known, kind="stable")
            self._index[split] = known[order], where[order]
        return self._index[split]

    def _tensors(self, number: int) -> MappedTensors:
        if number not in self._open:
            self._open[number] = self._mapped(number)
        self._open.move_to_end(number)
        while len(self._open) > _MOST_OPEN:
            self._open.popitem(last=False)
        return self._open[number]

    def _mapped(self, number: int) -> MappedTensors:
        """Map a shard, the first time after checking that it is the one that was written."""
        shard = self.manifest.shards[number]
        path = self.path / shard.file
        try:
            if number not in self._whole and file_sha256(path) != shard.sha256:
                raise LoadError("its content is not what was written")
            self._whole.add(number)
            tensors = MappedTensors(path)
            trained = shard.split == "train"
            _check_shapes(tensors, shard, (self.num_views if trained else 1, self.embed_dim), trained and self.replays)
        except TooManyOpenError:
            raise
        except LoadError as e:
            raise self._damaged(shard, str(e)) from e
        return tensors

    def _check_size(self, shard: Shard) -> None:
        try:
            size = (self.path / shard.file).stat().st_size
        except OSError as e:
            raise self._damaged(shard, e.strerror or str(e)) from e
        if size != shard.size_bytes:
            raise self._damaged(shard, f"it has {size} bytes, {shard.size_bytes} were written")

    def _damaged(self, shard: Shard, reason: str) -> LoadError:
        return LoadError(
            f"the shard {self.path / shard.file} of the teacher store is damaged ({reason}). Delete this file and "
            f"teach again with the same --teacher: only its {shard.count} pictures are embedded anew"
        )


def _check_shapes(tensors: MappedTensors, shard: Shard, row: tuple[int, int], replayed: bool) -> None:
    """Raise if the arrays are not those of this store, `row` = (V, D) numbers per picture."""
    arrays, (views, embed_dim) = tensors.arrays, row
    expected = {"ids": (shard.count, 2), "embeddings": (shard.count, views, embed_dim)}
    for name, shape in expected.items():
        if name not in arrays or arrays[name].shape != shape:
            raise LoadError(f"its '{name}' is {arrays[name].shape if name in arrays else 'not there'}, not {shape}")
    if not replayed:
        return
    for name in VIEW_FIELDS:
        if f"view.{name}" not in arrays or arrays[f"view.{name}"].shape[:2] != (shard.count, views):
            raise LoadError(f"it holds no '{name}' of {views} views")
