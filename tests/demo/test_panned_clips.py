"""Clips out of photos: the camera stays on the photo, moves, and is a function of the photo's name."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekit.clips import read_clip
from edgekit.data import ImageDataset, load_dataset
from edgekit.demo.panned_clips import camera_path, choose_photos, clip_name, pan, write_clips, write_split
from edgekit.errors import UsageError


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cold", "warm"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(6):
                pixels = rng.integers(0, 256, (40, 60, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{split}{number}.png")
    return load_dataset(root)


def test_the_camera_stays_on_the_photo_and_moves() -> None:
    paths = [camera_path(0, f"photo {number}", 24) for number in range(200)]
    every = np.concatenate(paths)
    assert every.shape == (4800, 3)
    assert every[:, :2].min() >= 0 and every[:, :2].max() <= 1
    assert 0.5 < every[:, 2].min() < 0.6 and 0.9 < every[:, 2].max() < 1
    assert np.mean([np.ptp(path[:, 0]) for path in paths]) > 0.2  # a third, between two uniform numbers
    assert max(np.abs(np.diff(path[:, 2])).max() for path in paths) < 0.03  # no jumps


def test_the_path_is_a_function_of_seed_and_photo() -> None:
    assert np.array_equal(camera_path(0, "a", 8), camera_path(0, "a", 8))
    assert not np.array_equal(camera_path(0, "a", 8), camera_path(0, "b", 8))
    assert not np.array_equal(camera_path(0, "a", 8), camera_path(1, "a", 8))


def test_a_frame_shows_its_window() -> None:
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (100, 200, 3))  # the level says where
    left, right = pan(Image.fromarray(ramp.copy()), np.array([[0.0, 0.5, 0.5], [1.0, 0.5, 0.5]]), 32)
    assert left.size == (32, 32)
    assert np.asarray(left).mean() == pytest.approx(24.5, abs=1) and np.asarray(right).mean() == pytest.approx(
        174.5, abs=1
    )


def test_sets_are_disjoint_and_balanced(photos: ImageDataset) -> None:
    sets = choose_photos(photos.val, (1, 2, 3), 0)
    keys = [{sample.key for sample in chosen} for chosen in sets]
    assert [len(names) for names in keys] == [2, 4, 6] and len(set.union(*keys)) == 12
    assert all(
        sorted(s.label or 0 for s in chosen) == [0] * n + [1] * n for n, chosen in zip((1, 2, 3), sets, strict=True)
    )
    assert choose_photos(photos.val, (1, 2, 3), 0) == sets and choose_photos(photos.val, (1, 2, 3), 1) != sets
    with pytest.raises(UsageError, match=r"6 photos of a class.*7 are needed"):
        choose_photos(photos.val, (3, 4), 0)


def test_clips_and_split_are_a_data_set(photos: ImageDataset, tmp_path: Path) -> None:
    train, val = choose_photos(photos.val, (2, 1), 0)
    write_clips(photos, [*train, *val], tmp_path / "clips", frames=5, side=24)
    write_split(photos, {"train": train, "val": val}, tmp_path / "clips", tmp_path / "split.csv", "{} (clip)")
    dataset = load_dataset(tmp_path / "split.csv", kind="clips")
    assert dataset.classes == ("cold (clip)", "warm (clip)") and (len(dataset.train), len(dataset.val)) == (4, 2)
    frames = read_clip(tmp_path / "clips" / clip_name(photos, val[0]), 5)
    assert len(frames) == 5 and frames[0].size == (24, 24)
    with (tmp_path / "split.csv").open() as file:
        assert [row["split"] for row in csv.DictReader(file)] == 4 * ["train"] + 2 * ["val"]
