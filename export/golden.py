"""Golden vectors: real inputs with PyTorch's outputs, and raw pictures that prove the preprocessing."""

from __future__ import annotations

import io
import math
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgekit import atomic
from edgekit.errors import LoadError, VerificationError
from edgekit.export.session import FloatArray
from edgekit.images import read_rgb
from edgekit.preprocess import MAX_ASPECT, Preprocess, fit_pixels

INPUTS = 8
RAW = 2
PIXEL_TOLERANCE = 2
"""Levels of 255 that two builds of a JPEG decoder may differ by."""

MAX_RAW_BYTES = 1_000_000
"""Larger pictures do not travel as they are: a bundle is to stay small beside a model of one or two MB."""

_MAX_UNPACKED_BYTES = 256 * 2**20
"""All arrays unpacked; eight inputs of 512 px with their outputs take 7 MB."""


@dataclass(frozen=True)
class Golden:
    """What a bundle is verified with.

    Attributes:
        pixels: (n, S, S, 3) uint8 RGB after resize and crop; divided by 255 they are the model's input. Of clips, the
            frames, one clip after the other.
        outputs: PyTorch's outputs for them, by name: a row for each picture or clip.
        raw: encoded picture files; the first `len(raw)` rows of `pixels` are what preprocessing makes of them.
    """

    pixels: NDArray[np.uint8]
    outputs: Mapping[str, FloatArray]
    raw: tuple[bytes, ...]


def choose_raw(paths: Sequence[Path]) -> list[int]:
    """Return the rows of up to two picture files that are small enough to travel in a bundle; perhaps none."""
    return [row for row, path in enumerate(paths) if path.stat().st_size <= MAX_RAW_BYTES][:RAW]


def reduced(picture: Image.Image, contract: Preprocess) -> bytes:
    """Return a JPEG file of a picture that is too large to travel, with a short side of up to twice `contract.resize`.

    It is another picture than the one it is made of: golden pixels and outputs must be computed from it. It is still
    larger than the model's input, so that it proves resizing and cropping.
    """
    width, height = picture.size
    short = min(width, height)
    across, down = min(width, MAX_ASPECT * short), min(height, MAX_ASPECT * short)  # the contract drops what is beyond
    left, top = (width - across) // 2, (height - down) // 2
    scale = min(1.0, 2 * contract.resize / short)
    size = (max(1, round(across * scale)), max(1, round(down * scale)))
    buffer = io.BytesIO()
    cut = picture.crop((left, top, left + across, top + down)).resize(size, Image.Resampling.LANCZOS)
    cut.save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def write_golden(path: Path, golden: Golden) -> None:
    """Write golden.npz: pixels, output.<name>, raw.<number> (bytes as uint8)."""
    arrays: dict[str, NDArray[np.uint8] | FloatArray] = {"pixels": golden.pixels}
    arrays |= {f"output.{name}": values for name, values in golden.outputs.items()}
    arrays |= {f"raw.{number}": np.frombuffer(content, np.uint8) for number, content in enumerate(golden.raw)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    atomic.write_bytes(path, buffer.getvalue())


def read_golden(path: Path) -> Golden:
    """Read golden.npz.

    Raises:
        LoadError: not there, damaged, larger than golden vectors are, or not golden vectors.
    """
    try:
        arrays = unpack(path)
        pixels = arrays["pixels"]
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or len(pixels) == 0:
            raise ValueError(f"pixels are {pixels.dtype} {pixels.shape}")
        outputs = {
            n.removeprefix("output."): a.astype(np.float32) for n, a in arrays.items() if n.startswith("output.")
        }
        if not outputs or any(a.ndim != 2 or not a.size or len(pixels) % len(a) for a in outputs.values()):
            raise ValueError(f"outputs of the shapes {[a.shape for a in outputs.values()]} for {len(pixels)} inputs")
        raw = tuple(arrays[name].tobytes() for name in sorted(n for n in arrays if n.startswith("raw.")))
        if not 0 < len(raw) <= len(pixels):
            raise ValueError(f"{len(raw)} raw pictures for {len(pixels)} inputs")
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error, EOFError, MemoryError) as e:
        raise LoadError(f"{path.name} holds no golden vectors: {e}") from e
    return Golden(pixels, outputs, raw)


def unpack(path: Path) -> dict[str, NDArray[Any]]:
    """Unpack an .npz file, unless its arrays would be too large: neither the zip nor the arrays in it are trusted.

    Raises:
        ValueError: too large.
    """
    with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > _MAX_UNPACKED_BYTES:
            raise ValueError(f"it unpacks to more than {_MAX_UNPACKED_BYTES} bytes")
        for member in members:
            # the header of an array is its own claim, which numpy would believe and allocate
            with archive.open(member) as content:
                numpy_version = np.lib.format.read_magic(content)
                shape, _, dtype = (
                    np.lib.format.read_array_header_1_0(content)
                    if numpy_version == (1, 0)
                    else np.lib.format.read_array_header_2_0(content)
                )
            if math.prod(shape) * dtype.itemsize > member.file_size:
                raise ValueError(f"{member.filename} claims the shape {shape}, more than it holds")
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def prove_golden(path: Path, contract: Preprocess) -> Golden:
    """Return the golden vectors of a file as a verifier will read them.

    Raises:
        LoadError: they cannot be read back.
        VerificationError: their raw pictures do not give their pixels.
    """
    golden = read_golden(path)
    worst = preprocessing_difference(golden, contract)
    if worst > PIXEL_TOLERANCE:
        raise VerificationError(f"{path.name}: preprocessing its raw pictures anew differs by {worst} of 255 levels")
    return golden


def preprocessing_difference(golden: Golden, contract: Preprocess) -> int:
    """Return the largest difference, in 8-bit levels, between the stored pixels and this machine's preprocessing.

    Raises:
        ImageError: a raw picture cannot be decoded.
    """
    worst = 0
    for row, content in enumerate(golden.raw):
        with tempfile.NamedTemporaryFile(suffix=".picture") as file:
            file.write(content)
            file.flush()
            found = fit_pixels(read_rgb(Path(file.name)), contract)
        if found.shape != golden.pixels[row].shape:
            return 255
        worst = max(worst, int(np.abs(found.astype(int) - golden.pixels[row].astype(int)).max()))
    return worst
