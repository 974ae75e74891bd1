"""McNemar's test: are two classifiers equally often right on the same pictures?"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class McNemar:
    """Test of whether two classifiers are equally often right on the same pictures.

    Attributes:
        only_first: pictures that only the first gets right.
        only_second: pictures that only the second gets right.
        p_exact: two-sided exact binomial p-value; conservative.
        p_mid: mid-p value, close to the nominal level at any size (Fagerland et al., 2013, BMC Med Res Methodol 13:91).
    """

    only_first: int
    only_second: int
    p_exact: float
    p_mid: float


def mcnemar_of_counts(only_first: int, only_second: int) -> McNemar:
    """Test with the numbers of pictures that only one of the two gets right (McNemar, 1947, Psychometrika 12:153)."""
    total, smaller = only_first + only_second, min(only_first, only_second)
    if total == 0:
        return McNemar(0, 0, 1.0, 1.0)
    # in logarithms: 2**-total underflows from 1075 discordant pictures on
    at_or_below = [
        math.exp(math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) - total * math.log(2))
        for k in range(smaller + 1)
    ]
    tail = 2 * math.fsum(at_or_below)
    p_exact = min(1.0, tail)
    # mid-p counts half of the observed outcome on each side; at a perfect tie the two sides are the same outcome
    p_mid = 1.0 - at_or_below[-1] / 2 if only_first == only_second else tail - at_or_below[-1]
    return McNemar(only_first, only_second, p_exact, min(1.0, p_mid))
