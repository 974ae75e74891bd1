"""The teacher and the PyTorch student of a run as models under test."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgekit.bench.candidates import Candidate
from edgekit.bench.trained_on import trained_on_of_run
from edgekit.bench.worker import Opening
from edgekit.errors import LoadError
from edgekit.export.manifest import sha256_of
from edgekit.models.teacher_record import read_record

_REPAIR = "give the run folder as the training left it, or its student.safetensors alone"
_EAGER = ("torch", "timm", "edgekit.export.deploy", "edgekit.models.checkpoint")


def student_candidate(run: Path, threads: int) -> Candidate:
    """Return the run's student in eager PyTorch.

    Raises:
        LoadError: the run holds no student.
    """
    from edgekit.models.checkpoint import load_student, student_file
    from edgekit.models.complexity import count_parameters

    student = load_student(run)
    file = student_file(run)
    return Candidate(
        "student",
        "student",
        "pytorch",
        "fp32",
        Opening("edgekit.bench.openers:student", (str(run.absolute()), threads), _EAGER),
        sha256=sha256_of(file),
        contract=student.spec.preprocess,
        size_bytes=file.stat().st_size,
        parameters=count_parameters(student),
        frames=student.spec.frames,
        classes=tuple(student.spec.classes),
        trained=trained_on_of_run(run),
    )


def teacher_candidate(run: Path, threads: int) -> Candidate | None:
    """Return the run's teacher: itself to be timed, or only its recorded answers; None where the run had none.

    Raises:
        LoadError: the run does not say of which teacher its record is.
    """
    record = read_record(run) if run.is_dir() else None
    if record is None:
        return None
    facts = _facts(run)
    try:
        recorded: Mapping[str, Any] = facts["teacher"]
        frames = int(facts["student"].get("frames", 1))
        classes = tuple(str(name) for name in facts["data"]["classes"])
        name, fingerprint, parameters = str(recorded["name"]), recorded["fingerprint"], recorded["parameters"]
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise LoadError(f"{run / 'run.json'} does not say what was trained, and from which teacher; {_REPAIR}") from e
    answers = Candidate(
        "teacher", "teacher", "embeddings", "fp16", None, timed=False, scored=False, classes=classes, frames=frames
    )
    if fingerprint is None:
        return answers
    name = _absolute(name)
    counted = isinstance(parameters, int)
    return replace(
        answers,
        format="onnx" if name.endswith(".onnx") else "pytorch",
        precision="fp32",
        opening=Opening(
            "edgekit.bench.openers:teacher",
            (name, str(fingerprint), threads, frames),
            ("torch", "onnxruntime") if name.endswith(".onnx") else ("torch", "open_clip"),
        ),
        size_bytes=4 * parameters if counted else None,
        parameters=parameters if counted else None,
        timed=True,
    )


def _facts(run: Path) -> Mapping[str, Any]:
    file = run / "run.json"
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise LoadError(f"{file} cannot be read: {e}; {_REPAIR}") from e
    if not isinstance(facts, dict):
        raise LoadError(f"{file} does not hold a mapping; {_REPAIR}")
    return facts


def _absolute(name: str) -> str:
    """Return a teacher's name, or where it is a file's its absolute path: another process works in another folder."""
    if Path(name).exists():
        return str(Path(name).absolute())
    architecture, colon, weights = name.partition(":")  # open_clip's ARCH:FILE
    return f"{architecture}:{Path(weights).absolute()}" if colon and Path(weights).is_file() else name
