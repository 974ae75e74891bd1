"""Training batches streamed from tar shards: memory does not grow with the number of pictures."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.compress.parallel.shares import WHOLE, Share, Split
from edgekit.compress.pictures.pixels import squeeze_pixels
from edgekit.compress.pictures.source import Batch, Decoded, Moment, Settings, epoch_views, make_batch
from edgekit.compress.pictures.stream_order import BUFFER, Place, StreamOrder, in_steps, step_sizes
from edgekit.compress.recipe import FitConfig
from edgekit.compress.store.format import content_digest, picture_ids
from edgekit.compress.store.table import Stores
from edgekit.compress.training.order import steps_per_epoch
from edgekit.compress.training.randomness import sample_ids
from edgekit.cores import usable_cores
from edgekit.data import check_broken
from edgekit.errors import DataError
from edgekit.images import ImageError, rgb_of
from edgekit.preprocess import Preprocess
from edgekit.shards import ShardDataset
from edgekit.tars import TarPicture

AHEAD = 4
"""Batches that are being decoded while one is trained on."""


@dataclass(frozen=True)
class StreamedPicture:
    """A decoded picture: pixels (S, S, 3) uint8, width / height, and what tells its content."""

    pixels: NDArray[np.uint8]
    aspect: float
    digest: bytes


@dataclass(frozen=True)
class StreamedPart:
    """What one process sees of a step.

    Attributes:
        places: of the pictures that could be read.
        digests: what tells the content of each.
        decoded: their pixels and labels.
        share: of the step's means, where this is a part of a step.
    """

    places: tuple[Place, ...]
    digests: tuple[bytes, ...]
    decoded: Decoded
    share: Share | None


class PictureStream:
    """Pictures of tar shards, read and decoded by worker threads a few batches ahead.

    Args:
        dataset: its training shards.
        fit: batch size and seed.
        size: side of the square that a picture is squeezed to, in pixels.
        max_broken: share of unreadable pictures that is tolerated; they are left out of their batches.
        buffer: pictures that are shuffled together.
        hashed: whether to hash the content of each picture.
        refusal: why a picture cannot be used, though it may be read; None where it can.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        fit: FitConfig,
        *,
        size: int,
        max_broken: float = 0.01,
        buffer: int = BUFFER,
        hashed: bool = False,
        refusal: Callable[[TarPicture], str | None] = lambda picture: None,
    ) -> None:
        self.dataset, self.fit, self.size, self.max_broken = dataset, fit, size, max_broken
        self.broken: dict[str, str] = dict(dataset.broken)
        self._order = StreamOrder(dataset.train.shards, fit.seed, buffer)
        self._hashed, self._refusal = hashed, refusal

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch."""
        return steps_per_epoch(len(self.dataset.train), self.fit.batch_size)

    def parts(self, epoch: int, start: int = 0, split: Split = WHOLE) -> Iterator[StreamedPart]:
        """Yield this process's parts of a 1-based epoch from step `start` on, a function of (seed, epoch, split) alone.

        Raises:
            UsageError: the steps are too small to be divided so.
            DataError: too many pictures cannot be read.
        """
        sizes = step_sizes(len(self.dataset.train), self.steps_per_epoch)
        split.refuse_too_small(int(sizes[-1]))
        places = self._order.epoch(epoch, int(sizes[:start].sum()))
        pool = ThreadPoolExecutor(max_workers=usable_cores())
        waiting: deque[tuple[list[Place], list[Future[StreamedPicture | None]], Share | None]] = deque()
        try:
            for step in in_steps(places, sizes[start:].tolist(), lambda place: place.key):
                labels = self._labels(step)
                for rows in split.parts(np.arange(len(step))):
                    part = [step[row] for row in rows]
                    share = None if split.whole else Share.of(labels[rows], labels)
                    waiting.append((part, [pool.submit(self._decode, place) for place in part], share))
                    if len(waiting) > AHEAD:
                        yield self._part(*waiting.popleft())
            while waiting:
                yield self._part(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _labels(self, places: Sequence[Place]) -> NDArray[np.int64]:
        if not self.dataset.classes:
            return np.full(len(places), -1, np.int64)
        known = (None if p.picture is None else self.dataset.label_of(p.picture.label) for p in places)
        return np.array([-1 if label is None else label for label in known], np.int64)

    def _decode(self, place: Place) -> StreamedPicture | None:
        if place.picture is None:
            self.broken[place.key] = f"{place.shard.path}: picture {place.number} of the shard is not there"
            return None
        if (reason := self._refusal(place.picture)) is not None:
            self.broken[place.key] = f"{place.shard.path}:{place.key} {reason}"
            return None
        try:
            content = place.picture.read()
            picture = rgb_of(content, f"{place.shard.path}:{place.key}", at_least=self.size)
        except ImageError as e:
            self.broken[place.key] = str(e)
            return None
        digest = content_digest(content) if self._hashed else b""
        return StreamedPicture(squeeze_pixels(picture, self.size), picture.width / picture.height, digest)

    def _part(
        self, places: list[Place], futures: list[Future[StreamedPicture | None]], share: Share | None
    ) -> StreamedPart:
        pairs = [(place, future.result()) for place, future in zip(places, futures, strict=True)]
        check_broken(self.broken, len(self.dataset.train) + len(self.dataset.val), self.max_broken)
        good = [(place, picture) for place, picture in pairs if picture is not None]
        if not good:
            raise DataError(f"none of the {len(places)} pictures of a batch can be read, e.g. {places[0].key}")
        kept = tuple(place for place, _ in good)
        decoded = Decoded(
            np.stack([picture.pixels for _, picture in good]),
            sample_ids([place.key for place in kept]),
            np.array([picture.aspect for _, picture in good], np.float32),
            self._labels(kept),
        )
        return StreamedPart(kept, tuple(picture.digest for _, picture in good), decoded, share)


class StreamSource(PictureStream):
    """A student's or a classifier's batches out of tar shards.

    Where the buffer holds all pictures, batches are bit for bit those of `StoredSource` from the same files.

    Args:
        dataset: its training shards.
        stores: what the teachers say; None trains without one.
        recipe: batch size, seed, augmentation.
        contract: the student's preprocessing.
        size, max_broken, buffer: see `PictureStream`.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        stores: Stores | None,
        recipe: Settings,
        contract: Preprocess,
        *,
        size: int,
        max_broken: float = 0.01,
        buffer: int = BUFFER,
    ) -> None:
        hashed = stores is not None
        super().__init__(dataset, recipe.fit, size=size, max_broken=max_broken, buffer=buffer, hashed=hashed)
        self.stores, self.recipe, self.contract = stores, recipe, contract

    def batches(self, epoch: int, device: torch.device, start: int = 0, split: Split = WHOLE) -> Iterator[Batch]:
        """Yield the batches of a 1-based epoch from number `start` on, a function of (seed, epoch, split) alone.

        Raises:
            UsageError: the steps are too small to be divided so.
            DataError: too many pictures cannot be read, or the store does not know one.
        """
        moment = Moment(self.recipe, self.contract, epoch, device)
        for part in self.parts(epoch, start, split):
            said = None
            if self.stores is not None:
                keys = [place.key for place in part.places]
                table = self.stores.table("train", keys, picture_ids(keys, list(part.digests)))
                said = (table, np.arange(len(keys)))
            yield make_batch(part.decoded, epoch_views(part.decoded, said, moment), moment, part.share)
