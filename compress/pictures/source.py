"""Where a student's training batches come from: pictures, their labels, and what the teacher says of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekit.compress.parallel.shares import WHOLE, Share, Split
from edgekit.compress.pictures.pixels import PixelStore, labels_of
from edgekit.compress.pictures.views import Views, draw_views, render
from edgekit.compress.recipe import AugmentConfig, FitConfig
from edgekit.compress.store.table import TeacherTable
from edgekit.compress.training.order import epoch_steps, steps_per_epoch
from edgekit.compress.training.randomness import sample_ids
from edgekit.preprocess import Preprocess


class Settings(Protocol):
    """What decides a task's batches: a recipe of distillation, of image classifiers or of CLIPs."""

    @property
    def augment(self) -> AugmentConfig: ...

    @property
    def fit(self) -> FitConfig: ...

    def train_size(self, epoch: int, full: int) -> int:
        """Return the side in pixels of the pictures of a 1-based epoch; that of the net's input is `full`."""
        ...


@dataclass(frozen=True)
class Batch:
    """Images (B, 3, H, W) in [0, 1], labels (B,) with −1 for none, teacher embeddings (B, D) or None.

    In mixed pictures (`edgekit.compress.pictures.mixing`) `partners` (B,) are the labels of what was mixed in, and
    `kept` is the share of the first picture.
    """

    images: Tensor
    labels: Tensor
    teacher: Tensor | None
    share: Share | None = None
    """of the step's means, where the batch is a part of a step."""
    partners: Tensor | None = None
    kept: float = 1.0


class Source(Protocol):
    """Training batches; each epoch's are a function of (seed, epoch) alone, so that a resumed run sees the same."""

    @property
    def steps_per_epoch(self) -> int: ...

    def batches(self, epoch: int, device: torch.device, start: int = 0, split: Split = WHOLE) -> Iterator[Batch]:
        """Yield the batches of a 1-based epoch, from number `start` (0-based) on.

        Of a divided step come `split.accumulate` batches, this process's parts, each with its share.
        """


class StoredSource:
    """Pictures decoded once, and the teacher's embeddings of stored views of them.

    Args:
        train: squeezed training pictures.
        table: the teacher's embeddings; None trains without a teacher.
        recipe: batch size, seed, augmentation.
        contract: the student's preprocessing.
    """

    def __init__(self, train: PixelStore, table: TeacherTable | None, recipe: Settings, contract: Preprocess) -> None:
        self.train, self.table, self.recipe, self.contract = train, table, recipe, contract
        self._ids = sample_ids([sample.key for sample in train.samples])
        self._labels = labels_of(train)

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch."""
        return steps_per_epoch(len(self._ids), self.recipe.fit.batch_size)

    def batches(self, epoch: int, device: torch.device, start: int = 0, split: Split = WHOLE) -> Iterator[Batch]:
        """Yield the batches of a 1-based epoch from number `start` on, a function of (seed, epoch, split) alone.

        Raises:
            UsageError: the steps are too small to be divided so.
        """
        split.refuse_too_small(len(self._ids) // self.steps_per_epoch)
        fit = self.recipe.fit
        for step in epoch_steps(fit.seed, epoch, self._ids, fit.batch_size)[start:]:
            step = np.sort(step)  # one sweep through a memory map; a batch is a set
            for rows in split.parts(step):
                share = None if split.whole else Share.of(self._labels[rows], self._labels[step])
                yield self._batch(rows, epoch, device, share)

    def _batch(self, rows: NDArray[np.int64], epoch: int, device: torch.device, share: Share | None) -> Batch:
        decoded = Decoded(self.train.pixels[rows], self._ids[rows], self.train.aspects[rows], self._labels[rows])
        said = None if self.table is None else (self.table, rows)
        moment = Moment(self.recipe, self.contract, epoch, device)
        return make_batch(decoded, epoch_views(decoded, said, moment), moment, share)


@dataclass(frozen=True)
class Decoded:
    """B decoded pictures.

    Attributes:
        pixels: (B, S, S, 3) uint8, the whole picture squeezed into a square.
        ids: (B,) sample identities.
        aspects: (B,) width / height.
        labels: (B,), −1 for none.
    """

    pixels: NDArray[np.uint8]
    ids: NDArray[np.uint64]
    aspects: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Moment:
    """What a batch depends on beside its pictures: the settings, the 1-based epoch, and where it is needed."""

    recipe: Settings
    contract: Preprocess
    epoch: int
    device: torch.device


def make_batch(
    decoded: Decoded, seen: tuple[Views, NDArray[np.float32] | None], moment: Moment, share: Share | None
) -> Batch:
    """Render a view of each picture.

    Args:
        decoded: the pictures.
        seen: one view of each, and what the teacher says of it (B, D), if there is one.
        moment: settings, epoch, device.
        share: of the step's means, where the batch is a part of a step.
    """
    views, teacher = seen
    pixels = torch.from_numpy(decoded.pixels).to(moment.device).permute(0, 3, 1, 2)
    images = render(pixels, views, moment.recipe.train_size(moment.epoch, moment.contract.image_size))
    if moment.recipe.fit.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    return Batch(
        images,
        torch.from_numpy(decoded.labels).to(moment.device),
        None if teacher is None else torch.from_numpy(teacher).to(moment.device),
        share,
    )


def epoch_views(
    decoded: Decoded, said: tuple[TeacherTable, NDArray[np.int64]] | None, moment: Moment
) -> tuple[Views, NDArray[np.float32] | None]:
    """Return one view of each picture for an epoch, and the teacher's embedding (B, D) of it."""
    ids, epoch, recipe = decoded.ids, moment.epoch, moment.recipe
    if said is not None and said[0].replays:
        table, rows = said
        # samples start at different views, so that every batch mixes all of them
        number = ((epoch - 1 + ids) % np.uint64(table.num_views)).astype(np.int64)
        return table.views(rows, number), table.embeddings(rows, number)
    views = draw_views(recipe.augment, moment.contract, decoded.aspects, ids, (recipe.fit.seed, "augment", epoch))
    if said is None:
        return views, None
    table, rows = said
    return views, table.embeddings(rows, np.where(views.flips, min(1, table.num_views - 1), 0))
