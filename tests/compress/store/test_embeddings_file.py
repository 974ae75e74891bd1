"""Precomputed embeddings: matched by name; any other file is refused, and nothing in it is unpickled."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekit.compress.store.embeddings_file import read_embeddings
from edgekit.data import Sample
from edgekit.errors import DataError, LoadError


@dataclass(frozen=True)
class Listed:
    """Thirty-six training pictures and four to evaluate; their files are never opened."""

    train: list[Sample]
    val: list[Sample]


@pytest.fixture
def listed(tmp_path: Path) -> Listed:
    samples = [Sample(f"{number:02d}.png", tmp_path / f"{number:02d}.png", number % 2) for number in range(40)]
    return Listed(samples[:36], samples[36:])


def unit_rows(*shape: int) -> NDArray[np.float32]:
    rows = np.random.default_rng(0).normal(size=shape)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def embeddings_file(folder: Path, listed: Listed, embeddings: NDArray[np.float32]) -> Path:
    files = [sample.key for sample in (*listed.val, *listed.train)]  # the order is the file's own
    np.savez(folder / "rows.npz", files=np.array(files), embeddings=embeddings)
    return folder / "rows.npz"


@pytest.mark.parametrize("views", [1, 2])
def test_precomputed_rows_are_matched_by_name(listed: Listed, tmp_path: Path, views: int) -> None:
    rows = unit_rows(40, views, 8)
    table, val = read_embeddings(embeddings_file(tmp_path, listed, rows), listed.train, listed.val)
    pictures = np.arange(36)
    for number in range(views):
        said = table.embeddings(pictures, np.full(36, number))
        assert np.abs(said - rows[4:, number]).max() < 1e-3
    assert np.abs(val - rows[:4, 0]).max() < 1e-3
    assert (table.embed_dim, table.num_views, table.replays) == (8, views, False)


def test_rows_without_a_view_axis_are_one_view(listed: Listed, tmp_path: Path) -> None:
    table, _ = read_embeddings(embeddings_file(tmp_path, listed, unit_rows(40, 8)), listed.train, listed.val)
    assert table.num_views == 1


def refused(error: type[Exception], path: Path, listed: Listed) -> str:
    with pytest.raises(error) as caught:
        read_embeddings(path, listed.train, listed.val)
    assert "\n" not in str(caught.value)
    assert f"--teacher-embeddings {path}" in str(caught.value)
    return str(caught.value)


def test_pictures_that_the_file_does_not_know_are_counted(listed: Listed, tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, files=np.array([sample.key for sample in listed.train[3:]]), embeddings=unit_rows(33, 1, 8))
    assert "7 of 40 pictures are not in it, e.g. 00.png (the file names e.g. 03.png)" in refused(
        DataError, path, listed
    )


def test_rows_that_are_not_unit_vectors_are_refused(listed: Listed, tmp_path: Path) -> None:
    for factor in (2.0, np.nan):
        rows = unit_rows(40, 2, 8)
        rows[7, 1] *= factor
        assert "not unit vectors" in refused(LoadError, embeddings_file(tmp_path, listed, rows), listed)


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
    listed: Listed, tmp_path: Path, arrays: dict[str, NDArray[np.generic]]
) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    assert "expected" in refused(LoadError, path, listed)


def test_nothing_in_the_file_is_unpickled(listed: Listed, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.mkdir, (str(tmp_path / "exploded"),))

    path = tmp_path / "rows.npz"
    np.savez(path, files=np.array([Bomb()] * 40), embeddings=unit_rows(40, 2, 8))
    refused(LoadError, path, listed)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 not really"])
def test_files_that_are_no_npz_are_refused(listed: Listed, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.npz"
    path.write_bytes(content)
    refused(LoadError, path, listed)


def test_cut_compressed_missing_and_plain_npy_files_are_refused(listed: Listed, tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez_compressed(path, files=NAMES, embeddings=unit_rows(40, 2, 8))
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
    path.write_bytes(content)
    refused(LoadError, path, listed)
    refused(LoadError, tmp_path / "missing.npz", listed)
    refused(LoadError, tmp_path, listed)
    np.save(tmp_path / "rows.npy", unit_rows(40, 2, 8))
    refused(LoadError, tmp_path / "rows.npy", listed)
