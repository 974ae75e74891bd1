"""Training batches of clips: frames drawn segment by segment, one view for all of a clip's frames."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.compress.parallel.shares import Share
from edgekit.compress.pictures.pixels import PixelStore
from edgekit.compress.pictures.source import Batch, StoredSource
from edgekit.compress.pictures.views import Views, draw_views
from edgekit.compress.recipe import Recipe
from edgekit.compress.video.teacher import ClipTable
from edgekit.compress.video.views import clip_embeddings, render_clips, segment_frames, to_frames
from edgekit.preprocess import Preprocess


class ClipSource(StoredSource):
    """Clips decoded once, and the teacher's embeddings of stored views of their frames.

    Args:
        train: kept frames (N, K, S, S, 3) of the training clips, squeezed.
        clips: the teacher's embeddings; None trains without a teacher.
        recipe: batch size, seed, augmentation.
        contract: the student's preprocessing.
        frames: F that the student sees; divides K.
    """

    def __init__(
        self, train: PixelStore, clips: ClipTable | None, recipe: Recipe, contract: Preprocess, frames: int
    ) -> None:
        super().__init__(train, None, recipe, contract)
        self.clips, self.frames = clips, frames

    def _batch(self, rows: NDArray[np.int64], epoch: int, device: torch.device, share: Share | None) -> Batch:
        """Return a batch of images (B, F, 3, S, S)."""
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
        clips, fit = self.clips, self.recipe.fit
        if clips is not None and clips.views:
            # clips start at different views, so that every batch mixes all of them
            number = ((epoch - 1 + self._ids[rows]) % np.uint64(len(clips.views))).astype(np.int64)
            views = Views.joined([clips.views[n].take(rows[at : at + 1]) for at, n in enumerate(number)])
        else:
            at = (fit.seed, "augment", epoch)
            views = draw_views(self.recipe.augment, self.contract, self.train.aspects[rows], self._ids[rows], at)
            number = views.flips.astype(np.int64)  # view 1 is the flipped clip
        if clips is None:
            return views, None
        return views, clip_embeddings(clips.train[rows[:, None], number[:, None], picks])
