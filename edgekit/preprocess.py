"""The preprocessing contract: how a picture becomes the pixels that a model takes.

It travels with every checkpoint and artifact. The geometry (resize, crop) happens here, on the host; the
normalisation (mean, std) happens inside the exported graph, so an artifact takes plain RGB in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgekit.errors import LoadError, UsageError, did_you_mean
from edgekit.images import read_rgb

Interpolation = Literal["bilinear", "bicubic"]
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

MAX_SIDE = 8192  # pixels; a contract out of an untrusted file must not ask for all the memory
MAX_ASPECT = 8  # long by short side; what is farther from the middle is dropped before resizing


@dataclass(frozen=True)
class Preprocess:
    """Resize the short side to `resize`, cut the central `image_size` square, scale to [0, 1], normalise.

    Attributes:
        image_size: side of the square the model sees, in pixels.
        resize: length of the short side after resizing, in pixels; at least `image_size`. The long side rounds down.
        interpolation: antialiased resampling filter (Pillow's).
        mean: per-channel RGB mean, in the [0, 1] scale.
        std: per-channel RGB standard deviation, in the [0, 1] scale.

    Raises:
        UsageError: a size, the filter or the normalisation is impossible.
    """

    image_size: int
    resize: int
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        """Refuse what cannot work: a contract also comes out of files that others wrote."""
        if not 1 <= self.image_size <= self.resize <= MAX_SIDE:
            raise UsageError(
                f"image size {self.image_size} with resize {self.resize}: "
                f"needed is 1 <= image size <= resize <= {MAX_SIDE} pixels."
            )
        if self.interpolation not in _RESAMPLING:
            hint = did_you_mean(str(self.interpolation), get_args(Interpolation))
            raise UsageError(f"unknown interpolation '{self.interpolation}': {hint}")
        numbers = (*self.mean, *self.std)
        if len(self.mean) != 3 or len(self.std) != 3 or not all(map(math.isfinite, numbers)) or min(self.std) <= 0:
            raise UsageError(f"mean {self.mean} and std {self.std}: needed are 3 finite numbers each, std above 0.")

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping that `from_dict` reads back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocess:
        """Build from the mapping that `to_dict` made.

        Raises:
            LoadError: a value is missing, unknown or impossible.
        """
        try:
            fields = dict(values)
            fields["image_size"], fields["resize"] = int(fields["image_size"]), int(fields["resize"])
            fields["mean"], fields["std"] = tuple(map(float, fields["mean"])), tuple(map(float, fields["std"]))
            return cls(**fields)
        except (KeyError, TypeError, ValueError, OverflowError, UsageError) as e:
            raise LoadError(
                f"not a preprocessing contract of edgekit: {e!r}. Its file is damaged or of another tool."
            ) from e


def fit_pixels(picture: Image.Image, contract: Preprocess) -> NDArray[np.uint8]:
    """Apply the geometry of the contract: return (image_size, image_size, 3) uint8 RGB.

    Bit for bit torchvision's Resize and CenterCrop, which the weights of timm and open_clip were trained with. (Not by
    `resize(box=...)`, which is faster: for another shape Pillow may run its two passes in the other order, and where
    bicubic overshoots, single pixels change by up to 10 levels.)
    """
    picture = _cut_ends(picture)
    width, height = picture.size
    short, side = min(width, height), contract.image_size
    new_width, new_height = contract.resize * width // short, contract.resize * height // short
    resized = picture.resize((new_width, new_height), _RESAMPLING[contract.interpolation])
    left, top = round((new_width - side) / 2), round((new_height - side) / 2)
    return np.asarray(resized.crop((left, top, left + side, top + side)), dtype=np.uint8)


def _cut_ends(picture: Image.Image) -> Image.Image:
    """Cut a very long picture to its middle: the rest is never seen, but resizing it may take all the memory."""
    width, height = picture.size
    longest = MAX_ASPECT * min(width, height)
    across, down = max(0, width - longest) // 2, max(0, height - longest) // 2  # as much from both ends
    return picture.crop((across, down, width - across, height - down)) if across or down else picture


def to_input(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Turn uint8 pixels (B, H, W, 3) into the model input (B, 3, H, W) float32 in [0, 1]."""
    scaled: NDArray[np.float32] = pixels.astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def load_batch(paths: Sequence[Path], contract: Preprocess) -> NDArray[np.float32]:
    """Read pictures and return the model input (B, 3, image_size, image_size) float32 RGB in [0, 1].

    Raises:
        ImageError: a file is not a picture that can be read; it is named.
    """
    if not paths:
        return np.empty((0, 3, contract.image_size, contract.image_size), np.float32)
    return to_input(np.stack([fit_pixels(read_rgb(path), contract) for path in paths]))
