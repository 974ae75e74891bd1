"""What a teacher sees of a picture, and what it says: the same pixels whether they are stored or used at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgekit.compress.pictures.pixels import to_images
from edgekit.compress.pictures.views import Views, retouch
from edgekit.models.teacher import Teacher
from edgekit.preprocess import Preprocess, fit_pixels


def plain_and_flipped(picture: Image.Image, contract: Preprocess) -> NDArray[np.uint8]:
    """Return (2, S, S, 3): the picture through the contract, and its mirror image."""
    plain = fit_pixels(picture, contract)
    return np.stack([plain, plain[:, ::-1]])


def cut(picture: Image.Image, box: NDArray[np.float32], flip: bool, size: int) -> NDArray[np.uint8]:
    """Cut a crop box from the full picture, antialiased, to (size, size, 3) uint8.

    Args:
        picture: upright RGB.
        box: (4,) left, top, width, height as shares of the picture.
        flip: horizontally.
        size: side of the result in pixels.
    """
    left, top, width, height = (float(v) for v in box)
    corners = (
        left * picture.width,
        top * picture.height,
        min((left + width) * picture.width, picture.width),
        min((top + height) * picture.height, picture.height),
    )
    pixels = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box=corners))
    return pixels[:, ::-1] if flip else pixels


def cut_views(picture: Image.Image, views: Sequence[Views], row: int, size: int) -> NDArray[np.uint8]:
    """Return (V, size, size, 3): one row's crop in each of V view sets."""
    return np.stack([cut(picture, v.boxes[row], bool(v.flips[row]), size) for v in views])


def say(teacher: Teacher, pixels: NDArray[np.uint8], views: Views | None) -> NDArray[np.float16]:
    """Return the teacher's unit rows (B, D) of crops.

    Args:
        teacher: frozen.
        pixels: (B, S, S, 3), cut and flipped already.
        views: gives colours and operations; None leaves them out. What is erased, only the student misses.
    """
    images = to_images(pixels)
    rows: NDArray[np.float16] = teacher(images if views is None else retouch(images, views)).cpu().numpy()
    return rows.astype(np.float16)
