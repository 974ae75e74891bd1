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

from edgekit.compress.distill.losses import FEATURE_LOSSES, RESPONSE_LOSSES, distillation_loss
from edgekit.compress.distill.relations import affinity_loss, contrastive_loss
from edgekit.compress.parallel.processes import joined
from edgekit.compress.parallel.shares import WHOLE, Share, Split
from edgekit.compress.pictures.mixing import Mixing, accuracy_counts, mixed_batches, mixed_task_loss
from edgekit.compress.pictures.pixels import PixelStore, labels_of, to_images
from edgekit.compress.pictures.source import Batch, Source
from edgekit.compress.recipe import Recipe
from edgekit.compress.store.probe import ClassHead
from edgekit.models.checkpoint import STUDENT_FILE, save_student
from edgekit.models.student import Student, StudentOutput

EVAL_BATCH = 64
_PAIRS = {"affinity", "contrastive"}


@dataclass(frozen=True)
class DistillData:
    """Everything that the task reads, decoded and ready.

    Attributes:
        source: training batches.
        val: evaluation pictures through the student's contract.
        val_teacher: (M, D) float16 unit rows, the teacher's embeddings of `val`; None without a teacher.
        head: class scores from the teacher's embeddings; None without a teacher.
    """

    source: Source
    val: PixelStore
    val_teacher: NDArray[np.float16] | None
    head: ClassHead | None


class DistillTask:
    """Train a student on α·feature + β·response + γ·task."""

    metric = "val_acc"
    checkpoint_name = STUDENT_FILE

    def __init__(self, student: Student, recipe: Recipe, data: DistillData) -> None:
        self.model: nn.Module = student
        self.student, self.recipe, self.data = student, recipe, data
        self.val_labels = labels_of(data.val)
        self._weights = {name: weight for name, weight in recipe.weights.items() if weight > 0}

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch."""
        return self.data.source.steps_per_epoch

    def batches(self, epoch: int, device: torch.device, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of a 1-based epoch from number `start` on."""
        return self.shares(epoch, device, start, WHOLE)

    def shares(self, epoch: int, device: torch.device, start: int, split: Split) -> Iterator[Batch]:
        """Yield this process's parts of the batches of a 1-based epoch from number `start` on."""
        recipe = self.recipe
        mixing = Mixing(recipe.mixup, recipe.cutmix, recipe.fit.seed)
        return mixed_batches(self.data.source, mixing, epoch, device, start, split)

    def batch_length(self, batch: Batch) -> int:
        """Return the number of pictures in a batch."""
        return len(batch.labels)

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return the total loss, its parts, and the counts for the training accuracy."""
        output = model(batch.images)
        parts: dict[str, Tensor] = {}
        if batch.teacher is not None and self.data.head is not None:
            parts |= self._teacher_parts(output, batch, batch.teacher, self.data.head)
        if "task" in self._weights:
            parts["task"] = mixed_task_loss(output.logits, batch, self.recipe.label_smoothing)
        if batch.share is not None:
            micros = self.recipe.fit.accumulate
            parts = {name: _contribution(name, value, batch.share, micros) for name, value in parts.items()}
        total = distillation_loss(parts, {name: w for name, w in self._weights.items() if name in parts})
        return {"loss": total, **parts, **accuracy_counts(output.logits, batch)}

    def _teacher_parts(
        self, output: StudentOutput, batch: Batch, teacher: Tensor, head: ClassHead
    ) -> dict[str, Tensor]:
        """Return those parts of the loss that compare with the teacher, and have a weight."""
        recipe, parts = self.recipe, {}

        def pairs() -> tuple[Tensor, Tensor]:
            if batch.share is None:
                return output.embedding, teacher
            return joined().all_rows(output.embedding), joined().all_rows(teacher)

        if "feature" in self._weights:
            parts["feature"] = FEATURE_LOSSES[recipe.feature_loss](output.embedding, teacher)
        if "response" in self._weights:
            compare = RESPONSE_LOSSES[recipe.response_loss]
            parts["response"] = compare(output.logits, head(teacher), batch.labels, recipe.temperature)
        if "affinity" in self._weights:
            parts["affinity"] = affinity_loss(*pairs())
        if "contrastive" in self._weights:
            parts["contrastive"] = contrastive_loss(*pairs())
        return parts

    def evaluate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        """Return accuracy and cross-entropy on the validation split, and agreement with the teacher there."""
        return self.judged(*self.outputs(model, device))

    def judged(self, logits: Tensor, embedding: Tensor) -> dict[str, float]:
        """Return what `evaluate` does, of outputs that are there: logits (M, C) and embeddings (M, D)."""
        labels = torch.from_numpy(self.val_labels)
        values = {
            "val_acc": float((logits.argmax(1) == labels).float().mean()),
            "val_loss": float(F.cross_entropy(logits, labels)),
        }
        if self.data.val_teacher is not None and self.data.head is not None:
            teacher = torch.from_numpy(self.data.val_teacher.astype(np.float32))
            values["agreement"] = float((logits.argmax(1) == self.data.head(teacher).argmax(1)).float().mean())
            values["cosine"] = float(F.cosine_similarity(embedding, teacher).mean())
        return values

    def outputs(self, model: nn.Module, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return logits (M, C) and embeddings (M, D) of all validation pictures; the processes take turns.

        The batches are those of one process, so that the numbers are, too.
        """
        processes, count, spec = joined(), len(self.val_labels), self.student.spec
        step = max(1, EVAL_BATCH // spec.frames)
        logits = torch.zeros(count, spec.num_classes, device=device)
        embedding = torch.zeros(count, spec.embed_dim, device=device)
        for at in range(processes.rank * step, count, processes.world * step):
            output = model(to_images(self.data.val.pixels[at : at + step], device))
            logits[at : at + step], embedding[at : at + step] = output.logits, output.embedding
        return processes.fill(logits).cpu(), processes.fill(embedding).cpu()

    def save(self, path: Path, model: nn.Module) -> None:
        """Write the student's checkpoint."""
        save_student(path, self.student, model)


def _contribution(name: str, value: Tensor, share: Share, micros: int) -> Tensor:
    """Return what a part's mean adds to that of the whole step."""
    if name in _PAIRS:  # of the whole micro-batch already, that of all processes
        return joined().once(value) / micros
    return value * (share.labelled if name == "task" else share.samples)
