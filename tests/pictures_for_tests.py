"""A picture that tells every turn, and how an unreadable one must be refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekit.images import ImageError, read_rgb

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def quarters(width: int = 64, height: int = 48) -> Image.Image:
    """Return a picture whose corners tell every turn and mirroring: red, green / blue, white."""
    picture = Image.new("RGB", (width, height), WHITE)
    picture.paste(RED, (0, 0, width // 2, height // 2))
    picture.paste(GREEN, (width // 2, 0, width, height // 2))
    picture.paste(BLUE, (0, height // 2, width // 2, height))
    return picture


def corners(picture: Image.Image) -> list[tuple[int, int, int]]:
    """Return the colours near the corners (top left, top right, bottom left, bottom right), rounded to 0 or 255."""
    pixels = np.asarray(picture)
    found = (pixels[y, x] for y in (4, -5) for x in (4, -5))
    return [tuple(int(round(v / 255) * 255) for v in pixel) for pixel in found]  # type: ignore[misc]


def reason_of(path: Path, **options: int) -> str:
    """Return why a file is refused, after checking what every refusal must be."""
    with pytest.raises(ImageError) as caught:
        read_rgb(path, **options)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and len(caught.value.reason) <= 160
    return caught.value.reason
