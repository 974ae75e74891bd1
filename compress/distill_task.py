"""The distillation task: batches of views with what the teacher said of them, and the three-part loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.compress.losses import FEATURE_LOSSES, distillation_loss, response_loss, task_loss
from edgekit.compress.pixels import PixelStore
from edgekit.compress.probe import ClassHead
from edgekit.compress.randomness import permutation, sample_ids
from edgekit.compress.recipe import Recipe
from edgekit.compress.teacher_store import TeacherTable
from edgekit.compress.views import Views, draw_views, render
from edgekit.models.checkpoint import STUDENT_FILE, save_student
from edgekit.models.student import Student

EVAL_BATCH = 64


@dataclass(frozen=True)
class Batch:
    """Images (B, 3, H, W) in [0, 1], labels (B,) with −1 for none, teacher embeddings (B, D) or None."""

    images: Tensor
    labels: Tensor
    teacher: Tensor | None


@dataclass(frozen=True)
class DistillData:
    """Everything that the task reads, decoded and ready.

    Attributes:
        train: squeezed training pictures.
        val: evaluation pictures through the student's contract.
        table: the teacher's embeddings; None trains without a teacher.
        head: class scores from the teacher's embeddings; None without a teacher.
    """

    train: PixelStore
    val: PixelStore
    table: TeacherTable | None
    head: ClassHead | None


class DistillTask:
    """Train a student on α·feature + β·response + γ·task."""

    metric = "val_acc"
    checkpoint_name = STUDENT_FILE

    def __init__(self, student: Student, recipe: Recipe, data: DistillData) -> None:
        self.model: nn.Module = student
        self.student, self.recipe, self.data = student, recipe, data
        self._ids = sample_ids([sample.key for sample in data.train.samples])
        self._labels = _labels(data.train)
        self._val_labels = _labels(data.val)
        self._weights = {
            name: weight
            for name, weight in (("feature", recipe.alpha), ("response", recipe.beta), ("task", recipe.gamma))
            if weight > 0
        }

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch; their sizes differ by one at most, so that no last batch is too small for batch norm."""
        return max(1, round(len(self._ids) / self.recipe.fit.batch_size))

    def batches(self, epoch: int, device: torch.device, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of a 1-based epoch from number `start` on, a function of (seed, epoch) alone."""
        order = permutation(self.recipe.fit.seed, epoch, self._ids)
        for rows in np.array_split(order, self.steps_per_epoch)[start:]:
            rows = np.sort(rows)  # one sweep through a memory map; a batch is a set
            views, teacher = self._views(rows, epoch)
            pixels = torch.from_numpy(self.data.train.pixels[rows]).to(device).permute(0, 3, 1, 2)
            images = render(pixels, views, self.student.spec.image_size)
            if self.recipe.fit.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            yield Batch(
                images,
                torch.from_numpy(self._labels[rows]).to(device),
                None if teacher is None else torch.from_numpy(teacher).to(device),
            )

    def _views(self, rows: NDArray[np.int64], epoch: int) -> tuple[Views, NDArray[np.float32] | None]:
        """Return one view per row for this epoch, and the teacher's embedding of it."""
        table = self.data.table
        if table is not None and table.views:
            # samples start at different views, so that every batch mixes all of them
            number = ((epoch - 1 + self._ids[rows]) % np.uint64(len(table.views))).astype(np.int64)
            parts = [table.views[n].take(rows[number == n]) for n in range(len(table.views))]
            order = np.argsort(np.argsort(number, kind="stable"), kind="stable")
            views = Views(
                *(
                    np.concatenate([getattr(p, f) for p in parts])[order]
                    for f in ("boxes", "flips", "colours", "erased")
                )
            )
            return views, table.train[rows, number].astype(np.float32)
        fit = self.recipe.fit
        views = draw_views(
            self.recipe.augment,
            self.student.spec.preprocess,
            self.data.train.aspects[rows],
            self._ids[rows],
            (fit.seed, "augment", epoch),
        )
        if table is None:
            return views, None
        flip_view = min(1, table.train.shape[1] - 1)
        return views, table.train[rows, np.where(views.flips, flip_view, 0)].astype(np.float32)

    def batch_length(self, batch: Batch) -> int:
        """Return the number of pictures in a batch."""
        return len(batch.labels)

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return the total loss, its parts, and the counts for the training accuracy."""
        output = model(batch.images)
        parts: dict[str, Tensor] = {}
        if batch.teacher is not None and self.data.head is not None:
            if "feature" in self._weights:
                parts["feature"] = FEATURE_LOSSES[self.recipe.feature_loss](output.embedding, batch.teacher)
            if "response" in self._weights:
                scores = self.data.head(batch.teacher)
                parts["response"] = response_loss(output.logits, scores, self.recipe.temperature)
        if "task" in self._weights:
            parts["task"] = task_loss(output.logits, batch.labels, self.recipe.label_smoothing)
        total = distillation_loss(parts, {name: w for name, w in self._weights.items() if name in parts})
        labelled = batch.labels >= 0
        correct = ((output.logits.argmax(1) == batch.labels) & labelled).sum()
        return {"loss": total, **parts, "_correct": correct, "_labelled": labelled.sum()}

    def evaluate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        """Return accuracy and cross-entropy on the validation split, and agreement with the teacher there."""
        outputs = [
            model(_images(self.data.val.pixels[at : at + EVAL_BATCH], device))
            for at in range(0, len(self._val_labels), EVAL_BATCH)
        ]
        logits = torch.cat([o.logits.float() for o in outputs]).cpu()
        labels = torch.from_numpy(self._val_labels)
        values = {
            "val_acc": float((logits.argmax(1) == labels).float().mean()),
            "val_loss": float(F.cross_entropy(logits, labels)),
        }
        if self.data.table is not None and self.data.head is not None:
            teacher = torch.from_numpy(self.data.table.val.astype(np.float32))
            embedding = torch.cat([o.embedding.float() for o in outputs]).cpu()
            values["agreement"] = float((logits.argmax(1) == self.data.head(teacher).argmax(1)).float().mean())
            values["cosine"] = float(F.cosine_similarity(embedding, teacher).mean())
        return values

    def save(self, path: Path, model: nn.Module) -> None:
        """Write the student's checkpoint."""
        save_student(path, self.student, model)


def _labels(store: PixelStore) -> NDArray[np.int64]:
    return np.array([-1 if s.label is None else s.label for s in store.samples], np.int64)


def _images(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float().div(255)
