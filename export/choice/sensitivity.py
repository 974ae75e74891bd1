"""Mixed precision: which layers cost so much accuracy in int8 that they should stay float."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Layer = TypeVar("Layer")

SENSITIVITY_IMAGES = 32
"""Calibration images that layers are measured on."""

SHARE = 0.5
MOST = 6


def worst_layers(noises: Mapping[Layer, float], share: float = SHARE, most: int = MOST) -> tuple[Layer, ...]:
    """Return the layers that together make at least `share` of all noise, the worst first, and at most `most`.

    Noise that layers add to the outputs is nearly independent, so their powers add up (measured: the sum over single
    tensors of a MobileViT predicts the noise of the whole int8 file within 0.1 dB). Half of it is 3 dB.

    Args:
        noises: by layer, Σ difference² / Σ reference² of the outputs when this layer alone is int8.
        share: of the sum to get rid of, in (0, 1].
        most: layers at most; each one kept costs time.
    """
    kept: list[Layer] = []
    left = share * sum(noises.values())
    for layer in sorted(noises, key=lambda layer: -noises[layer]):
        if left <= 0 or len(kept) == most or noises[layer] == 0:
            break
        kept.append(layer)
        left -= noises[layer]
    return tuple(kept)
