"""RESHAPE operators taken out of an int8 TFLite file: the same answers, still one partition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit.export.rewrites.layers import BmmCore, RMSNorm
from edgekit.export.session import FloatArray
from edgekit.export.tflite.convert import convert_float
from edgekit.export.tflite.graph import Graph
from edgekit.export.tflite.int8 import calibrate_tflite
from edgekit.export.tflite.repair import FloatSource
from edgekit.export.tflite.reshapes import drop_reshapes
from edgekit.export.tflite.session import LiteRTSession, partitions
from tests.export.nets_for_tests import pictures

SIZE = 32


class OneAttention(nn.Module):
    """Patches of 4 × 4 pixels as 64 tokens of 32 channels, a norm, attention of two heads, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 32, 4, 4)
        self.norm = RMSNorm(1e-5)
        self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))
        self.core = BmmCore(2, 0.25)
        self.proj = nn.Linear(32, 32)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.patches(images).permute(0, 2, 3, 1).reshape(-1, 32)
        normed = self.norm(tokens)
        q, k, v = (linear(normed).reshape(-1, 64, 32) for linear in (self.q, self.k, self.v))
        y = tokens + self.proj(self.core(q, k, v).reshape(-1, 32))
        return y.mean(0, keepdim=True), self.norm(y).mean(0, keepdim=True)


def batches() -> Iterator[FloatArray]:
    return iter(np.split(pictures(8, SIZE, seed=1).numpy(), 8))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FloatSource:
    path = tmp_path_factory.mktemp("tflite") / "float.tflite"
    convert_float(OneAttention().eval(), SIZE, path)
    return FloatSource(path, calibrate_tflite(path, batches).ranges())


def written(graph: Graph, path: Path) -> Path:
    graph.compact()
    graph.write(path)
    return path


def count(path: Path, name: str) -> int:
    graph = Graph.read(path)
    return Counter(graph.name(operator) for operator in graph.operators)[name]


def test_nothing_changes_but_their_number(source: FloatSource, tmp_path: Path) -> None:
    before = written(source.quantized()[0], tmp_path / "before.tflite")
    graph, _ = source.quantized()
    assert drop_reshapes(graph) == 4 + 2, "queries, keys, values, the result; and one for each of two norms"
    after = written(graph, tmp_path / "after.tflite")
    assert count(after, "RESHAPE") == count(before, "RESHAPE") - 6
    assert partitions(after).partitions == 1
    sessions = LiteRTSession(before), LiteRTSession(after)
    for image in np.split(pictures(4, SIZE, seed=2).numpy(), 4):
        wanted, found = (session(image) for session in sessions)
        for name, values in wanted.items():
            assert values.std() > 0
            np.testing.assert_array_equal(values, found[name])


def test_what_others_read_stays(source: FloatSource) -> None:
    graph, _ = source.quantized()
    add = next(o for o in graph.operators if graph.name(o) == "ADD" and len(graph.shape(o.outputs[0])) == 1)
    scores = next(o for o in graph.operators if graph.name(o) == "BATCH_MATMUL")
    graph.model.subgraphs[0].outputs = [*graph.outputs, int(add.outputs[0]), int(scores.outputs[0])]
    assert drop_reshapes(graph) == 1, "the other norm"
