"""What one or several teachers say of some pictures, by row: from a store, from an array, or joined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit.compress.pictures.views import Views
from edgekit.compress.store.format import Split
from edgekit.compress.store.reader import TeacherStore
from edgekit.errors import DataError
from edgekit.listing import name_some


class TeacherTable(Protocol):
    """What a teacher says of N pictures.

    Attributes:
        embed_dim: D.
        num_views: embeddings per picture, V.
        replays: whether the V views' parameters are known; else view 0 is the plain picture and view 1 its flip.
    """

    @property
    def embed_dim(self) -> int: ...

    @property
    def num_views(self) -> int: ...

    @property
    def replays(self) -> bool: ...

    def embeddings(self, rows: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return unit rows (B, D) of pictures `rows` (B,), view numbers `numbers` (B,)."""
        ...

    def views(self, rows: NDArray[np.int64], numbers: NDArray[np.int64]) -> Views:
        """Return the views' parameters, where `replays`."""
        ...


@dataclass(frozen=True)
class ArrayTable:
    """A table in memory.

    Attributes:
        array: (N, V, D) float16 unit rows, view 0 the plain picture and view 1, if there is one, its flip.
    """

    array: NDArray[np.float16]
    replays: bool = False

    @property
    def embed_dim(self) -> int:
        return int(self.array.shape[2])

    @property
    def num_views(self) -> int:
        return int(self.array.shape[1])

    def embeddings(self, rows: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.array[rows, numbers].astype(np.float32)

    def views(self, rows: NDArray[np.int64], numbers: NDArray[np.int64]) -> Views:
        raise AssertionError("a table of plain pictures has no views to replay")


@dataclass(frozen=True)
class StoreTable:
    """The rows of some pictures in a store.

    Attributes:
        store: where they are.
        places: (N,) from `TeacherStore.places`.
        num_views: the first so many views are used.
    """

    store: TeacherStore
    places: NDArray[np.int64]
    num_views: int

    @property
    def embed_dim(self) -> int:
        return self.store.embed_dim

    @property
    def replays(self) -> bool:
        return self.store.replays

    def embeddings(self, rows: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.store.embeddings(self.places[rows], numbers).astype(np.float32)

    def views(self, rows: NDArray[np.int64], numbers: NDArray[np.int64]) -> Views:
        return self.store.views(self.places[rows], numbers)


@dataclass(frozen=True)
class JoinedTable:
    """Several teachers as one: rows concatenated, each times the root of its weight, so that they stay unit rows.

    The cosine of two such rows is the weighted mean of the teachers' cosines.

    Attributes:
        tables: of the same pictures and views.
        weights: of the tables, positive, 1 in total.
    """

    tables: tuple[TeacherTable, ...]
    weights: tuple[float, ...]

    @property
    def embed_dim(self) -> int:
        return sum(table.embed_dim for table in self.tables)

    @property
    def num_views(self) -> int:
        return self.tables[0].num_views

    @property
    def replays(self) -> bool:
        return self.tables[0].replays

    def embeddings(self, rows: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        return join([table.embeddings(rows, numbers) for table in self.tables], self.weights)

    def views(self, rows: NDArray[np.int64], numbers: NDArray[np.int64]) -> Views:
        return self.tables[0].views(rows, numbers)


def join(rows: Sequence[NDArray[np.float32]], weights: Sequence[float]) -> NDArray[np.float32]:
    """Return unit rows (B, ΣD): each teacher's (B, D) times the root of its weight."""
    joined = np.concatenate([row * np.float32(math.sqrt(w)) for row, w in zip(rows, weights, strict=True)], axis=1)
    norms = np.linalg.norm(joined, axis=1, keepdims=True)  # float16 rows are 5e-4 off
    unit: NDArray[np.float32] = (joined / norms).astype(np.float32)
    return unit


@dataclass(frozen=True)
class Stores:
    """One store, or one for each of several teachers.

    Attributes:
        stores: with the same views.
        weights: of the teachers, positive, 1 in total.
        num_views: the first so many views are used.
    """

    stores: tuple[TeacherStore, ...]
    weights: tuple[float, ...]
    num_views: int

    def one(self, number: int) -> Stores:
        """Return the store of one teacher alone."""
        return Stores((self.stores[number],), (1.0,), self.num_views)

    def table(self, split: Split, keys: Sequence[str], ids: NDArray[np.uint64]) -> TeacherTable:
        """Return what the teachers say of some pictures.

        Args:
            split: whose views.
            keys: (N,) the pictures' names, for messages.
            ids: (N, 2) of `picture_ids`.

        Raises:
            DataError: pictures are missing, or their content is not what the teacher saw.
        """
        count = self.num_views if split == "train" else 1
        tables = tuple(StoreTable(store, _places(store, split, keys, ids), count) for store in self.stores)
        return tables[0] if len(tables) == 1 else JoinedTable(tables, self.weights)


def plain_rows(table: TeacherTable, count: int) -> NDArray[np.float16]:
    """Return view 0 (N, D) of the first `count` pictures of a table."""
    rows = np.arange(count)
    return table.embeddings(rows, np.zeros(count, np.int64)).astype(np.float16)


def _places(store: TeacherStore, split: Split, keys: Sequence[str], ids: NDArray[np.uint64]) -> NDArray[np.int64]:
    places = store.places(split, ids[:, 1])
    missing = np.flatnonzero(places < 0)
    if not len(missing):
        return places
    stale = np.isin(ids[missing, 0], store.names(split))
    parts = [
        f"{len(rows)} {what}, e.g. {name_some([keys[row] for row in rows], 2)}"
        for rows, what in (
            (missing[~stale], "are not in it"),
            (missing[stale], "have another content than the teacher saw"),
        )
        if len(rows)
    ]
    raise DataError(
        f"the teacher store {store.path} does not fit the {split} pictures: of {len(keys)}, {' and '.join(parts)}. "
        f"Run `edgekit teach` on this data with the same teacher and views: it adds those pictures alone"
    )
