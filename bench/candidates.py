"""The models under test: teacher, student and artifacts, and what bench must know to open and feed each of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bench.results import Kind
from edgekit.errors import EdgekitError, UsageError
from edgekit.export.manifest import MANIFEST_FILE, read_manifest, resolve
from edgekit.export.runtimes import CAN_BE_TIMED, DEFAULT_RUNTIME, format_of, open_session, size_bytes
from edgekit.export.session import FloatArray, Outputs, RuntimeInfo, Session
from edgekit.models.teacher_record import read_record
from edgekit.preprocess import Preprocess


@dataclass(frozen=True)
class Candidate:
    """One model under test.

    Attributes:
        name: shown in the table, unique.
        kind, format, precision: as in `BenchRow`.
        open: opens a session; raises EdgekitError where it cannot.
        contract: how pictures are prepared; None takes the session's size and ImageNet's usual geometry.
        size_bytes, parameters: None where unknown.
        timed: whether its latency means anything here.
        scored: whether it is run on the pictures; a teacher's answers are on record instead.
        frames: pictures that it takes for one answer: 1, or those of a clip.
    """

    name: str
    kind: Kind
    format: str
    precision: str
    open: Callable[[], Session]
    contract: Preprocess | None = None
    size_bytes: int | None = None
    parameters: int | None = None
    timed: bool = True
    scored: bool = True
    frames: int = 1

    def contract_for(self, session: Session) -> Preprocess:
        """Return how pictures are prepared for this model."""
        size = session.input_shape[2]
        return self.contract or Preprocess(size, round(size / 0.875), "bilinear")


def artifact_paths(paths: Sequence[Path]) -> list[Path]:
    """Return the artifacts that the given paths stand for: files, or bundles with all of theirs.

    Raises:
        UsageError: a folder that is no bundle.
        LoadError: a bundle whose manifest cannot be read.
    """
    found: list[Path] = []
    for path in paths:
        if (path / MANIFEST_FILE).is_file():
            found += [resolve(path, record.path) for record in read_manifest(path).files]
        elif path.is_dir() and path.suffix != ".mlpackage":
            raise UsageError(f"{path} is a folder without {MANIFEST_FILE}; give artifacts, or bundles made by export")
        else:
            found.append(path)
    return found


def artifact_candidates(paths: Sequence[Path], threads: int) -> list[Candidate]:
    """Return a candidate per artifact; files of the same name are told apart by their place."""
    names = [path.name for path in paths]
    found = []
    for number, path in enumerate(paths):
        name = path.name if names.count(path.name) == 1 else str(path)
        if paths.index(path) != number:
            name = (
                f"{name} (again)" if paths[:number].count(path) == 1 else f"{name} (again {paths[:number].count(path)})"
            )
        form = format_of(path)
        found.append(
            Candidate(
                name,
                "artifact",
                form,
                _precision(path),
                lambda path=path: open_session(path, threads),  # type: ignore[misc]
                _contract(path),
                size_bytes(path) if path.exists() else None,
                timed=CAN_BE_TIMED[DEFAULT_RUNTIME[form]],
                frames=_frames(path),
            )
        )
    return found


def _precision(path: Path) -> str:
    from edgekit.export.audit import stored_precision

    try:
        return stored_precision(path)
    except EdgekitError:
        return "?"  # opening it will say what is wrong


def _contract(path: Path) -> Preprocess | None:
    """Return the contract in the manifest beside a file."""
    if not (path.parent / MANIFEST_FILE).is_file():
        return None
    return Preprocess.from_dict(read_manifest(path.parent).input.preprocess)


def _frames(path: Path) -> int:
    """Return how many frames the manifest beside a file says it takes."""
    if not (path.parent / MANIFEST_FILE).is_file():
        return 1
    return read_manifest(path.parent).input.frames


def student_candidate(run: Path, threads: int) -> Candidate:
    """Return the run's student in eager PyTorch.

    Raises:
        LoadError: the run holds no student.
    """
    from edgekit.export.deploy import DeployModel, TorchSession
    from edgekit.models.checkpoint import load_student, student_file
    from edgekit.models.complexity import count_parameters

    student = load_student(run)
    return Candidate(
        "student",
        "student",
        "pytorch",
        "fp32",
        lambda: TorchSession(DeployModel(student), threads),
        student.spec.preprocess,
        student_file(run).stat().st_size,
        count_parameters(student),
        frames=student.spec.frames,
    )


def teacher_candidate(run: Path, threads: int) -> Candidate | None:
    """Return the run's teacher: itself to be timed, or only its recorded answers; None where the run had none."""
    record = read_record(run) if run.is_dir() else None
    if record is None:
        return None
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    recorded: dict[str, Any] = facts["teacher"]
    frames = int(facts["student"].get("frames", 1))
    if recorded["fingerprint"] is None:
        return Candidate("teacher", "teacher", "embeddings", "fp16", _OnRecord, timed=False, scored=False)
    parameters: int | None = recorded["parameters"]
    return Candidate(
        "teacher",
        "teacher",
        "onnx" if str(recorded["name"]).endswith(".onnx") else "pytorch",
        "fp32",
        lambda: _TeacherSession(str(recorded["name"]), str(recorded["fingerprint"]), threads, frames),
        None,
        4 * parameters if parameters else None,
        parameters,
        scored=False,
        frames=frames,
    )


class _OnRecord:
    """Stands for a teacher of which only the embeddings are known: it has accuracy, but cannot be run."""

    info = RuntimeInfo("recorded", "", 0, "", "only its embeddings are known, so it has no latency")
    input_shape = (None, 3, 1, 1)

    def __call__(self, images: FloatArray) -> Outputs:
        raise EdgekitError("only the teacher's embeddings are known")


class _TeacherSession:
    """The teacher itself, to be timed at its own input size; of a clip student's, on as many frames at once."""

    def __init__(self, name: str, fingerprint: str, threads: int, frames: int) -> None:
        import torch

        from edgekit.models.teacher import load_teacher

        self._teacher = load_teacher(name, torch.device("cpu"), threads=threads)
        if self._teacher.fingerprint() != fingerprint:
            raise UsageError(f"the teacher {name} is not the one that the run was distilled from: its weights differ")
        self._threads = threads
        size = self._teacher.preprocess.image_size
        self.input_shape = (None if frames == 1 else frames, 3, size, size)
        runtime = "onnxruntime" if name.endswith(".onnx") else "torch"
        self.info = RuntimeInfo(runtime, torch.__version__, threads, "eager")

    def __call__(self, images: FloatArray) -> Outputs:
        import torch

        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        return {"embedding": np.asarray(self._teacher(torch.from_numpy(images)).numpy(), np.float32)}
