"""An estimate with its uncertainty: no share, accuracy or agreement is shown without one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class Interval:
    """An estimate and the range that covers the truth with probability `level`."""

    value: float
    low: float
    high: float
    level: float = 0.95


def wilson(successes: float, total: float, level: float = 0.95) -> Interval:
    """Return a proportion with Wilson's score interval (Wilson, 1927, JASA 22:209).

    It stays within [0, 1] and stays honest at 0 and 1, where the usual ± interval has no width.

    Args:
        successes: number of successes, between 0 and `total`; a fraction where `total` is an effective size.
        total: number of independent trials, > 0.
        level: coverage, within (0, 1).

    Raises:
        ValueError: the counts are not those of a proportion.
    """
    if not 0 <= successes <= total or total <= 0:
        raise ValueError(f"a proportion needs 0 <= successes <= total and total > 0, got {successes} of {total}")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = successes / total
    spread = 1 + z * z / total
    centre = (share + z * z / (2 * total)) / spread
    half = z / spread * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # at 0 and 1 the bound is the value itself; rounding must not put it on the wrong side
    return Interval(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)), level)
