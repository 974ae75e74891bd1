"""The preprocessing contract: how a picture becomes the pixels that a model takes.

It travels with every checkpoint and artifact. The geometry (resize, crop) happens here, on the host; the
normalisation (mean, std) happens inside the exported graph, so an artifact takes plain RGB in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgekit.images import read_rgb

Interpolation = Literal["bilinear", "bicubic"]
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Preprocess:
    """Resize the short side to `resize`, cut the central `image_size` square, scale to [0, 1], normalise.

    Attributes:
        image_size: side of the square the model sees, in pixels.
        resize: length of the short side after resizing, in pixels; at least `image_size`.
        interpolation: antialiased resampling filter (Pillow's).
        mean: per-channel RGB mean, in the [0, 1] scale.
        std: per-channel RGB standard deviation, in the [0, 1] scale.
    """

    image_size: int
    resize: int
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping that `from_dict` reads back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocess:
        """Build from the mapping that `to_dict` made."""
        fields = dict(values)
        fields["mean"], fields["std"] = tuple(fields["mean"]), tuple(fields["std"])
        return cls(**fields)


def fit_pixels(picture: Image.Image, contract: Preprocess) -> NDArray[np.uint8]:
    """Apply the geometry of the contract: return (image_size, image_size, 3) uint8 RGB."""
    width, height = picture.size
    scale = contract.resize / min(width, height)
    # both sides at least as long as the crop, so that the crop never pads
    new_width = max(contract.image_size, round(width * scale))
    new_height = max(contract.image_size, round(height * scale))
    resized = picture.resize((new_width, new_height), _RESAMPLING[contract.interpolation])
    left = (new_width - contract.image_size) // 2
    top = (new_height - contract.image_size) // 2
    cut = resized.crop((left, top, left + contract.image_size, top + contract.image_size))
    return np.asarray(cut, dtype=np.uint8)


def to_input(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Turn uint8 pixels (B, H, W, 3) into the model input (B, 3, H, W) float32 in [0, 1]."""
    scaled: NDArray[np.float32] = pixels.astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def load_batch(paths: Sequence[Path], contract: Preprocess) -> NDArray[np.float32]:
    """Read pictures and return the model input (B, 3, image_size, image_size) float32 RGB in [0, 1].

    Raises:
        ImageError: a file is not a picture that can be read; it is named.
    """
    return to_input(np.stack([fit_pixels(read_rgb(path), contract) for path in paths]))
