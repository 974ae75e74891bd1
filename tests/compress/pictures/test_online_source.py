"""The teacher in the loop: it says of a view what a store of that view holds, and it sees what the student sees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgekit.compress.pictures.online_source import OnlineSource
from edgekit.compress.pictures.pixels import PixelStore, decode_train
from edgekit.compress.pictures.source import Decoded, Moment, epoch_views
from edgekit.compress.recipe import load_recipe
from edgekit.compress.store.format import ViewPlan
from edgekit.compress.store.table import join
from edgekit.compress.store.teach import TeachPlan, file_ids, pictures_of, teach
from edgekit.data import Sample
from edgekit.models.teacher import OnnxTeacher
from edgekit.preprocess import Preprocess
from tests.teachers_for_tests import ColourNet, onnx_teacher

RECIPE = load_recipe("edge", {"fit": {"batch_size": 8}})
CONTRACT = Preprocess(24, 28)
CPU = torch.device("cpu")
HALF = 1e-3
"""float16 rows."""


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> PixelStore:
    folder, samples = tmp_path_factory.mktemp("data"), []
    rng = np.random.default_rng(0)
    for number in range(20):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        path = folder / f"{number:02d}.png"
        coarse.resize((60 + 2 * number, 50), Image.Resampling.BICUBIC).save(path)
        samples.append(Sample(path.name, path, number % 2))
    return decode_train(samples, 30)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> list[OnnxTeacher]:
    folder = tmp_path_factory.mktemp("teachers")
    files = [onnx_teacher(folder / f"{dim}.onnx", net=ColourNet(dim)) for dim in (12, 7)]
    return [OnnxTeacher(file, threads=1) for file in files]


def test_it_says_of_a_view_what_the_store_of_that_view_holds(
    train: PixelStore, teachers: list[OnnxTeacher], tmp_path: Path
) -> None:
    plan = TeachPlan(pictures_of(train.samples), [], ViewPlan(RECIPE.augment, 2, seed=3))
    store = teach(teachers[0], plan, tmp_path / "store").store
    rows, numbers = np.arange(20), np.arange(20) % 2
    places = store.places("train", file_ids(train.samples)[:, 1])
    source = OnlineSource(train, teachers[:1], (1.0,), RECIPE, CONTRACT)
    said = source.said(rows, store.views(places, numbers))
    assert np.abs(said - store.embeddings(places, numbers)).max() < HALF
    other = source.said(rows, store.views(places, 1 - numbers))
    assert np.abs(said - other).max() > 10 * HALF  # another view is told apart


def test_a_batch_has_what_the_teachers_say_of_the_views_that_were_rendered(
    train: PixelStore, teachers: list[OnnxTeacher]
) -> None:
    source = OnlineSource(train, teachers, (0.75, 0.25), RECIPE, CONTRACT)
    batches = list(source.batches(2, CPU))
    assert [len(batch.labels) for batch in batches] == [10, 10]
    row_of = {batch.images[n].numpy().tobytes(): (b, n) for b, batch in enumerate(batches) for n in range(10)}
    assert len(row_of) == 20
    ids = source._ids
    decoded = Decoded(train.pixels, ids, train.aspects, np.zeros(20, np.int64))
    views, _ = epoch_views(decoded, None, Moment(RECIPE, CONTRACT, 2, CPU))
    alone = [OnlineSource(train, [teacher], (1.0,), RECIPE, CONTRACT) for teacher in teachers]
    expected = join([one.said(np.arange(20), views) for one in alone], (0.75, 0.25))
    said = torch.cat([batch.teacher for batch in batches if batch.teacher is not None]).numpy()
    assert said.shape == (20, 19)
    assert np.abs(np.sort(said, axis=0) - np.sort(expected, axis=0)).max() < HALF


def test_epochs_differ_and_a_resumed_one_is_the_same(train: PixelStore, teachers: list[OnnxTeacher]) -> None:
    source = OnlineSource(train, teachers[:1], (1.0,), RECIPE, CONTRACT)
    first, again, later = (list(source.batches(epoch, CPU)) for epoch in (1, 1, 2))
    (resumed,) = source.batches(1, CPU, start=1)
    for one, other in ((first[1], again[1]), (first[1], resumed)):
        assert torch.equal(one.images, other.images)
        assert one.teacher is not None and other.teacher is not None and torch.equal(one.teacher, other.teacher)
    assert not torch.equal(first[0].images, later[0].images)
    plain = replace(first[0], teacher=None)
    assert plain.teacher is None
