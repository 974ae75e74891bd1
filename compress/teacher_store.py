"""A teacher's table wholly in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit.compress.views import Views


@dataclass(frozen=True)
class TeacherTable:
    """What the teacher says of every picture.

    Attributes:
        name: the teacher, for tables and records.
        train: (N, V, D) float16 unit rows of the training pictures.
        val: (M, D) float16 unit rows of the evaluation pictures, plain view.
        views: the V stored views; empty where view 0 is the plain picture and view 1, if there is one, its flip.
    """

    name: str
    train: NDArray[np.float16]
    val: NDArray[np.float16]
    views: tuple[Views, ...] = ()

    @property
    def embed_dim(self) -> int:
        """Dimension of the embeddings."""
        return int(self.train.shape[2])

    @property
    def num_views(self) -> int:
        """Embeddings per picture."""
        return int(self.train.shape[1])
