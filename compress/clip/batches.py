"""Pairs of pictures and captions to train a CLIP on: decoded once, or streamed from tar shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekit.compress.clip.evaluation import unpadded
from edgekit.compress.clip.recipe import ClipRecipe
from edgekit.compress.pictures.decoding import stored_size
from edgekit.compress.pictures.fresh_views import FreshViews
from edgekit.compress.pictures.pixels import PixelStore
from edgekit.compress.pictures.source import Moment, epoch_views, make_batch
from edgekit.compress.pictures.stream_source import PictureStream
from edgekit.compress.pictures.stream_val import ShardVal
from edgekit.compress.training.randomness import uniforms
from edgekit.models.tokenizer import Tokenizer
from edgekit.preprocess import Preprocess
from edgekit.shards import ShardDataset
from edgekit.tars import TarPicture


@dataclass(frozen=True)
class ClipBatch:
    """Images (B, 3, H, W) in [0, 1] and the ids (B, L) of one caption each."""

    images: Tensor
    tokens: Tensor


class Pairs(Protocol):
    """Training batches; each epoch's are a function of (seed, epoch) alone, so that a resumed run sees the same."""

    @property
    def steps_per_epoch(self) -> int: ...

    def batches(self, epoch: int, device: torch.device, start: int = 0) -> Iterator[ClipBatch]:
        """Yield the batches of a 1-based epoch from number `start` (0-based) on, with one caption per picture."""
        ...


class StoredPairs:
    """Pictures decoded once, and the ids of all their captions.

    Args:
        train: squeezed training pictures.
        captions: those of each, in its order.
        tokenizer: makes the ids.
        recipe: batch size, seed, augmentation.
        contract: the image tower's preprocessing.
    """

    def __init__(
        self,
        train: PixelStore,
        captions: Sequence[Sequence[str]],
        tokenizer: Tokenizer,
        recipe: ClipRecipe,
        contract: Preprocess,
    ) -> None:
        self._pictures, self._seed = FreshViews(train, recipe.augment, contract, recipe.fit), recipe.fit.seed
        self._counts = np.array([len(group) for group in captions])
        self._first = np.concatenate([[0], np.cumsum(self._counts)])
        self._tokens = tokenizer([caption for group in captions for caption in group])

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch."""
        return self._pictures.steps_per_epoch

    def batches(self, epoch: int, device: torch.device, start: int = 0) -> Iterator[ClipBatch]:
        """Yield the batches of a 1-based epoch from number `start` on."""
        caption = self._first[:-1] + _choice(self._seed, epoch, self._pictures.ids, self._counts)
        for rows in self._pictures.steps(epoch)[start:]:
            tokens = torch.from_numpy(unpadded(self._tokens[caption[rows]]))
            yield ClipBatch(self._pictures.render(rows, epoch, device), tokens.to(device))


class StreamedPairs:
    """Pictures and captions of tar shards: memory does not grow with their number.

    Where the stream's buffer holds all pictures, each batch has the pairs that `StoredPairs` gives it.

    Args:
        dataset: its training shards.
        tokenizer: makes the ids.
        recipe: batch size, seed, augmentation.
        contract: the image tower's preprocessing.
        max_broken: share of pictures that cannot be read, or have no caption, that is tolerated.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        tokenizer: Tokenizer,
        recipe: ClipRecipe,
        contract: Preprocess,
        *,
        max_broken: float = 0.01,
    ) -> None:
        size = stored_size(contract)
        self._stream = PictureStream(dataset, recipe.fit, size=size, max_broken=max_broken, refusal=without_caption)
        self._tokenizer, self._recipe, self._contract = tokenizer, recipe, contract

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch."""
        return self._stream.steps_per_epoch

    def batches(self, epoch: int, device: torch.device, start: int = 0) -> Iterator[ClipBatch]:
        """Yield the batches of a 1-based epoch from number `start` on.

        Raises:
            DataError: too many pictures cannot be read, or have no caption.
        """
        moment = Moment(self._recipe, self._contract, epoch, device)
        for part in self._stream.parts(epoch, start):
            captions = [place.picture.captions for place in part.places if place.picture is not None]
            counts = np.array([len(group) for group in captions])
            chosen = _choice(self._recipe.fit.seed, epoch, part.decoded.ids, counts)
            texts = [group[number] for group, number in zip(captions, chosen, strict=True)]
            images = make_batch(part.decoded, epoch_views(part.decoded, None, moment), moment, None).images
            yield ClipBatch(images, torch.from_numpy(unpadded(self._tokenizer(texts))).to(device))


def without_caption(picture: TarPicture) -> str | None:
    """Return why a picture is no pair; None where it is one."""
    return None if picture.captions else "has no caption (.txt)"


def captioned_only(val: ShardVal) -> PixelStore:
    """Return the validation pictures that have captions."""
    store = val.store
    rows = [row for row, sample in enumerate(store.samples) if val.pictures[sample.path].captions]
    samples = tuple(store.samples[row] for row in rows)
    return PixelStore(samples, store.pixels[rows], store.aspects[rows], store.broken)


def _choice(seed: int, epoch: int, ids: NDArray[np.uint64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return which of its captions each picture shows in an epoch."""
    return (uniforms(seed, "caption", epoch, ids, 1)[:, 0] * counts).astype(np.int64)
