"""Read any picture of the real world as 8-bit RGB, or say in one line why not."""

from __future__ import annotations

import functools
import io
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from edgekit.errors import DataError

# A few kilobytes can declare a picture of many gigabytes (a decompression bomb), so the declared size is checked before
# anything is decoded. 120 million pixels let the 108-megapixel pictures of phones through; Pillow holds a pixel in
# 4 bytes, so one reader needs at most 0.5 GB for the decoded picture.
MAX_PIXELS = 120_000_000

# Plain raster formats only: the content is matched against these and nothing else, so no picture reaches a delegate
# (EPS starts Ghostscript) or a rarely tested decoder, whatever its name says.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")

# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".avif",
})
# fmt: on

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(DataError):
    """A file cannot be read as a picture; the message names the file and the reason.

    Attributes:
        reason: the message without the file's name, for reports that list files themselves.
    """

    # One positional argument, so that the error survives the way back from a worker process (pickle).
    def __init__(self, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


def read_rgb(path: Path, *, max_pixels: int = MAX_PIXELS, at_least: int | None = None) -> Image.Image:
    """Read a picture as 8-bit RGB, upright.

    The EXIF orientation is applied; transparency is laid on white; of an animation the first frame is taken; 16-bit and
    float pictures are scaled to 8 bits. Colour profiles are not applied. Safe in threads and processes: no setting of
    Pillow is touched, its warnings are muted.

    Args:
        path: the file; what it holds decides, not its suffix.
        max_pixels: refuse a picture of more pixels, before decoding. Pillow's own limit of 179 million stays in force.
        at_least: let a JPEG be decoded at 1/2, 1/4 or 1/8 as long as its short side keeps this many pixels. Several
            times faster, but the pixels differ from a full decode: for training only.

    Raises:
        ImageError: missing, not a file, not a picture, truncated or broken, or too large.
    """
    return _refusing(path, lambda: _decode_file(path, max_pixels, at_least))


def rgb_of(content: bytes, name: str, *, max_pixels: int = MAX_PIXELS, at_least: int | None = None) -> Image.Image:
    """Return a picture that is in memory already as 8-bit RGB, exactly as `read_rgb` returns that of a file.

    Args:
        content: the file's bytes.
        name: where it is from, for messages.
        max_pixels, at_least: as for `read_rgb`.

    Raises:
        ImageError: not a picture, truncated or broken, or too large.
    """
    return _refusing(name, lambda: _decode(io.BytesIO(content), name, max_pixels, at_least))


def _refusing(path: Path | str, decode: Callable[[], Image.Image]) -> Image.Image:
    try:
        _quiet_pillow()
        return decode()
    except ImageError:
        raise
    except UnidentifiedImageError as e:
        raise _refusal(path, "not a picture of a known format") from e
    except Image.DecompressionBombError as e:
        raise _refusal(path, f"too large: {e}") from e
    except FileNotFoundError as e:
        raise _refusal(path, "no such file") from e
    except PermissionError as e:
        raise _refusal(path, "permission denied") from e
    except MemoryError as e:
        raise _refusal(path, "too large for the memory") from e
    # Fed with broken files, Pillow's plugins raise nearly anything: OSError, SyntaxError, struct.error, zlib.error,
    # KeyError, OverflowError, ... All of them mean the same here.
    except Exception as e:
        raise _refusal(path, f"broken: {e}") from e


def _refusal(path: Path | str, reason: str) -> ImageError:
    short = " ".join(reason.split())[:160]
    return ImageError(f"cannot read the picture {path}: {short}", reason=short)


def _decode_file(path: Path, max_pixels: int, at_least: int | None) -> Image.Image:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for ever
        raise _refusal(path, "a folder, not a file" if stat.S_ISDIR(status.st_mode) else "not a regular file")
    with path.open("rb") as file:
        return _decode(file, path, max_pixels, at_least)


def _decode(file: IO[bytes], path: Path | str, max_pixels: int, at_least: int | None) -> Image.Image:
    if not file.read(1):
        raise _refusal(path, "the file is empty")
    file.seek(0)
    with Image.open(file, formats=_known_formats()) as picture:
        width, height = picture.size
        if width < 1 or height < 1:
            raise _refusal(path, f"broken: {width} x {height} pixels")
        if width * height > max_pixels:
            raise _refusal(path, f"too large: {width} x {height} pixels, at most {max_pixels} are read")
        if at_least is not None:
            picture.draft("RGB", (at_least, at_least))  # only the JPEG reader does something
        picture.load()
        turn = _TURNS.get(_orientation(picture))  # asked after load(): the TIFF reader turns by itself, there
        rgb = _to_rgb(picture)
    return rgb if turn is None else rgb.transpose(turn)


@functools.cache
def _known_formats() -> tuple[str, ...]:
    Image.init()  # loads the plugins that Pillow leaves aside until they are needed
    return tuple(name for name in _FORMATS if name in Image.OPEN)  # AVIF came with Pillow 11.3


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken metadata raise as broken pictures do; the picture itself is good, so take it as it lies
        return 1


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith(("I", "F")):
        return Image.fromarray(_to_8_bits(picture)).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")


def _to_8_bits(picture: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Scale a 16-bit, 32-bit or float grey picture to (H, W) uint8.

    16 bits are a full scale. 32-bit integers and floats do not say what their white is: the smallest usual scale that
    holds all values is taken (1 for floats, 255, 65535), and their own range where none does.
    """
    values = np.asarray(picture).astype(np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        raise ValueError("no finite value")
    low, high = float(values[finite].min()), float(values[finite].max())
    black, white = low, high
    if picture.mode.startswith("I;16"):
        black, white = 0.0, 65535.0
    elif low >= 0:
        scales = (1.0, 255.0, 65535.0) if picture.mode == "F" else (255.0, 65535.0)
        black, white = next(((0.0, scale) for scale in scales if high <= scale), (low, high))
    span = (white - black) or 1.0
    values = np.nan_to_num((values - black) / span, nan=0.0, posinf=1.0, neginf=0.0)
    return np.rint(values * 255).clip(0, 255).astype(np.uint8)


def _quiet_pillow() -> None:
    """Put the filter against Pillow's warnings in front, if it is not there.

    They name no file, and concern sizes (checked here) and small faults in metadata (ignored here); where warnings are
    errors they would turn good pictures away. The filter stays: setting it around each call (`catch_warnings`) is not
    safe in threads, and would make all "once only" warnings of the process print again and again.
    """
    global _quiet
    if not warnings.filters or warnings.filters[0] != _quiet:
        warnings.filterwarnings("ignore", module=r"PIL\.")
        _quiet = warnings.filters[0]


_quiet: object = None
