"""The task of training a classifier on labelled pictures; the one loop (`fit`) does the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.compress.image.recipe import ImageRecipe
from edgekit.compress.parallel.shares import WHOLE, Split
from edgekit.compress.pictures.pixels import PixelStore, labels_of
from edgekit.compress.pictures.source import Source
from edgekit.models.checkpoint import STUDENT_FILE, save_student
from edgekit.models.student import Student

EVAL_BATCH = 64


@dataclass(frozen=True)
class ImageBatch:
    """Pictures, perhaps mixed, and what they show.

    Attributes:
        images: (B, 3, H, W) in [0, 1].
        labels: (B,) int64.
        partners: (B,) int64 labels of the pictures mixed in; None where none are.
        kept: share of the first picture in a mixed one.
        share: of this part in its step.
    """

    images: Tensor
    labels: Tensor
    partners: Tensor | None = None
    kept: float = 1.0
    share: float = 1.0


class ImageTask:
    """Train a classifier on cross-entropy; the best checkpoint is that of the best validation accuracy."""

    metric = "val_acc"
    checkpoint_name = STUDENT_FILE

    def __init__(self, net: Student, recipe: ImageRecipe, train: Source, val: PixelStore) -> None:
        self.model: nn.Module = net
        self.layer_decay = recipe.layer_decay
        self.net, self.recipe, self.val = net, recipe, val
        self._train, self._val_labels = train, torch.from_numpy(labels_of(val))

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch."""
        return self._train.steps_per_epoch

    def batches(self, epoch: int, device: torch.device, start: int = 0) -> Iterator[ImageBatch]:
        """Yield the batches of a 1-based epoch from number `start` on, a function of (seed, epoch) alone."""
        return self.shares(epoch, device, start, WHOLE)

    def shares(self, epoch: int, device: torch.device, start: int, split: Split) -> Iterator[ImageBatch]:
        """Yield this process's parts of the batches of a 1-based epoch from number `start` on."""
        for number, whole in enumerate(self._train.batches(epoch, device, start), start=start):
            # each part is cut out of the whole step: a picture's partner may lie in another part
            count = len(whole.labels)
            kept, partner = self._mix(count, epoch, number)
            for places in split.parts(np.arange(count)):
                images, labels = whole.images[places], whole.labels[places]
                share = len(places) / count
                if kept == 1:
                    yield ImageBatch(images, labels, share=share)
                    continue
                other = partner[places]
                images = kept * images + (1 - kept) * whole.images[other]
                yield ImageBatch(images, labels, whole.labels[other], kept, share)

    def _mix(self, count: int, epoch: int, number: int) -> tuple[float, NDArray[np.int64]]:
        """Return the share of the first picture, one for the batch, and the picture mixed into each."""
        if not self.recipe.mixup:
            return 1.0, np.arange(count)
        generator = np.random.default_rng((self.recipe.fit.seed, epoch, number))
        # batches are sorted by name, hence by class: reversed, the first class would always meet the last
        return float(generator.beta(self.recipe.mixup, self.recipe.mixup)), generator.permutation(count)

    def batch_length(self, batch: ImageBatch) -> int:
        """Return the number of pictures in a batch."""
        return len(batch.labels)

    def loss(self, model: nn.Module, batch: ImageBatch) -> Mapping[str, Tensor]:
        """Return the cross-entropy, mixed as the pictures are, and the counts for the training accuracy."""
        logits: Tensor = model(batch.images).logits.float()
        smoothing = self.recipe.label_smoothing
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=smoothing)
        if batch.partners is not None:
            other = F.cross_entropy(logits, batch.partners, label_smoothing=smoothing)
            # what shows more than half of both is neither's: no training accuracy is counted
            return {"loss": batch.share * (batch.kept * loss + (1 - batch.kept) * other)}
        correct = (logits.argmax(1) == batch.labels).sum()
        labelled = torch.tensor(len(batch.labels), device=correct.device)
        return {"loss": batch.share * loss, "_correct": correct, "_labelled": labelled}

    def evaluate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        """Return accuracy and cross-entropy on the validation split."""
        parts = []
        for at in range(0, len(self._val_labels), EVAL_BATCH):
            pixels = torch.from_numpy(self.val.pixels[at : at + EVAL_BATCH]).to(device)
            parts.append(model(pixels.permute(0, 3, 1, 2).float().div(255)).logits.float().cpu())
        logits = torch.cat(parts)
        return {
            "val_acc": float((logits.argmax(1) == self._val_labels).float().mean()),
            "val_loss": float(F.cross_entropy(logits, self._val_labels)),
        }

    def save(self, path: Path, model: nn.Module) -> None:
        """Write the classifier as a student's checkpoint, which export and bench take."""
        save_student(path, self.net, model)
