"""Files that are no pictures, half a picture, or too much of one."""

from __future__ import annotations

import os
import pickle
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures_for_tests import quarters, reason_of
from PIL import Image

from edgekit.errors import EXIT_USAGE, DataError
from edgekit.images import MAX_PIXELS, ImageError, read_rgb


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".webp", ".tif", ".bmp", ".avif"])
def test_truncated_files_are_named(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole{suffix}")
    content = (tmp_path / f"whole{suffix}").read_bytes()
    read_rgb(tmp_path / f"whole{suffix}")
    for share in (0.3, 0.6, 0.9):
        (tmp_path / f"cut{suffix}").write_bytes(content[: int(len(content) * share)])
        reason = reason_of(tmp_path / f"cut{suffix}")
        assert reason.startswith(("broken: ", "not a picture of a known format")), reason


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("<html>404 Not Found</html>")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it would wait for ever
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    # a real picture, in a format that starts an outside program
    quarters().save(tmp_path / "x.eps")
    (tmp_path / "x.eps").rename(tmp_path / "eps.jpg")
    assert reason_of(tmp_path / "empty.jpg") == "the file is empty"
    assert reason_of(tmp_path / "text.jpg") == "not a picture of a known format"
    assert reason_of(tmp_path / "eps.jpg") == "not a picture of a known format"
    assert reason_of(tmp_path / "folder.jpg") == "a folder, not a file"
    assert reason_of(tmp_path / "pipe.jpg") == "not a regular file"
    assert reason_of(tmp_path / "nowhere.jpg") == "no such file"
    assert reason_of(tmp_path / "loop.jpg").startswith("broken: ")


def png_of(width: int, height: int) -> bytes:
    """Return a small PNG that declares any size, filled with zeros as far as a megabyte goes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_decompression_bombs_are_refused_before_decoding(tmp_path: Path) -> None:
    # between our limit and Pillow's; above Pillow's (twice its MAX_IMAGE_PIXELS)
    for side in (11_000, 60_000):
        (tmp_path / "bomb.png").write_bytes(png_of(side, side))
        assert reason_of(tmp_path / "bomb.png").startswith("too large: ")


def test_between_pillows_warning_and_our_limit_nothing_warns(tmp_path: Path) -> None:
    assert Image.MAX_IMAGE_PIXELS is not None and Image.MAX_IMAGE_PIXELS < 100_000_000 < MAX_PIXELS
    (tmp_path / "large.png").write_bytes(png_of(10_000, 10_000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # the size is accepted without a warning, and then the pixels are not there
        assert reason_of(tmp_path / "large.png").startswith("broken: ")


def test_max_pixels_can_be_set(tmp_path: Path) -> None:
    quarters().save(tmp_path / "x.png")
    assert read_rgb(tmp_path / "x.png", max_pixels=64 * 48).size == (64, 48)
    assert reason_of(tmp_path / "x.png", max_pixels=64 * 48 - 1).startswith("too large: 64 x 48 pixels")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), suffix=st.sampled_from([".jpg", ".png", ".gif", ".tif", ".webp", ".bmp", ".ppm"]))
def test_damaged_bytes_give_a_picture_or_an_image_error(tmp_path: Path, data: st.DataObject, suffix: str) -> None:
    quarters(24, 16).save(tmp_path / f"x{suffix}")
    content = bytearray((tmp_path / f"x{suffix}").read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / f"x{suffix}").write_bytes(content)
    try:
        picture = read_rgb(tmp_path / f"x{suffix}", max_pixels=1_000_000)
    except ImageError as e:
        assert str(tmp_path) in str(e)
    else:
        assert picture.mode == "RGB" and np.asarray(picture).ndim == 3


def test_the_error_comes_back_from_a_worker_process(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        read_rgb(tmp_path / "nowhere.jpg")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.reason) == (ImageError, str(caught.value), "no such file")
    assert isinstance(again, DataError) and again.exit_code == EXIT_USAGE
