"""Batches of clips and what the teacher says of them: replayed exactly, whole or resumed, from a store or anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.clips import read_clip
from edgekit.compress.pictures.pixels import Decoded, PixelStore, decode_rows, squeeze_pixels
from edgekit.compress.pictures.source import Batch
from edgekit.compress.recipe import AugmentConfig, load_recipe
from edgekit.compress.video.source import ClipSource
from edgekit.compress.video.teacher import ClipPlan, ClipTable, teach_clips
from edgekit.data import Sample, load_dataset
from edgekit.errors import LoadError
from edgekit.models.teacher import OnnxTeacher
from edgekit.preprocess import Preprocess, fit_pixels, to_input
from tests.teachers_for_tests import onnx_teacher
from tests.videos_for_tests import two_colours

FRAMES, KEPT = 3, 6
CONTRACT = Preprocess(32, 32)
CPU = torch.device("cpu")


class Made:
    """Ten clips, a teacher, and its store."""

    def __init__(self, folder: Path) -> None:
        dataset = load_dataset(two_colours(folder / "data", 5), kind="clips", val_fraction=0.3)
        self.teacher = OnnxTeacher(onnx_teacher(folder / "teacher.onnx"))
        self.store, self.cache = self._decoded(dataset.train), folder / "store"
        self.val = dataset.val

    @staticmethod
    def _decoded(samples: tuple[Sample, ...]) -> PixelStore:
        def read(path: Path) -> Decoded:
            return np.stack([squeeze_pixels(picture, 40) for picture in read_clip(path, KEPT)]), 1.0

        return decode_rows(samples, (KEPT, 40, 40, 3), read, scratch=None, advance=None, chunk=1)

    def plan(self, views: int, augment: AugmentConfig | None = None) -> ClipPlan:
        chosen = augment or AugmentConfig(crop_scale=(0.5, 1.0), flip=0.5, brightness=0.3)
        store = self.store
        return ClipPlan(store.samples, store.aspects, self.val, chosen, views, 0, FRAMES, KEPT)

    def teach(self, views: int) -> ClipTable:
        return teach_clips(self.teacher, self.plan(views), self.cache)

    def source(self, table: ClipTable | None, **changes: object) -> ClipSource:
        recipe = load_recipe(
            "ego4d", {"augment": self.plan(0).augment.model_dump(), "fit": {"batch_size": 2, **changes}}
        )
        return ClipSource(self.store, table, recipe, CONTRACT, FRAMES)


class _Counted(OnnxTeacher):
    """A teacher that knows how often it was asked."""

    asked = 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.asked += 1
        return super().__call__(images)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("clips"))


def equal(first: list[Batch], second: list[Batch]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) for a, b in pairs)


@pytest.mark.parametrize("views", [0, 2])
def test_the_teacher_is_asked_once(made: Made, views: int) -> None:
    table = made.teach(views)
    count = len(made.store.samples)
    assert table.train.shape == (count, 2, KEPT, 12) and table.val.shape == (len(made.val), 12)
    norms = np.linalg.norm(table.train.astype(np.float32), axis=-1)
    np.testing.assert_allclose(norms, 1, atol=2e-3)

    teacher = _Counted(Path(made.teacher.name))
    before = teacher.asked
    again = teach_clips(teacher, made.plan(views), made.cache)
    assert teacher.asked == before
    assert np.array_equal(again.train, table.train) and np.array_equal(again.val, table.val)


def test_plain_frames_are_embedded_one_by_one(made: Made) -> None:
    table = made.teach(0)
    pictures = read_clip(made.store.samples[0].path, KEPT)
    pixels = np.stack([fit_pixels(picture, made.teacher.preprocess) for picture in pictures])
    images = torch.from_numpy(to_input(pixels))
    np.testing.assert_allclose(table.train[0, 0], made.teacher(images).numpy(), atol=2e-3)
    np.testing.assert_allclose(table.train[0, 1], made.teacher(images.flip(3)).numpy(), atol=2e-3)


def test_a_damaged_store_is_named(made: Made, tmp_path: Path) -> None:
    teach_clips(made.teacher, made.plan(1), tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(LoadError, match="delete it, and it is made anew"):
        teach_clips(made.teacher, made.plan(1), tmp_path)


def test_other_clips_other_key(made: Made) -> None:
    plan = made.plan(1)
    keys = {
        plan.key(made.teacher),
        made.plan(2).key(made.teacher),
        made.plan(1, AugmentConfig()).key(made.teacher),
        ClipPlan(plan.train[1:], plan.aspects[1:], plan.val, plan.augment, 1, 0, FRAMES, KEPT).key(made.teacher),
        ClipPlan(plan.train, plan.aspects, plan.val, plan.augment, 1, 0, FRAMES, 2 * KEPT).key(made.teacher),
    }
    assert len(keys) == 5


@pytest.mark.parametrize("views", [0, 2])
def test_batches_are_a_function_of_the_epoch(made: Made, views: int) -> None:
    source = made.source(made.teach(views))
    whole = list(source.batches(2, CPU))
    assert [batch.images.shape[1:] for batch in whole] == [(FRAMES, 3, 32, 32)] * source.steps_per_epoch
    assert sum(len(batch.labels) for batch in whole) == len(made.store.samples)
    assert equal(whole[1:], list(source.batches(2, CPU, start=1)))
    assert not equal(whole, list(source.batches(3, CPU)))


def test_the_teacher_speaks_of_the_frames_that_were_drawn(made: Made) -> None:
    # each stored frame says its own number: the mean tells which were drawn
    count = len(made.store.samples)
    table = ClipTable(
        np.broadcast_to(np.eye(KEPT, dtype=np.float16), (count, 2, KEPT, KEPT)), np.zeros((1, KEPT), np.float16), ()
    )
    drawn = set()
    for epoch in range(1, 9):
        for batch in made.source(table).batches(epoch, CPU):
            assert batch.teacher is not None
            said = batch.teacher.numpy()
            np.testing.assert_allclose(said.max(axis=1), FRAMES**-0.5, atol=1e-6)  # F frames, each once
            assert ((said > 0).reshape(-1, FRAMES, KEPT // FRAMES).sum(axis=2) == 1).all()  # one of each segment
            drawn |= {tuple(np.flatnonzero(row)) for row in said}
    assert len(drawn) > 4  # of eight


def test_channels_last_changes_the_layout_only(made: Made) -> None:
    plain, last = (list(made.source(None, channels_last=flag).batches(1, CPU)) for flag in (False, True))
    assert equal(plain, last)
    assert last[0].images.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


def test_without_a_teacher(made: Made) -> None:
    assert all(batch.teacher is None for batch in made.source(None).batches(1, CPU))
