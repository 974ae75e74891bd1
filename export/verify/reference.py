"""Verify files against eager PyTorch on a whole validation split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from edgekit.data import Sample
from edgekit.errors import EdgekitError, UsageError
from edgekit.export.config import ExportConfig
from edgekit.export.deploy import DeployModel, TorchSession
from edgekit.export.export_clips import frames_of
from edgekit.export.export_data import run_dataset
from edgekit.export.manifest import MANIFEST_FILE, read_any_manifest, resolve
from edgekit.export.parity import GATES, Precision, compare_outputs, failures
from edgekit.export.runtimes import format_of, open_session
from edgekit.export.session import Outputs, run_batched
from edgekit.export.text.deploy import DeployText, TorchTextSession
from edgekit.export.text.export import MOST_TEXTS, comparison_texts
from edgekit.export.text.session import open_text_session, run_texts
from edgekit.export.verify.check import Check
from edgekit.export.verify.file import describe
from edgekit.models.checkpoint import load_student
from edgekit.models.clip_run import is_clip_run
from edgekit.models.text_classifier import load_text_classifier
from edgekit.models.text_run import is_text_run
from edgekit.preprocess import load_batch
from edgekit.terminal import Terminal
from edgekit.text_data import limited

_IMAGES = 1000
"""More pictures narrow the interval of the agreement little: ±0.6 points at 99 %."""


def verify_against(
    path: Path, reference: Path, data: Path | None, threads: int, terminal: Terminal | None = None
) -> list[Check]:
    """Compare a bundle, or one file, with the student of `reference` on validation pictures.

    Of a text classifier's run, on the labelled texts that `edgekit export` takes.

    Args:
        path: bundle or file.
        reference: run folder or checkpoint.
        data: pictures or texts; None takes those of the run. Pictures that do not come split are split as the run did.
        threads: for each runtime.
        terminal: for warnings.

    Raises:
        EdgekitError: the reference or the data cannot be used.
    """
    if is_text_run(reference):
        return _texts_against(path, reference, data, threads)
    if is_clip_run(reference):
        raise UsageError(
            f"{reference} holds a CLIP, whose towers --reference does not compare; edgekit verify without it checks a "
            "CLIP's bundle, and edgekit export RUN compares anew"
        )
    student = load_student(reference)
    frames = student.spec.frames
    dataset = run_dataset(ExportConfig(reference, reference, (), (), data=data), terminal or Terminal(-1), frames)
    samples: Sequence[Sample] = dataset.val[:: max(1, len(dataset.val) // _IMAGES)]
    if frames > 1:
        images = frames_of(samples[: _IMAGES // frames], frames, student.spec.preprocess)
    else:
        images = load_batch([sample.path for sample in samples], student.spec.preprocess)
    expected = run_batched(TorchSession(DeployModel(student), threads), images)
    what = "clips" if frames > 1 else "pictures"
    return _checks(path, reference, (expected, what), lambda file: run_batched(open_session(file, threads), images))


def _texts_against(path: Path, reference: Path, data: Path | None, threads: int) -> list[Check]:
    """Compare a bundle, or one file, with the text classifier of `reference`."""
    classifier, tokenizer = load_text_classifier(reference)
    texts = limited(comparison_texts(ExportConfig(reference, reference, (), (), data=data), classifier), MOST_TEXTS)
    ids = tokenizer(texts.texts).ids
    expected = run_texts(TorchTextSession(DeployText(classifier), threads), ids)
    return _checks(path, reference, (expected, "texts"), lambda file: run_texts(open_text_session(file, threads), ids))


def _checks(path: Path, reference: Path, said: tuple[Outputs, str], run: Callable[[Path], Outputs]) -> list[Check]:
    """Compare what each file gives, by `run`, with what PyTorch `said`, of inputs of a name."""
    expected, what = said
    checks = []
    for file, precision in _files(path):
        try:
            parity = compare_outputs(expected, run(file))
            problems = failures(parity, GATES[precision])
            detail = "; ".join([*problems, describe(parity, what)])
        except (EdgekitError, ValueError) as e:
            problems, detail = (str(e),), str(e)
        checks.append(Check(file.name, f"parity with {reference.name}", not problems, detail))
    return checks


def _files(path: Path) -> Iterator[tuple[Path, Precision]]:
    if (path / MANIFEST_FILE).is_file():
        for record in read_any_manifest(path).files:
            yield resolve(path, record.path), record.precision
        return
    format_of(path)
    named: list[Precision] = [p for p in GATES if p in path.name.split(".")]
    if len(named) != 1:
        raise UsageError(f"{path.name} does not say its precision; name it model.fp32|fp16|int8{path.suffix}")
    yield path, named[0]
