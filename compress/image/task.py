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
from edgekit.compress.pictures.pixels import PixelStore
from edgekit.compress.pictures.views import draw_views, render
from edgekit.compress.training.randomness import permutation, sample_ids
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

    def __init__(self, net: Student, recipe: ImageRecipe, train: PixelStore, val: PixelStore) -> None:
        self.model: nn.Module = net
        self.layer_decay = recipe.layer_decay
        self.net, self.recipe, self.train, self.val = net, recipe, train, val
        self._ids = sample_ids([sample.key for sample in train.samples])
        self._labels = _labels(train)
        self._val_labels = torch.from_numpy(_labels(val))

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch; their sizes differ by one at most, so that no last batch is too small for batch norm."""
        return max(1, round(len(self._ids) / self.recipe.fit.batch_size))

    def batches(self, epoch: int, device: torch.device, start: int = 0) -> Iterator[ImageBatch]:
        """Yield the batches of a 1-based epoch from number `start` on, a function of (seed, epoch) alone."""
        return self.shares(epoch, device, start, WHOLE)

    def shares(self, epoch: int, device: torch.device, start: int, split: Split) -> Iterator[ImageBatch]:
        """Yield this process's parts of the batches of a 1-based epoch from number `start` on."""
        order = permutation(self.recipe.fit.seed, epoch, self._ids)
        batches = np.array_split(order, self.steps_per_epoch)
        for number, rows in enumerate(batches[start:], start=start):
            kept, partner = self._mix(rows, epoch, number)
            for places in split.parts(np.arange(len(rows))):
                part, other = rows[places], partner[places]
                images, labels = self._render(part, epoch, device), torch.from_numpy(self._labels[part]).to(device)
                share = len(places) / len(rows)
                if kept == 1:
                    yield ImageBatch(images, labels, share=share)
                    continue
                images = kept * images + (1 - kept) * self._render(other, epoch, device)
                partners = torch.from_numpy(self._labels[other]).to(device)
                yield ImageBatch(images, labels, partners, kept, share)

    def _mix(self, rows: NDArray[np.int64], epoch: int, number: int) -> tuple[float, NDArray[np.int64]]:
        """Return the share of the first picture, one for the batch, and the picture mixed into each."""
        if not self.recipe.mixup:
            return 1.0, rows
        generator = np.random.default_rng((self.recipe.fit.seed, epoch, number))
        return float(generator.beta(self.recipe.mixup, self.recipe.mixup)), rows[::-1]

    def _render(self, rows: NDArray[np.int64], epoch: int, device: torch.device) -> Tensor:
        contract, at = self.net.spec.preprocess, (self.recipe.fit.seed, "augment", epoch)
        views = draw_views(self.recipe.augment, contract, self.train.aspects[rows], self._ids[rows], at)
        pixels = torch.from_numpy(self.train.pixels[rows]).to(device).permute(0, 3, 1, 2)
        images = render(pixels, views, contract.image_size)
        return images.contiguous(memory_format=torch.channels_last) if self.recipe.fit.channels_last else images

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


def _labels(store: PixelStore) -> NDArray[np.int64]:
    labels = [sample.label for sample in store.samples]
    assert None not in labels, "pictures without label are left out before"
    return np.array(labels, np.int64)
