"""Pictures decoded once: training reads pixels from memory (or a memory map), not JPEG files.

A training picture is squeezed whole into a square, so that any crop box can be cut from it for a whole batch at
once; its aspect is kept beside it. An evaluation picture goes through the preprocessing contract exactly.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from edgekit import atomic
from edgekit.cores import usable_cores
from edgekit.data import Sample
from edgekit.images import ImageError, read_rgb
from edgekit.preprocess import Preprocess, fit_pixels

IN_MEMORY_BYTES = 2 * 1024**3
"""Larger stores live in a memory-mapped temporary file, so that an 8 GB laptop still trains."""


@dataclass(frozen=True)
class PixelStore:
    """Decoded pictures.

    Attributes:
        samples: those that could be read, in order.
        pixels: (N, S, S, 3) uint8 RGB; of clips (N, F, S, S, 3).
        aspects: (N,) float32 width / height of the pictures as they are displayed.
        broken: key → reason of those that could not be read.
    """

    samples: tuple[Sample, ...]
    pixels: NDArray[np.uint8]
    aspects: NDArray[np.float32]
    broken: dict[str, str]


def labels_of(store: PixelStore) -> NDArray[np.int64]:
    """Return the class index (N,) of each picture; −1 for those without label."""
    return np.array([-1 if sample.label is None else sample.label for sample in store.samples], np.int64)


def to_images(pixels: NDArray[np.uint8], device: torch.device | None = None) -> Tensor:
    """Return pixels (..., H, W, 3) of pictures or clips as (..., 3, H, W) float32 in [0, 1]; on the CPU by default."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).to(device).movedim(-1, -3).float().div(255)


def image_batches(pixels: NDArray[np.uint8], size: int, device: torch.device | None = None) -> Iterator[Tensor]:
    """Yield pixels (N, ..., H, W, 3) as `to_images` does, `size` samples at a time."""
    for at in range(0, len(pixels), size):
        yield to_images(pixels[at : at + size], device)


def squeeze_pixels(picture: Image.Image, size: int) -> NDArray[np.uint8]:
    """Resize a whole picture to (size, size, 3) uint8, whatever its aspect."""
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC), dtype=np.uint8)


def decode_train(
    samples: Sequence[Sample], size: int, *, scratch: Path | None = None, advance: Callable[[int], None] | None = None
) -> PixelStore:
    """Decode training pictures, squeezed to `size` × `size`.

    Args:
        samples: what to read.
        size: side of the stored square in pixels.
        scratch: folder for the memory map, where one is needed.
        advance: called with the number of pictures that are done since the last call.
    """
    return decode_rows(samples, (size, size, 3), lambda path: _squeezed(path, size), scratch=scratch, advance=advance)


def decode_eval(
    samples: Sequence[Sample],
    contract: Preprocess,
    *,
    scratch: Path | None = None,
    advance: Callable[[int], None] | None = None,
) -> PixelStore:
    """Decode pictures through the preprocessing contract, to (N, image_size, image_size, 3)."""
    shape = (contract.image_size, contract.image_size, 3)
    return decode_rows(samples, shape, lambda path: _fitted(path, contract), scratch=scratch, advance=advance)


Decoded = tuple[NDArray[np.uint8], float]


def _squeezed(path: Path, size: int) -> Decoded:
    picture = read_rgb(path, at_least=size)
    return squeeze_pixels(picture, size), picture.width / picture.height


def _fitted(path: Path, contract: Preprocess) -> Decoded:
    picture = read_rgb(path)
    return fit_pixels(picture, contract), picture.width / picture.height


def decode_rows(
    samples: Sequence[Sample],
    shape: tuple[int, ...],
    read: Callable[[Path], Decoded],
    *,
    scratch: Path | None,
    advance: Callable[[int], None] | None,
    chunk: int = 16,
) -> PixelStore:
    """Decode samples side by side into one array.

    Args:
        samples: what to read.
        shape: of one sample's pixels.
        read: returns a sample's pixels and aspect, or raises ImageError.
        scratch: folder for the memory map, where one is needed.
        advance: called with the number of samples that are done since the last call.
        chunk: samples that one thread takes at a time.
    """
    report, group = advance or (lambda count: None), 4 * chunk
    pixels = _allocate((len(samples), *shape), scratch)
    aspects = np.ones(len(samples), np.float32)
    broken: dict[str, str] = {}

    def one(row: int) -> None:
        try:
            pixels[row], aspects[row] = read(samples[row].path)
        except ImageError as e:
            broken[samples[row].key] = str(e)

    # Pillow decodes and resizes without the interpreter lock, so threads are enough and cost no copies
    with ThreadPoolExecutor(max_workers=usable_cores()) as pool:
        for done, _ in enumerate(pool.map(one, range(len(samples)), chunksize=chunk), start=1):
            if done % group == 0:
                report(group)
    report(len(samples) % group)
    kept = [row for row, sample in enumerate(samples) if sample.key not in broken]
    for new, old in enumerate(kept):  # in place: a memory map must not be copied into memory
        if new != old:
            pixels[new], aspects[new] = pixels[old], aspects[old]
    good = len(kept)
    return PixelStore(tuple(samples[row] for row in kept), pixels[:good], aspects[:good], dict(sorted(broken.items())))


def _allocate(shape: tuple[int, ...], scratch: Path | None) -> NDArray[np.uint8]:
    size_bytes = math.prod(shape)
    if size_bytes <= IN_MEMORY_BYTES or scratch is None:
        return np.empty(shape, np.uint8)
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        # unlinked at once: the space is freed with the process, however it ends
        with tempfile.TemporaryFile(dir=scratch, suffix=".pixels") as file:
            if hasattr(os, "posix_fallocate"):  # a full disk is an error now, and a SIGBUS when a page is written
                os.posix_fallocate(file.fileno(), 0, size_bytes)
            return np.memmap(file, dtype=np.uint8, mode="w+", shape=shape)
    except OSError as e:
        raise atomic.WriteError(
            f"cannot keep {size_bytes / 1e9:.1f} GB of decoded pictures in {scratch}: {e.strerror or e}. Choose an "
            f"-o/--output on a larger disk, or a smaller --image-size"
        ) from e
