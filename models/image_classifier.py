"""A classifier that edgekit trained, as a teacher: its embedding is what the student learns.

What `train image` leaves is a student's checkpoint, so that export, verify and bench take it as it is. It has no text
encoder: its class scores are a linear probe on its embeddings, as for any teacher without one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from edgekit.errors import LoadError
from edgekit.models.checkpoint import STUDENT_FILE, load_student
from edgekit.models.clip import CLIP_FILE
from edgekit.models.teacher import weights_hash
from edgekit.models.weights import read_safetensors


def holds_classifier(path: Path) -> bool:
    """Return whether a run folder or a .safetensors file holds a classifier, and no CLIP."""
    if path.is_dir():
        return (path / STUDENT_FILE).is_file() and not (path / CLIP_FILE).is_file()
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        return '"student"' in read_safetensors(path)[1].get("edgekit", "")
    except LoadError:
        return False  # whoever loads it will say what is wrong


class ClassifierTeacher:
    """A student or classifier of an edgekit run, frozen."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self.model = load_student(path).to(device).eval().requires_grad_(False)
        self.name, self._device = str(path), device
        self.preprocess = self.model.spec.preprocess
        self.embed_dim = self.model.spec.embed_dim
        self.parameters: int | None = sum(p.numel() for p in self.model.parameters())

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) float in [0, 1] to unit rows (B, embed_dim)."""
        return F.normalize(self.model(images.to(self._device)).embedding.float(), dim=1)

    def class_scores(self, classes: Sequence[str], templates: Sequence[str]) -> Tensor | None:
        """Return None: there is no text encoder to turn prompts into class weights."""
        return None

    def fingerprint(self) -> str:
        """Return the hash of the weights."""
        return weights_hash(self.model)
