"""A captioned picture data set, drawn in code: the demo's data, thousands of pictures in seconds.

The class is the kind of shape, inked on coloured paper. Colour, texture, size, rotation, place, paper, clutter, light
and noise vary without saying anything about the class, so that a few labelled pictures do not show what matters. The
captions name the class among all that, and there are many of them: that is where the CLIP teacher learns it from.

Ink is always darker than paper. With shapes both darker and lighter than their ground, the same small CLIP reached
65 % after 8 passes over 6000 pictures, against 88 % after 2: too slow for a demo on two CPU cores.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from edgekit.atomic import atomic_folder
from edgekit.demo.shapes import CLASSES, TEXTURES, Field, Points, outline_mask, texture_field
from edgekit.demo.wording import Scene, caption_of

_INKS: Mapping[str, tuple[int, int, int]] = {
    "red": (200, 40, 40),
    "orange": (215, 110, 20),
    "green": (40, 130, 60),
    "blue": (45, 80, 200),
    "purple": (120, 50, 160),
    "pink": (215, 70, 140),
    "brown": (115, 75, 45),
    "gray": (105, 105, 105),
    "black": (25, 25, 25),
}
_PAPERS: Mapping[str, tuple[int, int, int]] = {
    "white": (245, 245, 245),
    "yellow": (250, 235, 140),
    "orange": (255, 205, 150),
    "green": (190, 235, 190),
    "blue": (185, 215, 250),
    "purple": (215, 195, 245),
    "pink": (250, 200, 215),
    "gray": (205, 205, 205),
}
_TEXTURE_SHARES: Mapping[str, float] = dict(zip(TEXTURES, (0.5, 0.12, 0.12, 0.12, 0.14), strict=True))
JPEG_QUALITY = 92


@dataclass(frozen=True)
class Drawing:
    """One drawing.

    Attributes:
        picture: (size, size, 3) uint8 RGB.
        caption: a sentence that names the class and some of the rest.
        label: class name, one of `CLASSES`.
    """

    picture: NDArray[np.uint8]
    caption: str
    label: str


@dataclass(frozen=True)
class DrawnSet:
    """What `write_drawings` left on the disk.

    Attributes:
        folder: holds train/, val/ and captions.csv.
        classes: class names, sorted.
        labelled: pictures in train/<class>/, all classes together.
        unlabelled: pictures in train/_unlabeled/.
        val: pictures in val/<class>/, all classes together.
    """

    folder: Path
    classes: tuple[str, ...]
    labelled: int
    unlabelled: int
    val: int


def draw(seed: int, index: int, size: int = 96) -> Drawing:
    """Draw one picture, a pure function of its arguments; classes take turns over `index`."""
    rng = np.random.default_rng((seed, index))
    label = CLASSES[index % len(CLASSES)]
    colour, background = _choose(rng, _INKS), _choose(rng, _PAPERS)
    texture, behind = (_choose(rng, _TEXTURE_SHARES, _TEXTURE_SHARES.values()) for _ in range(2))
    radius = float(rng.uniform(0.28, 0.45)) * size
    centre = rng.uniform(radius * 0.95, size - radius * 0.95, 2)
    canvas = _painted(rng, size, behind, _PAPERS[background])
    clutter = int(rng.integers(0, 3))
    _scribble(rng, canvas, clutter)
    mask = outline_mask(label, size, _placement(rng, radius, centre))[..., None]
    ink = _painted(rng, size, texture, _INKS[colour])
    canvas += (ink - canvas) * mask
    scene = Scene(
        *(label, _size_word(radius / size), texture, colour, _place_word(centre / size), background, behind),
        clutter=clutter,
    )
    return Drawing(_exposed(rng, canvas), caption_of(scene, rng), label)


def _choose(rng: np.random.Generator, names: Iterable[str], shares: Iterable[float] | None = None) -> str:
    options = tuple(names)
    return options[int(rng.choice(len(options), p=None if shares is None else tuple(shares)))]


def _painted(rng: np.random.Generator, size: int, texture: str, colour: tuple[int, int, int]) -> Field:
    """Return (size, size, 3) float32 in 0..255: two tones of a colour, mixed by a texture."""
    tone = np.array(colour, dtype=np.float32) + rng.normal(0, 10, 3).astype(np.float32)
    # ink fades towards white, paper darkens: the second tone always shows, and the shape stays darker than its paper
    end = np.float32(255 if tone.mean() < 160 else 0)
    second = tone + np.float32(rng.uniform(0.12, 0.25)) * (end - tone)
    field = texture_field(texture, size, float(rng.uniform(0.05, 0.12)) * size, float(rng.uniform(0, np.pi)))[..., None]
    return (tone + field * (second - tone)).astype(np.float32)


def _placement(rng: np.random.Generator, radius: float, centre: Points) -> Points:
    """Return the (2, 3) map from outline coordinates to pixels: a turn of up to 29°, a mirror, a slight squeeze."""
    angle = float(rng.uniform(-0.5, 0.5))
    squeeze = np.diag([float(rng.choice([-1.0, 1.0])), float(rng.uniform(0.8, 1.0))])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.concatenate([radius * turn @ squeeze, centre[:, None]], axis=1)


def _scribble(rng: np.random.Generator, canvas: Field, strokes: int) -> None:
    """Draw stray lines, arcs and spots of any colour on the canvas, in place."""
    size = len(canvas)
    picture = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    colours = tuple(_INKS.values())
    for _ in range(strokes):
        ink = colours[int(rng.integers(len(colours)))]
        (left, right), (top, bottom) = np.sort(rng.uniform(0, size, (2, 2)), axis=1).tolist()
        kind, width = int(rng.integers(3)), int(rng.integers(1, max(2, size // 24)))
        if kind == 0:
            pen.line([(left, top), (right, bottom)], fill=ink, width=width)
        elif kind == 1:
            pen.arc(
                [(left, top), (right, bottom)], float(rng.uniform(0, 180)), float(rng.uniform(200, 340)), ink, width
            )
        else:
            pen.ellipse([(left, top), (left + 1.5 * width, top + 1.5 * width)], fill=ink)
    canvas[...] = np.asarray(picture, dtype=np.float32)


def _exposed(rng: np.random.Generator, canvas: Field) -> NDArray[np.uint8]:
    """Add light and sensor noise; return uint8."""
    noise = rng.standard_normal(canvas.shape, dtype=np.float32) * np.float32(rng.uniform(1, 9))
    lit = canvas * np.float32(rng.uniform(0.75, 1.15)) + noise
    return np.clip(lit, 0, 255).astype(np.uint8)


def _size_word(radius: float) -> str:
    return "small" if radius < 0.34 else "medium" if radius < 0.4 else "large"


def _place_word(centre: Points) -> str:
    across = "left" if centre[0] < 0.4 else "right" if centre[0] > 0.6 else ""
    along = "top" if centre[1] < 0.4 else "bottom" if centre[1] > 0.6 else ""
    if along:
        return f"at the {along} {across}".rstrip()
    return f"on the {across}" if across else "in the middle"


def write_drawings(
    folder: Path, *, labelled: int, unlabelled: int, val: int, size: int = 96, seed: int, overwrite: bool = False
) -> DrawnSet:
    """Draw a data set: train/<class>/, train/_unlabeled/, val/<class>/, and captions.csv (image,caption) over train/.

    The counts are totals; the classes share them as evenly as they divide. Every drawing is another `index` of the
    same seed, so no picture of val/ is in train/. The folder is written whole or not at all.

    Raises:
        OutputExistsError: the folder holds something and `overwrite` is false.
        WriteError: the disk refused it.
    """
    with atomic_folder(folder, overwrite=overwrite) as fresh:

        def write(index: int) -> tuple[str, str]:
            drawing = draw(seed, index, size)
            name = f"{_subfolder(index, labelled, unlabelled, drawing.label)}/{index:06d}.jpg"
            (fresh / name).write_bytes(_jpeg(drawing.picture))
            return name, drawing.caption

        for split in ("train/_unlabeled", *(f"{part}/{name}" for part in ("train", "val") for name in CLASSES)):
            (fresh / split).mkdir(parents=True)
        with ThreadPoolExecutor() as threads:
            rows = list(threads.map(write, range(labelled + unlabelled + val)))
        with (fresh / "captions.csv").open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([("image", "caption"), *rows[: labelled + unlabelled]])
    return DrawnSet(folder, CLASSES, labelled, unlabelled, val)


def _subfolder(index: int, labelled: int, unlabelled: int, label: str) -> str:
    if index < labelled:
        return f"train/{label}"
    return "train/_unlabeled" if index < labelled + unlabelled else f"val/{label}"


def _jpeg(picture: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
