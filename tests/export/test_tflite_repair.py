"""Accuracy repair of int8 TFLite files: a planted bad layer is found and kept float, head biases are mended."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekit.errors import UsageError
from edgekit.export.session import FloatArray, run_batched
from edgekit.export.tflite.convert import convert_float
from edgekit.export.tflite.graph import Graph
from edgekit.export.tflite.int8 import TfliteQuantConfig, calibrate_tflite, quantize_tflite
from edgekit.export.tflite.plan import plan_static, silu_inputs
from edgekit.export.tflite.repair import SILU_FLOOR, FloatSource, convolution_units, worst_operators
from edgekit.export.tflite.session import LiteRTSession
from tests.export.nets_for_tests import pictures

SIZE = 32


class Planted(nn.Module):
    """Three convolutions and a head. One channel of the second is a hundred times as loud as the others, and the third
    makes that good: one scale for all its channels leaves the quiet ones few codes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)
        with torch.no_grad():
            self.second.weight[0] *= 100
            self.third.weight[:, 0] /= 100
            self.third.weight[:, 1:] *= 4

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to (B, 5)."""
        silu = nn.functional.silu
        logits: Tensor = self.head(self.third(silu(self.second(silu(self.first(images))))).mean((2, 3)))
        return logits


def images() -> list[FloatArray]:
    return [pictures(40, SIZE, seed=1).numpy()]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planted") / "planted.tflite"
    convert_float(Planted().eval(), SIZE, path, output_names=("logits",))
    return path


def logits(path: Path) -> NDArray[np.float64]:
    return run_batched(LiteRTSession(path), images()[0])["logits"].astype(np.float64)


def convolutions(graph: Graph) -> list[int]:
    return [number for number, operator in enumerate(graph.operators) if graph.name(operator) == "CONV_2D"]


def test_the_planted_layer_is_found(planted: Path) -> None:
    graph = Graph.read(planted)
    source = FloatSource(planted, calibrate_tflite(planted, images).ranges())
    worst = worst_operators(source, images)
    assert worst & set(convolutions(graph)) == {convolutions(graph)[1]}
    assert "LOGISTIC" in {graph.name(graph.operators[number]) for number in worst}, "its activation stays float, too"


def test_mixed_keeps_it_float_and_gains(planted: Path, tmp_path: Path) -> None:
    want, noise = logits(planted), {}
    for mode in ("static", "mixed"):
        config = TfliteQuantConfig(mode=mode, repair=False)  # type: ignore[arg-type]
        report = quantize_tflite(planted, tmp_path / "q.tflite", images, config)
        assert report.partitions.partitions == 1
        assert report.float_operators.get("CONV_2D", 0) == (mode == "mixed")
        noise[mode] = np.square(logits(tmp_path / "q.tflite") - want).sum()
    assert noise["mixed"] < noise["static"] / 2


def test_mixed_needs_images(planted: Path, tmp_path: Path) -> None:
    statistics = calibrate_tflite(planted, images)
    with pytest.raises(UsageError, match="measures its layers on calibration images"):
        quantize_tflite(planted, tmp_path / "q.tflite", statistics, TfliteQuantConfig(mode="mixed"))
    assert not (tmp_path / "q.tflite").exists()


def test_heads_give_the_float_mean(planted: Path, tmp_path: Path) -> None:
    want, shift = logits(planted).mean(0), {}
    for repair in (False, True):
        quantize_tflite(planted, tmp_path / "q.tflite", images, TfliteQuantConfig(repair=repair))
        shift[repair] = np.abs(logits(tmp_path / "q.tflite").mean(0) - want).max()
    assert shift[True] < 1e-5 < shift[False] / 10


def test_units_share_no_operator_and_hold_every_convolution(planted: Path) -> None:
    graph = Graph.read(planted)
    plan = plan_static(graph)
    units = convolution_units(graph, plan)
    members = [number for unit in units for number in unit]
    assert len(members) == len(set(members)) and set(convolutions(graph)) <= set(members) <= plan.static


def test_no_code_is_spent_far_below_a_silu(planted: Path) -> None:
    statistics = calibrate_tflite(planted, images)
    graph, plan = Graph.read(planted), plan_static(Graph.read(planted))
    loud = silu_inputs(graph, plan)[1]
    quantized, _ = FloatSource(planted, statistics.ranges()).quantized()
    name = bytes(graph.tensors[loud].name) + b"_int8"
    twin = next(tensor for tensor in quantized.tensors if bytes(tensor.name) == name)
    scale, zero_point = twin.quantization.scale[0], twin.quantization.zeroPoint[0]
    lowest = min(low for low, _ in statistics.ranges().values())
    assert lowest < SILU_FLOOR - 1, "the net has something to cut"
    assert scale * (-128 - zero_point) == pytest.approx(SILU_FLOOR, abs=scale)
