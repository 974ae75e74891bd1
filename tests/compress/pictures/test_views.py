"""Views: drawn within bounds, rendered as Pillow would, colours as Pillow's ImageEnhance."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from edgekit.compress.pictures.pixels import squeeze_pixels
from edgekit.compress.pictures.views import Views, colour, draw_views, erase, plain_views, render
from edgekit.compress.recipe import AugmentConfig
from edgekit.compress.training.randomness import sample_ids
from edgekit.preprocess import Preprocess, fit_pixels

CONTRACT = Preprocess(64, 72)
IDS = sample_ids([f"{number}.jpg" for number in range(4000)])
CROPS = AugmentConfig(crop_scale=(0.35, 1.0), crop_ratio=(0.75, 1.333), flip=0.5, brightness=0.3, erase=0.25)
LEVEL = 1 / 255


def smooth_picture(width: int, height: int) -> Image.Image:
    """A picture of slow waves, different in every channel and direction: resampling filters hardly matter on it."""
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    waves = [np.sin(2.1 * x + 1.3 * y), np.cos(2.9 * y - x), np.sin(3.1 * x) * np.cos(1.7 * y)]
    return Image.fromarray(np.stack([127.5 + 110 * wave for wave in waves], axis=2).astype(np.uint8))


def stored(picture: Image.Image, size: int = 80) -> torch.Tensor:
    return torch.from_numpy(squeeze_pixels(picture, size).copy()).permute(2, 0, 1)[None]


def as_image(pixels: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


def one_view(
    box: tuple[float, float, float, float] = (0, 0, 1, 1),
    flip: bool = False,
    colours: tuple[float, float, float] = (1, 1, 1),
    erased: tuple[float, float, float, float] = (0, 0, 0, 0),
) -> Views:
    def row(values: tuple[float, ...]) -> NDArray[np.float32]:
        return np.array([values], np.float32)

    none = np.zeros((1, 0), np.float32)
    return Views(row(box), np.array([flip]), row(colours), row(erased), none.astype(np.int8), none)


@pytest.mark.parametrize("size", [(96, 96), (150, 100), (90, 200)])
def test_the_plain_view_is_what_the_contract_makes(size: tuple[int, int]) -> None:
    picture = smooth_picture(*size)
    rendered = render(stored(picture), plain_views(np.array([size[0] / size[1]], np.float32), CONTRACT), 64)
    difference = (rendered - as_image(fit_pixels(picture, CONTRACT))).abs()
    assert difference.max() < 4 * LEVEL
    assert difference.mean() < LEVEL


@pytest.mark.parametrize("box", [(0.1, 0.2, 0.5, 0.4), (0.0, 0.0, 0.3, 1.0), (0.6, 0.55, 0.4, 0.45)])
def test_a_box_is_cut_as_pillow_cuts_it(box: tuple[float, float, float, float]) -> None:
    picture = smooth_picture(160, 120)
    left, top, width, height = box
    corners = (left * 160, top * 120, (left + width) * 160, (top + height) * 120)
    expected = as_image(np.asarray(picture.resize((64, 64), Image.Resampling.BILINEAR, box=corners)))
    difference = (render(stored(picture), one_view(box), 64) - expected).abs()
    assert difference.max() < 4 * LEVEL
    assert difference.mean() < LEVEL


def test_a_flip_mirrors_the_same_crop() -> None:
    pixels = stored(smooth_picture(160, 120))
    box = (0.1, 0.2, 0.5, 0.4)
    flipped, upright = (render(pixels, one_view(box, flip=flip), 64) for flip in (True, False))
    assert torch.allclose(flipped, upright.flip(3), atol=1e-5)
    assert (flipped - upright).abs().max() > 0.1


def test_every_picture_of_a_batch_gets_its_own_view() -> None:
    pixels = torch.cat([stored(smooth_picture(160, 120)), stored(smooth_picture(90, 100))])
    views = [
        one_view((0.1, 0.2, 0.5, 0.4), True, (1.2, 0.8, 1.1)),
        one_view((0, 0.1, 0.9, 0.9), False, (0.7, 1.3, 0.5)),
    ]
    both = Views.joined(views)
    together = render(pixels, both, 64)
    for number, view in enumerate(views):
        assert torch.allclose(together[number : number + 1], render(pixels[number : number + 1], view, 64), atol=1e-6)


@pytest.mark.parametrize("factors", list(product((0.7, 1.0, 1.3), repeat=3)))
def test_colours_are_those_of_image_enhance(factors: tuple[float, float, float]) -> None:
    picture = smooth_picture(64, 64)
    expected = picture
    for factor, enhancer in zip(
        factors, (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), strict=True
    ):
        expected = enhancer(expected).enhance(factor)
    ours = colour(as_image(np.asarray(picture)), one_view(colours=factors))
    assert ours.min() >= 0
    assert ours.max() <= 1
    assert (ours - as_image(np.asarray(expected))).abs().max() < 4 * LEVEL  # Pillow rounds after each step


def test_no_colour_factor_changes_nothing() -> None:
    image = as_image(np.asarray(smooth_picture(64, 64)))
    assert colour(image, one_view()) is image


def test_erasing_sets_exactly_the_rectangle_to_the_mean() -> None:
    image = as_image(np.asarray(smooth_picture(64, 64)))
    erased = erase(image, one_view(erased=(0.25, 0.5, 0.25, 0.25)))
    changed = torch.zeros(64, 64, dtype=torch.bool)
    changed[32:48, 16:32] = True
    assert torch.equal(erased[0][:, ~changed], image[0][:, ~changed])
    assert torch.allclose(erased[0][:, changed], image.mean())


def test_drawn_views_stay_inside_and_reach_what_the_settings_say() -> None:
    aspects = np.exp(np.linspace(-1, 1, len(IDS))).astype(np.float32)
    views = draw_views(CROPS, CONTRACT, aspects, IDS, (0, "view", 0))
    left, top, width, height = views.boxes.T
    assert min(left.min(), top.min()) >= 0
    assert max((left + width).max(), (top + height).max()) <= 1 + 1e-6
    ratio = width / height * aspects  # in pixels
    assert ratio.min() >= 0.75 * 0.999
    assert ratio.max() <= 1.333 * 1.001
    assert (width * height).max() <= 1
    assert abs(views.flips.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(IDS))
    assert 0.7 <= views.colours[:, 0].min() < 0.72 < 1.28 < views.colours[:, 0].max() <= 1.3
    assert (views.colours[:, 1:] == 1).all()
    has_hole = views.erased[:, 2] > 0
    assert abs(has_hole.mean() - 0.25) < 0.03
    area = views.erased[has_hole, 2] * views.erased[has_hole, 3]
    assert 0.019 < area.min() < 0.025
    assert 0.19 < area.max() < 0.201
    assert (views.erased[:, :2] + views.erased[:, 2:]).max() <= 1 + 1e-6


def test_the_area_of_square_crops_of_square_pictures_is_uniform() -> None:
    config = AugmentConfig(crop_scale=(0.2, 0.9))
    boxes = draw_views(config, CONTRACT, np.ones(len(IDS), np.float32), IDS, (0, "view", 0)).boxes
    area = boxes[:, 2] * boxes[:, 3]
    assert np.quantile(area, [0, 0.25, 0.5, 0.75, 1]) == pytest.approx([0.2, 0.375, 0.55, 0.725, 0.9], abs=0.02)
    assert np.allclose(boxes[:, 2], boxes[:, 3])


def test_a_crop_that_does_not_fit_is_shrunk_and_keeps_its_shape() -> None:
    config = AugmentConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0001))
    boxes = draw_views(config, CONTRACT, np.full(10, 2.0, np.float32), IDS[:10], (0, "view", 0)).boxes
    assert boxes[:, 2:] == pytest.approx(np.tile([0.5, 1.0], (10, 1)), abs=1e-3)  # the largest square of a 2:1 picture


def test_without_augmentation_a_drawn_view_is_the_plain_one() -> None:
    aspects = np.array([0.5, 1.0, 1.7], np.float32)
    drawn, plain = (
        draw_views(AugmentConfig(), CONTRACT, aspects, IDS[:3], (0, "view", 0)),
        plain_views(aspects, CONTRACT),
    )
    for field in ("boxes", "flips", "colours", "erased"):
        assert (getattr(drawn, field) == getattr(plain, field)).all()


def test_certain_means_always() -> None:
    views = draw_views(AugmentConfig(flip=1.0, erase=1.0), CONTRACT, np.ones(len(IDS), np.float32), IDS, (3, "view", 0))
    assert views.flips.all()
    assert (views.erased[:, 2] > 0).all()


def test_views_of_some_rows_are_those_rows() -> None:
    views = draw_views(CROPS, CONTRACT, np.ones(9, np.float32), IDS[:9], (0, "view", 0))
    taken = views.take(np.array([4, 1]))
    assert len(taken) == 2
    assert (taken.boxes == views.boxes[[4, 1]]).all()
    assert (taken.flips == views.flips[[4, 1]]).all()
