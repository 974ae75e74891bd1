"""From the histogram of an activation to the range that its integer codes span."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

RangeMethod = Literal["minmax", "percentile", "mse", "entropy"]

SEARCH_STEPS = 64
"""Candidates per bound that the searching methods try."""

INT32_ROOM = 2**30
"""A bias code stays below this, so that adding it to the sums of a layer cannot overflow 32 bits."""

SMOOTHING = 1e-4
"""Share of the quantized distribution that "entropy" spreads evenly, so that a folded outlier costs little, not ∞."""


@dataclass(frozen=True)
class RangeConfig:
    """How ranges are chosen.

    Attributes:
        method: see `RANGE_METHODS`.
        percentile: for "percentile": the share in percent that lies below the upper bound, and above the lower.
        bits: width of the codes; "mse" and "entropy" weigh clipping against the 2^bits steps between the bounds.
    """

    method: RangeMethod = "percentile"
    percentile: float = 99.99
    bits: int = 8


@dataclass(frozen=True)
class Distribution:
    """Counts of values in bins of one width from `low` to `high`; counts (bins,) int64."""

    low: float
    high: float
    counts: NDArray[np.int64]

    @property
    def edges(self) -> NDArray[np.float64]:
        """Bounds of the bins (bins + 1,)."""
        return np.linspace(self.low, self.high, len(self.counts) + 1)

    @property
    def centres(self) -> NDArray[np.float64]:
        """Middles of the bins (bins,)."""
        edges = self.edges
        return (edges[:-1] + edges[1:]) / 2

    def quantile(self, share: float) -> float:
        """Return the value below which `share` of the counts lies, as if values were spread evenly in their bin."""
        cumulative = np.concatenate([[0], np.cumsum(self.counts)]) / self.counts.sum()
        return float(np.interp(share, cumulative, self.edges))


def minmax(distribution: Distribution, config: RangeConfig) -> tuple[float, float]:
    """Span all that was seen. Nothing is clipped, and one outlier coarsens every step (Jacob et al. 2018, §3)."""
    return distribution.low, distribution.high


def percentile(distribution: Distribution, config: RangeConfig) -> tuple[float, float]:
    """Clip the rarest values on either side: the p-th and the (100 - p)-th percentile (Wu et al. 2020, §4.2).

    arXiv 2004.09602 takes the percentile of |x|; activations such as SiLU's are lopsided, so each side has its own.
    """
    share = config.percentile / 100
    return distribution.quantile(1 - share), distribution.quantile(share)


def mse(distribution: Distribution, config: RangeConfig) -> tuple[float, float]:
    """Minimise the mean squared error of quantizing and dequantizing (Nagel et al. 2021, arXiv 2106.08295, eq. 7).

    A grid search: first both bounds shrink together, then each in turn with the other held.
    """
    low, high = min(distribution.low, 0.0), max(distribution.high, 0.0)
    fractions = np.linspace(1.0 / SEARCH_STEPS, 1.0, SEARCH_STEPS)
    best_low, best_high = min(
        ((low * f, high * f) for f in fractions),
        key=lambda bounds: quantization_error(distribution, bounds, config.bits),
    )
    for _ in range(2):
        best_high = min(
            (best_high, *(high * f for f in fractions)),
            key=lambda bound: quantization_error(distribution, (best_low, bound), config.bits),
        )
        best_low = min(
            (best_low, *(low * f for f in fractions)),
            key=lambda bound: quantization_error(distribution, (bound, best_high), config.bits),
        )
    return best_low, best_high


def quantization_error(distribution: Distribution, bounds: tuple[float, float], bits: int) -> float:
    """Return the mean of (x - dequantize(quantize(x)))² when 2^bits codes span `bounds`; inf for an empty range."""
    low, high = bounds
    if high <= low:
        return float("inf")
    step = (high - low) / (2**bits - 1)
    centres = distribution.centres
    codes = np.clip(np.rint((centres - low) / step), 0, 2**bits - 1)
    errors = (centres - (low + codes * step)) ** 2
    return float((errors * distribution.counts).sum() / distribution.counts.sum())


def entropy(distribution: Distribution, config: RangeConfig) -> tuple[float, float]:
    """Keep the most information: minimise KL(seen ‖ quantized) over the clipping threshold of |x| (Migacz 2017).

    S. Migacz, "8-bit Inference with TensorRT", GTC 2017: what lies beyond the threshold is folded into the outermost
    bins of the reference, the bins inside are merged into 2^bits levels, spread again over their non-empty bins, and
    the threshold of the smallest divergence wins.
    """
    reach = max(-distribution.low, distribution.high)
    if reach <= 0:
        return distribution.low, distribution.high
    candidates = [
        (max(distribution.low, -reach * f), min(distribution.high, reach * f))
        for f in np.linspace(1.0 / SEARCH_STEPS, 1.0, SEARCH_STEPS)
    ]
    return min(candidates, key=lambda bounds: kl_divergence(distribution, bounds, config.bits))


def kl_divergence(distribution: Distribution, bounds: tuple[float, float], bits: int) -> float:
    """Return KL(reference ‖ quantized) in nats when 2^bits levels span `bounds`; inf if the range holds no bin."""
    centres, counts = distribution.centres, distribution.counts.astype(np.float64)
    inside = (centres >= bounds[0]) & (centres <= bounds[1])
    if not inside.any() or counts[inside].sum() == 0:
        return float("inf")
    first, last = np.flatnonzero(inside)[[0, -1]]
    plain = counts[first : last + 1]
    reference = plain.copy()
    reference[0] += counts[:first].sum()
    reference[-1] += counts[last + 1 :].sum()
    levels = min(2**bits, len(plain))
    level = np.arange(len(plain)) * levels // len(plain)
    # a merged level gives every bin that was not empty an equal share of what it holds
    filled = (plain > 0).astype(np.float64)
    totals = np.bincount(level, plain, levels)
    sharers = np.bincount(level, filled, levels)
    quantized = filled * (totals / np.maximum(sharers, 1))[level]
    p, q = reference / reference.sum(), quantized / quantized.sum()
    known = p > 0
    if np.any(q[known] == 0):
        # What was clipped landed on an edge bin that was empty: KL would be infinite for any such loss, however small.
        q = (1 - SMOOTHING) * q + SMOOTHING / len(q)
    return float((p[known] * np.log(p[known] / q[known])).sum())


RANGE_METHODS: Mapping[RangeMethod, Callable[[Distribution, RangeConfig], tuple[float, float]]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
    "entropy": entropy,
}


def least_weight_scale(bias: NDArray[np.floating], input_scale: float) -> NDArray[np.float64]:
    """Return for each output channel the smallest weight scale with which its bias still fits 32 bits.

    A bias is stored at scale(input) · scale(weights). The weights of a dead channel alone, whose γ is 0 and whose bias
    is its β, would give a scale at which the bias ends at 2³¹ codes of next to nothing.
    """
    scales: NDArray[np.float64] = np.abs(bias.astype(np.float64)) / (input_scale * INT32_ROOM)
    return scales
