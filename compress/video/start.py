"""What a clip student starts from: a still student's frames, their mean, and class scores that are known already."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from edgekit.compress.store.probe import ClassHead
from edgekit.compress.training.phases import EarlierPhase, load_phase
from edgekit.errors import UsageError
from edgekit.models.student import Student
from edgekit.models.temporal import ClipHead


def earlier_phase(run: Path, frames: int, positions: bool) -> EarlierPhase:
    """Read what a run of pictures (`frames` of 1) or clips starts from.

    Where clips start from a still student its epochs do not count as earlier ones: they were judged on pictures.

    Raises:
        LoadError: it holds no student.
        UsageError: it holds one of clips that does not fit.
    """
    earlier = load_phase(run)
    given = earlier.student.spec
    if given.frames == 1:
        return replace(earlier, history=[]) if frames > 1 else earlier
    if frames == 1:
        raise UsageError(
            f"--init-from {run} is of clips of {given.frames} frames; leave --frames out, or give 2 or more"
        )
    if given.positions != positions or (positions and given.frames != frames):
        has = f"--frames {given.frames} with --positions" if given.positions else "no --positions"
        raise UsageError(
            f"--init-from {run} was trained with {has}; give the same, or leave --frames and --positions out"
        )
    return earlier


def takes_stills(student: Student, earlier: Student) -> bool:
    """Return whether `student` is of clips and `earlier`, that it starts from, of pictures."""
    return student.pool is not None and earlier.pool is None


@torch.no_grad()
def start_from_still(student: Student, still: Student, clips: Tensor, run: object) -> bool:
    """Make a clip student the mean of what a still student says of the frames; return whether it knows the classes.

    Backbone and projection are taken over, the pooling starts as the mean of the frames, and of a still student of the
    same classes the classifier is taken over as well. Its scores then differ from the mean of the still student's
    scores by the lengths of the frames' embeddings, which the pooling does not pass on.

    Args:
        student: of clips; changed.
        still: of pictures.
        clips: some training clips (B, F, 3, H, W), which tell how long the still student's embeddings are.
        run: where `still` is from, for the error.

    Raises:
        UsageError: it has another backbone, or embeddings of another width or kind.
    """
    wanted, given = student.spec, still.spec
    pairs = {
        "arch": (given.arch, wanted.arch),
        "embedding": (given.embed_dim, wanted.embed_dim),
        "pruned layers": (len(given.widths), len(wanted.widths)),
        "normalisation": (
            (given.preprocess.mean, given.preprocess.std),
            (wanted.preprocess.mean, wanted.preprocess.std),
        ),
    }
    different = [f"{name} {old}, now {new}" for name, (old, new) in pairs.items() if old != new]
    if different:
        raise UsageError(
            f"--init-from {run} holds another student: {'; '.join(different)}. Clips start from a still student of the "
            f"same --student, and of a teacher of the same width"
        )
    assert student.pool is not None, "takes_stills was asked"
    student.backbone.load_state_dict(still.backbone.state_dict())
    student.projection.load_state_dict(still.projection.state_dict())
    student.pool.start_as_mean()
    if given.classes != wanted.classes or not isinstance(still.classifier, nn.Linear):
        return False
    length = float(still.eval()(clips.flatten(0, 1)).embedding.norm(dim=1).mean())
    _start_scores(student, length * still.classifier.weight, still.classifier.bias)
    return True


def start_from_scores(student: Student, head: ClassHead) -> None:
    """Make the classifier give the teacher's class scores of the unit vector of the clip's embedding."""
    _start_scores(student, head.weight, head.bias)


def _start_scores(student: Student, weight: Tensor, bias: Tensor) -> None:
    """Set the head to scores (C, D) of unit rows; the pooling ends in a LayerNorm, whose rows are √D long."""
    assert isinstance(student.classifier, ClipHead), "that of a clip student"
    student.classifier.start_as_linear(weight / math.sqrt(student.spec.embed_dim), bias)
