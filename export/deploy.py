"""The student as it is deployed: plain pixels in, named outputs out, normalisation inside."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.export.config import OUTPUTS, chosen_outputs
from edgekit.export.session import FloatArray, RuntimeInfo
from edgekit.models.student import Student


class DeployedPictures(nn.Module):
    """What goes into a file that takes pictures: images (B, 3, H, W) float32 RGB in [0, 1] → the outputs, in order.

    Attributes:
        outputs: names of the outputs, in order.
        rows: pictures that make one row of the outputs.
        image_size: side of the square picture.
    """

    outputs: tuple[str, ...]
    rows: int
    image_size: int


class DeployModel(DeployedPictures):
    """images (B, 3, H, W) float32 RGB in [0, 1] → the chosen outputs, in order.

    "logits" are (B, num_classes); "embedding" are unit rows (B, embed_dim), so that a cosine is a plain product.

    A student of clips takes the frames of one clip in the place of the batch, (F, 3, H, W) in the order of time, and
    gives one row: four axes are what every runtime, and every picture buffer of a phone, knows.

    `rows` is 1, or F.

    Raises:
        UsageError: an output that is not known, or none.
    """

    def __init__(self, student: Student, outputs: Sequence[str] = OUTPUTS) -> None:
        super().__init__()
        self.student = student
        self.outputs = chosen_outputs(outputs)
        self.rows = student.spec.frames
        self.image_size = student.spec.image_size

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map images (B, 3, H, W) in [0, 1] to the outputs in the order of `self.outputs`."""
        embedding, logits = self.student.from_frames(images)
        found = {"logits": logits, "embedding": F.normalize(embedding, dim=1, eps=1e-6)}
        return tuple(found[name] for name in self.outputs)


class TorchSession:
    """A deployed model in eager PyTorch, as a Session (edgekit.export.session)."""

    def __init__(self, model: DeployedPictures, threads: int = 1) -> None:
        self._model = model.eval()
        self._threads = threads
        size = model.image_size
        self.input_shape: tuple[int | None, int, int, int] = (None if model.rows == 1 else model.rows, 3, size, size)
        self.info = RuntimeInfo("torch", torch.__version__, threads, "eager")

    def __call__(self, images: FloatArray) -> dict[str, FloatArray]:
        """Run on images (B, 3, H, W) float32 in [0, 1]; return float32 outputs by name."""
        return run_eager(self._model, self._model.outputs, torch.from_numpy(images), self._threads)


@torch.inference_mode()
def run_eager(model: nn.Module, names: Sequence[str], inputs: Tensor, threads: int) -> dict[str, FloatArray]:
    """Run a deployed model; return its outputs, float32, by name."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    return {name: np.asarray(result.numpy(), np.float32) for name, result in zip(names, model(inputs), strict=True)}
