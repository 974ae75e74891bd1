"""Views: what augmentation does to a picture, as plain numbers that can be drawn, stored and replayed.

A view is a crop box in the picture's own coordinates, a flip, colour factors, and operations of RandAugment. The
student's renderer works on a batch of stored pixels at once; the teacher's works on the full picture. Both read the
same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from edgekit.compress.pictures.randaugment import apply_operations, draw_operations
from edgekit.compress.recipe import AugmentConfig
from edgekit.compress.training.randomness import uniforms
from edgekit.preprocess import Preprocess

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow and torchvision use


@dataclass(frozen=True)
class Views:
    """One view per sample.

    Attributes:
        boxes: (N, 4) float32 left, top, width, height of the crop as shares of the picture, in [0, 1].
        flips: (N,) bool, horizontal.
        colours: (N, 3) float32 brightness, contrast and saturation factors; 1 changes nothing.
        erased: (N, 4) float32 left, top, width, height of the erased rectangle as shares of the crop; zeros for none.
        operations: (N, K) int8 of `edgekit.compress.pictures.randaugment`; K may be 0.
        strengths: (N, K) float32 in [-1, 1], one for each operation.
    """

    boxes: NDArray[np.float32]
    flips: NDArray[np.bool_]
    colours: NDArray[np.float32]
    erased: NDArray[np.float32]
    operations: NDArray[np.int8]
    strengths: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.boxes)

    def take(self, rows: NDArray[np.int64]) -> Views:
        """Return the views of some rows."""
        return Views(*(getattr(self, name)[rows] for name in VIEW_FIELDS))

    @staticmethod
    def joined(parts: Sequence[Views]) -> Views:
        """Return the rows of all parts, one part after the other."""
        return Views(*(np.concatenate([getattr(part, name) for part in parts]) for name in VIEW_FIELDS))


VIEW_FIELDS = tuple(field.name for field in fields(Views))


def plain_views(aspects: NDArray[np.float32], contract: Preprocess) -> Views:
    """Return the view that the preprocessing contract makes: the central square, nothing else.

    Args:
        aspects: (N,) width / height of each picture.
        contract: resize and crop.
    """
    share = contract.image_size / contract.resize
    width = share * np.minimum(1.0, 1.0 / aspects)
    height = share * np.minimum(1.0, aspects)
    boxes = np.stack([(1 - width) / 2, (1 - height) / 2, width, height], axis=1).astype(np.float32)
    count = len(aspects)
    return Views(
        boxes,
        flips=np.zeros(count, bool),
        colours=np.ones((count, 3), np.float32),
        erased=np.zeros((count, 4), np.float32),
        operations=np.zeros((count, 0), np.int8),
        strengths=np.zeros((count, 0), np.float32),
    )


def draw_views(
    config: AugmentConfig,
    contract: Preprocess,
    aspects: NDArray[np.float32],
    ids: NDArray[np.uint64],
    at: tuple[int, str, int],
) -> Views:
    """Draw one random view per sample, a function of `at` = (seed, stream, epoch or view number) and the sample.

    The crop is that of Inception (Szegedy et al. 2014, §6): a share of the area and a ratio, both random, the ratio
    relative to a square; a crop that does not fit is shrunk until it does.

    Args:
        config: what may vary, and how much.
        contract: gives the central square where `config` does not crop.
        aspects: (N,) width / height of each picture.
        ids: (N,) sample identities.
        at: seed, stream name, and epoch or view number.
    """
    u = uniforms(at[0], at[1], at[2], ids, 12)  # float64: as float32 some would round up to 1
    views = plain_views(aspects, contract)
    boxes = views.boxes
    if config.crop_scale != (1.0, 1.0) or config.crop_ratio != (1.0, 1.0):
        area = config.crop_scale[0] + u[:, 0] * (config.crop_scale[1] - config.crop_scale[0])
        low, high = np.log(config.crop_ratio[0]), np.log(config.crop_ratio[1])
        ratio = np.exp(low + u[:, 1] * (high - low)) / aspects  # in shares of width and height
        width, height = np.sqrt(area * ratio), np.sqrt(area / ratio)
        too_large = np.maximum(1.0, np.maximum(width, height))
        width, height = width / too_large, height / too_large
        boxes = np.stack([u[:, 2] * (1 - width), u[:, 3] * (1 - height), width, height], axis=1)
    strength = np.array([config.brightness, config.contrast, config.saturation])
    colours = 1 + (2 * u[:, 5:8] - 1) * strength
    side = np.sqrt(0.02 + 0.18 * u[:, 9:10])
    erased = np.concatenate([u[:, 10:12] * (1 - side), side, side], axis=1) * (u[:, 8:9] < config.erase)
    operations, strengths = draw_operations(config.randaugment, config.magnitude, ids, at)
    return Views(
        boxes.astype(np.float32),
        u[:, 4] < config.flip,
        colours.astype(np.float32),
        erased.astype(np.float32),
        operations,
        strengths,
    )


def render(pixels: Tensor, views: Views, size: int) -> Tensor:
    """Cut, flip and colour a batch of stored pictures.

    Args:
        pixels: (B, 3, S, S) uint8; the whole picture squeezed into a square, whatever its aspect.
        views: one per picture.
        size: side of the result in pixels.

    Returns:
        (B, 3, size, size) float32 in [0, 1].
    """
    return erase(retouch(render_crops(pixels, views, size), views), views)


def render_crops(pixels: Tensor, views: Views, size: int) -> Tensor:
    """Cut and flip only: pixels (B, 3, S, S) uint8 to (B, 3, size, size) float32 in [0, 1]."""
    device = pixels.device
    boxes = torch.from_numpy(views.boxes).to(device)
    # affine_grid wants, in [-1, 1] coordinates, x_in = sx · x_out + cx
    centre = 2 * (boxes[:, :2] + boxes[:, 2:] / 2) - 1
    flip = torch.from_numpy(np.where(views.flips, -1.0, 1.0).astype(np.float32)).to(device)
    theta = torch.zeros(len(views), 2, 3, device=device)
    theta[:, 0, 0], theta[:, 0, 2] = boxes[:, 2] * flip, centre[:, 0]
    theta[:, 1, 1], theta[:, 1, 2] = boxes[:, 3], centre[:, 1]
    grid = F.affine_grid(theta, [len(views), 3, size, size], align_corners=False)
    return F.grid_sample(pixels.float().div_(255), grid, mode="bilinear", padding_mode="border", align_corners=False)


def retouch(images: Tensor, views: Views) -> Tensor:
    """Apply colours and operations to cut images (B, 3, H, W) in [0, 1]: what the teacher sees as the student does."""
    return apply_operations(colour(images, views), views.operations, views.strengths)


def colour(images: Tensor, views: Views) -> Tensor:
    """Apply brightness, contrast and saturation factors, in this order, to images (B, 3, H, W) in [0, 1].

    Each is a blend as in Pillow's ImageEnhance: with black, with the mean grey, and with the grey picture.
    """
    if bool((views.colours == 1).all()):
        return images
    factors = torch.from_numpy(views.colours).to(images.device)[:, :, None, None, None]
    luma = torch.tensor(_LUMA, device=images.device).view(1, 3, 1, 1)
    images = (images * factors[:, 0]).clamp(0, 1)
    mean = (images * luma).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    images = torch.lerp(mean.expand_as(images), images, factors[:, 1].expand_as(images)).clamp(0, 1)
    grey = (images * luma).sum(1, keepdim=True)
    return torch.lerp(grey.expand_as(images), images, factors[:, 2].expand_as(images)).clamp(0, 1)


def erase(images: Tensor, views: Views) -> Tensor:
    """Set the erased rectangle of each image (B, 3, H, W) to its own mean (Zhong et al. 2020, random erasing)."""
    if not views.erased.any():
        return images
    box = torch.from_numpy(views.erased).to(images.device)
    height, width = images.shape[-2:]
    x = (torch.arange(width, device=images.device) + 0.5) / width
    y = (torch.arange(height, device=images.device) + 0.5) / height
    in_x = (x >= box[:, 0:1]) & (x < box[:, 0:1] + box[:, 2:3])
    in_y = (y >= box[:, 1:2]) & (y < box[:, 1:2] + box[:, 3:4])
    inside = (in_y[:, :, None] & in_x[:, None, :])[:, None]
    return torch.where(inside, images.mean((1, 2, 3), keepdim=True), images)
