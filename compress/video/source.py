"""Training batches of clips: frames drawn segment by segment, one view for all of a clip's frames."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.compress.parallel.shares import WHOLE, Share, Split
from edgekit.compress.pictures.pixels import PixelStore, labels_of
from edgekit.compress.pictures.source import Batch
from edgekit.compress.pictures.views import VIEW_FIELDS, Views, draw_views
from edgekit.compress.recipe import Recipe
from edgekit.compress.training.randomness import permutation, sample_ids
from edgekit.compress.video.teacher import ClipTable
from edgekit.compress.video.views import clip_embeddings, render_clips, segment_frames, to_frames
from edgekit.preprocess import Preprocess


class ClipSource:
    """Clips decoded once, and the teacher's embeddings of stored views of their frames.

    Args:
        train: kept frames (N, K, S, S, 3) of the training clips, squeezed.
        table: the teacher's embeddings; None trains without a teacher.
        recipe: batch size, seed, augmentation.
        contract: the student's preprocessing.
        frames: F that the student sees; divides K.
    """

    def __init__(
        self, train: PixelStore, table: ClipTable | None, recipe: Recipe, contract: Preprocess, frames: int
    ) -> None:
        self.train, self.table, self.recipe, self.contract, self.frames = train, table, recipe, contract, frames
        self._ids = sample_ids([sample.key for sample in train.samples])
        self._labels = labels_of(train)

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch; their sizes differ by one at most."""
        return max(1, round(len(self._ids) / self.recipe.fit.batch_size))

    def batches(self, epoch: int, device: torch.device, start: int = 0, split: Split = WHOLE) -> Iterator[Batch]:
        """Yield batches of images (B, F, 3, S, S) from number `start` on, a function of (seed, epoch, split) alone.

        Raises:
            UsageError: the steps are too small to be divided so.
        """
        split.refuse_too_small(len(self._ids) // self.steps_per_epoch)
        order = permutation(self.recipe.fit.seed, epoch, self._ids)
        for step in np.array_split(order, self.steps_per_epoch)[start:]:
            step = np.sort(step)
            for rows in split.parts(step):
                share = None if split.whole else Share.of(self._labels[rows], self._labels[step])
                yield self._batch(rows, epoch, device, share)

    def _batch(self, rows: NDArray[np.int64], epoch: int, device: torch.device, share: Share | None) -> Batch:
        fit = self.recipe.fit
        picks = segment_frames(fit.seed, epoch, self._ids[rows], self.frames, self.train.pixels.shape[1])
        views, teacher = self._views(rows, picks, epoch)
        pixels = to_frames(self.train.pixels[rows[:, None], picks]).to(device)
        images = render_clips(pixels, views, self.recipe.train_size(epoch, self.contract.image_size))
        if fit.channels_last:  # of the frames, which the student takes as one batch
            frames = images.flatten(0, 1).contiguous(memory_format=torch.channels_last)
            images = frames.view(images.shape)
        return Batch(
            images,
            torch.from_numpy(self._labels[rows]).to(device),
            None if teacher is None else torch.from_numpy(teacher).to(device),
            share,
        )

    def _views(
        self, rows: NDArray[np.int64], picks: NDArray[np.int64], epoch: int
    ) -> tuple[Views, NDArray[np.float32] | None]:
        """Return one view per clip for this epoch, and the teacher's embedding of the frames that were drawn."""
        table, fit = self.table, self.recipe.fit
        if table is not None and table.views:
            # clips start at different views, so that every batch mixes all of them
            number = ((epoch - 1 + self._ids[rows]) % np.uint64(len(table.views))).astype(np.int64)
            chosen = [table.views[n].take(rows[at : at + 1]) for at, n in enumerate(number)]
            views = Views(*(np.concatenate([getattr(view, name) for view in chosen]) for name in VIEW_FIELDS))
        else:
            at = (fit.seed, "augment", epoch)
            views = draw_views(self.recipe.augment, self.contract, self.train.aspects[rows], self._ids[rows], at)
            number = views.flips.astype(np.int64)  # view 1 is the flipped clip
        if table is None:
            return views, None
        return views, clip_embeddings(table.train[rows[:, None], number[:, None], picks])
