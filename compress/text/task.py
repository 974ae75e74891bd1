"""The task of training a text classifier, from hard or soft labels and, where there is one, from a teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.compress.distill.losses import FEATURE_LOSSES, distillation_loss, response_loss
from edgekit.compress.text.metrics import confusion_matrix, cross_entropies, kl_divergences, log_softmax, macro_f1
from edgekit.compress.text.pieces import PieceStore
from edgekit.compress.text.recipe import TextRecipe
from edgekit.compress.training.order import epoch_steps, steps_per_epoch
from edgekit.models.text_classifier import TextClassifier, TextOutput, predict, save_text_classifier
from edgekit.models.text_run import TEXT_FILE
from edgekit.models.text_tokenizer import Ids, TextTokenizer
from edgekit.text_data import TextSplit


@dataclass(frozen=True)
class TeacherSays:
    """What a teacher says of N texts: features (N, D) float32 unit rows and logits (N, C) float32."""

    embedding: NDArray[np.float32]
    logits: NDArray[np.float32]


@dataclass(frozen=True)
class TextData:
    """Everything that the task reads.

    Attributes:
        train: ids of the training texts, which vary.
        targets: (N, C) their labels.
        val: evaluation texts.
        val_ids: their ids.
        teacher, val_teacher: what the teacher says of both; None without one.
    """

    train: PieceStore
    targets: NDArray[np.float32]
    val: TextSplit
    val_ids: Ids
    teacher: TeacherSays | None = None
    val_teacher: TeacherSays | None = None


@dataclass(frozen=True)
class TextBatch:
    """Ids (B, L), target probabilities (B, C), and what the teacher says of the texts or None."""

    ids: Tensor
    targets: Tensor
    embedding: Tensor | None
    logits: Tensor | None


class TrainedText(nn.Module):
    """The classifier, and a map of its features to the teacher's that only training has."""

    def __init__(self, classifier: TextClassifier, teacher_features: int) -> None:
        super().__init__()
        self.classifier = classifier
        self.to_teacher = nn.Linear(classifier.features, teacher_features) if teacher_features else None

    def forward(self, ids: Tensor) -> tuple[TextOutput, Tensor | None]:
        """Map ids (B, L) to the classifier's outputs and to features of the teacher's width."""
        output: TextOutput = self.classifier(ids)
        return output, None if self.to_teacher is None else self.to_teacher(output.embedding)


class TextTask:
    """Train a text classifier on α·feature + β·response + γ·task; the best is that of the best accuracy."""

    metric = "val_acc"
    checkpoint_name = TEXT_FILE

    def __init__(self, model: TextClassifier, tokenizer: TextTokenizer, recipe: TextRecipe, data: TextData) -> None:
        weights = {"feature": recipe.alpha, "response": recipe.beta, "task": recipe.gamma}
        if data.teacher is None:
            weights = {"task": recipe.gamma or 1.0}
        self._weights = {name: weight for name, weight in weights.items() if weight > 0}
        width = data.teacher.embedding.shape[1] if data.teacher is not None and "feature" in self._weights else 0
        self.model: nn.Module = TrainedText(model, width)
        self.layer_decay = recipe.layer_decay
        self.tokenizer, self.recipe, self.data, self.classifier = tokenizer, recipe, data, model

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch."""
        return steps_per_epoch(len(self.data.targets), self.recipe.fit.batch_size)

    def batches(self, epoch: int, device: torch.device, start: int = 0) -> Iterator[TextBatch]:
        """Yield the batches of a 1-based epoch from number `start` on, a function of (seed, epoch) alone."""
        data, fit = self.data, self.recipe.fit
        for rows in epoch_steps(fit.seed, epoch, data.train.identities, fit.batch_size)[start:]:
            ids = data.train.rows(rows, epoch)
            length = int((ids != self.classifier.spec.padding).sum(axis=1).max())  # padding costs time, changes nothing
            says = data.teacher
            yield TextBatch(
                torch.from_numpy(ids[:, :length]).to(device),
                torch.from_numpy(data.targets[rows]).to(device),
                None if says is None else torch.from_numpy(says.embedding[rows]).to(device),
                None if says is None else torch.from_numpy(says.logits[rows]).to(device),
            )

    def batch_length(self, batch: TextBatch) -> int:
        """Return the number of texts in a batch."""
        return len(batch.ids)

    def loss(self, model: nn.Module, batch: TextBatch) -> Mapping[str, Tensor]:
        """Return the total loss, its parts, and the counts for the training accuracy."""
        output, features = model(batch.ids)
        parts: dict[str, Tensor] = {}
        if features is not None and batch.embedding is not None:
            parts["feature"] = FEATURE_LOSSES[self.recipe.feature_loss](features, batch.embedding)
        if "response" in self._weights and batch.logits is not None:
            parts["response"] = response_loss(output.logits, batch.logits, self.recipe.temperature)
        if "task" in self._weights:
            parts["task"] = F.cross_entropy(
                output.logits.float(), batch.targets, label_smoothing=self.recipe.label_smoothing
            )
        total = distillation_loss(parts, self._weights)
        correct = (output.logits.argmax(1) == batch.targets.argmax(1)).sum()
        return {"loss": total, **parts, "_correct": correct, "_labelled": torch.tensor(float(len(batch.ids)))}

    def evaluate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        """Return accuracy, macro-F1, cross-entropy and KL divergence on the validation texts."""
        if not isinstance(model, TrainedText):
            raise TypeError(f"expected a TrainedText, got {type(model).__name__}")
        logits = predict(model.classifier, self.data.val_ids).logits.numpy()
        said, labels, targets = log_softmax(logits), self.data.val.labels, self.data.val.targets
        predicted = said.argmax(axis=1)
        values = {
            "val_acc": float((predicted == labels).mean()),
            "val_loss": float(cross_entropies(targets, said).mean()),
            "val_macro_f1": macro_f1(confusion_matrix(labels, predicted, targets.shape[1])),
            "val_kl": float(kl_divergences(targets, said).mean()),
        }
        if self.data.val_teacher is not None:
            teacher = log_softmax(self.data.val_teacher.logits)
            values["agreement"] = float((predicted == teacher.argmax(axis=1)).mean())
            values["val_kl_teacher"] = float(kl_divergences(np.exp(teacher), said).mean())
        return values

    def save(self, path: Path, model: nn.Module) -> None:
        """Write the classifier's checkpoint, which holds the tokenizer."""
        if not isinstance(model, TrainedText):
            raise TypeError(f"expected a TrainedText, got {type(model).__name__}")
        save_text_classifier(path, self.classifier, self.tokenizer, model.classifier)
