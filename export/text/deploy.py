"""The text classifier as it is deployed: token ids in, named outputs out; the mask is made from the padding inside."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.export.config import OUTPUTS, chosen_outputs
from edgekit.export.deploy import run_eager
from edgekit.export.session import FloatArray, RuntimeInfo
from edgekit.models.text_classifier import TextClassifier
from edgekit.models.text_tokenizer import Ids


class DeployedTexts(nn.Module):
    """What goes into a file that takes texts: ids (B, L) int32 → the outputs, in order.

    Attributes:
        outputs: names of the outputs, in order.
        max_length: ids per text.
    """

    outputs: tuple[str, ...]
    max_length: int


class DeployText(DeployedTexts):
    """ids (B, L) int32 → the chosen outputs, in order.

    "logits" are (B, C); "embedding" are unit rows (B, D), so that a cosine is a plain product.

    Raises:
        UsageError: an output that is not known, or none.
    """

    def __init__(self, model: TextClassifier, outputs: Sequence[str] = OUTPUTS) -> None:
        super().__init__()
        self.text = model.deployed()
        self.outputs = chosen_outputs(outputs)
        self.max_length = self.text.spec.max_length

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        """Map ids (B, L) to the outputs in the order of `self.outputs`."""
        embedding, logits = self.text(ids)
        found = {"logits": logits, "embedding": F.normalize(embedding, dim=1, eps=1e-6)}
        return tuple(found[name] for name in self.outputs)


class TorchTextSession:
    """A model of texts in eager PyTorch, as a TextSession (edgekit.export.text.session)."""

    def __init__(self, model: DeployedTexts, threads: int = 1) -> None:
        self._model, self._threads = model.eval(), threads
        self.input_shape: tuple[int | None, int | None] = (None, model.max_length)
        self.info = RuntimeInfo("torch", torch.__version__, threads, "eager")

    def __call__(self, ids: Ids) -> dict[str, FloatArray]:
        """Run on ids (B, L) int32; return float32 outputs by name."""
        return run_eager(self._model, self._model.outputs, torch.from_numpy(ids), self._threads)
