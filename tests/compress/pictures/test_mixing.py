"""Mixed pictures: their labels, and what the teacher says of them, are mixed in the same shares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from edgekit.compress.parallel.shares import WHOLE, Split
from edgekit.compress.pictures.mixing import Mix, draw_mix, mixed_parts
from edgekit.compress.pictures.source import Batch

LABELS = np.array([0, 1, 2, -1, 0, -1, -1, 2])


def batch(side: int = 16) -> Batch:
    generator = torch.Generator().manual_seed(0)
    # each picture is of one value, so that what a mixed one holds is seen
    images = torch.arange(8.0).reshape(8, 1, 1, 1).expand(8, 3, side, side).contiguous() / 8
    teacher = F.normalize(torch.randn(8, 4, generator=generator), dim=1)
    return Batch(images, torch.from_numpy(LABELS), teacher)


def test_mixup_is_the_weighted_mean_of_everything() -> None:
    whole, mix = batch(), Mix(np.array([1, 0, 4, 5, 2, 3, 6, 7]), 0.75, None)
    (mixed,) = mixed_parts(whole, mix, WHOLE)
    assert torch.allclose(mixed.images[0], torch.full((3, 16, 16), 0.25 * 1 / 8))
    assert mixed.partners is not None
    assert mixed.partners.tolist() == LABELS[mix.partner].tolist()
    assert mixed.kept == 0.75
    assert mixed.teacher is not None and whole.teacher is not None
    expected = 0.75 * whole.teacher[0] + 0.25 * whole.teacher[1]
    assert torch.allclose(mixed.teacher[0], expected / expected.norm())
    assert torch.allclose(mixed.teacher[6], whole.teacher[6])


def test_cutmix_covers_a_box_and_counts_its_pixels() -> None:
    mix = Mix(np.roll(np.arange(8), 1), 0.9, (0.0, 0.5, 0.3, 1.0))
    (mixed,) = mixed_parts(batch(), mix, WHOLE)
    share = float((mixed.images[1] == 0).float().mean())
    assert share == pytest.approx(5 * 8 / 256)  # 0.3 of 16 rows are 5
    assert mixed.kept == pytest.approx(1 - share)
    assert torch.all(mixed.images[1, :, :5, 8:] == 0)
    assert torch.all(mixed.images[1, :, 5:] == 1 / 8)


@pytest.mark.parametrize("split", [(1, 2), (2, 1), (2, 2)])
def test_the_parts_of_a_step_are_those_of_the_whole(split: tuple[int, int]) -> None:
    world, accumulate = split
    mix = draw_mix(LABELS, 0.4, 0.0, (0, 1, 2))
    (whole,) = mixed_parts(batch(), mix, WHOLE)
    parts = [part for rank in range(world) for part in mixed_parts(batch(), mix, Split(rank, world, accumulate))]
    seen = torch.cat([part.images for part in parts])
    assert torch.equal(seen.flatten(1).sort(0).values, whole.images.flatten(1).sort(0).values)
    assert sum(part.share.samples for part in parts if part.share) == pytest.approx(1)
    assert sum(part.share.labelled for part in parts if part.share) == pytest.approx(1)


def test_labelled_pictures_meet_labelled_ones() -> None:
    for step in range(50):
        partner = draw_mix(LABELS, 0.2, 0.2, (0, 0, step)).partner
        assert sorted(partner) == list(range(8))
        assert ((LABELS[partner] >= 0) == (LABELS >= 0)).all()


def test_shares_are_drawn_as_the_papers_say() -> None:
    mixes = [draw_mix(LABELS, 0.4, 1.0, (0, 0, step)) for step in range(4000)]
    boxes = [mix.box is not None for mix in mixes]
    assert 0.45 < np.mean(boxes) < 0.55
    plain = [mix.kept for mix in mixes if mix.box is None]
    assert np.mean(plain) == pytest.approx(0.5, abs=0.03)
    assert np.var(plain) == pytest.approx(1 / (4 * (2 * 0.4 + 1)), rel=0.1)  # of Beta(a, a)
    for mix in mixes:
        if mix.box is not None:
            top, left, bottom, right = mix.box
            assert 0 <= top <= bottom <= 1 and 0 <= left <= right <= 1
            assert mix.kept == pytest.approx(1 - (bottom - top) * (right - left))
    assert draw_mix(LABELS, 0.4, 1.0, (0, 0, 7)).kept == mixes[7].kept
