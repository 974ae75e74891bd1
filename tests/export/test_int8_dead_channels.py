"""Channels whose weights are next to nothing keep their bias in int8 files: there it is all that they give."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit.export.calibration.ranges import INT32_ROOM, least_weight_scale
from edgekit.export.onnx.convert import export_onnx
from edgekit.export.onnx.int8 import Int8Config, quantize_onnx
from edgekit.export.onnx.session import OnnxSession
from edgekit.export.session import FloatArray
from edgekit.export.tflite.convert import export_tflite
from edgekit.export.tflite.graph import Graph
from edgekit.export.tflite.int8 import quantize_tflite
from edgekit.export.tflite.session import LiteRTSession
from tests.export.nets_for_tests import pictures

SIZE = 16
CHANNELS = 8
DEAD = 3

GAMMAS = (0.0, 1e-12, 1e-8, -1e-5)
"""Of the dead channel: what training leaves in float32, from nothing to next to nothing."""

ONE_CODE = 2.5 / 255
"""Outputs span about 2.5; the last layer rounds its input and its output once each."""


class DeadChannel(nn.Module):
    """A layer with a BatchNorm whose channel `DEAD` has γ = `gamma` and β = 1, and a layer that hands it on."""

    def __init__(self, kind: str, gamma: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, CHANNELS, 1)
        layers = {
            "conv": nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False),
            "depthwise": nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS, bias=False),
            "linear": nn.Linear(CHANNELS, CHANNELS),
        }
        self.layer = layers[kind]
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.last = nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False)
        with torch.no_grad():
            self.norm.weight[DEAD], self.norm.bias[DEAD] = gamma, 1.0
            self.last.weight.copy_(torch.eye(CHANNELS)[:, :, None, None])
            if isinstance(self.layer, nn.Linear):  # what folding a norm into it would leave
                self.layer.weight[DEAD], self.layer.bias[DEAD] = gamma * self.layer.weight[DEAD], 1.0

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to (B, 8, H, W)."""
        x = torch.relu(self.stem(images))
        if isinstance(self.layer, nn.Linear):
            batch, _, height, width = x.shape
            rows = self.layer(x.permute(0, 2, 3, 1).reshape(-1, CHANNELS))
            x = rows.reshape(batch, height, width, CHANNELS).permute(0, 3, 1, 2)
        else:
            x = self.norm(self.layer(x))
        result: Tensor = self.last(x)
        return result


def batches() -> Iterator[FloatArray]:
    return iter(np.split(pictures(10, SIZE, seed=1).numpy(), 10))


def check(model: nn.Module, session: LiteRTSession | OnnxSession) -> None:
    images = pictures(1, SIZE, seed=2)
    with torch.no_grad():
        wanted = model(images).numpy()
    found = session(images.numpy())["logits"]
    np.testing.assert_allclose(found[:, DEAD], wanted[:, DEAD], atol=ONE_CODE)
    np.testing.assert_allclose(found, wanted, atol=3 * ONE_CODE)


@pytest.mark.parametrize(("kind", "gamma"), [*(("conv", gamma) for gamma in GAMMAS), ("depthwise", 0), ("linear", 0)])
def test_tflite(kind: str, gamma: float, tmp_path: Path) -> None:
    model = DeadChannel(kind, gamma).eval()
    source, out = tmp_path / "float.tflite", tmp_path / "int8.tflite"
    export_tflite(model, SIZE, source, output_names=("logits",))
    report = quantize_tflite(source, out, batches)
    assert report.float_operators == {} and report.partitions.partitions == 1
    check(model, LiteRTSession(out))
    graph = Graph.read(out)
    biases = [graph.constant(n) for n, t in enumerate(graph.tensors) if t.type == graph.schema.TensorType.INT32]
    codes = np.concatenate([bias for bias in biases if bias is not None and bias.shape == (CHANNELS,)])
    assert np.abs(codes).max() == pytest.approx(INT32_ROOM, rel=1e-6), "the dead channel's, and no overflow"


@pytest.mark.parametrize("kind", ["conv", "depthwise", "linear"])
def test_onnx(kind: str, tmp_path: Path) -> None:
    model = DeadChannel(kind, GAMMAS[0]).eval()
    source, out = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    export_onnx(model, SIZE, source, output_names=("logits",))
    quantize_onnx(source, out, batches, Int8Config(thin_channels=0))
    check(model, OnnxSession(out))


def test_least_weight_scale() -> None:
    bias = np.array([0.0, 1.0, -2.0], np.float32)
    scales = least_weight_scale(bias, 0.5)
    assert scales.tolist() == [0.0, 2 / INT32_ROOM, 4 / INT32_ROOM]
