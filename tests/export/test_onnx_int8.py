"""INT8 for ONNX Runtime: int8 kernels really run, the file is small, and the answers stay."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, nn

from edgekit.errors import DataError, LoadError, UsageError
from edgekit.export.calibration.measured import CANDIDATES, noise_share
from edgekit.export.onnx.convert import export_naive, export_onnx
from edgekit.export.onnx.graph import OnnxGraph
from edgekit.export.onnx.int8 import Int8Config, quantize_onnx
from edgekit.export.onnx.session import OnnxSession, profile
from edgekit.export.onnx.surgery import fuse_silu, open_attention
from edgekit.export.onnx.weights import quantize_onnx_dynamic, quantize_onnx_weights
from edgekit.export.session import FloatArray
from edgekit.models.temporal import ClipHead, TemporalAttentionPool
from tests.export.nets_for_tests import TwoHeads, pictures

SIZE = 64


def batches() -> Iterator[FloatArray]:
    return iter(np.split(pictures(12, SIZE, seed=1).numpy(), 12))


@pytest.fixture(scope="module")
def float_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("float") / "xxs.onnx"
    export_onnx(TwoHeads("mobilevit_xxs", classes=100).eval(), SIZE, path, metadata={"labels": "[]"})
    return path


@pytest.fixture(scope="module")
def int8_path(float_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "xxs.onnx"
    quantize_onnx(float_path, path, batches)
    return path


def snr_db(reference: Path, candidate: Path, output: str = "embedding") -> float:
    images = np.split(pictures(8, SIZE, seed=2).numpy(), 8)
    found, wanted = (
        np.concatenate([session(image)[output] for image in images])
        for session in (OnnxSession(candidate), OnnxSession(reference))
    )
    noise = float(((found - wanted) ** 2).sum())
    return 10 * math.log10(float((wanted**2).sum()) / noise) if noise else math.inf


def kernels(path: Path) -> dict[str, int]:
    return {kernel.operator: kernel.count for kernel in profile(path, runs=2)}


def test_int8_kernels_run_and_nothing_else_is_slow(int8_path: Path) -> None:
    found = kernels(int8_path)
    assert found["QLinearConv"] == 13 and found["QGemm"] == 60
    assert found["QuickGelu"] == 34, "each SiLU stays one float kernel"
    assert found["Attention"] == 9 and found["RMSNormalization"] == 21
    # what `quantize_static` leaves by default, and why it is slow
    assert not {"QLinearSoftmax", "QLinearSigmoid", "QLinearMul", "Sigmoid", "ConvInteger"} & found.keys()


def test_int8_file(float_path: Path, int8_path: Path) -> None:
    assert int8_path.stat().st_size < 0.31 * float_path.stat().st_size
    model = onnx.load(int8_path)
    onnx.checker.check_model(model)
    kinds = Counter(tensor.data_type for tensor in model.graph.initializer)
    assert kinds[onnx.TensorProto.INT8] > 75
    stored = sum(np.prod(t.dims) for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8)
    total = sum(np.prod(t.dims) for t in onnx.load(float_path).graph.initializer)
    assert stored > 0.93 * total, "nearly all weights are bytes"
    assert {entry.key for entry in model.metadata_props} == {"edgekit.labels"}
    assert [entry.name for entry in model.graph.output] == ["logits", "embedding"]


def test_int8_answers(float_path: Path, int8_path: Path) -> None:
    assert 26 < snr_db(float_path, int8_path) < 50
    assert 26 < snr_db(float_path, int8_path, "logits") < 50


def test_no_way_of_choosing_ranges_is_better_than_the_one_taken(
    float_path: Path, int8_path: Path, tmp_path: Path
) -> None:
    images = np.split(pictures(12, SIZE, seed=1).numpy(), 12)

    def answers(path: Path) -> list[NDArray[np.float64]]:
        session = OnnxSession(path)
        said = [session(image) for image in images]
        return [np.concatenate([one[name] for one in said]).astype(np.float64) for name in ("logits", "embedding")]

    def noise(path: Path) -> float:
        return noise_share(answers(float_path), answers(path))

    noises = []
    for number, config in enumerate(CANDIDATES):
        quantize_onnx(float_path, tmp_path / f"{number}.onnx", batches, Int8Config(ranges=config))
        noises.append(noise(tmp_path / f"{number}.onnx"))
    assert noise(int8_path) == pytest.approx(min(noises), rel=1e-6)
    assert max(noises) > min(noises)


def test_report(float_path: Path, tmp_path: Path) -> None:
    report = quantize_onnx(float_path, tmp_path / "a.onnx", batches, Int8Config(thin_channels=0))
    assert report.quantized == {"Conv": 28, "Gemm": 60} and report.statistics.images == 12
    assert report.float_nodes == ("node_conv2d",), "the stem alone"
    assert len(report.weight_only) == 1, "the classifier reads one row per image"
    named = quantize_onnx(float_path, tmp_path / "b.onnx", batches, Int8Config(float_layers=("node_linear_3",)))
    assert "node_linear_3" in named.float_nodes and named.quantized["Gemm"] == 59


@pytest.fixture(scope="module")
def wide_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return mobilevit_s, whose heads are 36 to 60 wide."""
    path = tmp_path_factory.mktemp("wide") / "s.onnx"
    export_onnx(TwoHeads("mobilevit_s").eval(), SIZE, path)
    return path


def test_attention_products_in_int8(wide_path: Path, tmp_path: Path) -> None:
    source, out = wide_path, tmp_path / "s8.onnx"
    report = quantize_onnx(source, out, batches, Int8Config(attention_tokens=16))
    assert report.quantized["MatMul"] == 4  # two attentions over 16 tokens; the rest see 4 and 1
    found = kernels(out)
    assert found["MatMulIntegerToFloat"] == 4 and found["Attention"] == 7 and found["Softmax"] == 2
    assert snr_db(source, out) > 20


def test_opening_attention_is_exact(wide_path: Path, tmp_path: Path) -> None:
    source, opened = wide_path, tmp_path / "opened.onnx"
    graph = OnnxGraph.read(source)
    attentions = [node for node in graph.nodes if node.op_type == "Attention"]
    first = {name: (4, 16, 144) for node in attentions[:2] for name in node.input}
    assert len(open_attention(graph, first, 16)) == 4
    onnx.save(graph.model, opened)
    assert snr_db(source, opened) > 100


def test_a_free_batch_stays_free(tmp_path: Path) -> None:
    source, out = tmp_path / "free.onnx", tmp_path / "free8.onnx"
    export_onnx(TwoHeads("mobilevit_xxs").eval(), SIZE, source, dynamic_batch=True)
    report = quantize_onnx(source, out, batches)
    assert report.quantized == {"Conv": 13, "Gemm": 60} and len(report.weight_only) == 1
    session, images = OnnxSession(out), pictures(3, SIZE).numpy()
    together, alone = session(images)["embedding"], [session(image[None])["embedding"][0] for image in images]
    assert np.abs(together - np.stack(alone)).max() < 1e-5


class OneClip(nn.Module):
    """Frames (F, 3, H, W) of one clip → its logits (1, 5), with the pooling and the head of edgekit's clip students."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.conv = nn.Conv2d(3, 16, 3, stride=2), nn.Conv2d(16, 64, 3, stride=2)
        self.pool, self.head = TemporalAttentionPool(64, frames), ClipHead(64, 5)

    def forward(self, images: Tensor) -> Tensor:
        """Map (F, 3, H, W) in [0, 1] to (1, 5)."""
        features = torch.relu(self.conv(torch.relu(self.stem(images)))).mean((2, 3))
        logits: Tensor = self.head(self.pool(features[None]))
        return logits


def test_what_reads_one_row_per_frame_or_per_clip_is_a_head(tmp_path: Path) -> None:
    source, out, frames = tmp_path / "clip.onnx", tmp_path / "clip8.onnx", 4
    export_onnx(OneClip(frames).eval(), SIZE, source, rows=frames, output_names=("logits",))
    report = quantize_onnx(source, out, lambda: iter(np.split(pictures(16, SIZE, seed=1).numpy(), 4)))
    assert report.quantized == {"Conv": 1}
    assert len(report.weight_only) == 5, "keys and values of the frames; output, hidden layer and scores of the clip"
    assert snr_db_of_clip(source, out, frames) > 30


def snr_db_of_clip(reference: Path, candidate: Path, frames: int) -> float:
    images = pictures(frames, SIZE, seed=2).numpy()
    wanted, found = (OnnxSession(path)(images)["logits"] for path in (reference, candidate))
    return 10 * math.log10(float((wanted**2).sum()) / float(((found - wanted) ** 2).sum()))


def test_naive_files_are_quantized_too(tmp_path: Path) -> None:
    """A file that edgekit did not rewrite: SiLU arrives as two nodes and is fused first."""
    source, out = tmp_path / "naive.onnx", tmp_path / "naive8.onnx"
    export_naive(TwoHeads("mobilevitv2_050").eval(), SIZE, source)
    graph = OnnxGraph.read(source)
    assert fuse_silu(graph) == 25 and not any(node.op_type == "Sigmoid" for node in graph.nodes)
    quantize_onnx(source, out, batches)
    assert kernels(out)["QuickGelu"] == 25
    assert snr_db(source, out) > 20


@pytest.mark.parametrize("arch", ["mobilenetv3_small_050", "mobilevitv2_050"])
def test_other_nets(arch: str, tmp_path: Path) -> None:
    source, out = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    export_onnx(TwoHeads(arch).eval(), SIZE, source)
    quantize_onnx(source, out, batches)
    assert kernels(out)["QLinearConv"] > 10
    assert snr_db(source, out) > 15


def test_weights_only_is_as_fast_and_more_accurate(float_path: Path, int8_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "w8.onnx"
    assert quantize_onnx_weights(float_path, out) == 90
    assert out.stat().st_size < 0.30 * float_path.stat().st_size
    onnx.checker.check_model(onnx.load(out))
    assert kernels(out) == kernels(float_path), "weights are widened at load: the same kernels run"
    assert snr_db(float_path, out) > snr_db(float_path, int8_path) + 1


def test_dynamic(float_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "dynamic.onnx"
    assert quantize_onnx_dynamic(float_path, out) == 61
    assert "ConvInteger" not in kernels(out)
    assert snr_db(float_path, out) > 30


def test_bad_calibration_leaves_no_file(float_path: Path, tmp_path: Path) -> None:
    out, image = tmp_path / "int8.onnx", pictures(1, SIZE).numpy()
    with pytest.raises(DataError, match="too few"):
        quantize_onnx(float_path, out, lambda: [image] * 3)
    with pytest.raises(DataError, match="not finite"):
        quantize_onnx(float_path, out, lambda: [image * np.float32(np.nan)] * 9)
    with pytest.raises(LoadError, match=r"absent\.onnx is not an ONNX model"):
        quantize_onnx(tmp_path / "absent.onnx", out, batches)
    assert list(tmp_path.iterdir()) == []


def test_codes_of_a_known_layer(tmp_path: Path) -> None:
    """One Gemm by hand: weights 127 codes per column, the input's range 0..2 in 255 steps, bias in their product."""
    weight = np.array([[0.5, -2.0], [1.27, 0.0]], np.float32)
    parts = [
        helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "eye"], ["first"]),
        helper.make_node("Gemm", ["first", "w0", "b"], ["stem"], name="stem"),
        helper.make_node("Reshape", ["stem", "rows"], ["tokens"]),
        helper.make_node("Gemm", ["tokens", "w", "b"], ["logits"], name="layer"),
    ]
    constants = {
        "axes": np.array([2, 3]), "eye": np.eye(3, 2, dtype=np.float32), "w0": np.eye(2, dtype=np.float32),
        "b": np.array([0.25, -1.0], np.float32), "rows": np.array([-1, 2]), "w": weight,
    }  # fmt: skip
    image = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [2, 3, 8, 8])
    logits = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph(
        parts, "hand", [image], [logits], [numpy_helper.from_array(v, k) for k, v in constants.items()]
    )
    source, out = tmp_path / "hand.onnx", tmp_path / "hand8.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), source)
    report = quantize_onnx(source, out, lambda: iter(np.split(pictures(16, 8).numpy(), 8)))
    assert report.weight_only == ("layer", "stem"), "as many rows as images; the product before them is the first layer"
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(out).graph.initializer}
    assert stored["w.codes"].tolist() == [[50, -127], [127, 0]]
    assert stored["w.scale"].ravel() == pytest.approx([0.01, 2 / 127])


def test_a_net_with_nothing_to_quantize_is_a_clear_error(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "weight")
    node = helper.make_node("Conv", ["image", "weight"], ["logits"], name="stem")
    graph = helper.make_graph(
        [node],
        "thin",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [1, 4, 6, 6])],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "a.onnx")
    with pytest.raises(UsageError, match="no layer that gains from 8 bits"):
        quantize_onnx(tmp_path / "a.onnx", tmp_path / "b.onnx", batches)
    assert not (tmp_path / "b.onnx").exists()
