"""Every kind of picture that real data sets hold, as real files."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures_for_tests import BLUE, GREEN, RED, WHITE, corners, quarters, reason_of
from PIL import Image, ImageFile

from edgekit.images import IMAGE_SUFFIXES, ImageError, read_rgb


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES - {".apng", ".pgm", ".pbm"}))
def test_every_suffix_is_of_a_format_that_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture{suffix}"
    quarters().save(path, **({"quality": 95} if suffix in (".jpg", ".avif", ".webp") else {}))
    picture = read_rgb(path)
    assert type(picture) is Image.Image and picture.mode == "RGB" and picture.size == (64, 48)
    assert corners(picture) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_exif_orientation_is_applied_once(tmp_path: Path, orientation: int, suffix: str) -> None:
    # What the camera stored is the upright picture, turned by the inverse of what the tag asks for.
    inverse = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    stored = quarters() if inverse is None else quarters().transpose(Image.Transpose(inverse))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"x{suffix}", exif=exif)
    picture = read_rgb(tmp_path / f"x{suffix}")
    assert picture.size == (64, 48)
    assert corners(picture) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize(
    "content", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12"]
)
def test_broken_exif_does_not_cost_the_picture_nor_warn(tmp_path: Path, content: bytes) -> None:
    quarters().save(tmp_path / "x.jpg", exif=content)
    assert corners(read_rgb(tmp_path / "x.jpg")) == [RED, GREEN, BLUE, WHITE]


def test_grey_and_one_bit_pictures(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 64 * 48).reshape(48, 64).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(np.asarray(read_rgb(tmp_path / "grey.png")), np.repeat(ramp[..., None], 3, axis=2))
    Image.fromarray(ramp > 127).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(np.asarray(read_rgb(tmp_path / "bits.png"))[..., 1], (ramp > 127) * 255)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_alpha_is_laid_on_white(tmp_path: Path, suffix: str) -> None:
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[..., 0] = 200
    pixels[:8, :, 3] = 255  # above: opaque; below: a quarter opaque, and black where fully transparent
    pixels[8:, :8, 3] = 64
    Image.fromarray(pixels).save(tmp_path / f"x{suffix}", **({"lossless": True} if suffix == ".webp" else {}))
    got = np.asarray(read_rgb(tmp_path / f"x{suffix}")).astype(int)
    assert got[0, 0].tolist() == [200, 0, 0]
    expected = 255 + (np.array([200, 0, 0]) - 255) * 64 / 255
    assert np.abs(got[12, 2] - expected).max() <= 1
    assert got[12, 12].tolist() == [255, 255, 255]


def test_transparency_without_an_alpha_channel(tmp_path: Path) -> None:
    picture = quarters()
    picture.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    assert corners(read_rgb(tmp_path / "palette.png")) == [RED, GREEN, BLUE, WHITE]
    # one palette index transparent (GIF), a table of opacities (PNG), one colour (PNG), one grey level (PNG)
    adaptive = picture.convert("P", palette=Image.Palette.ADAPTIVE)
    red = adaptive.getpixel((0, 0))
    assert isinstance(red, int)
    adaptive.save(tmp_path / "index.gif", transparency=red)
    adaptive.save(tmp_path / "table.png", transparency=bytes(0 if i == red else 255 for i in range(256)))
    picture.save(tmp_path / "colour.png", transparency=RED)
    for name in ("index.gif", "table.png", "colour.png"):
        assert corners(read_rgb(tmp_path / name)) == [WHITE, GREEN, BLUE, WHITE], name
    Image.new("L", (8, 8), 7).save(tmp_path / "level.png", transparency=7)
    assert read_rgb(tmp_path / "level.png").getpixel((0, 0)) == WHITE
    Image.merge("LA", [Image.new("L", (8, 8), 7), Image.new("L", (8, 8), 0)]).save(tmp_path / "la.png")
    assert read_rgb(tmp_path / "la.png").getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_is_not_inverted(tmp_path: Path, suffix: str) -> None:
    quarters().convert("CMYK").save(tmp_path / f"x{suffix}")
    if suffix == ".jpg":
        assert b"Adobe" in (tmp_path / "x.jpg").read_bytes()  # Adobe's marker: the four channels are stored inverted
    assert corners(read_rgb(tmp_path / f"x{suffix}")) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_are_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / f"x{suffix}")
    got = np.asarray(read_rgb(tmp_path / f"x{suffix}"))
    np.testing.assert_array_equal(got[..., 0], np.rint(ramp / 257.0).astype(np.uint8))
    # dark stays dark: 16 bits are a full scale, whatever the brightest pixel is
    Image.fromarray(ramp // 256).save(tmp_path / f"dark{suffix}")
    assert np.asarray(read_rgb(tmp_path / f"dark{suffix}")).max() == 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 100.0, 200.0]], np.float32), [0, 100, 200]),
        (np.array([[0.0, 25700.0, 65535.0]], np.float32), [0, 100, 255]),
        (np.array([[-10.0, 0.0, 10.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, np.nan, np.inf, -np.inf, 1.0]], np.float32), [0, 0, 255, 0, 255]),
        (np.array([[-7.0, -7.0]], np.float32), [0, 0]),
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
        (np.array([[0, 25700, 65535]], np.int32), [0, 100, 255]),
        (np.array([[-1000, 0, 1000]], np.int32), [0, 128, 255]),
        (np.array([[-(2**31), 0, 2**31 - 1]], np.int32), [0, 128, 255]),
    ],
)
def test_float_and_32_bit_scales(tmp_path: Path, values: np.ndarray, expected: list[int]) -> None:
    Image.fromarray(values).save(tmp_path / "x.tif")
    assert np.asarray(read_rgb(tmp_path / "x.tif"))[0, :, 2].tolist() == expected


def test_float_without_any_number_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "x.tif")
    assert reason_of(tmp_path / "x.tif") == "broken: no finite value"


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(tmp_path / f"x{suffix}", save_all=True, append_images=frames[1:], **options)
    assert read_rgb(tmp_path / f"x{suffix}").getpixel((9, 9)) == RED


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (2, 3)])
def test_absurd_shapes_are_read(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, BLUE).save(tmp_path / "x.png")
    assert read_rgb(tmp_path / "x.png").size == size
    assert read_rgb(tmp_path / "x.png", at_least=64).size == size


def test_the_content_decides_not_the_suffix(tmp_path: Path) -> None:
    quarters().save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / "x.jpg")
    assert corners(read_rgb(tmp_path / "x.jpg")) == [RED, GREEN, BLUE, WHITE]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(width=st.integers(1, 900), height=st.integers(1, 900), at_least=st.integers(1, 300))
def test_at_least_keeps_the_short_side(tmp_path: Path, width: int, height: int, at_least: int) -> None:
    Image.new("RGB", (width, height), GREEN).save(tmp_path / "x.jpg")
    short = min(read_rgb(tmp_path / "x.jpg", at_least=at_least).size)
    assert short >= min(at_least, width, height)
    if min(width, height) >= 8 * at_least:
        assert short == -(-min(width, height) // 8)  # decoded at 1/8


def test_at_least_is_the_same_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    quarters(800, 600).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "x.jpg", exif=exif)
    small = read_rgb(tmp_path / "x.jpg", at_least=100)
    assert small.size == (200, 150)
    assert corners(small) == [RED, GREEN, BLUE, WHITE]


def test_threads_get_what_one_reader_gets(tmp_path: Path) -> None:
    makers: list[Callable[[Path], None]] = [
        lambda p: quarters(200, 150).save(p),
        lambda p: quarters(200, 150).save(p, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
        lambda p: p.write_bytes(b"no picture") and None,
    ]
    paths = [tmp_path / f"{i}.jpg" for i in range(60)]
    for i, path in enumerate(paths):
        makers[i % 3](path)

    def outcome(path: Path) -> bytes | str:
        try:
            return read_rgb(path).tobytes()
        except ImageError as e:
            return str(e)

    before = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)
    alone = [outcome(path) for path in paths]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(outcome, paths)) == alone
    assert before == (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)
