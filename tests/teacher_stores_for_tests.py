"""A small real teacher, a hundred pictures, and the store that it makes of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from edgekit.compress.recipe import AugmentConfig
from edgekit.compress.store.format import ViewPlan
from edgekit.compress.store.reader import TeacherStore
from edgekit.compress.store.teach import Taught, TeachPlan, file_ids, pictures_of, teach
from edgekit.data import Sample
from edgekit.models.teacher import weights_hash
from edgekit.preprocess import Preprocess
from tests.teachers_for_tests import ColourNet

AUGMENT = AugmentConfig(crop_scale=(0.4, 1.0), crop_ratio=(0.8, 1.25), flip=0.5, brightness=0.3, erase=0.5)
HALF = 2e-3
"""float16 rows, and one rounding of pixels to 8 bits."""


class CountingTeacher:
    """A real small network as teacher, which counts the pictures it was shown, and may be killed while it works."""

    name = "colours"
    preprocess = Preprocess(32, 36)
    parameters = None

    def __init__(self, dim: int = 12, dies_after: int | None = None) -> None:
        self.net, self.embed_dim = ColourNet(dim).eval(), dim
        self.shown, self.dies_after = 0, dies_after

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        self.shown += len(images)
        if self.dies_after is not None and self.shown > self.dies_after:
            os.kill(os.getpid(), signal.SIGKILL)
        rows: Tensor = self.net(images)
        return rows

    def class_scores(self, classes: Sequence[str], templates: Sequence[str]) -> Tensor | None:
        return None

    def fingerprint(self) -> str:
        return weights_hash(self.net)


def draw_samples(folder: Path) -> list[Sample]:
    """A hundred pictures of several shapes."""
    found, rng = [], np.random.default_rng(0)
    for number in range(100):
        path = folder / f"{number:03d}.png"
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        coarse.resize((60 + number, 50), Image.Resampling.BICUBIC).save(path)
        found.append(Sample(path.name, path, number % 2))
    return found


def planned(train: Sequence[Sample], val: Sequence[Sample], count: int = 3, **change: object) -> TeachPlan:
    """Shards of 32 pictures, so that a few of them are enough."""
    views = replace(ViewPlan(AUGMENT, count, seed=1), **change)  # type: ignore[arg-type]
    return TeachPlan(list(pictures_of(train)), list(pictures_of(val)), views, rows_per_shard=32)


def taught(samples: list[Sample], path: Path, count: int = 3) -> Taught:
    return teach(CountingTeacher(), planned(samples[:96], samples[96:], count), path)


def rows_of(store: TeacherStore, samples: Sequence[Sample], number: int) -> NDArray[np.float16]:
    places = store.places("train", file_ids(samples)[:, 1])
    assert (places >= 0).all()
    return store.embeddings(places, np.full(len(samples), number))


def contents(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.iterdir() if path.name != "lock"}
