"""The teacher store: what is stored is what the teacher says of the stored view; hits, keys, damage, npz files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save_file
from torch import Tensor

from edgekit.compress.recipe import AugmentConfig
from edgekit.compress.teacher_store import TeacherTable, TeachPlan, read_embeddings, teach
from edgekit.compress.views import colour
from edgekit.data import Sample
from edgekit.errors import DataError, LoadError
from edgekit.models.teacher import weights_hash
from edgekit.preprocess import Preprocess, load_batch
from tests.teachers_for_tests import ColourNet

AUGMENT = AugmentConfig(crop_scale=(0.4, 1.0), crop_ratio=(0.8, 1.25), flip=0.5, brightness=0.3, erase=0.5)
HALF = 2e-3
"""float16 rows, and one rounding of pixels to 8 bits."""


class CountingTeacher:
    """A real small network as teacher, which counts the pictures it was shown."""

    name = "colours"
    preprocess = Preprocess(32, 36)
    embed_dim = 12
    parameters = None

    def __init__(self) -> None:
        self.net = ColourNet().eval()
        self.shown = 0

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        self.shown += len(images)
        rows: Tensor = self.net(images)
        return rows

    def class_scores(self, classes: Sequence[str], templates: Sequence[str]) -> Tensor | None:
        return None

    def fingerprint(self) -> str:
        return weights_hash(self.net)


@pytest.fixture
def plan(tmp_path: Path) -> TeachPlan:
    """Forty pictures (more than one chunk), four of them for validation."""
    samples = []
    rng = np.random.default_rng(0)
    for number in range(40):
        path = tmp_path / "data" / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        coarse.resize((60 + number, 50), Image.Resampling.BICUBIC).save(path)
        samples.append(Sample(path.name, path, number % 2))
    aspects = np.array([(60 + number) / 50 for number in range(36)], np.float32)
    return TeachPlan(samples[:36], aspects, samples[36:], AUGMENT, 3, seed=1)


def test_a_stored_row_is_what_the_teacher_says_of_the_stored_view(plan: TeachPlan, tmp_path: Path) -> None:
    teacher = CountingTeacher()
    table = teach(teacher, plan, tmp_path / "store")
    assert table.train.shape == (36, 3, 12)
    assert teacher.shown == 36 * 3 + 4
    for row in (0, 31, 32, 35):
        for number, view in enumerate(table.views):
            one = view.take(np.array([row]))
            left, top, width, height = one.boxes[0]
            with Image.open(plan.train[row].path) as picture:
                w, h = picture.size
                corners = (left * w, top * h, min((left + width) * w, w), min((top + height) * h, h))
                cut = picture.resize((32, 32), Image.Resampling.BICUBIC, box=corners)
            if one.flips[0]:
                cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            image = torch.from_numpy(np.asarray(cut).copy()).permute(2, 0, 1)[None].float() / 255
            expected = teacher(colour(image, one))[0].numpy()  # what is erased, only the student sees
            assert np.abs(table.train[row, number] - expected).max() < HALF
    assert np.abs(table.val - teacher(plain(plan.val)).numpy()).max() < HALF
    assert len({table.train[0, number].tobytes() for number in range(3)}) == 3


def plain(samples: Sequence[Sample]) -> Tensor:
    return torch.from_numpy(load_batch([sample.path for sample in samples], CountingTeacher.preprocess))


def test_without_views_the_plain_picture_and_its_flip_are_stored(plan: TeachPlan, tmp_path: Path) -> None:
    teacher = CountingTeacher()
    table = teach(teacher, replace(plan, views=0), tmp_path / "store")
    images = plain(plan.train)
    assert table.views == ()
    assert table.train.shape == (36, 2, 12)
    assert np.abs(table.train[:, 0] - teacher(images).numpy()).max() < HALF
    assert np.abs(table.train[:, 1] - teacher(images.flip(3)).numpy()).max() < HALF


def test_a_second_run_reads_the_store_and_shows_the_teacher_nothing(plan: TeachPlan, tmp_path: Path) -> None:
    first = teach(CountingTeacher(), plan, tmp_path / "store")
    teacher = CountingTeacher()
    reports: list[int] = []
    again = teach(teacher, plan, tmp_path / "store", advance=reports.append)
    assert teacher.shown == 0
    assert reports == []
    assert (again.train == first.train).all()
    assert (again.val == first.val).all()
    assert again.train.dtype == np.float16
    for one, other in zip(again.views, first.views, strict=True):
        for field in ("boxes", "flips", "colours", "erased"):
            assert (getattr(one, field) == getattr(other, field)).all()
            assert getattr(one, field).dtype == getattr(other, field).dtype


def test_whatever_the_rows_depend_on_makes_another_store(plan: TeachPlan, tmp_path: Path) -> None:
    teacher = CountingTeacher()
    keys = [plan.key(teacher)]
    keys.append(replace(plan, views=2).key(teacher))
    keys.append(replace(plan, seed=2).key(teacher))
    keys.append(replace(plan, augment=AUGMENT.model_copy(update={"flip": 0.25})).key(teacher))
    keys.append(replace(plan, train=plan.train[1:]).key(teacher))
    keys.append(replace(plan, val=plan.val[1:]).key(teacher))
    with torch.no_grad():
        teacher.net.project.bias[0] += 1e-4
    keys.append(plan.key(teacher))
    status = plan.train[0].path.stat()
    os.utime(plan.train[0].path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    keys.append(plan.key(teacher))
    assert len(set(keys)) == len(keys)
    assert keys[-1] == plan.key(teacher)


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "other"])
def test_a_damaged_store_is_named_and_not_trusted(plan: TeachPlan, tmp_path: Path, damage: str) -> None:
    teach(CountingTeacher(), plan, tmp_path / "store")
    (path,) = (tmp_path / "store").iterdir()
    content = path.read_bytes()
    if damage == "other":
        save_file({"train": np.zeros((2, 2), np.float16)}, path, metadata={"edgekit": "{"})
    else:
        path.write_bytes({"cut": content[: len(content) // 2], "garbage": b"x" * 500, "empty": b""}[damage])
    with pytest.raises(LoadError, match="delete it") as caught:
        teach(CountingTeacher(), plan, tmp_path / "store")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def unit_rows(*shape: int) -> NDArray[np.float32]:
    rows = np.random.default_rng(0).normal(size=shape)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def embeddings_file(folder: Path, plan: TeachPlan, embeddings: NDArray[np.float32]) -> Path:
    files = [sample.key for sample in (*plan.val, *plan.train)]  # the order is the file's own
    np.savez(folder / "rows.npz", files=np.array(files), embeddings=embeddings)
    return folder / "rows.npz"


@pytest.mark.parametrize("views", [1, 2])
def test_precomputed_rows_are_matched_by_name(plan: TeachPlan, tmp_path: Path, views: int) -> None:
    rows = unit_rows(40, views, 8)
    table = read_embeddings(embeddings_file(tmp_path, plan, rows), plan.train, plan.val)
    assert np.abs(table.train - rows[4:]).max() < 1e-3
    assert np.abs(table.val - rows[:4, 0]).max() < 1e-3
    assert table.embed_dim == 8
    assert table.views == ()


def test_rows_without_a_view_axis_are_one_view(plan: TeachPlan, tmp_path: Path) -> None:
    table = read_embeddings(embeddings_file(tmp_path, plan, unit_rows(40, 8)), plan.train, plan.val)
    assert table.train.shape == (36, 1, 8)


def refused(error: type[Exception], path: Path, plan: TeachPlan) -> str:
    with pytest.raises(error) as caught:
        read_embeddings(path, plan.train, plan.val)
    assert "\n" not in str(caught.value)
    assert f"--teacher-embeddings {path}" in str(caught.value)
    return str(caught.value)


def test_pictures_that_the_file_does_not_know_are_counted(plan: TeachPlan, tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, files=np.array([sample.key for sample in plan.train[3:]]), embeddings=unit_rows(33, 1, 8))
    assert "7 of 40 pictures are not in it, e.g. 00.png (the file names e.g. 03.png)" in refused(DataError, path, plan)


def test_rows_that_are_not_unit_vectors_are_refused(plan: TeachPlan, tmp_path: Path) -> None:
    for factor in (2.0, np.nan):
        rows = unit_rows(40, 2, 8)
        rows[7, 1] *= factor
        assert "not unit vectors" in refused(LoadError, embeddings_file(tmp_path, plan, rows), plan)


NAMES = np.array([f"{number:02d}.png" for number in range(40)])


@pytest.mark.parametrize(
    "arrays",
    [
        {"files": NAMES[:-1], "embeddings": unit_rows(40, 2, 8)},
        {"files": NAMES, "embeddings": unit_rows(40, 3, 8)},
        {"files": NAMES, "embeddings": unit_rows(40, 2, 8, 2)},
        {"files": NAMES, "embeddings": np.zeros((40, 0, 8), np.float32)},
        {"files": NAMES[:0], "embeddings": np.zeros((0, 2, 8), np.float32)},
        {"files": np.arange(40), "embeddings": unit_rows(40, 2, 8)},
        {"files": NAMES, "embeddings": np.ones((40, 1, 1), np.int64)},
        {"files": NAMES, "embeddings": np.full((40, 1, 1), "x")},
        {"names": NAMES, "embeddings": unit_rows(40, 2, 8)},
        {"files": NAMES.astype(object), "embeddings": unit_rows(40, 2, 8)},
    ],
)
def test_arrays_of_another_kind_are_refused(
    plan: TeachPlan, tmp_path: Path, arrays: dict[str, NDArray[np.generic]]
) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    assert "expected" in refused(LoadError, path, plan)


def test_nothing_in_the_file_is_unpickled(plan: TeachPlan, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.mkdir, (str(tmp_path / "exploded"),))

    path = tmp_path / "rows.npz"
    np.savez(path, files=np.array([Bomb()] * 40), embeddings=unit_rows(40, 2, 8))
    refused(LoadError, path, plan)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 not really"])
def test_files_that_are_no_npz_are_refused(plan: TeachPlan, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.npz"
    path.write_bytes(content)
    refused(LoadError, path, plan)


def test_cut_compressed_missing_and_plain_npy_files_are_refused(plan: TeachPlan, tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez_compressed(path, files=NAMES, embeddings=unit_rows(40, 2, 8))
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
    path.write_bytes(content)
    refused(LoadError, path, plan)
    refused(LoadError, tmp_path / "missing.npz", plan)
    refused(LoadError, tmp_path, plan)
    np.save(tmp_path / "rows.npy", unit_rows(40, 2, 8))
    refused(LoadError, tmp_path / "rows.npy", plan)


def test_a_table_knows_its_dimension() -> None:
    assert TeacherTable("t", np.zeros((3, 2, 5), np.float16), np.zeros((1, 5), np.float16)).embed_dim == 5
