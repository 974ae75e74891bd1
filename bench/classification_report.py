"""Judge a classifier, or a CLIP by prompts, on labelled pictures: every score with its interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bench.classification_intervals import ClassificationIntervals, classification_intervals
from edgekit.bench.labelled_pictures import LabelledPictures, labelled_pictures, unseen_pictures
from edgekit.bench.metrics import ClassificationScores, classification_scores
from edgekit.bench.readable import LeftOut
from edgekit.bench.trained_on import trained_on_of_file
from edgekit.bench.truth import Judged
from edgekit.errors import DataError, UsageError
from edgekit.export.session import FloatArray, Session, run_batched
from edgekit.preprocess import Preprocess, load_batch

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
_BATCH = 64


@dataclass(frozen=True)
class ClassificationReport:
    """What a model is worth on some pictures.

    Attributes:
        model: as it was given.
        source: the data, as it was given.
        subset: which part of it, and how many pictures.
        classes: in the order of the logits.
        scores: top-1 and top-5 with Wilson's intervals, and the other scores.
        intervals: of macro-F1, cross-entropy and calibration error.
        notes: whether the pictures are of those that the model was trained on.
    """

    model: str
    source: str
    subset: str
    classes: tuple[str, ...]
    scores: ClassificationScores
    intervals: ClassificationIntervals
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        top = {"top1": self.scores.top1, "top5": self.scores.top5}
        values = {name: None if value is None else asdict(value) for name, value in top.items()}
        return {
            "model": self.model,
            "source": self.source,
            "subset": self.subset,
            "pictures": self.scores.pictures,
            "classes": list(self.classes),
            **values,
            **asdict(self.intervals),
            "notes": list(self.notes),
        }


def judge_classifier(
    model: Path, data: Path, threads: int, bar: Progress, val_fraction: float | None = None
) -> ClassificationReport:
    """Judge a run's student or classifier, or an artifact that lies in a bundle, on what it was not trained on.

    `val_fraction` of a source that is not split is scored; None takes what the run records.

    Raises:
        UsageError: an artifact whose classes are not known.
        LoadError: it cannot be loaded.
        DataError: the pictures cannot be used, or show classes that the model does not know.
    """
    session, classes, contract = _open(model, threads)
    pictures = unseen_pictures(data, classes, Judged(model.name, trained_on_of_file(model)), val_fraction)
    logits, pictures = _run(lambda images: run_batched(session, images)["logits"], pictures, contract, bar)
    return _report(str(model), data, pictures, logits)


def judge_zeroshot(
    model: str, data: Path, templates: Sequence[str], device: str, bar: Progress
) -> ClassificationReport:
    """Judge a CLIP by the prompts of the data's own classes.

    Raises:
        UsageError: the model has no text encoder.
        DataError: the pictures cannot be used.
    """
    import torch

    from edgekit.models.teacher import load_teacher

    teacher = load_teacher(model, torch.device(device))
    pictures = labelled_pictures(data)
    if len(pictures.classes) < 2:
        raise UsageError(f"{data} shows one class only ({pictures.classes[0]}); there is nothing to tell apart")
    weights = teacher.class_scores(pictures.classes, templates)
    if weights is None:
        raise UsageError(f"{model} has no text encoder to read prompts with; give a CLIP, or use eval classify")
    rows = weights

    def logits(images: FloatArray) -> FloatArray:
        return np.asarray((teacher(torch.from_numpy(images)) @ rows.T).float().cpu().numpy(), np.float32)

    said, pictures = _run(logits, pictures, teacher.preprocess, bar)
    return _report(model, data, pictures, said)


def _open(model: Path, threads: int) -> tuple[Session, tuple[str, ...], Preprocess]:
    """Return what runs a model, its classes, and how its pictures are prepared."""
    from edgekit.export.manifest import MANIFEST_FILE, read_manifest
    from edgekit.export.runtimes import is_package, open_session

    if (model.is_dir() and not is_package(model)) or model.suffix == ".safetensors":
        from edgekit.export.deploy import DeployModel, TorchSession
        from edgekit.models.checkpoint import load_student

        student = load_student(model)
        return TorchSession(DeployModel(student), threads), student.spec.classes, student.spec.preprocess
    if not (model.parent / MANIFEST_FILE).is_file():
        raise UsageError(f"{model} lies in no bundle, so its classes are not known; give a run, or a bundle's artifact")
    manifest = read_manifest(model.parent)
    return open_session(model, threads), tuple(manifest.classes), Preprocess.from_dict(manifest.input.preprocess)


def _run(
    logits: Callable[[FloatArray], FloatArray], pictures: LabelledPictures, contract: Preprocess, bar: Progress
) -> tuple[FloatArray, LabelledPictures]:
    """Return what the model says of the pictures, and those of them that could be read.

    Raises:
        DataError: more than are tolerated cannot be read.
    """
    parts = []
    left_out = LeftOut(len(pictures.paths))

    def load(paths: Sequence[Path]) -> FloatArray:
        return load_batch(paths, contract)

    with bar("classifying", len(pictures.paths)) as advance:
        for at in range(0, len(pictures.paths), _BATCH):
            paths = list(pictures.paths[at : at + _BATCH])
            advance(len(paths))
            try:
                images = load(paths)
            except DataError:
                paths = left_out.readable(paths, at, load)
                if not paths:
                    continue
                images = load(paths)
            parts.append(logits(images))
    rows = np.array([row for row in range(len(pictures.paths)) if row not in left_out.reasons], np.int64)
    read = replace(
        pictures,
        paths=tuple(pictures.paths[row] for row in rows),
        labels=pictures.labels[rows],
        notes=(*pictures.notes, *left_out.notes),
    )
    return np.concatenate(parts), read


def _report(model: str, data: Path, pictures: LabelledPictures, logits: FloatArray) -> ClassificationReport:
    return ClassificationReport(
        model,
        str(data),
        pictures.subset,
        pictures.classes,
        classification_scores(logits, pictures.labels),
        classification_intervals(logits, pictures.labels),
        pictures.notes,
    )
