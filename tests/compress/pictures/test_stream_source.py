"""Batches out of tar shards: those of a folder, in an order known ahead, resumed anywhere, whatever is broken."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgekit.compress.parallel.shares import Split
from edgekit.compress.pictures.pixels import decode_train
from edgekit.compress.pictures.source import Batch, StoredSource
from edgekit.compress.pictures.stream_order import StreamOrder
from edgekit.compress.pictures.stream_source import StreamSource
from edgekit.compress.recipe import load_recipe
from edgekit.compress.store.format import ViewPlan
from edgekit.compress.store.table import Stores
from edgekit.compress.store.teach import TeachPlan, file_ids, pictures_of, teach
from edgekit.data import ImageDataset, load_dataset
from edgekit.errors import DataError
from edgekit.images import MAX_PIXELS
from edgekit.models.teacher import OnnxTeacher
from edgekit.preprocess import Preprocess
from edgekit.shard_writer import write_shards
from edgekit.shards import ShardDataset, load_shards
from tests.teachers_for_tests import onnx_teacher

RECIPE = load_recipe("edge", {"views": 2, "fit": {"batch_size": 8, "seed": 4}})
CONTRACT = Preprocess(24, 28)
CPU = torch.device("cpu")
SIZE = 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, count in (("train", 30), ("val", 4)):
        for label in ("cat", "dog"):
            for number in range(count):
                path = root / split / label / f"{number:02d}.x.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
                coarse.resize((40 + number, 50), Image.Resampling.BICUBIC).save(path)
    return load_dataset(root)


@pytest.fixture
def shards(folder: ImageDataset, tmp_path: Path) -> Path:
    write_shards(folder, tmp_path / "shards", shard_bytes=60_000)
    return tmp_path / "shards"


@pytest.fixture(scope="module")
def stores(folder: ImageDataset, tmp_path_factory: pytest.TempPathFactory) -> Stores:
    place = tmp_path_factory.mktemp("store")
    teacher = OnnxTeacher(onnx_teacher(place / "teacher.onnx"), threads=1)
    plan = TeachPlan(pictures_of(folder.train), [], ViewPlan(RECIPE.augment, 2, seed=0))
    return Stores((teach(teacher, plan, place / "store").store,), (1.0,), 2)


def streamed(dataset: ShardDataset, stores: Stores | None = None, **options: object) -> StreamSource:
    return StreamSource(dataset, stores, RECIPE, CONTRACT, size=SIZE, **options)  # type: ignore[arg-type]


def same(one: Batch, other: Batch) -> bool:
    teachers = (one.teacher, other.teacher)
    equal = torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
    return equal and (teachers == (None, None) or torch.equal(*teachers))  # type: ignore[arg-type]


@pytest.mark.parametrize("taught", [True, False])
def test_batches_are_bitwise_those_of_the_folder(
    folder: ImageDataset, shards: Path, stores: Stores, taught: bool
) -> None:
    dataset = load_shards(shards)
    assert len(dataset.train.shards) > 3 and len(dataset.train) == 60
    train = decode_train(folder.train, SIZE)
    keys = [sample.key for sample in train.samples]
    table = stores.table("train", keys, file_ids(train.samples)) if taught else None
    stored = StoredSource(train, table, RECIPE, CONTRACT)
    source = streamed(dataset, stores if taught else None)
    assert source.steps_per_epoch == stored.steps_per_epoch
    for epoch in (1, 2):
        pairs = zip(source.batches(epoch, CPU), stored.batches(epoch, CPU), strict=True)
        assert all(same(one, other) for one, other in pairs)


def order(dataset: ShardDataset, epoch: int, buffer: int, start: int = 0) -> list[str]:
    return [place.key for place in StreamOrder(dataset.train.shards, 4, buffer).epoch(epoch, start)]


@pytest.mark.parametrize("buffer", [1, 7, 16, 60, 1000])
def test_every_epoch_visits_every_picture_once_and_goes_on_anywhere(shards: Path, buffer: int) -> None:
    dataset = load_shards(shards)
    first = order(dataset, 1, buffer)
    assert len(set(first)) == len(first) == 60
    assert first == order(dataset, 1, buffer)
    assert first != order(dataset, 2, buffer)
    assert sorted(first) == sorted(order(dataset, 2, buffer))
    for start in (0, 1, 6, 7, 31, 59):
        assert order(dataset, 1, buffer, start) == first[start:]


def test_an_epoch_is_resumed_at_any_batch(shards: Path, stores: Stores) -> None:
    source = streamed(load_shards(shards), stores, buffer=16)
    whole = list(source.batches(3, CPU))
    for start in (1, 4, 7):
        rest = source.batches(3, CPU, start)
        assert all(same(one, other) for one, other in zip(rest, whole[start:], strict=True))


def test_processes_share_the_same_steps(shards: Path) -> None:
    source = streamed(load_shards(shards), buffer=16)
    parts = [list(source.batches(1, CPU, 0, Split(rank, 2, 1))) for rank in (0, 1)]
    for whole, *shared in zip(source.batches(1, CPU), *parts, strict=True):
        assert torch.equal(torch.cat([part.images for part in shared]), whole.images)
        assert sum(part.share.samples for part in shared if part.share) == pytest.approx(1)


def test_a_loop_that_ends_early_leaves_no_work_behind(shards: Path) -> None:
    batches: Iterator[Batch] = streamed(load_shards(shards)).batches(1, CPU)
    next(batches)
    batches.close()  # type: ignore[attr-defined]  # it is a generator; its threads end with it


def test_pictures_that_the_store_does_not_know_are_named(shards: Path, stores: Stores, tmp_path: Path) -> None:
    root = tmp_path / "other"
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            (root / split / label).mkdir(parents=True)
            Image.new("RGB", (40, 40), "red").save(root / split / label / "00.x.png")
    write_shards(load_dataset(root), tmp_path / "others")
    with pytest.raises(DataError, match=r"have another content than the teacher saw, e\.g\. train/cat/00\.x\.png"):
        list(streamed(load_shards(tmp_path / "others"), stores).batches(1, CPU))


def broken_copy(folder: ImageDataset, tmp_path: Path) -> Path:
    """Write shards of which one picture is garbage and one claims to be huge."""
    huge = bytearray(folder.train[1].path.read_bytes())
    huge[16:24] = (20_000).to_bytes(4, "big") * 2  # width and height in a PNG's first chunk, and that one's checksum
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    assert 20_000**2 > MAX_PIXELS  # noqa: SIM300 - what is checked stands first
    samples = list(folder.train)
    for row, content in ((0, b"no picture"), (1, bytes(huge))):
        path = tmp_path / f"{row}.png"
        path.write_bytes(content)
        samples[row] = type(samples[row])(samples[row].key, path, samples[row].label)
    dataset = ImageDataset(folder.root, folder.classes, tuple(samples), folder.val)
    write_shards(dataset, tmp_path / "broken", shard_bytes=60_000)
    return tmp_path / "broken"


def test_broken_and_huge_pictures_are_left_out_up_to_the_tolerance(folder: ImageDataset, tmp_path: Path) -> None:
    dataset = load_shards(broken_copy(folder, tmp_path))
    source = streamed(dataset, max_broken=0.1)
    assert sum(len(batch.labels) for batch in source.batches(1, CPU)) == 58
    reasons = [source.broken[sample.key] for sample in folder.train[:2]]
    assert "not a picture of a known format" in reasons[0] and "too large" in reasons[1]
    with pytest.raises(DataError, match="2 of 68 pictures cannot be read"):
        list(streamed(dataset, max_broken=0.02).batches(1, CPU))


def test_a_shard_that_is_cut_off_loses_its_end_only(shards: Path) -> None:
    path = load_shards(shards).train.shards[0].path
    path.write_bytes(path.read_bytes()[:20_000])
    dataset = load_shards(shards)
    lost = 60 - len(dataset.train)
    assert lost > 0 and len(dataset.broken) >= lost
    source = streamed(dataset, max_broken=1.0)
    assert sum(len(batch.labels) for batch in source.batches(1, CPU)) == 60 - lost
    with pytest.raises(DataError, match="more than --max-broken"):
        list(streamed(dataset, max_broken=0.01).batches(1, CPU))


def test_a_header_damaged_within_a_shard_of_the_right_size_is_found_when_it_is_read(shards: Path) -> None:
    path = load_shards(shards).train.shards[0].path
    content = bytearray(path.read_bytes())
    middle = content.index(b"ustar", len(content) // 2) - 257
    content[middle : middle + 512] = b"x" * 512
    path.write_bytes(content)
    dataset = load_shards(shards)
    assert len(dataset.train) == 60  # the index vouches for the size
    source = streamed(dataset, max_broken=1.0)
    assert sum(len(batch.labels) for batch in source.batches(1, CPU)) < 60
    assert any("is not there" in reason for reason in source.broken.values())
