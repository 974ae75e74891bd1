"""Clips out of photos: a camera pans, zooms and shakes over each, so that labelled photos make a data set of clips.

The frames of such a clip are of one photo, as those of a short egocentric clip are of one scene; what moves in the
scene is missing. Every clip has a photo of its own, so that no validation clip shows what training has seen.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgekit.atomic import atomic_folder, write_text
from edgekit.compress.training.randomness import permutation, sample_ids, uniforms
from edgekit.data import ImageDataset, Sample
from edgekit.errors import UsageError
from edgekit.images import read_rgb

_WINDOW = (0.55, 0.95)
"""Smallest and largest side of what the camera sees, as a share of the photo's shorter side."""

_SHAKE = 0.015
JPEG_QUALITY = 90


def camera_path(seed: int, key: str, frames: int) -> NDArray[np.float64]:
    """Return the camera's windows (frames, 3) over the photo `key`: centre x, y and side.

    The centre is a share of the room that the window has within the photo, the side one of the photo's shorter side:
    a straight way between two drawn windows, and a shake about it. A function of (seed, key) alone.
    """
    drawn = uniforms(seed, "camera", 0, sample_ids([key]), 10)[0]
    start, end = drawn[0:3], drawn[3:6]
    at = np.linspace(0, 1, frames)[:, None]
    path: NDArray[np.float64] = start + (end - start) * at
    waves = 2 * np.pi * (np.array([3.0, 4.0]) * at + drawn[6:8])
    path[:, :2] = np.clip(path[:, :2] + _SHAKE * (1 + drawn[8:10]) * np.sin(waves), 0, 1)
    path[:, 2] = _WINDOW[0] + (_WINDOW[1] - _WINDOW[0]) * path[:, 2]
    return path


def pan(photo: Image.Image, path: NDArray[np.float64], side: int) -> list[Image.Image]:
    """Return what a camera sees of a photo: one square picture of `side` pixels for each window of its path."""
    width, height = photo.size
    frames = []
    for x, y, share in path:
        window = share * min(width, height)
        left, top = x * (width - window), y * (height - window)
        box = (left, top, left + window, top + window)
        frames.append(photo.resize((side, side), Image.Resampling.BICUBIC, box=box, reducing_gap=None))
    return frames


def choose_photos(samples: Sequence[Sample], counts: Sequence[int], seed: int) -> list[list[Sample]]:
    """Return disjoint sets of photos, `counts[i]` of each class in the i-th.

    Raises:
        UsageError: a class has too few.
    """
    by_class: dict[int, list[Sample]] = {}
    for sample in samples:
        if sample.label is not None:
            by_class.setdefault(sample.label, []).append(sample)
    sets: list[list[Sample]] = [[] for _ in counts]
    for _, members in sorted(by_class.items()):
        if len(members) < sum(counts):
            raise UsageError(f"{len(members)} photos of a class, e.g. {members[0].key}; {sum(counts)} are needed")
        order = permutation(seed, 0, sample_ids([member.key for member in members]))
        start = 0
        for chosen, count in zip(sets, counts, strict=True):
            chosen += [members[row] for row in order[start : start + count]]
            start += count
    return sets


def write_clips(dataset: ImageDataset, samples: Sequence[Sample], folder: Path, *, frames: int, side: int) -> None:
    """Write the clip of every photo as `<folder>/<class>/<photo>/NN.jpg`, whole or not at all.

    Args:
        dataset: names the classes.
        samples: photos.
        folder: new.
        frames: of each clip.
        side: of each frame, in pixels.
    """
    with atomic_folder(folder) as fresh:
        for sample in samples:
            photo = read_rgb(sample.path)
            clip = fresh / clip_name(dataset, sample)
            clip.mkdir(parents=True)
            for number, frame in enumerate(pan(photo, camera_path(0, sample.key, frames), side)):
                frame.save(clip / f"{number:02d}.jpg", quality=JPEG_QUALITY)


def write_split(
    dataset: ImageDataset, splits: Mapping[str, Sequence[Sample]], clips: Path, path: Path, label: str = "{}"
) -> None:
    """Write the CSV (path,label,split) of a clip data set.

    Args:
        dataset: of the photos; names the classes.
        splits: photos whose clips `write_clips` wrote.
        clips: where it did.
        path: the CSV, beside that folder.
        label: pattern of the clips' class names.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("path", "label", "split"))
    for split, samples in splits.items():
        for sample in samples:
            assert sample.label is not None, "choose_photos takes labelled ones"
            name = f"{clips.name}/{clip_name(dataset, sample)}"
            rows.writerow((name, label.format(dataset.classes[sample.label]), split))
    write_text(path, text.getvalue())


def clip_name(dataset: ImageDataset, sample: Sample) -> str:
    """Return where a photo's clip lies in the folder of clips."""
    assert sample.label is not None, "choose_photos takes labelled ones"
    return f"{dataset.classes[sample.label]}/{sample.path.stem}"
