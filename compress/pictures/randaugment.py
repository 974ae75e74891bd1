"""RandAugment as plain numbers: which operations a view gets, drawn once, replayed on the teacher's and student's side.

Cubuk et al. 2020 (arXiv 1909.13719, §3): N operations of 14, each with the same magnitude M of 30. Operations work on
rendered views, in shares of the picture, so that the teacher's 224 pixels and the student's 128 show the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from edgekit.compress.training.randomness import uniforms

MOST = 30.0
"""The largest magnitude; what it does to each operation is torchvision's `RandAugment` with 31 bins."""

_GREY = [0.5, 0.5, 0.5]


def _affine(
    images: Tensor, *, angle: float = 0.0, x: float = 0.0, y: float = 0.0, shear: tuple[float, float]
) -> Tensor:
    shift = [x * images.shape[-1], y * images.shape[-2]]
    bilinear = tv.InterpolationMode.BILINEAR
    moved: Tensor = tv.affine(images, angle, shift, 1.0, list(shear), interpolation=bilinear, fill=_GREY)
    return moved


_NO_SHEAR = (0.0, 0.0)
_MOST_SHIFT = 150 / 331
"""Share of the picture (torchvision's `RandAugment`: 150 of ImageNet's 331 pixels)."""


def _sheared(strength: float) -> float:
    return float(np.degrees(np.arctan(0.3 * strength)))


def _posterized(images: Tensor, bits: int) -> Tensor:
    # torchvision stretches what is left of a float picture to [0, 1]; of bytes it keeps the high bits, as Pillow does
    levels: Tensor = tv.posterize((255 * images).round().to(torch.uint8), bits)
    return levels.float() / 255


# images (B, 3, H, W) in [0, 1] and a strength in [-1, 1] → images; those that cannot be turned round take its size
_OPERATIONS: Mapping[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda images, s: images,
    "shear_x": lambda images, s: _affine(images, shear=(_sheared(s), 0.0)),
    "shear_y": lambda images, s: _affine(images, shear=(0.0, _sheared(s))),
    "translate_x": lambda images, s: _affine(images, x=_MOST_SHIFT * s, shear=_NO_SHEAR),
    "translate_y": lambda images, s: _affine(images, y=_MOST_SHIFT * s, shear=_NO_SHEAR),
    "rotate": lambda images, s: _affine(images, angle=30.0 * s, shear=_NO_SHEAR),
    "brightness": lambda images, s: tv.adjust_brightness(images, 1 + 0.9 * s),
    "saturation": lambda images, s: tv.adjust_saturation(images, 1 + 0.9 * s),
    "contrast": lambda images, s: tv.adjust_contrast(images, 1 + 0.9 * s),
    "sharpness": lambda images, s: tv.adjust_sharpness(images, 1 + 0.9 * s),
    "posterize": lambda images, s: _posterized(images, 8 - round(4 * abs(s))),
    "solarize": lambda images, s: tv.solarize(images, 1 - abs(s)),
    "autocontrast": lambda images, s: tv.autocontrast(images),
    "equalize": lambda images, s: tv.equalize(images),
}
OPERATIONS = tuple(_OPERATIONS)


def draw_operations(
    count: int, magnitude: float, ids: NDArray[np.uint64], at: tuple[int, str, int]
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Draw `count` operations per sample, each with the magnitude and a random sign.

    Args:
        count: operations per view; 0 is none.
        magnitude: in [0, 30].
        ids: (N,) sample identities.
        at: seed, stream name, and epoch or view number.

    Returns:
        Indices into `OPERATIONS` and strengths in [-1, 1], both (N, count).
    """
    u = uniforms(at[0], f"{at[1]}/operations", at[2], ids, 2 * count)
    numbers = np.floor(u[:, :count] * len(OPERATIONS)).astype(np.int8)
    signs = np.where(u[:, count:] < 0.5, -1.0, 1.0)
    return numbers, (signs * magnitude / MOST).astype(np.float32)


def apply_operations(images: Tensor, numbers: NDArray[np.int8], strengths: NDArray[np.float32]) -> Tensor:
    """Apply each sample's operations, the first column first, and return new images in [0, 1].

    Args:
        images: (B, 3, H, W) float32 in [0, 1].
        numbers: (B, N) indices into `OPERATIONS`.
        strengths: (B, N) in [-1, 1].
    """
    for column in range(numbers.shape[1]):
        images = _apply(images, numbers[:, column], strengths[:, column])
    return images


def _apply(images: Tensor, numbers: NDArray[np.int8], strengths: NDArray[np.float32]) -> Tensor:
    """Apply one operation per sample: those that are alike go together."""
    changed = images.clone()
    pairs = np.stack([numbers.astype(np.float32), strengths], axis=1)
    for number, strength in np.unique(pairs, axis=0):
        rows = torch.from_numpy(np.flatnonzero((pairs == (number, strength)).all(1))).to(images.device)
        operation = _OPERATIONS[OPERATIONS[int(number)]]
        changed[rows] = operation(images[rows], float(strength)).clamp(0, 1)
    return changed
