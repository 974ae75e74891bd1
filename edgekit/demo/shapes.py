"""The outlines and textures that the demo's drawings are made of: plain numpy, no randomness of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Points = NDArray[np.float64]
Field = NDArray[np.float32]

_SUPERSAMPLING = 2  # the mask is drawn this much larger and averaged down: antialiased edges


def _ring(radius: float, steps: int = 40, start: float = 0.0, stop: float = 2 * np.pi) -> Points:
    """Return points on a circular arc, (steps, 2)."""
    angle: Points = np.linspace(start, stop, steps)
    return _points_at(angle, np.full_like(angle, radius))


def _points_at(angle: Points, radius: Points) -> Points:
    """Turn polar coordinates, both (steps,), into points (steps, 2)."""
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _flower() -> Points:
    angle: Points = np.linspace(0, 2 * np.pi, 80, endpoint=False)
    return _points_at(angle, 0.68 + 0.32 * np.cos(6 * angle))


def _star() -> Points:
    angle: Points = np.linspace(-0.5, 1.5, 10, endpoint=False) * np.pi
    return _points_at(angle, np.where(np.arange(10) % 2 == 0, 1.0, 0.42))


def _heart() -> Points:
    t = np.linspace(0, 2 * np.pi, 60)
    across = 16 * np.sin(t) ** 3
    up = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([across, -up - 2.5], axis=1) / 16.5


def _crescent() -> Points:
    outer = _ring(1.0, start=0.75, stop=2 * np.pi - 0.75)
    tip = outer[0]
    # the inner arc passes through both tips; its centre lies to the right, so the horns point right
    centre = np.array([0.62, 0.0])
    reach = tip - centre
    angle = np.arctan2(reach[1], reach[0])
    inner = centre + _ring(float(np.hypot(*reach)), start=-angle, stop=angle - 2 * np.pi)
    return np.concatenate([outer, inner])


def _points(*pairs: tuple[float, float]) -> Points:
    return np.array(pairs, dtype=np.float64)


# Outline of each class within the unit disc, x right, y down. A class folder's name is the caption's words with "_".
OUTLINES: Mapping[str, Points] = {
    "arrow": _points((1, 0), (0.2, -0.75), (0.2, -0.3), (-0.95, -0.3), (-0.95, 0.3), (0.2, 0.3), (0.2, 0.75)),
    "circle": _ring(0.92),
    "crescent_moon": _crescent(),
    "cross": _points(
        *((0.32, -1), (0.32, -0.32), (1, -0.32), (1, 0.32), (0.32, 0.32), (0.32, 1)),
        *((-0.32, 1), (-0.32, 0.32), (-1, 0.32), (-1, -0.32), (-0.32, -0.32), (-0.32, -1)),
    ),
    "flower": _flower(),
    "heart": _heart(),
    "hourglass": _points((-0.75, -0.95), (0.75, -0.95), (0.12, 0), (0.75, 0.95), (-0.75, 0.95), (-0.12, 0)),
    "lightning_bolt": _points((0.35, -1), (-0.6, 0.2), (-0.05, 0.2), (-0.35, 1), (0.6, -0.25), (0.05, -0.25)),
    "ring": _ring(0.95),
    "square": _points((-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)),
    "star": _star(),
    "triangle": _points((0, -0.98), (0.9, 0.75), (-0.9, 0.75)),
}
_HOLES: Mapping[str, Points] = {"ring": _ring(0.5)}
CLASSES: tuple[str, ...] = tuple(OUTLINES)


def outline_mask(name: str, size: int, transform: Points) -> Field:
    """Draw a filled outline: (size, size) float32 coverage in [0, 1].

    `transform` (2, 3) maps outline coordinates to pixels: rotation, scale and squeeze, then the centre.
    """
    side = size * _SUPERSAMPLING
    picture = Image.new("L", (side, side))
    pen = ImageDraw.Draw(picture)
    for points, value in ((OUTLINES[name], 255), (_HOLES.get(name), 0)):
        if points is not None:
            placed = (points @ transform[:, :2].T + transform[:, 2]) * _SUPERSAMPLING
            pen.polygon([(float(x), float(y)) for x, y in placed], fill=value)
    coverage: Field = np.asarray(picture.reduce(_SUPERSAMPLING), dtype=np.float32) / np.float32(255)
    return coverage


def _plain(u: Field, v: Field) -> Field:
    return np.zeros_like(u)


def _stripes(u: Field, v: Field) -> Field:
    return (np.floor(u) % 2).astype(np.float32)


def _checks(u: Field, v: Field) -> Field:
    return ((np.floor(u) + np.floor(v)) % 2).astype(np.float32)


def _dots(u: Field, v: Field) -> Field:
    return (np.hypot(u % 2 - 1, v % 2 - 1) < 0.6).astype(np.float32)


def _shaded(u: Field, v: Field) -> Field:
    low, high = float(u.min()), float(u.max())
    return (u - np.float32(low)) / np.float32(high - low)


# How much of the second colour each pixel takes, from coordinates counted in texture periods.
TEXTURES: Mapping[str, Callable[[Field, Field], Field]] = {
    "plain": _plain,
    "striped": _stripes,
    "checkered": _checks,
    "dotted": _dots,
    "shaded": _shaded,
}


def texture_field(name: str, size: int, period: float, angle: float) -> Field:
    """Return (size, size) float32 in [0, 1]: a texture of `period` pixels, turned by `angle` radians."""
    grid: Field = np.mgrid[0:size, 0:size].astype(np.float32) / np.float32(period)
    y, x = grid
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u: Field = cosine * x + sine * y
    v: Field = cosine * y - sine * x
    return TEXTURES[name](u, v)
