"""The students made for 8 bits keep what they were made for: one partition, int8 kernels, only the softmax float."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.export.onnx.convert import export_onnx
from edgekit.export.onnx.int8 import quantize_onnx
from edgekit.export.onnx.session import OnnxSession, profile
from edgekit.export.session import FloatArray
from edgekit.export.tflite.convert import export_tflite
from edgekit.export.tflite.graph import Graph
from edgekit.export.tflite.int8 import quantize_tflite
from edgekit.export.tflite.session import LiteRTSession
from tests.export.nets_for_tests import TwoHeads, pictures
from tests.tolerances import FP32_EXPORT

SIZE = 128
INT8_SNR_DB = 18.0
"""Random weights: an int8 net that computes the right thing has 20 dB and more; a wrong one has 0."""


def batches() -> Iterator[FloatArray]:
    return iter(np.split(pictures(12, SIZE, seed=1).numpy(), 12))


def snr_db(wanted: FloatArray, found: FloatArray) -> float:
    return float(10 * np.log10((wanted**2).mean() / ((wanted - found) ** 2).mean()))


@pytest.fixture(scope="module")
def net() -> TwoHeads:
    return TwoHeads("mobilevit_xxs_int8").eval()


@pytest.fixture(scope="module")
def wanted(net: TwoHeads) -> FloatArray:
    with torch.no_grad():
        return net(pictures(4, SIZE, seed=2))[0].numpy()


def logits(session: OnnxSession | LiteRTSession) -> FloatArray:
    return np.concatenate([session(image)["logits"] for image in np.split(pictures(4, SIZE, seed=2).numpy(), 4)])


def test_tflite(net: TwoHeads, wanted: FloatArray, tmp_path: Path) -> None:
    source, out = tmp_path / "float.tflite", tmp_path / "int8.tflite"
    export_tflite(net, SIZE, source)
    assert np.abs(logits(LiteRTSession(source)) - wanted).max() <= FP32_EXPORT
    report = quantize_tflite(source, out, batches)
    assert (report.partitions.partitions, dict(report.partitions.outside)) == (1, {}), str(report.partitions)
    assert snr_db(wanted, logits(LiteRTSession(out))) > INT8_SNR_DB

    graph = Graph.read(out)
    kinds = Counter(graph.name(op) for op in graph.operators if not _is_int8(graph, op))
    # the picture's offset, the pooled features' mean, a row of unit length; nine softmaxes, some in pieces
    assert kinds.pop("SOFTMAX") >= 9
    assert kinds["MEAN"] <= 1 and not {"LOGISTIC", "CONV_2D", "BATCH_MATMUL", "RSQRT"} & kinds.keys()
    assert kinds["ADD"] + kinds["MUL"] + kinds["SUB"] <= 3, kinds


def _is_int8(graph: Graph, operator: object) -> bool:
    tensors = (*operator.inputs, *operator.outputs)  # type: ignore[attr-defined]
    types = {graph.tensors[int(tensor)].type for tensor in tensors if tensor >= 0}
    return graph.schema.TensorType.INT8 in types


def test_onnx(net: TwoHeads, wanted: FloatArray, tmp_path: Path) -> None:
    source, out = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    export_onnx(net, SIZE, source)
    assert np.abs(logits(OnnxSession(source)) - wanted).max() <= FP32_EXPORT
    report = quantize_onnx(source, out, batches)
    assert report.quantized["Conv"] == 79
    found = {kernel.operator: kernel.count for kernel in profile(out, runs=2)}
    assert found["QLinearConv"] == 79 and found["QLinearAdd"] == 18, found
    assert found["QuickGelu"] == 18, "on the small maps"
    assert not {"RMSNormalization", "LayerNormalization", "Gelu", "QLinearSoftmax"} & found.keys()
    assert found.get("Relu", 0) <= 4, "the float convolutions at the start take theirs in, the others are ranges"
    assert snr_db(wanted, logits(OnnxSession(out))) > INT8_SNR_DB
