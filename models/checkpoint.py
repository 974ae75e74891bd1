"""The student's checkpoint: one safetensors file with its `StudentSpec` as JSON in the metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from edgekit.errors import LoadError, UsageError, first_line
from edgekit.models.spec import StudentSpec
from edgekit.models.student import Student
from edgekit.models.weights import fill, read_checkpoint, write_safetensors

SCHEMA_VERSION = 1
STUDENT_FILE = "student.safetensors"


def save_student(
    path: Path, student: Student, weights: nn.Module | None = None, extra: Mapping[str, Any] | None = None
) -> None:
    """Write a student, whole or not at all; `weights` (e.g. the EMA copy) replaces its own tensors if given.

    `extra` is kept beside its spec, JSON-ready, for `read_extra`: what belongs to these weights and no others.
    """
    header = {**(extra or {}), "schema_version": SCHEMA_VERSION, "student": student.spec.to_dict()}
    write_safetensors(path, (weights or student).state_dict(), header)


def student_file(run: Path) -> Path:
    """Return the checkpoint that `run`, a run folder or a checkpoint file, stands for.

    Raises:
        LoadError: there is none.
    """
    path = run / STUDENT_FILE if run.is_dir() else run
    if not path.is_file():
        raise LoadError(f"{run} holds no student: expected a run folder with {STUDENT_FILE}, or such a file")
    return path


def load_student(run: Path) -> Student:
    """Rebuild the student of a run folder or checkpoint file, in eval mode.

    Raises:
        LoadError: no checkpoint, a damaged one, one of a newer edgekit, or tensors that do not fit its spec.
    """
    path = student_file(run)
    tensors, header = read_checkpoint(path, "student", ("student",), SCHEMA_VERSION)
    try:
        spec = StudentSpec.from_dict(header["student"])
        student = Student(spec)
    except (LoadError, UsageError) as e:
        raise LoadError(f"{path} names a student that cannot be built here: {first_line(e)}") from e
    fill(student, tensors, path, spec.arch)
    return student.eval()


def read_extra(run: Path, name: str) -> dict[str, Any] | None:
    """Return what `save_student` was given under a name; None if it was not.

    Raises:
        LoadError: no checkpoint, a damaged one, one of a newer edgekit, or the name stands for something else.
    """
    path = student_file(run)
    _, header = read_checkpoint(path, "student", ("student",), SCHEMA_VERSION, optional=(name,))
    value = header.get(name)
    if value is not None and not isinstance(value, dict):
        raise LoadError(f"{path} holds '{name}', which cannot be read: {value!r:.60}")
    return value
