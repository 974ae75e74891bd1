"""The task that recovers: a changed student learns to say what it said before, or what its teacher says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.compress.distill.task import DistillTask
from edgekit.compress.pictures.mixing import accuracy_counts
from edgekit.compress.pictures.source import Batch
from edgekit.compress.slim.config import Guide
from edgekit.export.choice.paired import accuracy_drop
from edgekit.export.parity import snr_db
from edgekit.models.checkpoint import STUDENT_FILE, save_student
from edgekit.models.student import Student

Finish = Callable[[Student], Student]
"""From the student in training to the plain one that is saved; the former is not changed."""


def _nothing(model: Student) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class Changed:
    """A student that was changed and is to recover.

    Attributes:
        model: what is trained.
        before: the student that it was.
        finish: from `model` to the plain student that is saved.
        metric: which the best checkpoint maximises.
        facts: what was done, for run.json.
        kept: from `model` to what its checkpoint says beside the weights, JSON-ready.
    """

    model: Student
    before: Student
    finish: Finish
    metric: str
    facts: Mapping[str, Any]
    kept: Callable[[Student], Mapping[str, Any]] = _nothing


class RecoverTask:
    """Train a changed student against the student that it was, its teacher, or both.

    The loss of "self" is KL(before ‖ now) of the class probabilities (Hinton et al. 2015, arXiv 1503.02531, §2, at
    T = 1, where the rarest agreement is decided) and the squared error of the embedding over its power; that of
    "teacher" is the distillation's own.

    Attributes:
        model: what is trained.
        metric: "fidelity_db", the SNR of the logits on the validation split against the student before, which reads
            no label; where the net itself became smaller "val_acc".
    """

    checkpoint_name = STUDENT_FILE

    def __init__(self, changed: Changed, distill: DistillTask, guide: Guide) -> None:
        self.changed, self.metric = changed, changed.metric
        self.model: nn.Module = changed.model
        self.before = changed.before.eval().requires_grad_(False)
        self.distill, self.guide = distill, guide
        self._said: Tensor | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch."""
        return self.distill.steps_per_epoch

    def batches(self, epoch: int, device: torch.device, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of a 1-based epoch from number `start` on."""
        return self.distill.batches(epoch, device, start)

    def batch_length(self, batch: Batch) -> int:
        """Return the number of pictures in a batch."""
        return len(batch.labels)

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return the total loss, its parts, and the counts for the training accuracy."""
        parts: dict[str, Tensor] = {}
        if self.guide == "self":
            output = model(batch.images)
            counts = accuracy_counts(output.logits, batch)
        else:
            found = dict(self.distill.loss(keeping := _Keeping(model), batch))
            output = keeping.output
            parts["distillation"] = found.pop("loss")
            counts = {name: value for name, value in found.items() if name.startswith("_")}
        if self.guide != "teacher":
            with torch.no_grad():
                want = self.before.to(batch.images.device)(batch.images)
            parts["self_response"] = F.kl_div(
                F.log_softmax(output.logits, 1), F.log_softmax(want.logits, 1), reduction="batchmean", log_target=True
            )
            parts["self_feature"] = F.mse_loss(output.embedding, want.embedding) / want.embedding.square().mean()
        return {"loss": torch.stack(list(parts.values())).sum(), **parts, **counts}

    def evaluate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        """Return what the distillation measures, and how far the student is from the one before.

        That is "fidelity_db"; "self_agreement", the share of equal top classes; and the accuracy lost on the same
        pictures, "self_drop", with the ends of its 95 % interval.
        """
        now, embedding = self.distill.outputs(model, device)
        values = self.distill.judged(now, embedding)
        if self._said is None:
            self._said, _ = self.distill.outputs(self.before.to(device), device)
        values["fidelity_db"] = min(200.0, snr_db(_wide(self._said), _wide(now)))
        top, top_before = now.argmax(1).numpy(), self._said.argmax(1).numpy()
        values["self_agreement"] = float((top == top_before).mean())
        drop = accuracy_drop(top_before == self.distill.val_labels, top == self.distill.val_labels)
        return {**values, "self_drop": drop.value, "self_drop_low": drop.low, "self_drop_high": drop.high}

    def save(self, path: Path, model: nn.Module) -> None:
        """Write the checkpoint of the plain student."""
        assert isinstance(model, Student)
        save_student(path, self.changed.finish(model), extra=self.changed.kept(model))


class _Keeping(nn.Module):
    """Calls a model and keeps what it said, so that two losses share one forward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.output: Any = None

    def forward(self, images: Tensor) -> Any:
        """Return what the model does."""
        self.output = self.model(images)
        return self.output


def _wide(values: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    return values.double().numpy()
