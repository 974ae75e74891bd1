"""Core ML packages as Xcode and Vision see them: a picture in; a label, probabilities, logits and embedding out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.export.audit.audit import audit, check_precision
from edgekit.export.coreml.convert import export_coreml, quantize_weights
from edgekit.export.mil.interpreter import MilProgram, MilSession
from edgekit.export.mil.package import read_package
from tests.tolerances import FP32_EXPORT

CLASSES = ("clapping", "cycling", "dancing", "eating soup")
SIZE = 32


class Net(nn.Module):
    """Random weights, large enough that Core ML's int8 takes them."""

    def __init__(self, outputs: Sequence[str]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.outputs = tuple(outputs)
        self.stem = nn.Conv2d(3, 96, 3, stride=2)
        self.body = nn.Conv2d(96, 64, 1)
        self.head = nn.Linear(64, len(CLASSES))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        pooled = F.silu(self.body(F.silu(self.stem(images * 2 - 1)))).mean((2, 3))
        found = {"logits": 20 * self.head(pooled), "embedding": F.normalize(pooled, dim=1, eps=1e-6)}
        return tuple(found[name] for name in self.outputs)


def package(folder: Path, outputs: Sequence[str], precision: str) -> tuple[nn.Module, Path]:
    net, path = Net(outputs).eval(), folder / f"model.{precision}.mlpackage"
    texts = {"classes": json.dumps(CLASSES)}
    made = folder / "float.mlpackage" if precision == "int8" else path
    arithmetic = "fp32" if precision == "fp32" else "fp16"
    export_coreml(net, SIZE, made, precision=arithmetic, output_names=outputs, metadata=texts)
    if precision == "int8":
        quantize_weights(made, path)
    return net, path


def pictures(count: int = 5) -> np.ndarray:
    """Whole 8-bit levels, as Core ML hands them on."""
    levels = np.random.default_rng(0).integers(0, 256, (count, 3, SIZE, SIZE))
    return levels.astype(np.float32) / np.float32(255)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("outputs", [("logits", "embedding"), ("embedding", "logits"), ("logits",)])
def test_a_package_gives_label_probabilities_and_the_chosen_outputs(
    tmp_path: Path, outputs: tuple[str, ...], precision: str
) -> None:
    net, path = package(tmp_path, outputs, precision)
    description = read_package(path).description
    assert [feature.name for feature in description.output] == ["classLabel", "classLabel_probs", *outputs]
    assert description.predictedFeatureName == "classLabel"
    assert description.predictedProbabilitiesName == "classLabel_probs"
    assert description.input[0].type.WhichOneof("Type") == "imageType"
    assert json.loads(description.metadata.userDefined["edgekit.classes"]) == list(CLASSES)
    assert check_precision(audit(path), precision) == ()
    session, program = MilSession(path), MilProgram.load(path)
    assert program.classes == CLASSES
    for picture in pictures():
        with torch.inference_mode():
            wanted = dict(zip(outputs, net(torch.from_numpy(picture[None])), strict=True))
        found = session(picture[None])
        limit = FP32_EXPORT if precision == "fp32" else 0.2
        for name, values in wanted.items():
            assert np.abs(found[name] - values.numpy()).max() < limit
        assert np.abs(found["probabilities"] - wanted["logits"].softmax(1).numpy()).max() < limit
        raw = program.run({"image": np.rint(picture[None] * 255).astype(np.float32)})
        assert raw["classLabel"].tolist() == [CLASSES[int(found["logits"].argmax())]]


def test_without_logits_there_is_no_label(tmp_path: Path) -> None:
    _, path = package(tmp_path, ("embedding",), "fp16")
    assert [feature.name for feature in read_package(path).description.output] == ["embedding"]
    assert set(MilSession(path)(pictures(1))) == {"embedding"}
