"""The preprocessing contract: the geometry against torchvision's, the round trip, the odd shapes."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from edgekit.errors import LoadError, UsageError
from edgekit.images import ImageError
from edgekit.preprocess import MAX_ASPECT, Interpolation, Preprocess, fit_pixels, load_batch, to_input

SIDES = st.integers(1, 400)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8))


@settings(max_examples=80, deadline=None)
@given(
    width=SIDES,
    height=SIDES,
    size=st.integers(1, 96),
    margin=st.integers(0, 40),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_equals_torchvision(width: int, height: int, size: int, margin: int, interpolation: Interpolation) -> None:
    from torchvision.transforms import v2

    assume(max(width, height) <= MAX_ASPECT * min(width, height))
    resampling = {"bilinear": v2.InterpolationMode.BILINEAR, "bicubic": v2.InterpolationMode.BICUBIC}[interpolation]
    picture = noise(width, height)
    reference = v2.CenterCrop(size)(v2.Resize(size + margin, resampling)(picture))
    pixels = fit_pixels(picture, Preprocess(size, size + margin, interpolation))
    assert pixels.shape == (size, size, 3) and pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, reference)


@pytest.mark.parametrize("size", [(1, 20_000_000), (20_000_000, 1)])
def test_one_pixel_wide_costs_no_memory(size: tuple[int, int]) -> None:
    # resized as a whole it would be 256 x 5,120,000,000 pixels
    picture = Image.new("RGB", size, (9, 99, 199))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pixels = fit_pixels(picture, Preprocess(224, 256))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB on Linux
    assert (pixels == [9, 99, 199]).all()


@pytest.mark.parametrize("size", [(3, 900), (900, 3), (10, 83), (1, 10)])
def test_the_middle_of_a_long_picture_is_what_torchvision_sees(size: tuple[int, int]) -> None:
    from torchvision.transforms import v2

    picture = noise(*size)
    reference = v2.CenterCrop(48)(v2.Resize(48)(picture))
    difference = np.abs(fit_pixels(picture, Preprocess(48, 48, "bilinear")) - np.asarray(reference).astype(int))
    # the cut shape may make Pillow run its two passes in the other order: one more rounding
    assert difference.max() <= 1, f"max {difference.max()}, mean {difference.mean():.5f}"


def test_one_pixel_becomes_a_square() -> None:
    assert (fit_pixels(Image.new("RGB", (1, 1), (1, 2, 3)), Preprocess(32, 36)) == [1, 2, 3]).all()


def test_the_crop_is_central() -> None:
    picture = Image.new("RGB", (300, 100), (0, 0, 0))
    picture.paste((255, 255, 255), (100, 0, 200, 100))
    assert (fit_pixels(picture, Preprocess(100, 100)) == 255).all()


@given(
    size=st.integers(1, 512),
    margin=st.integers(0, 64),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    mean=st.tuples(*[st.floats(0, 1)] * 3),
    std=st.tuples(*[st.floats(0.01, 1)] * 3),
)
def test_round_trip_through_json(
    size: int,
    margin: int,
    interpolation: Interpolation,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> None:
    contract = Preprocess(size, size + margin, interpolation, mean, std)
    assert Preprocess.from_dict(json.loads(json.dumps(contract.to_dict()))) == contract


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 0},
        {"image_size": "large"},
        {"image_size": float("inf")},
        {"resize": 100},
        {"resize": 10**9},
        {"interpolation": "lanczos"},
        {"interpolation": ["bicubic"]},
        {"mean": [0.5]},
        {"mean": None},
        {"mean": [0.5, float("nan"), 0.5]},
        {"std": [0.5, 0.0, 0.5]},
        {"crop": "random"},
    ],
)
def test_a_damaged_contract_is_a_load_error(change: dict[str, Any]) -> None:
    good = Preprocess(224, 256).to_dict()
    assert Preprocess.from_dict(good) == Preprocess(224, 256)
    with pytest.raises(LoadError, match="not a preprocessing contract"):
        Preprocess.from_dict(good | change)
    with pytest.raises(LoadError, match="'resize'"):
        Preprocess.from_dict({key: value for key, value in good.items() if key != "resize"})


def test_a_wrong_option_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="did you mean 'bicubic'"):
        Preprocess(224, 256, "bicubik")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="image size 256 with resize 224"):
        Preprocess(256, 224)


def test_load_batch(tmp_path: Path) -> None:
    pictures = [noise(70, 50), noise(50, 90)]
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
    contract = Preprocess(32, 36)
    batch = load_batch([tmp_path / "0.png", tmp_path / "1.png"], contract)
    assert batch.shape == (2, 3, 32, 32) and batch.dtype == np.float32 and batch.flags["C_CONTIGUOUS"]
    for image, picture in zip(batch, pictures, strict=True):
        np.testing.assert_array_equal(np.rint(image.transpose(1, 2, 0) * 255), fit_pixels(picture, contract))
    assert load_batch([], contract).shape == (0, 3, 32, 32)
    with pytest.raises(ImageError, match=r"2\.png"):
        load_batch([tmp_path / "0.png", tmp_path / "2.png"], contract)


def test_to_input_spans_0_to_1() -> None:
    pixels = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
    np.testing.assert_allclose(to_input(pixels).ravel(), [0, 0.2, 1], atol=1e-7)
