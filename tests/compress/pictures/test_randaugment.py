"""RandAugment: the operations against Pillow, drawn evenly, the same on a small and a large picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torch.nn import functional as F

from edgekit.compress.pictures.randaugment import OPERATIONS, apply_operations, draw_operations
from edgekit.compress.pictures.views import draw_views, render
from edgekit.compress.recipe import AugmentConfig
from edgekit.compress.training.randomness import sample_ids
from edgekit.preprocess import Preprocess

IDS = sample_ids([f"{number}.jpg" for number in range(7000)])
LEVEL = 1 / 255


def waves(size: int) -> Image.Image:
    x, y = np.meshgrid((np.arange(size) + 0.5) / size, (np.arange(size) + 0.5) / size)
    planes = [np.sin(4.1 * x + 2.3 * y), np.cos(3.9 * y - x), np.sin(5.1 * x) * np.cos(2.7 * y)]
    return Image.fromarray(np.stack([110 + 80 * plane for plane in planes], axis=2).astype(np.uint8))


def tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255


def one(images: Tensor, name: str, strength: float) -> Tensor:
    number = np.full((len(images), 1), OPERATIONS.index(name), np.int8)
    return apply_operations(images, number, np.full((len(images), 1), strength, np.float32))


@pytest.mark.parametrize(
    ("name", "strength", "expected"),
    [
        ("brightness", 0.5, lambda p: ImageEnhance.Brightness(p).enhance(1.45)),
        ("saturation", -0.5, lambda p: ImageEnhance.Color(p).enhance(0.55)),
        ("contrast", 0.5, lambda p: ImageEnhance.Contrast(p).enhance(1.45)),
        ("posterize", 1.0, lambda p: ImageOps.posterize(p, 4)),
        ("solarize", 0.5, lambda p: ImageOps.solarize(p, 128)),
        ("autocontrast", 0.5, ImageOps.autocontrast),
        ("equalize", 0.5, ImageOps.equalize),
    ],
)
def test_colour_operations_are_pillows(name: str, strength: float, expected: object) -> None:
    assert callable(expected)
    picture = waves(64)
    difference = (one(tensor(picture), name, strength) - tensor(expected(picture))).abs()
    assert difference.mean() < 2 * LEVEL
    assert (one(tensor(picture), name, strength) - tensor(picture)).abs().mean() > 4 * LEVEL


@pytest.mark.parametrize("name", [n for n in OPERATIONS if n.startswith(("shear", "translate", "rotate"))])
def test_movements_are_the_same_at_any_size(name: str) -> None:
    """The teacher's 224 and the student's 64 pixels must show one view."""
    large, small = waves(224), waves(64)
    moved = F.interpolate(one(tensor(large), name, 0.4), 64, mode="area")
    difference = (moved - one(tensor(small), name, 0.4)).abs()
    assert difference.mean() < 3 * LEVEL
    assert (one(tensor(small), name, 0.4) - one(tensor(small), name, -0.4)).abs().mean() > 10 * LEVEL


def test_every_operation_and_sign_is_drawn_evenly() -> None:
    numbers, strengths = draw_operations(2, 15.0, IDS, (0, "view", 3))
    assert numbers.shape == strengths.shape == (7000, 2)
    for column in range(2):
        counts = np.bincount(numbers[:, column], minlength=len(OPERATIONS))
        assert counts.min() > 400  # of 500 expected, five standard deviations
        assert counts.max() < 600
    assert set(np.unique(strengths)) == {-0.5, 0.5}
    assert abs(float((strengths > 0).mean()) - 0.5) < 0.03


def test_operations_are_a_function_of_the_sample() -> None:
    numbers, strengths = draw_operations(2, 9.0, IDS, (0, "view", 3))
    again, same = draw_operations(2, 9.0, IDS[::-1], (0, "view", 3))
    assert np.array_equal(numbers, again[::-1])
    assert np.array_equal(strengths, same[::-1])
    other, _ = draw_operations(2, 9.0, IDS, (0, "view", 4))
    assert (numbers != other).mean() > 0.8


def test_a_batch_gets_each_samples_own_operations_in_order() -> None:
    images = torch.cat([tensor(waves(32)), tensor(waves(32)).flip(3)])
    numbers = np.array([[OPERATIONS.index("rotate"), OPERATIONS.index("solarize")], [0, OPERATIONS.index("equalize")]])
    strengths = np.array([[0.5, 0.5], [0.3, -0.3]], np.float32)
    result = apply_operations(images, numbers.astype(np.int8), strengths)
    first = one(one(images[:1], "rotate", 0.5), "solarize", 0.5)
    assert torch.allclose(result[:1], first)
    assert torch.allclose(result[1:], one(images[1:], "equalize", -0.3))


def test_views_carry_them_and_rendering_replays_them() -> None:
    config = AugmentConfig(randaugment=2, magnitude=12)
    contract, aspects = Preprocess(64, 64), np.ones(40, np.float32)
    views = draw_views(config, contract, aspects, IDS[:40], (1, "view", 0))
    plain = draw_views(AugmentConfig(), contract, aspects, IDS[:40], (1, "view", 0))
    assert views.operations.shape == (40, 2)
    assert plain.operations.shape == (40, 0)
    pixels = torch.from_numpy(np.array(waves(64))).permute(2, 0, 1).expand(40, 3, 64, 64)
    shown = render(pixels, views, 64)
    expected = apply_operations(render(pixels, plain, 64), views.operations, views.strengths)
    assert torch.equal(shown, expected)
    assert shown.min() >= 0
    assert shown.max() <= 1
