"""Feature map to tokens and back, the layout that all rewritten MobileViT blocks share."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

Patch = tuple[int, int]


def to_rows(x: Tensor) -> Tensor:
    """Turn a feature map (B, C, H, W) into one row per pixel, (B · H · W, C), in reading order."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def to_patches(rows: Tensor, batch: int, size: tuple[int, int], patch: Patch) -> Tensor:
    """Order the pixel rows (B · H · W, C) of maps of `size` (H, W) as tokens (B · P · N, C): MobileViT's unfold.

    P = p_h · p_w positions within a patch, N patches; token (b, i, j, u, v) is pixel (u · p_h + i, v · p_w + j); H and
    W are multiples of the patch (arXiv 2110.02178, §3.1). timm moves single pixels, in two transposes that keep the
    channels outermost. With the channels innermost, whole rows of C contiguous numbers move. Same permutation.
    """
    (height, width), (ph, pw) = size, patch
    grid = rows.reshape(batch, height // ph, ph, width // pw, pw, rows.shape[-1])
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(-1, rows.shape[-1])


def to_map(tokens: Tensor, batch: int, size: tuple[int, int], patch: Patch) -> Tensor:
    """Fold tokens (B · P · N, C) back to (B, C, H, W) of the given size (H, W): the inverse of the two above."""
    (height, width), (ph, pw) = size, patch
    channels = tokens.shape[-1]
    rows = tokens.reshape(batch, ph, pw, height // ph, width // pw, channels).permute(0, 3, 1, 4, 2, 5)
    return rows.reshape(batch, height, width, channels).permute(0, 3, 1, 2)


def round_up(size: tuple[int, int], patch: Patch) -> tuple[int, int]:
    """Return (H, W) rounded up to multiples of the patch."""
    return math.ceil(size[0] / patch[0]) * patch[0], math.ceil(size[1] / patch[1]) * patch[1]


def resize(x: Tensor, size: tuple[int, int], *, align_corners: bool) -> Tensor:
    """Resize (B, C, H, W) bilinearly to `size`; return `x` itself where it has that size."""
    if tuple(x.shape[-2:]) == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)
