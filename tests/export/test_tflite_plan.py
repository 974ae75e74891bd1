"""Linear layers that read and give float take a range per row of what they read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit.export.session import FloatArray
from edgekit.export.tflite.convert import convert_float
from edgekit.export.tflite.graph import Graph
from edgekit.export.tflite.int8 import TfliteQuantConfig, quantize_tflite
from edgekit.export.tflite.plan import Plan, plan_static
from edgekit.export.tflite.session import LiteRTSession
from tests.export.nets_for_tests import pictures

SIZE = 32
SMALL = 1 / 50
"""What the upper half of the tokens is multiplied by; its squares are less than a step of a range for all."""
SNR_DB = 25.0


class Squares(nn.Module):
    """64 tokens of 32 channels, a linear layer on their squares, another on its sum with the tokens, and a head.

    The upper half of the tokens is small. Behind the layer on the sum is a SiLU, which runs in int8, or else a softmax.
    """

    def __init__(self, *, silu: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 32, 4, 4)
        self.scale = nn.Parameter(torch.tensor([SMALL, 1.0]).repeat_interleave(32)[:, None])
        self.on_sum, self.on_squares, self.head = nn.Linear(32, 32), nn.Linear(32, 32, bias=False), nn.Linear(32, 4)
        self.act: nn.Module = nn.SiLU() if silu else nn.Softmax(dim=-1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.patches(images).permute(0, 2, 3, 1).reshape(-1, 32) * self.scale
        mixed = self.on_squares(tokens * tokens)
        return self.head(self.act(self.on_sum(mixed + tokens)).mean(0, keepdim=True)), mixed


def batches() -> Iterator[FloatArray]:
    return iter(np.split(pictures(12, SIZE, seed=1).numpy(), 12))


def planned(silu: bool, folder: Path) -> tuple[Path, Graph, Plan]:
    path = folder / "float.tflite"
    convert_float(Squares(silu=silu).eval(), SIZE, path)
    graph = Graph.read(path)
    return path, graph, plan_static(graph)


@pytest.mark.parametrize("silu", [False, True])
def test_by_row_where_no_codes_are_read_or_wanted(silu: bool, tmp_path: Path) -> None:
    _, graph, plan = planned(silu, tmp_path)
    linear = [n for n, operator in enumerate(graph.operators) if graph.name(operator) == "FULLY_CONNECTED"]
    assert len(linear) == 3
    on_squares, on_sum, head = linear
    assert {on_squares, head} <= plan.dynamic
    assert (on_sum in plan.static) == silu and (on_sum in plan.dynamic) != silu


def test_small_rows_keep_their_digits(tmp_path: Path) -> None:
    path, _, _ = planned(False, tmp_path)
    report = quantize_tflite(path, tmp_path / "int8.tflite", batches, TfliteQuantConfig())
    assert (report.partitions.partitions, dict(report.partitions.outside)) == (1, {}), str(report.partitions)
    one, other = LiteRTSession(path), LiteRTSession(tmp_path / "int8.tflite")
    image = pictures(1, SIZE, seed=2).numpy()
    want, have = one(image)["embedding"], other(image)["embedding"]
    for rows in (slice(0, 32), slice(32, 64)):
        noise = np.square(have[rows] - want[rows]).sum() / np.square(want[rows]).sum()
        assert -10 * np.log10(noise) > SNR_DB, rows
