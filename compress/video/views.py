"""Clips: which frames of one are taken, and the same crop, flip and colour for all of them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekit.compress.pictures.randaugment import apply_operations
from edgekit.compress.pictures.views import Views, colour, erase, render_crops
from edgekit.compress.training.randomness import uniforms

_MOST_KEPT_PER_FRAME = 4
_MOST_KEPT = 128


def kept_frames(frames: int) -> int:
    """Return how many frames of a training clip are kept for `frames` that the student sees: a multiple, up to 4×."""
    return frames * max(1, min(_MOST_KEPT_PER_FRAME, _MOST_KEPT // frames))


def segment_frames(seed: int, epoch: int, ids: NDArray[np.uint64], frames: int, kept: int) -> NDArray[np.int64]:
    """Return (N, frames) rising numbers of kept frames, one drawn from each of `frames` equal segments.

    The sparse sampling of temporal segment networks (Wang et al. 2016, arXiv 1608.00859, §3.1), a function of
    (seed, epoch, sample) alone.

    Args:
        seed: of the run.
        epoch: 1-based.
        ids: (N,) sample identities.
        frames: segments.
        kept: frames kept of each clip, evenly spread in time; a multiple of `frames`.
    """
    length = kept // frames
    within = np.floor(uniforms(seed, "segment", epoch, ids, frames) * length).astype(np.int64)
    return np.arange(frames, dtype=np.int64) * length + within


def render_clips(pixels: Tensor, views: Views, size: int) -> Tensor:
    """Cut, flip and colour clips, all frames of one alike.

    Args:
        pixels: (B, F, 3, S, S) uint8; whole frames squeezed into squares.
        views: one per clip.
        size: side of the result in pixels.

    Returns:
        (B, F, 3, size, size) float32 in [0, 1].
    """
    batch, frames = pixels.shape[:2]
    each = views.take(np.repeat(np.arange(batch), frames))
    shape = (batch, frames, 3, size, size)
    cut = render_crops(pixels.flatten(0, 1), each, size).view(shape)
    return erase(retouch_clips(cut, views).flatten(0, 1), each).view(shape)


def retouch_clips(images: Tensor, views: Views) -> Tensor:
    """Apply each clip's colours and operations to its frames (B, F, 3, H, W): what the teacher sees as the student."""
    batch, frames = images.shape[:2]
    each = views.take(np.repeat(np.arange(batch), frames))
    coloured = colour_clips(images, views).flatten(0, 1)
    return apply_operations(coloured, each.operations, each.strengths).reshape(images.shape)


def colour_clips(images: Tensor, views: Views) -> Tensor:
    """Apply each clip's colour factors to its frames (B, F, 3, H, W) in [0, 1]; contrast is about the clip's mean."""
    batch, frames, _, height, width = images.shape
    tall = images.transpose(1, 2).reshape(batch, 3, frames * height, width)
    return colour(tall, views).view(batch, 3, frames, height, width).transpose(1, 2)


def clip_embeddings(frames: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the unit mean (..., D) of unit frame embeddings (..., F, D).

    The parameter-free video head of CLIP4Clip (Luo et al. 2021, arXiv 2104.08860, §3.3, mean pooling).
    """
    mean = frames.astype(np.float32).mean(axis=-2)
    unit: NDArray[np.float32] = mean / np.maximum(np.linalg.norm(mean, axis=-1, keepdims=True), 1e-6)
    return unit


def to_frames(pixels: NDArray[np.uint8]) -> Tensor:
    """Return pixels (..., H, W, 3) uint8 as (..., 3, H, W), a view."""
    frames: Tensor = torch.from_numpy(pixels).movedim(-1, -3)
    return frames
