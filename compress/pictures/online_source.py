"""Training batches with the teacher inside the loop: it sees the very view that the student sees, and no other."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.compress.parallel.shares import Share
from edgekit.compress.pictures.pixels import PixelStore
from edgekit.compress.pictures.source import Batch, Decoded, Moment, StoredSource, epoch_views, make_batch
from edgekit.compress.pictures.views import Views
from edgekit.compress.recipe import Recipe
from edgekit.compress.store.sight import cut, say
from edgekit.compress.store.table import join
from edgekit.cores import usable_cores
from edgekit.images import read_rgb
from edgekit.models.teacher import Teacher
from edgekit.preprocess import Preprocess


class OnlineSource(StoredSource):
    """Pictures decoded once for the student; the teacher's are read anew and cut at its own size.

    A view is drawn for each picture and epoch, so no two epochs repeat one. The teacher's pixels come from the full
    picture, exactly as in a teacher store: of the same view both say the same, up to float16.

    Args:
        train: squeezed training pictures.
        teachers: frozen; several are joined.
        weights: of the teachers, 1 in total.
        recipe: batch size, seed, augmentation.
        contract: the student's preprocessing.
    """

    def __init__(
        self,
        train: PixelStore,
        teachers: Sequence[Teacher],
        weights: Sequence[float],
        recipe: Recipe,
        contract: Preprocess,
    ) -> None:
        super().__init__(train, None, recipe, contract)
        self.teachers, self.weights = tuple(teachers), tuple(weights)
        self._pool = ThreadPoolExecutor(max_workers=usable_cores())

    def _batch(self, rows: NDArray[np.int64], epoch: int, device: torch.device, share: Share | None) -> Batch:
        decoded = Decoded(self.train.pixels[rows], self._ids[rows], self.train.aspects[rows], self._labels[rows])
        moment = Moment(self.recipe, self.contract, epoch, device)
        views, _ = epoch_views(decoded, None, moment)
        return make_batch(decoded, (views, self.said(rows, views)), moment, share)

    def said(self, rows: NDArray[np.int64], views: Views) -> NDArray[np.float32]:
        """Return what the teachers say (B, ΣD) of one view each of the pictures `rows` (B,).

        Raises:
            ImageError: a picture cannot be read any more.
        """
        crops = list(self._pool.map(lambda at: self._crops(int(rows[at]), views, at), range(len(rows))))
        said = [
            say(teacher, np.stack([of_picture[number] for of_picture in crops]), views).astype(np.float32)
            for number, teacher in enumerate(self.teachers)
        ]
        return said[0] if len(said) == 1 else join(said, self.weights)

    def _crops(self, row: int, views: Views, at: int) -> list[NDArray[np.uint8]]:
        """Return one picture's view for each teacher."""
        picture = read_rgb(self.train.samples[row].path)
        box, flip = views.boxes[at], bool(views.flips[at])
        return [cut(picture, box, flip, teacher.preprocess.image_size) for teacher in self.teachers]
