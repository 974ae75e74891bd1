"""Image transformers in int8: 3-D linear layers compute in integers, what is joined to a class token stays whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from edgekit.export.audit.audit import audit, check_precision
from edgekit.export.onnx.convert import export_onnx
from edgekit.export.onnx.graph import OnnxGraph
from edgekit.export.onnx.int8 import quantize_onnx, tensor_shapes
from edgekit.export.onnx.session import OnnxSession, profile
from edgekit.export.onnx.surgery import linear_as_gemm
from edgekit.export.parity import GATES, compare_outputs, failures
from edgekit.export.session import FloatArray, Session, run_batched
from edgekit.export.tflite.convert import export_tflite
from edgekit.export.tflite.int8 import quantize_tflite
from edgekit.export.tflite.session import LiteRTSession
from tests.export.nets_for_tests import pictures

SIZE = 64
DEPTH = 2
LAYERS = 4 * DEPTH
"""Linear layers: queries with keys and values, output, and two of the MLP, in each block."""

INT8_SNR_DB = 18.0
"""Random weights: 22 (TFLite) and 24 dB (ONNX) were measured; a lost scale or bias has 0."""

PICTURES = 32


class Tower(nn.Module):
    """A timm ViT as `train clip` has it: class token, unit embedding through a projection without bias, and logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vision = timm.create_model("vit_tiny_patch16_224", img_size=SIZE, depth=DEPTH, num_classes=0)
        self.projection = nn.Linear(192, 48, bias=False)
        self.head = nn.Linear(192, 10)
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.LayerNorm):
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                if isinstance(module, nn.Linear | nn.Conv2d):  # timm's own weights hardly look at the picture
                    nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
                if isinstance(module, nn.LayerNorm | nn.Linear) and module.bias is not None:
                    nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(self.vision.cls_token)
            shown = pictures(64, SIZE, seed=4)
            self.head.bias.sub_(self.eval()(shown)[0].mean(0))  # pictures, not the biases, tell the classes apart

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, 3, 64, 64) in [0, 1] to (logits, embedding)."""
        features = self.vision(images - 0.45)
        return self.head(features), nn.functional.normalize(self.projection(features), dim=1)


def batches() -> Iterator[FloatArray]:
    return iter(np.split(pictures(12, SIZE, seed=1).numpy(), 12))


@pytest.fixture(scope="module")
def tower() -> Tower:
    return Tower().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def float_onnx(tower: Tower, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "float.onnx"
    export_onnx(tower, SIZE, path)
    return path


def check(tower: Tower, session: Session, path: Path) -> None:
    """The gates of `export`: close to PyTorch, and int8 as it claims."""
    images = pictures(PICTURES, SIZE, seed=2)
    logits, embedding = tower(images)
    wanted = {"logits": logits.numpy(), "embedding": embedding.numpy()}
    parity = compare_outputs(wanted, run_batched(session, images.numpy()))
    assert failures(parity, GATES["int8"]) == () and parity.snr_db > INT8_SNR_DB, parity
    assert check_precision(audit(path), "int8") == ()


def test_onnx(tower: Tower, float_onnx: Path, tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    report = quantize_onnx(float_onnx, out, batches)
    assert report.quantized == {"Gemm": LAYERS}
    assert len(report.weight_only) == 2 and report.float_nodes == ("node_conv2d",), "heads, and the patches' own layer"
    check(tower, OnnxSession(out), out)
    found = {kernel.operator: kernel.count for kernel in profile(out, runs=2)}
    assert found["QGemm"] == LAYERS and not {"MatMul", "DequantizeLinear"} & found.keys(), found
    assert out.stat().st_size < 0.33 * float_onnx.stat().st_size


def test_onnx_of_a_free_batch(tower: Tower, tmp_path: Path) -> None:
    source, out = tmp_path / "free.onnx", tmp_path / "free8.onnx"
    export_onnx(tower, SIZE, source, dynamic_batch=True)
    report = quantize_onnx(source, out, batches)
    assert report.quantized == {"Gemm": LAYERS} and len(report.weight_only) == 2
    session, images = OnnxSession(out), pictures(3, SIZE).numpy()
    together, alone = session(images)["logits"], [session(image[None])["logits"][0] for image in images]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-4)
    check(tower, session, out)


def test_linear_layers_as_gemm_are_exact(float_onnx: Path, tmp_path: Path) -> None:
    import onnx

    graph = OnnxGraph.read(float_onnx)
    assert linear_as_gemm(graph, tensor_shapes(graph)) == LAYERS
    assert not any(node.op_type == "MatMul" for node in graph.nodes)
    assert linear_as_gemm(graph, tensor_shapes(graph)) == 0
    onnx.save(graph.model, tmp_path / "gemm.onnx")
    images = pictures(1, SIZE, seed=3).numpy()
    wanted, found = OnnxSession(float_onnx)(images), OnnxSession(tmp_path / "gemm.onnx")(images)
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-5)


def test_tflite(tower: Tower, tmp_path: Path) -> None:
    source, out = tmp_path / "float.tflite", tmp_path / "int8.tflite"
    export_tflite(tower, SIZE, source)
    report = quantize_tflite(source, out, batches)
    assert (report.partitions.partitions, dict(report.partitions.outside)) == (1, {}), str(report.partitions)
    assert report.int8_operators["FULLY_CONNECTED"] == LAYERS + 2 and report.float_operators == {}
    assert "CONCATENATION" not in report.int8_operators, "the class token has no codes"
    check(tower, LiteRTSession(out), out)
