"""Ranks in a gallery, ties counted against the model: what every recall is made of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TIE = 1e-9
"""Cosines closer than this are equal: above float64 rounding of the dot product, below float32 embeddings' own."""
_QUERIES_AT_ONCE = 1024


def best_ranks(
    queries: NDArray[np.float64],
    gallery: NDArray[np.float64],
    query_group: NDArray[np.int64],
    gallery_group: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return (Q,) ranks, 1 is best, of each query's best right item.

    A rank is 1 + the number of wrong items that score at least as high, so a model that maps everything to one point
    scores 0 and not 100 %.

    Args:
        queries: (Q, D) unit rows.
        gallery: (G, D) unit rows.
        query_group, gallery_group: (Q,) and (G,); an item is right for a query of its own group.
    """
    ranks = np.empty(len(queries), dtype=np.int64)
    for start in range(0, len(queries), _QUERIES_AT_ONCE):  # the score matrix of 5 k x 25 k would take a gigabyte
        part = slice(start, start + _QUERIES_AT_ONCE)
        scores = queries[part] @ gallery.T
        right = query_group[part, None] == gallery_group
        best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
        ranks[part] = 1 + np.count_nonzero(~right & (scores >= best - TIE), axis=1)
    return ranks
