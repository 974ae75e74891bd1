"""Two pictures in one: mixup (Zhang et al. 2018, arXiv 1710.09412) and CutMix (Yun et al. 2019, arXiv 1905.04899)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from edgekit.compress.distill.losses import task_loss
from edgekit.compress.parallel.shares import Share, Split
from edgekit.compress.pictures.source import Batch, Source

Box = tuple[float, float, float, float]
"""Top, left, bottom, right, in shares of the picture."""


@dataclass(frozen=True)
class Mix:
    """How a step's pictures are mixed: one share for all of them.

    Attributes:
        partner: (B,) the picture that is mixed into each; labelled ones meet labelled ones.
        kept: share of the first picture.
        box: CutMix: what of the second picture covers the first; None is mixup.
    """

    partner: NDArray[np.int64]
    kept: float
    box: Box | None


@dataclass(frozen=True)
class Mixing:
    """Whether and how much pictures are mixed.

    Attributes:
        mixup, cutmix: a of the Beta(a, a) that each draws its shares from; 0 is off.
        seed: of what is drawn.
    """

    mixup: float
    cutmix: float
    seed: int


def mixed_batches(
    source: Source, mixing: Mixing, epoch: int, device: torch.device, start: int, split: Split
) -> Iterator[Batch]:
    """Yield this process's parts of the batches of a 1-based epoch from number `start` on, mixed if that is asked for.

    A function of (seed, epoch, split) alone.
    """
    if not mixing.mixup and not mixing.cutmix:
        yield from source.batches(epoch, device, start, split)
        return
    for number, whole in enumerate(source.batches(epoch, device, start), start=start):
        labels = whole.labels.cpu().numpy()
        yield from mixed_parts(
            whole, draw_mix(labels, mixing.mixup, mixing.cutmix, (mixing.seed, epoch, number)), split
        )


def mixed_task_loss(logits: Tensor, batch: Batch, label_smoothing: float) -> Tensor:
    """Return the cross-entropy of `task_loss`, mixed as the pictures are."""
    own = task_loss(logits, batch.labels, label_smoothing)
    if batch.partners is None:
        return own
    return batch.kept * own + (1 - batch.kept) * task_loss(logits, batch.partners, label_smoothing)


def accuracy_counts(logits: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Return the counts for the training accuracy; none of mixed pictures, which show two classes."""
    if batch.partners is not None:
        return {}
    labelled = batch.labels >= 0
    return {"_correct": ((logits.argmax(1) == batch.labels) & labelled).sum(), "_labelled": labelled.sum()}


def draw_mix(labels: NDArray[np.int64], mixup: float, cutmix: float, at: tuple[int, int, int]) -> Mix:
    """Draw how the pictures of a step are mixed, a function of the arguments alone.

    The share is Beta(a, a) with a = `mixup` or `cutmix`; where both are set, a step is the one or the other, evenly.

    Args:
        labels: (B,) of the whole step, −1 for none.
        mixup, cutmix: a of each; 0 is off, and one of them is not.
        at: seed, epoch and step.
    """
    generator = np.random.default_rng(at)
    cut = cutmix > 0 and (mixup == 0 or generator.random() < 0.5)
    spread = cutmix if cut else mixup
    kept = float(generator.beta(spread, spread))
    partner = np.arange(len(labels))
    for same in (labels >= 0, labels < 0):
        partner[same] = generator.permutation(partner[same])
    if not cut:
        return Mix(partner, kept, None)
    # a box of the picture's own shape and of 1 − kept of its area, whose centre is anywhere: what sticks out is cut off
    side, (y, x) = (1 - kept) ** 0.5 / 2, generator.random(2)
    top, left, bottom, right = max(0.0, y - side), max(0.0, x - side), min(1.0, y + side), min(1.0, x + side)
    return Mix(partner, 1 - (bottom - top) * (right - left), (top, left, bottom, right))


def mixed_parts(whole: Batch, mix: Mix, split: Split) -> list[Batch]:
    """Return this process's parts of a step whose pictures are mixed, and what the teacher says of them.

    The teacher has seen neither mixture: what it says is the unit vector of the same mixture of what it says of both.
    The parts are cut out of the whole step, as a picture's partner may lie in another part.
    """
    count = len(whole.labels)
    labels = whole.labels.cpu().numpy()
    return [
        _mixed(whole, mix, places, None if split.whole else Share.of(labels[places], labels))
        for places in split.parts(np.arange(count))
    ]


def _mixed(whole: Batch, mix: Mix, places: NDArray[np.int64], share: Share | None) -> Batch:
    other = mix.partner[places]
    images, partners = whole.images[places], whole.images[other]
    if mix.box is None:
        images = mix.kept * images + (1 - mix.kept) * partners
        kept = mix.kept
    else:
        height, width = images.shape[-2:]
        top, left, bottom, right = (round(at * side) for at, side in zip(mix.box, 2 * (height, width), strict=True))
        images = images.clone()
        images[..., top:bottom, left:right] = partners[..., top:bottom, left:right]
        kept = 1 - (bottom - top) * (right - left) / (height * width)  # of whole pixels
    teacher = None
    if whole.teacher is not None:
        teacher = F.normalize(kept * whole.teacher[places] + (1 - kept) * whole.teacher[other], dim=-1)
    return Batch(images, whole.labels[places], teacher, share, whole.labels[other], kept)
