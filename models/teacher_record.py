"""What the teacher said of the validation pictures, kept in the run folder so that bench need not run it again."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit import atomic
from edgekit.errors import LoadError, first_line

TEACHER_FILE = "teacher.npz"


@dataclass(frozen=True)
class TeacherRecord:
    """The teacher's embeddings and class scores.

    Attributes:
        keys: (M,) the pictures' keys.
        embeddings: (M, D) float32 unit rows.
        weight, bias: (C, D) and (C,), so that logits = embeddings · weightᵀ + bias.
    """

    keys: tuple[str, ...]
    embeddings: NDArray[np.float32]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def select(self, keys: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Return embeddings (n, D) and logits (n, C) of some pictures; None where one of them is not recorded."""
        row_of = {key: row for row, key in enumerate(self.keys)}
        if any(key not in row_of for key in keys):
            return None
        embeddings = self.embeddings[[row_of[key] for key in keys]]
        return embeddings, embeddings @ self.weight.T + self.bias

    def save(self, run: Path) -> None:
        """Write teacher.npz into a run folder."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            allow_pickle=False,
            keys=np.array(self.keys),
            embeddings=self.embeddings.astype(np.float16),
            weight=self.weight,
            bias=self.bias,
        )
        atomic.write_bytes(run / TEACHER_FILE, buffer.getvalue())


def read_record(run: Path) -> TeacherRecord | None:
    """Read a run's teacher.npz; None where the run had no teacher.

    Raises:
        LoadError: it is damaged.
    """
    path = run / TEACHER_FILE
    if not path.is_file():
        return None
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return TeacherRecord(
                tuple(str(key) for key in file["keys"]),
                file["embeddings"].astype(np.float32),
                file["weight"].astype(np.float32),
                file["bias"].astype(np.float32),
            )
    # TypeError: an .npy file holds one array and is no context manager
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise LoadError(f"{path} cannot be read: {first_line(e)}") from e
