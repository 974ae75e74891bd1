"""Precomputed teacher embeddings in an .npz file (`--teacher-embeddings`)."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.compress.store.table import ArrayTable
from edgekit.data import Sample
from edgekit.errors import DataError, LoadError, first_line

_UNIT_TOLERANCE = 0.02  # float16 rows are 5e-4 off; rows that nobody normalised are far off


def read_embeddings(
    path: Path, train: Sequence[Sample], val: Sequence[Sample]
) -> tuple[ArrayTable, NDArray[np.float16]]:
    """Read precomputed embeddings: `files` (N,) relative paths, `embeddings` (N, V, D) unit rows.

    View 0 is the plain picture; view 1, if there is one, its horizontal flip.

    Returns:
        The table of the training pictures, and (M, D) rows of the evaluation pictures.

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
    table = ArrayTable(rows[[row_of[sample.key] for sample in train]])
    return table, rows[[row_of[sample.key] for sample in val]][:, 0]


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
