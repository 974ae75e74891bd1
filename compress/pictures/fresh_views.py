"""Training pictures without a teacher's views: each is seen in a view that is drawn anew every epoch."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekit.compress.pictures.pixels import PixelStore
from edgekit.compress.pictures.views import draw_views, render
from edgekit.compress.recipe import AugmentConfig, FitConfig
from edgekit.compress.training.order import epoch_steps, steps_per_epoch
from edgekit.compress.training.randomness import sample_ids
from edgekit.preprocess import Preprocess


class FreshViews:
    """Pictures decoded once, their order in an epoch, and a new view of each.

    Args:
        store: squeezed training pictures.
        augment: what views may vary.
        contract: the net's preprocessing.
        fit: batch size, seed, memory format.

    Attributes:
        ids: (N,) sample identities.
    """

    def __init__(self, store: PixelStore, augment: AugmentConfig, contract: Preprocess, fit: FitConfig) -> None:
        self._store, self._augment, self._contract, self._fit = store, augment, contract, fit
        self.ids = sample_ids([sample.key for sample in store.samples])

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch."""
        return steps_per_epoch(len(self.ids), self._fit.batch_size)

    def steps(self, epoch: int) -> list[NDArray[np.int64]]:
        """Return the rows of each batch of a 1-based epoch, a function of (seed, epoch) alone."""
        return epoch_steps(self._fit.seed, epoch, self.ids, self._fit.batch_size)

    def render(self, rows: NDArray[np.int64], epoch: int, device: torch.device) -> Tensor:
        """Return the pictures of some rows (B, 3, S, S) in [0, 1], a function of (seed, epoch, row) alone."""
        at = (self._fit.seed, "augment", epoch)
        views = draw_views(self._augment, self._contract, self._store.aspects[rows], self.ids[rows], at)
        pixels = torch.from_numpy(self._store.pixels[rows]).to(device).permute(0, 3, 1, 2)
        images = render(pixels, views, self._contract.image_size)
        return images.contiguous(memory_format=torch.channels_last) if self._fit.channels_last else images
