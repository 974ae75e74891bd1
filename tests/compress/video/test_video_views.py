"""Clips in training: segment sampling, one view for all frames, the teacher's mean of the frames that were drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from edgekit.compress.pictures.views import draw_views, render
from edgekit.compress.recipe import AugmentConfig
from edgekit.compress.store.sight import cut
from edgekit.compress.training.randomness import sample_ids
from edgekit.compress.video.views import (
    clip_embeddings,
    colour_clips,
    kept_frames,
    render_clips,
    segment_frames,
    to_frames,
)
from edgekit.preprocess import Preprocess

IDS = sample_ids([f"clip {number}" for number in range(400)])
CONTRACT = Preprocess(24, 24)
STRONG = AugmentConfig(
    crop_scale=(0.3, 0.9), crop_ratio=(0.75, 1.333), flip=0.5, brightness=0.4, contrast=0.4, saturation=0.4, erase=0.5
)


@pytest.mark.parametrize(("frames", "kept"), [(2, 8), (8, 32), (16, 64), (32, 128), (48, 96), (64, 128)])
def test_up_to_four_times_as_many_are_kept(frames: int, kept: int) -> None:
    assert kept_frames(frames) == kept and kept % frames == 0


def test_one_frame_of_each_segment() -> None:
    picks = segment_frames(0, 1, IDS, 8, 32)
    assert picks.shape == (400, 8)
    assert (picks // 4 == np.arange(8)).all()
    counts = np.bincount((picks % 4).ravel(), minlength=4) / picks.size
    assert counts == pytest.approx(0.25, abs=0.03)  # five standard deviations


def test_frames_are_a_function_of_seed_epoch_and_clip() -> None:
    picks = segment_frames(0, 1, IDS, 4, 16)
    assert np.array_equal(picks, segment_frames(0, 1, IDS, 4, 16))
    assert np.array_equal(picks[5:9], segment_frames(0, 1, IDS[5:9], 4, 16))
    assert not np.array_equal(picks, segment_frames(0, 2, IDS, 4, 16))
    assert not np.array_equal(picks, segment_frames(1, 1, IDS, 4, 16))


def test_all_frames_of_a_clip_get_the_same_view() -> None:
    rng = np.random.default_rng(0)
    still = rng.integers(0, 256, (3, 1, 32, 32, 3)).astype(np.uint8).repeat(5, axis=1)  # five times the same frame
    views = draw_views(STRONG, CONTRACT, np.ones(3, np.float32), IDS[:3], (0, "augment", 1))
    shown = render_clips(to_frames(still), views, 24)
    assert shown.shape == (3, 5, 3, 24, 24)
    torch.testing.assert_close(shown, shown[:, :1].expand_as(shown))
    # a clip of one frame that stands still is what a picture is
    torch.testing.assert_close(shown[:, 0], render(to_frames(still)[:, 0], views, 24), rtol=1e-4, atol=1e-5)


def test_contrast_is_about_the_mean_of_the_clip() -> None:
    config = AugmentConfig(contrast=0.9)
    views = draw_views(config, CONTRACT, np.ones(1, np.float32), IDS[:1], (0, "augment", 1))
    factor = float(views.colours[0, 1])
    dark, light = 0.4, 0.6
    clip = torch.stack([torch.full((3, 4, 4), dark), torch.full((3, 4, 4), light)])[None]
    shown = colour_clips(clip, views)
    expected = [0.5 + factor * (level - 0.5) for level in (dark, light)]
    assert shown.mean((2, 3, 4))[0].tolist() == pytest.approx(expected, abs=1e-4)


def test_a_cut_is_that_of_the_renderer() -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3)).astype(np.uint8))
    smooth = coarse.resize((96, 96), Image.Resampling.BICUBIC)  # where any resampling gives nearly the same
    geometry = AugmentConfig(crop_scale=(0.4, 0.6), flip=0.5)
    for number in range(4):
        views = draw_views(geometry, CONTRACT, np.ones(1, np.float32), IDS[number : number + 1], (0, "view", 0))
        shown = cut(smooth, views.boxes[0], bool(views.flips[0]), 24).copy()
        drawn = render_clips(to_frames(np.array(smooth)[None, None]), views, 24)[0, 0]
        assert (to_frames(shown).float().div(255) - drawn).abs().mean() < 0.02


def test_clip_embedding_is_the_unit_mean() -> None:
    rng = np.random.default_rng(0)
    frames = rng.normal(size=(2, 3, 5, 8))
    frames /= np.linalg.norm(frames, axis=-1, keepdims=True)
    found = clip_embeddings(frames.astype(np.float16))
    mean = frames.mean(axis=2)
    assert found.dtype == np.float32 and found.shape == (2, 3, 8)
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean, axis=-1, keepdims=True), atol=2e-3)
    assert np.isfinite(clip_embeddings(np.array([[1.0, 0.0], [-1.0, 0.0]]))).all()  # frames that cancel
