"""Which way of choosing ranges suits a net: tried out, and measured on its outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgekit.export.calibration.ranges import RangeConfig
from edgekit.export.calibration.statistics import Histograms
from edgekit.export.session import FloatArray

Ranges = dict[str, tuple[float, float]]
Values = NDArray[np.float64]

CANDIDATES = (
    RangeConfig(percentile=99.99),
    RangeConfig(percentile=99.999),
    RangeConfig(percentile=99.9995),
    RangeConfig(method="mse"),
)
"""None of them is best for all nets and runtimes: over two students and three runtimes the first, which clips most, was
1 to 4 dB behind the best, and which that was differed (LOG.md)."""

MEASURED_IMAGES = 64
"""Calibration images that the candidates are compared on."""


def nearest_ranges(statistics: Histograms, noise: Callable[[Ranges], float]) -> Ranges:
    """Return the candidate's ranges of the least noise.

    Args:
        statistics: of the activations.
        noise: what a net with given ranges is off its float original, the less the better; see `noise_share`.
    """
    return min((statistics.ranges(config) for config in CANDIDATES), key=noise)


def noise_share(want: Sequence[Values], have: Sequence[Values]) -> float:
    """Return Σ difference² / Σ wanted², averaged over the outputs of a net."""
    pairs = zip(want, have, strict=True)
    return float(np.mean([np.square(h - w).sum() / max(np.square(w).sum(), 1e-30) for w, h in pairs]))


def first_images(images: Callable[[], Iterable[FloatArray]], count: int) -> FloatArray:
    """Return the first batches that make `count` images, or more by a part of a batch: the frames of a clip stay."""
    found: list[FloatArray] = []
    for batch in images():
        found.append(batch)
        if sum(map(len, found)) >= count:
            break
    return np.concatenate(found)
