"""Constants of a .tflite file: every type that numpy has is read, any other is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit.errors import LoadError
from edgekit.export.session import FloatArray
from edgekit.export.tflite.convert import convert_float
from edgekit.export.tflite.graph import NUMPY_TYPES, Graph
from edgekit.export.tflite.int8 import quantize_tflite
from edgekit.export.tflite.session import LiteRTSession
from tests.export.nets_for_tests import pictures

SIZE = 16
INT8_STEP = 0.03
"""The outputs span about 2, and three layers round them to 255 steps."""


class Masked(nn.Module):
    """Convolutions with a constant mask between them, as masked attention has one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 8, 1)
        self.mask: Tensor
        self.register_buffer("mask", torch.arange(SIZE * SIZE).reshape(SIZE, SIZE) % 3 > 0)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, 16, 16) to (B, 8, 16, 16)."""
        x = self.conv(images)
        result: Tensor = self.last(torch.where(self.mask, x, torch.zeros_like(x)))
        return result


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("masked") / "model.tflite"
    convert_float(Masked().eval(), SIZE, path, output_names=("logits",))
    return path


def mask_of(graph: Graph) -> int:
    found = [n for n, tensor in enumerate(graph.tensors) if tensor.type == graph.schema.TensorType.BOOL]
    (mask,) = [n for n in found if graph.is_constant(n)]
    return mask


def test_a_net_with_a_constant_mask(masked: Path, tmp_path: Path) -> None:
    graph = Graph.read(masked)
    mask = graph.constant(mask_of(graph))
    assert mask is not None and mask.dtype == np.bool_
    np.testing.assert_array_equal(mask.reshape(SIZE, SIZE), Masked().mask.numpy())

    def batches() -> list[FloatArray]:
        return [pictures(10, SIZE, seed=1).numpy()]

    report = quantize_tflite(masked, tmp_path / "int8.tflite", batches)
    assert report.int8_operators["CONV_2D"] == 2 and report.float_operators == {}
    images = pictures(1, SIZE, seed=2)
    with torch.no_grad():
        wanted = Masked().eval()(images).numpy()
    found = LiteRTSession(tmp_path / "int8.tflite")(images.numpy())["logits"]
    np.testing.assert_allclose(found, wanted, atol=INT8_STEP)


@pytest.mark.parametrize("name", NUMPY_TYPES)
def test_constants_of_every_type(name: str, masked: Path) -> None:
    graph, values = Graph.read(masked), np.arange(6).reshape(2, 3).astype(NUMPY_TYPES[name])
    index = graph.add_tensor(mask_of(graph), name, "_typed", values)
    graph.tensors[index].shape = [2, 3]
    found = graph.constant(index)
    assert found is not None and found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("name", ["INT4", "BFLOAT16", "STRING"])
def test_other_types_are_named(name: str, masked: Path) -> None:
    graph = Graph.read(masked)
    index = mask_of(graph)
    graph.tensors[index].type = getattr(graph.schema.TensorType, name)
    graph.tensors[index].name = b"weights"
    with pytest.raises(LoadError, match=rf"constant 'weights' is {name}; edgekit reads FLOAT16"):
        graph.constant(index)
    graph.tensors[index].type = 99  # of a later schema
    with pytest.raises(LoadError, match="constant 'weights' is type 99"):
        graph.constant(index)


def test_what_is_not_in_the_file_is_computed(masked: Path) -> None:
    graph = Graph.read(masked)
    assert graph.constant(graph.inputs[0]) is None and graph.constant(-1) is None
