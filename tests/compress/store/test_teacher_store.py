"""The teacher store: what is stored is what the teacher says of the stored view; killed, extended, refused."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from edgekit.compress.pictures.views import Views, colour
from edgekit.compress.recipe import AugmentConfig
from edgekit.compress.store.format import StoreMismatchError, read_manifest
from edgekit.compress.store.reader import TeacherStore
from edgekit.compress.store.table import Stores, plain_rows
from edgekit.compress.store.teach import file_ids, teach
from edgekit.compress.store.writer import writing
from edgekit.data import Sample
from edgekit.preprocess import Preprocess, load_batch
from tests.teacher_stores_for_tests import (
    AUGMENT,
    HALF,
    CountingTeacher,
    contents,
    draw_samples,
    planned,
    rows_of,
    taught,
)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return draw_samples(tmp_path_factory.mktemp("data"))


def views_of(store: TeacherStore, samples: Sequence[Sample], number: int) -> Views:
    return store.views(store.places("train", file_ids(samples)[:, 1]), np.full(len(samples), number))


def seen(sample: Sample, view: Views, size: int = 32) -> Tensor:
    """Cut one view from the full picture, independently of the code under test."""
    left, top, width, height = view.boxes[0]
    with Image.open(sample.path) as picture:
        w, h = picture.size
        corners = (left * w, top * h, min((left + width) * w, w), min((top + height) * h, h))
        cut = picture.resize((size, size), Image.Resampling.BICUBIC, box=corners)
    if view.flips[0]:
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = torch.from_numpy(np.asarray(cut).copy()).permute(2, 0, 1)[None].float() / 255
    return colour(image, view)  # what is erased, only the student sees


def plain(samples: Sequence[Sample]) -> Tensor:
    return torch.from_numpy(load_batch([sample.path for sample in samples], CountingTeacher.preprocess))


def test_a_stored_row_is_what_the_teacher_says_of_the_stored_view(samples: list[Sample], tmp_path: Path) -> None:
    done, teacher = taught(samples, tmp_path / "store"), CountingTeacher()
    assert done.pictures == len(done.store) == 100
    for number in range(3):
        rows, views = rows_of(done.store, samples[:96], number), views_of(done.store, samples[:96], number)
        for row in (0, 31, 32, 95):
            expected = teacher(seen(samples[row], views.take(np.array([row]))))[0].numpy()
            assert np.abs(rows[row] - expected).max() < HALF
    assert len({rows_of(done.store, samples[:1], number).tobytes() for number in range(3)}) == 3
    val = Stores((done.store,), (1.0,), 3).table("val", [s.key for s in samples[96:]], file_ids(samples[96:]))
    assert np.abs(plain_rows(val, 4) - teacher(plain(samples[96:])).numpy()).max() < HALF


def test_without_views_the_plain_picture_and_its_flip_are_stored(samples: list[Sample], tmp_path: Path) -> None:
    store, images = taught(samples, tmp_path / "store", count=0).store, plain(samples[:96])
    assert (store.replays, store.num_views) == (False, 2)
    teacher = CountingTeacher()
    assert np.abs(rows_of(store, samples[:96], 0) - teacher(images).numpy()).max() < HALF
    assert np.abs(rows_of(store, samples[:96], 1) - teacher(images.flip(3)).numpy()).max() < HALF


def test_a_second_run_shows_the_teacher_nothing_and_writes_nothing(samples: list[Sample], tmp_path: Path) -> None:
    taught(samples, tmp_path / "store")
    before = contents(tmp_path / "store")
    teacher, reports = CountingTeacher(), list[int]()
    again = teach(teacher, planned(samples[:96], samples[96:]), tmp_path / "store", advance=reports.append)
    assert (teacher.shown, again.pictures, sum(reports)) == (0, 0, 100)
    assert contents(tmp_path / "store") == before


def _teach_and_die(samples: list[Sample], path: Path, dies_after: int) -> None:
    torch.set_num_threads(1)
    teach(CountingTeacher(dies_after=dies_after), planned(samples[:96], samples[96:]), path)


@pytest.mark.parametrize("dies_after", [10, 150, 291])
def test_killed_and_gone_on_with_it_is_bitwise_the_same_store(
    samples: list[Sample], tmp_path: Path, dies_after: int
) -> None:
    taught(samples, tmp_path / "whole")
    process = multiprocessing.get_context("spawn").Process(
        target=_teach_and_die, args=(samples, tmp_path / "store", dies_after)
    )
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    written = sum(shard.count for shard in read_manifest(tmp_path / "store").shards) if dies_after >= 96 else 0
    assert written == dies_after // 96 * 32  # the shards before the kill stay
    done = taught(samples, tmp_path / "store")
    assert done.pictures == 100 - written
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def _hold_for_a_while(path: Path, held: Event) -> None:
    with writing(path, lambda line: None):
        held.set()
        time.sleep(1)


def test_a_store_that_another_process_teaches_is_waited_for(samples: list[Sample], tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=_hold_for_a_while, args=(tmp_path / "store", held))
    process.start()
    assert held.wait(60)
    lines: list[str] = []
    done = teach(CountingTeacher(), planned(samples[:32], samples[96:]), tmp_path / "store", note=lines.append)
    process.join()
    assert (done.pictures, process.exitcode) == (36, 0)
    assert lines == [f"process {process.pid} is teaching into {tmp_path / 'store'}: waiting for it"]


def test_pictures_that_are_added_or_changed_are_taught_alone(samples: list[Sample], tmp_path: Path) -> None:
    first = teach(CountingTeacher(), planned(samples[:50], samples[96:]), tmp_path / "store")
    before = rows_of(first.store, samples[:50], 2)
    teacher = CountingTeacher()
    more = teach(teacher, planned(samples[:96], samples[96:]), tmp_path / "store")
    assert (more.pictures, teacher.shown) == (46, 46 * 3)
    assert (rows_of(more.store, samples[:50], 2) == before).all()
    whole = taught(samples, tmp_path / "whole").store
    for number in range(3):
        assert np.abs(rows_of(more.store, samples[:96], number) - rows_of(whole, samples[:96], number)).max() < HALF
    path = tmp_path / "other.png"
    Image.new("RGB", (50, 50), "red").save(path)
    changed = [Sample(samples[0].key, path, 0), *samples[1:96]]
    assert teach(CountingTeacher(), planned(changed, samples[96:]), tmp_path / "store").pictures == 1


def test_fewer_views_than_are_stored_are_the_first_ones_and_new_pictures_get_all(
    samples: list[Sample], tmp_path: Path
) -> None:
    taught(samples[:50] + samples[96:], tmp_path / "store")
    done = teach(CountingTeacher(), planned(samples[:96], samples[96:], count=2), tmp_path / "store")
    assert done.store.num_views == 3
    whole = taught(samples, tmp_path / "whole").store
    assert np.abs(rows_of(done.store, samples[:96], 2) - rows_of(whole, samples[:96], 2)).max() < HALF
    table = Stores((done.store,), (1.0,), 2).table("train", [s.key for s in samples[:96]], file_ids(samples[:96]))
    assert table.num_views == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"count": 4}, "3 views of each picture, wanted 4"),
        ({"count": 0}, "3 views of each picture, wanted 0"),
        ({"seed": 2}, "other views (seed 1, wanted 2)"),
        ({"augment": AUGMENT.model_copy(update={"flip": 0.25})}, "augment.flip 0.5, wanted 0.25"),
    ],
)
def test_a_store_of_other_views_is_refused_with_what_differs(
    samples: list[Sample], tmp_path: Path, change: dict[str, object], words: str
) -> None:
    taught(samples, tmp_path / "store")
    before = contents(tmp_path / "store")
    plan = planned(samples[:96], samples[96:])
    with pytest.raises(StoreMismatchError) as caught:
        teach(CountingTeacher(), replace(plan, views=replace(plan.views, **change)), tmp_path / "store")  # type: ignore[arg-type]
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert contents(tmp_path / "store") == before


def test_a_store_of_another_teacher_or_preprocessing_is_refused(samples: list[Sample], tmp_path: Path) -> None:
    taught(samples, tmp_path / "store")
    other = CountingTeacher()
    with torch.no_grad():
        other.net.project.bias[0] += 1e-4
    with pytest.raises(StoreMismatchError, match="another teacher"):
        teach(other, planned(samples[:96], samples[96:]), tmp_path / "store")
    wider = CountingTeacher()
    wider.preprocess = Preprocess(32, 40)
    with pytest.raises(StoreMismatchError, match=r"other preprocessing \(resize 36, wanted 40\)"):
        teach(wider, planned(samples[:96], samples[96:]), tmp_path / "store")


def test_the_central_square_counts_only_where_views_are_not_cropped(samples: list[Sample]) -> None:
    cropped, whole = planned(samples, []), planned(samples, [], augment=AugmentConfig(flip=0.5))
    teacher, wide = CountingTeacher(), Preprocess(32, 64)
    assert cropped.key(teacher) == replace(cropped, centre=wide).key(teacher)
    assert whole.key(teacher) != replace(whole, centre=wide).key(teacher)
