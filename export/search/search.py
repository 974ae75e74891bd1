"""Search a folder of pictures by a sentence, with an exported CLIP: embed what is new, then one matrix product."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.atomic import WriteError
from edgekit.errors import DataError, LoadError, UsageError
from edgekit.export.search.index import PictureIndex, list_pictures, read_index, write_index
from edgekit.export.search.model import SearchModel
from edgekit.export.session import run_batched
from edgekit.images import IMAGE_SUFFIXES, ImageError, read_rgb
from edgekit.preprocess import Preprocess, fit_pixels, to_input
from edgekit.printable import printable
from edgekit.terminal import Terminal

INDEX_FILE = ".edgekit-index.npz"
_CHUNK = 32
_SAVE_EVERY = 1000
"""New pictures between two saves: more than that is never lost to a kill."""
_FEW = 5


@dataclass(frozen=True)
class SearchConfig:
    """What to search where.

    Attributes:
        images: folder of pictures, in any subfolder.
        query: a sentence.
        models: see `edgekit.export.search.model.towers_of`.
        index: file of the index; None is a hidden one in the folder.
        count: pictures to find.
        threads: of the runtime, and for decoding.
        rebuild: forget what the index holds.
    """

    images: Path
    query: str
    models: tuple[Path, ...]
    index: Path | None = None
    count: int = 10
    threads: int = 1
    rebuild: bool = False


@dataclass(frozen=True)
class SearchResult:
    """What was found.

    Attributes:
        hits: keys (paths below the folder) and cosines, best first.
        pictures: in the index.
        embedded: of these, new or changed.
        index: its file; None where it could not be written.
        broken: key of each picture that cannot be read to the reason.
    """

    hits: list[tuple[str, float]]
    pictures: int
    embedded: int
    index: Path | None
    broken: dict[str, str] = field(default_factory=dict)


def search(config: SearchConfig, terminal: Terminal) -> SearchResult:
    """Bring the index up to date and return the pictures nearest to the query.

    Raises:
        DataError: no pictures, or none that can be read.
        UsageError: an empty query, or paths that are no pair of towers.
        LoadError: a tower or the index cannot be used.
        WriteError: the index that was asked for cannot be written.
    """
    found = list_pictures(config.images) if config.images.is_dir() else None
    if found is None:
        raise DataError(f"{config.images} is not a folder; give one with pictures in it")
    if not found:
        raise DataError(f"no pictures in {config.images}; known are {', '.join(sorted(IMAGE_SUFFIXES))}")
    model = SearchModel(config.models, config.threads)
    query = _query(model, config.query, terminal)
    path = config.index or config.images / INDEX_FILE
    update = _Update(config, model, path, terminal)
    old = PictureIndex.empty(model.fingerprint, model.embed_dim)
    if not config.rebuild:
        old = read_index(path, model.fingerprint, model.embed_dim)
    index = update.run(old, found)
    if not index.keys:
        raise DataError(f"none of the {len(found)} pictures in {config.images} can be read: {_some(update.broken)}")
    if update.broken:
        terminal.warn(f"{len(update.broken)} of {len(found)} pictures were skipped: {_some(update.broken)}")
    hits = index.best(query, config.count)
    return SearchResult(hits, len(index.keys), update.embedded, path if update.saved else None, update.broken)


def _query(model: SearchModel, query: str, terminal: Terminal) -> NDArray[np.float32]:
    if not query.strip():
        raise UsageError('the query is empty; say what to look for, such as "a dog on a beach"')
    encoded = model.encode(query)
    if encoded.empty:
        raise UsageError(f"the model's tokenizer knows nothing in {query!r:.80}; use other words")
    if encoded.truncated:
        terminal.warn(
            f"the query is longer than the {encoded.ids.shape[1]} tokens that the model reads; its end is cut"
        )
    return model.embed(encoded)


def _some(broken: dict[str, str]) -> str:
    shown = "; ".join(printable(reason, 300) for reason in list(broken.values())[:_FEW])
    return shown + (f"; and {len(broken) - _FEW} more" if len(broken) > _FEW else "")


class _Update:
    """Embeds what the index lacks, and saves it on the way, also when it is stopped.

    Attributes:
        broken: key of each picture that cannot be read to the reason.
        embedded: pictures that were embedded.
        saved: whether the file holds the index.
    """

    def __init__(self, config: SearchConfig, model: SearchModel, path: Path, terminal: Terminal) -> None:
        self._config, self._model, self._path, self._terminal = config, model, path, terminal
        self.broken: dict[str, str] = {}
        self.embedded, self.saved = 0, True

    def run(self, old: PictureIndex, found: dict[str, tuple[int, int]]) -> PictureIndex:
        """Return the index of all pictures that are `found` and can be read."""
        index = old.kept(found)
        known = set(index.keys)
        new = [key for key in found if key not in known]
        unsaved = len(old.keys) - len(index.keys)
        if not new and not unsaved:
            return index
        try:
            with self._terminal.bar("embedding pictures", len(new)) as advance:
                for keys, pixels, looked_at in self._decoded(new):
                    if keys:
                        rows = run_batched(self._model.pictures(), to_input(pixels)).get("embedding")
                        index = index.joined(keys, tuple(found[key] for key in keys), self._checked(rows))
                        unsaved += len(keys)
                    advance(looked_at)
                    if unsaved >= _SAVE_EVERY:
                        self._save(index)
                        unsaved = 0
        finally:
            self.embedded = len(index.keys) - len(known)
            if unsaved:
                self._save(index)
        return index

    def _decoded(self, keys: Sequence[str]) -> Iterator[tuple[tuple[str, ...], NDArray[np.uint8], int]]:
        """Yield the readable pictures of each chunk (n, S, S, 3), and how many were looked at."""
        read = partial(_read, self._config.images, self._model.preprocess)
        with ThreadPoolExecutor(max(1, self._config.threads)) as pool:
            for at in range(0, len(keys), _CHUNK):
                part = keys[at : at + _CHUNK]
                good: list[str] = []
                pixels: list[NDArray[np.uint8]] = []
                for key, result in zip(part, pool.map(read, part), strict=True):
                    if isinstance(result, str):
                        self.broken[key] = result
                    else:
                        good.append(key)
                        pixels.append(result)
                stacked = np.stack(pixels) if pixels else np.empty((0, 1, 1, 3), np.uint8)
                yield tuple(good), stacked, len(part)

    def _checked(self, rows: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """Return unit rows.

        Raises:
            LoadError: the image tower gives something else.
        """
        if rows is None or rows.ndim != 2 or rows.shape[1] != self._model.embed_dim or not np.isfinite(rows).all():
            raise LoadError(f"the image tower gives no finite embedding of {self._model.embed_dim} dimensions")
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        return np.asarray(rows / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)

    def _save(self, index: PictureIndex) -> None:
        try:
            write_index(self._path, index)
        except WriteError as e:
            if self._config.index is not None:
                raise
            if self.saved:
                self._terminal.warn(f"{e} The answer needs no saved index; give --index FILE to keep one elsewhere")
            self.saved = False


def _read(folder: Path, contract: Preprocess, key: str) -> NDArray[np.uint8] | str:
    """Return a picture's pixels (S, S, 3), or why it cannot be read."""
    try:
        return fit_pixels(read_rgb(folder / key), contract)
    except ImageError as e:
        return str(e)
