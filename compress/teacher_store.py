"""The teacher runs once: its embeddings of stored views of every picture, and the views' parameters.

Dataset reinforcement (MobileCLIP, arXiv 2311.17049, §4): the student then trains from the store at full speed and
sees exactly the views that the teacher saw.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save

from edgekit import atomic
from edgekit.compress.randomness import sample_ids
from edgekit.compress.recipe import AugmentConfig
from edgekit.compress.views import Views, colour, draw_views
from edgekit.data import Sample
from edgekit.errors import DataError, LoadError, first_line
from edgekit.images import read_rgb
from edgekit.models.teacher import Teacher
from edgekit.models.weights import read_safetensors
from edgekit.preprocess import fit_pixels

SCHEMA_VERSION = 1
CHUNK = 32
_UNIT_TOLERANCE = 0.02  # float16 rows are 5e-4 off; rows that nobody normalised are far off


@dataclass(frozen=True)
class TeacherTable:
    """What the teacher says of every picture.

    Attributes:
        name: the teacher, for tables and records.
        train: (N, V, D) float16 unit rows of the training pictures.
        val: (M, D) float16 unit rows of the evaluation pictures, plain view.
        views: the V stored views; empty where view 0 is the plain picture and view 1, if there is one, its flip.
    """

    name: str
    train: NDArray[np.float16]
    val: NDArray[np.float16]
    views: tuple[Views, ...] = ()

    @property
    def embed_dim(self) -> int:
        """Dimension of the embeddings."""
        return int(self.train.shape[2])


@dataclass(frozen=True)
class TeachPlan:
    """What to run the teacher on.

    Attributes:
        train: training samples, all readable.
        aspects: (N,) width / height of their pictures.
        val: evaluation samples.
        augment: what views may vary.
        views: stored views per training picture; 0 stores the plain picture and its flip.
        seed: of the views.
    """

    train: Sequence[Sample]
    aspects: NDArray[np.float32]
    val: Sequence[Sample]
    augment: AugmentConfig
    views: int
    seed: int

    def key(self, teacher: Teacher) -> str:
        """Return the hash of everything that the stored embeddings depend on."""
        identity = {
            "schema": SCHEMA_VERSION,
            "teacher": teacher.fingerprint(),
            "preprocess": teacher.preprocess.to_dict(),
            "augment": self.augment.model_dump(),
            "views": self.views,
            "seed": self.seed,
            "train": _samples_hash(self.train),
            "val": _samples_hash(self.val),
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def draw(self, contract_of: Teacher) -> tuple[Views, ...]:
        """Return the stored views' parameters, a function of (seed, view, sample)."""
        ids = sample_ids([sample.key for sample in self.train])
        return tuple(
            draw_views(self.augment, contract_of.preprocess, self.aspects, ids, (self.seed, "view", number))
            for number in range(self.views)
        )


def teach(
    teacher: Teacher, plan: TeachPlan, cache: Path, *, advance: Callable[[int], None] | None = None
) -> TeacherTable:
    """Return the teacher's table for `plan`, from `cache` if it is there, else by running the teacher once.

    Args:
        teacher: frozen.
        plan: pictures and views.
        cache: folder of stores, one file per key.
        advance: called with the number of pictures embedded since the last call.

    Raises:
        LoadError: the stored file is damaged.
    """
    key = plan.key(teacher)
    path = cache / f"{key[:16]}.safetensors"
    views = plan.draw(teacher)
    if path.is_file():
        return _read_store(path, key, teacher.name)
    report = advance or (lambda count: None)
    train = np.concatenate(list(_embed_views(teacher, plan, views, report)))
    val = _embed_plain(teacher, plan.val, report)
    _write_store(path, key, TeacherTable(teacher.name, train, val, views))
    return TeacherTable(teacher.name, train, val, views)


def read_embeddings(path: Path, train: Sequence[Sample], val: Sequence[Sample]) -> TeacherTable:
    """Read precomputed embeddings: `files` (N,) relative paths, `embeddings` (N, V, D) unit rows.

    View 0 is the plain picture; view 1, if there is one, its horizontal flip.

    Raises:
        LoadError: not such a file.
        DataError: pictures of the data set are missing from it.
    """
    files, embeddings = _read_npz(path)
    row_of = {str(name): row for row, name in enumerate(files)}
    missing = [sample.key for sample in (*train, *val) if sample.key not in row_of]
    if missing:
        raise DataError(
            f"--teacher-embeddings {path} does not match the data: {len(missing)} of {len(train) + len(val)} pictures "
            f"are not in it, e.g. {missing[0]} (the file names e.g. {files[0]}). Embed these pictures, or give the "
            f"folder that the file was made from"
        )
    rows = embeddings.astype(np.float16)
    return TeacherTable(
        path.name,
        rows[[row_of[sample.key] for sample in train]],
        rows[[row_of[sample.key] for sample in val]][:, 0],
    )


def _read_npz(path: Path) -> tuple[NDArray[np.str_], NDArray[np.floating]]:
    """Return `files` (N,) and `embeddings` (N, 1 or 2, D) after checking both."""
    try:
        # opened here: np.load leaves a file open that only looks like a zip (numpy 2.4)
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            files, embeddings = file["files"], file["embeddings"]
    # TypeError: an .npy file holds one array and is no context manager
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise LoadError(
            f"--teacher-embeddings {path} cannot be read ({first_line(e)}); expected an .npz with "
            f"'files' (N,) and 'embeddings' (N, views, D)"
        ) from e
    if embeddings.ndim == 2:
        embeddings = embeddings[:, None]
    fits = embeddings.ndim == 3 and files.shape == embeddings.shape[:1] and embeddings.shape[1] in (1, 2)
    if not fits or not len(files) or files.dtype.kind != "U" or embeddings.dtype.kind != "f":
        raise LoadError(
            f"--teacher-embeddings {path}: 'files' {files.shape} {files.dtype} and 'embeddings' {embeddings.shape} "
            f"{embeddings.dtype} do not fit; expected (N,) text and (N, 1 or 2 views, D) floats"
        )
    norms = np.linalg.norm(embeddings.astype(np.float32), axis=2)
    if not np.abs(norms - 1).max() < _UNIT_TOLERANCE:  # so that NaN fails, too
        raise LoadError(f"--teacher-embeddings {path}: the rows are not unit vectors; divide each by its norm")
    return files, embeddings


def _embed_views(
    teacher: Teacher, plan: TeachPlan, views: tuple[Views, ...], report: Callable[[int], None]
) -> Iterator[NDArray[np.float16]]:
    """Yield (chunk, V, D) embeddings of the training pictures, decoding each picture once."""
    size = teacher.preprocess.image_size

    def pixels_of(row: int) -> NDArray[np.uint8]:
        picture = read_rgb(plan.train[row].path)
        if not views:
            plain = fit_pixels(picture, teacher.preprocess)
            return np.stack([plain, plain[:, ::-1]])
        return np.stack([_cut(picture, v.boxes[row], bool(v.flips[row]), size) for v in views])

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for start in range(0, len(plan.train), CHUNK):
            rows = np.arange(start, min(start + CHUNK, len(plan.train)))
            pixels = np.stack(list(pool.map(pixels_of, rows)))
            per_view = []
            for number in range(pixels.shape[1]):
                images = _to_images(pixels[:, number])
                if views:
                    images = colour(images, views[number].take(rows))
                per_view.append(_embed(teacher, images))
            report(len(rows))
            yield np.stack(per_view, axis=1)


def _embed_plain(teacher: Teacher, samples: Sequence[Sample], report: Callable[[int], None]) -> NDArray[np.float16]:
    rows = []
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for start in range(0, len(samples), CHUNK):
            part = samples[start : start + CHUNK]
            pixels = np.stack(list(pool.map(lambda s: fit_pixels(read_rgb(s.path), teacher.preprocess), part)))
            rows.append(_embed(teacher, _to_images(pixels)))
            report(len(part))
    return np.concatenate(rows)


def _cut(picture: Image.Image, box: NDArray[np.float32], flip: bool, size: int) -> NDArray[np.uint8]:
    """Cut a crop box from the full picture, antialiased, to (size, size, 3) uint8."""
    left, top, width, height = (float(v) for v in box)
    corners = (
        left * picture.width,
        top * picture.height,
        min((left + width) * picture.width, picture.width),
        min((top + height) * picture.height, picture.height),
    )
    pixels = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box=corners))
    return pixels[:, ::-1] if flip else pixels


def _to_images(pixels: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float().div(255)


def _embed(teacher: Teacher, images: torch.Tensor) -> NDArray[np.float16]:
    rows: NDArray[np.float16] = teacher(images).cpu().numpy().astype(np.float16)
    return rows


def _samples_hash(samples: Sequence[Sample]) -> str:
    digest = hashlib.sha256()
    for sample in samples:
        status = sample.path.stat()
        digest.update(f"{sample.key} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _write_store(path: Path, key: str, table: TeacherTable) -> None:
    arrays: dict[str, NDArray[Any]] = {"train": table.train, "val": table.val}
    for number, view in enumerate(table.views):
        arrays |= {
            f"view{number}.boxes": view.boxes,
            f"view{number}.flips": view.flips,
            f"view{number}.colours": view.colours,
            f"view{number}.erased": view.erased,
        }
    header = {"edgekit": json.dumps({"schema_version": SCHEMA_VERSION, "key": key, "views": len(table.views)})}
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    atomic.write_bytes(path, save(tensors, metadata=header))


def _read_store(path: Path, key: str, name: str) -> TeacherTable:
    try:
        tensors, metadata = read_safetensors(path)
        header = json.loads(metadata["edgekit"])
        if header["key"] != key:
            raise LoadError("it is of another teacher, view set or data")
        arrays = {field: tensor.numpy() for field, tensor in tensors.items()}
        views = tuple(
            Views(*(arrays[f"view{number}.{field}"] for field in ("boxes", "flips", "colours", "erased")))
            for number in range(header["views"])
        )
        return TeacherTable(name, arrays["train"], arrays["val"], views)
    except (LoadError, KeyError, TypeError, ValueError) as e:
        raise LoadError(f"the teacher store {path} is damaged ({e}); delete it, and it is made anew") from e
