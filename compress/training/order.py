"""In what steps an epoch visits its samples: a pure function of (seed, epoch)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgekit.compress.training.randomness import permutation


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Return how many steps an epoch has; sizes differ by one at most: no last one is too small for batch norm."""
    return max(1, round(samples / batch_size))


def epoch_steps(seed: int, epoch: int, ids: NDArray[np.uint64], batch_size: int) -> list[NDArray[np.int64]]:
    """Return the rows of each step of an epoch, all samples once.

    Args:
        seed: of the run.
        epoch: 1-based.
        ids: (N,) sample identities.
        batch_size: samples per step, about.
    """
    return np.array_split(permutation(seed, epoch, ids), steps_per_epoch(len(ids), batch_size))
