"""Verify files against eager PyTorch on a whole validation split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from edgekit.data import Sample
from edgekit.errors import EdgekitError, UsageError
from edgekit.export.check import Check
from edgekit.export.deploy import DeployModel, TorchSession
from edgekit.export.export import ExportConfig, run_dataset
from edgekit.export.export_clips import frames_of
from edgekit.export.manifest import MANIFEST_FILE, read_manifest, resolve
from edgekit.export.parity import GATES, Precision, compare_outputs, failures
from edgekit.export.runtimes import format_of, open_session
from edgekit.export.session import run_batched
from edgekit.export.verify_file import describe
from edgekit.models.checkpoint import load_student
from edgekit.preprocess import load_batch

_IMAGES = 1000
"""More pictures narrow the interval of the agreement little: ±0.6 points at 99 %."""


def verify_against(path: Path, reference: Path, data: Path | None, threads: int) -> list[Check]:
    """Compare a bundle, or one file, with the student of `reference` on validation pictures.

    Args:
        path: bundle or file.
        reference: run folder or checkpoint.
        data: pictures; None takes those of the run.
        threads: for each runtime.

    Raises:
        EdgekitError: the reference or the data cannot be used.
    """
    student = load_student(reference)
    frames = student.spec.frames
    dataset = run_dataset(ExportConfig(reference, reference, (), (), data=data), frames)
    samples: Sequence[Sample] = dataset.val[:: max(1, len(dataset.val) // _IMAGES)]
    if frames > 1:
        images = frames_of(samples[: _IMAGES // frames], frames, student.spec.preprocess)
    else:
        images = load_batch([sample.path for sample in samples], student.spec.preprocess)
    expected = run_batched(TorchSession(DeployModel(student), threads), images)
    checks = []
    for file, precision in _files(path):
        try:
            parity = compare_outputs(expected, run_batched(open_session(file, threads), images))
            problems = failures(parity, GATES[precision])
            detail = "; ".join([*problems, describe(parity, "clips" if frames > 1 else "pictures")])
        except (EdgekitError, ValueError) as e:
            problems, detail = (str(e),), str(e)
        checks.append(Check(file.name, f"parity with {reference.name}", not problems, detail))
    return checks


def _files(path: Path) -> Iterator[tuple[Path, Precision]]:
    if (path / MANIFEST_FILE).is_file():
        for record in read_manifest(path).files:
            yield resolve(path, record.path), record.precision
        return
    format_of(path)
    named: list[Precision] = [p for p in GATES if p in path.name.split(".")]
    if len(named) != 1:
        raise UsageError(f"{path.name} does not say its precision; name it model.fp32|fp16|int8{path.suffix}")
    yield path, named[0]
