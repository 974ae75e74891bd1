"""The task of training a classifier on labelled pictures; the one loop (`fit`) does the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.compress.image.recipe import ImageRecipe
from edgekit.compress.parallel.shares import WHOLE, Split
from edgekit.compress.pictures.mixing import Mixing, accuracy_counts, mixed_batches, mixed_task_loss
from edgekit.compress.pictures.pixels import PixelStore, image_batches, labels_of
from edgekit.compress.pictures.source import Batch, Source
from edgekit.models.checkpoint import STUDENT_FILE, save_student
from edgekit.models.student import Student

EVAL_BATCH = 64


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

    def batches(self, epoch: int, device: torch.device, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of a 1-based epoch from number `start` on, a function of (seed, epoch) alone."""
        return self.shares(epoch, device, start, WHOLE)

    def shares(self, epoch: int, device: torch.device, start: int, split: Split) -> Iterator[Batch]:
        """Yield this process's parts of the batches of a 1-based epoch from number `start` on."""
        mixing = Mixing(self.recipe.mixup, 0.0, self.recipe.fit.seed)
        return mixed_batches(self._train, mixing, epoch, device, start, split)

    def batch_length(self, batch: Batch) -> int:
        """Return the number of pictures in a batch."""
        return len(batch.labels)

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return the cross-entropy, mixed as the pictures are, and the counts for the training accuracy."""
        logits: Tensor = model(batch.images).logits.float()
        loss = mixed_task_loss(logits, batch, self.recipe.label_smoothing)
        if batch.share is not None:
            loss = loss * batch.share.samples
        return {"loss": loss, **accuracy_counts(logits, batch)}

    def evaluate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        """Return accuracy and cross-entropy on the validation split."""
        batches = image_batches(self.val.pixels, EVAL_BATCH, device)
        logits = torch.cat([model(images).logits.float().cpu() for images in batches])
        return {
            "val_acc": float((logits.argmax(1) == self._val_labels).float().mean()),
            "val_loss": float(F.cross_entropy(logits, self._val_labels)),
        }

    def save(self, path: Path, model: nn.Module) -> None:
        """Write the classifier as a student's checkpoint, which export and bench take."""
        save_student(path, self.net, model)
