"""TFLite files of real nets: converted, run by LiteRT, compared with PyTorch, and read back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekit.errors import DataError, LoadError, UsageError
from edgekit.export.calibration.measured import CANDIDATES, noise_share
from edgekit.export.calibration.statistics import Histograms
from edgekit.export.session import FloatArray
from edgekit.export.tflite.attention import split_attention
from edgekit.export.tflite.convert import convert_float, export_tflite
from edgekit.export.tflite.fp16 import halve_tflite
from edgekit.export.tflite.graph import Graph
from edgekit.export.tflite.int8 import (
    QuantReport,
    TfliteQuantConfig,
    calibrate_tflite,
    precision_of,
    quantize_tflite,
)
from edgekit.export.tflite.peephole import transpose_right_operands
from edgekit.export.tflite.plan import plan_static
from edgekit.export.tflite.run import tensor_key
from edgekit.export.tflite.session import LiteRTSession, partitions
from edgekit.export.tflite.static import StaticQuantizer, activation_codes, quantize_weights
from tests.export.nets_for_tests import TwoHeads, pictures
from tests.tolerances import FP32_EXPORT

SIZE = 256
CLASS_NAMES = "cat\ndog\nnaïve"

INT8_SNR_DB = 18.0
"""Random weights, random pictures: an int8 net that computes the right thing has 20 dB and more; a wrong one has 0."""

DYNAMIC_SNR_DB = 25.0
"""Int8 weights with activations quantized for each run, or not at all."""

FLOAT16_SNR_DB = 50.0
"""Float16 weights carry 11 bits, 66 dB each."""


@dataclass(frozen=True)
class Exported:
    """A net, its float file, its calibration statistics and its int8 file."""

    model: nn.Module
    path: Path
    statistics: Histograms
    int8: Path
    report: QuantReport


def calibration_images() -> Iterator[FloatArray]:
    images = pictures(12, SIZE, seed=1).numpy()
    yield from (images[at : at + 5] for at in range(0, 12, 5))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("tflite")
    model = TwoHeads("mobilevit_xxs").eval()
    path = folder / "model.tflite"
    export_tflite(model, SIZE, path, metadata={"classes": CLASS_NAMES})
    statistics = calibrate_tflite(path, calibration_images)
    report = quantize_tflite(path, folder / "int8.tflite", statistics)
    return Exported(model, path, statistics, folder / "int8.tflite", report)


def snr_db(wanted: FloatArray, found: FloatArray) -> float:
    return float(10 * np.log10((wanted**2).mean() / ((wanted - found) ** 2).mean()))


def compare(float_path: Path, path: Path, count: int = 4) -> float:
    """Return the SNR in dB of the logits of a file against the float file's, on pictures that calibrated neither."""
    one, other = LiteRTSession(float_path), LiteRTSession(path)
    images = pictures(count, one.input_shape[2], seed=2).numpy()
    runs = [(one(image[None])["logits"], other(image[None])["logits"]) for image in images]
    return snr_db(np.concatenate([a for a, _ in runs]), np.concatenate([b for _, b in runs]))


def test_float_file_computes_what_pytorch_does(exported: Exported) -> None:
    session = LiteRTSession(exported.path)
    images = pictures(1, SIZE, seed=3)
    with torch.no_grad():
        logits, embedding = exported.model(images)
    outputs = session(images.numpy())
    assert set(outputs) == {"logits", "embedding"}
    for name, wanted in (("logits", logits), ("embedding", embedding)):
        error = np.abs(outputs[name] - wanted.numpy()).max()
        assert error <= FP32_EXPORT, f"{name}: {error:.1e}"
    assert session.input_shape == (1, 3, SIZE, SIZE)


def test_float_file_is_one_partition_with_its_metadata(exported: Exported) -> None:
    report = partitions(exported.path)
    assert (report.partitions, dict(report.outside)) == (1, {}), str(report)
    assert Graph.read(exported.path).metadata() == {"classes": CLASS_NAMES}
    assert LiteRTSession(exported.path).info.note.startswith("1 XNNPACK partition with ")


def test_int8_file_is_one_partition_and_all_int8(exported: Exported) -> None:
    report = exported.report
    assert (report.partitions.partitions, dict(report.partitions.outside)) == (1, {}), str(report.partitions)
    assert report.float_operators == {}
    wanted = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL", "LOGISTIC", "ADD", "CONCATENATION"}
    assert wanted <= set(report.int8_operators)
    assert report.int8_operators == precision_of(exported.int8)[0]
    assert report.size_bytes <= 0.30 * report.float_size_bytes
    assert report.statistics.images == 12


def test_int8_file_keeps_interface_and_metadata(exported: Exported) -> None:
    float_session, int8_session = LiteRTSession(exported.path), LiteRTSession(exported.int8)
    assert int8_session.input_shape == float_session.input_shape
    images = pictures(1, SIZE).numpy()
    assert {k: v.shape for k, v in int8_session(images).items()} == {
        k: v.shape for k, v in float_session(images).items()
    }
    assert Graph.read(exported.int8).metadata() == {"classes": CLASS_NAMES}


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_int8_file_computes_nearly_the_same(exported: Exported, method: str, tmp_path: Path) -> None:
    from edgekit.export.calibration.ranges import RangeConfig

    config = TfliteQuantConfig(ranges=RangeConfig(method))  # type: ignore[arg-type]
    quantize_tflite(exported.path, tmp_path / "int8.tflite", exported.statistics, config)
    assert compare(exported.path, tmp_path / "int8.tflite") >= INT8_SNR_DB


def test_no_way_of_choosing_ranges_is_better_than_the_one_taken(exported: Exported, tmp_path: Path) -> None:
    images = np.concatenate(list(calibration_images()))

    def answers(path: Path) -> list[NDArray[np.float64]]:
        session = LiteRTSession(path)
        said = [session(image[None]) for image in images]
        return [np.concatenate([one[name] for one in said]).astype(np.float64) for name in ("logits", "embedding")]

    want, noises = answers(exported.path), []
    for config in (None, *CANDIDATES):
        quantized = TfliteQuantConfig(ranges=config, repair=False)
        quantize_tflite(exported.path, tmp_path / "int8.tflite", calibration_images, quantized)
        noises.append(noise_share(want, answers(tmp_path / "int8.tflite")))
    assert noises[0] == pytest.approx(min(noises[1:]), rel=1e-6)
    assert max(noises) > min(noises)


def test_cutting_attention_changes_nothing(exported: Exported, tmp_path: Path) -> None:
    named = exported.statistics.ranges()
    files = []
    for name, score_bytes in (("whole", 2**40), ("cut", 2**18)):
        graph = Graph.read(exported.path)
        ranges = {t: named[key] for t in range(len(graph.tensors)) if (key := tensor_key(graph, t)) in named}
        transpose_right_operands(graph)
        StaticQuantizer(graph, plan_static(graph), ranges).run()
        assert (split_attention(graph, score_bytes) > 0) == (name == "cut")
        graph.compact()
        files.append(tmp_path / f"{name}.tflite")
        graph.write(files[-1])
    images = pictures(1, SIZE, seed=5).numpy()
    whole, cut = (LiteRTSession(path)(images) for path in files)
    for name in whole:
        np.testing.assert_array_equal(whole[name], cut[name])


def test_int8_beats_the_exporters_default_in_partitions(exported: Exported, tmp_path: Path) -> None:
    """What makes the default int8 slow: it is cut at every softmax, norm and product with a zero point."""
    report = quantize_tflite(exported.path, tmp_path / "n.tflite", calibration_images, TfliteQuantConfig(mode="naive"))
    assert report.partitions.partitions > 20
    assert {"SOFTMAX", "BATCH_MATMUL"} <= set(report.partitions.outside)


@pytest.mark.parametrize("mode", ["dynamic", "weight-only"])
def test_modes_without_calibration(exported: Exported, mode: str, tmp_path: Path) -> None:
    config = TfliteQuantConfig(mode=mode)  # type: ignore[arg-type]
    report = quantize_tflite(exported.path, tmp_path / "m.tflite", None, config)
    assert report.size_bytes <= 0.30 * report.float_size_bytes
    assert compare(exported.path, tmp_path / "m.tflite") >= DYNAMIC_SNR_DB
    assert Graph.read(tmp_path / "m.tflite").metadata() == {"classes": CLASS_NAMES}


def test_float16_file_is_half_as_large(exported: Exported, tmp_path: Path) -> None:
    assert halve_tflite(exported.path, tmp_path / "h.tflite") > 50
    assert (tmp_path / "h.tflite").stat().st_size <= 0.52 * exported.path.stat().st_size
    assert compare(exported.path, tmp_path / "h.tflite") >= FLOAT16_SNR_DB
    assert partitions(tmp_path / "h.tflite").partitions == 1


def test_kept_operators_stay_float(exported: Exported, tmp_path: Path) -> None:
    graph = Graph.read(exported.path)
    first = next(n for n, operator in enumerate(graph.operators) if graph.name(operator) == "CONV_2D")
    config = TfliteQuantConfig(keep_float=frozenset({first}))
    report = quantize_tflite(exported.path, tmp_path / "k.tflite", exported.statistics, config)
    assert report.float_operators == {"CONV_2D": 1}
    assert report.partitions.partitions == 1


class Small(nn.Module):
    """A convolution with bias, ReLU and a pooled head: converts in a second."""

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 1)
        nn.init.constant_(self.conv.bias, bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to (B, 8, H, W)."""
        result: Tensor = self.second(torch.relu(self.conv(images)))
        return result


def small(tmp_path: Path, model: nn.Module) -> Path:
    convert_float(model.eval(), 16, tmp_path / "small.tflite", output_names=("logits",))
    return tmp_path / "small.tflite"


def small_images() -> list[FloatArray]:
    return [pictures(10, 16, seed=1).numpy()]


def test_files_with_integer_input_and_output(tmp_path: Path) -> None:
    """Files made elsewhere may take and give codes: cut the QUANTIZE and DEQUANTIZE off one of ours."""
    source = small(tmp_path, Small())
    quantize_tflite(source, tmp_path / "int8.tflite", small_images)
    graph = Graph.read(tmp_path / "int8.tflite")
    first, last = graph.operators[0], graph.operators[-1]
    assert (graph.name(first), graph.name(last)) == ("QUANTIZE", "DEQUANTIZE")
    graph.remove([first, last])
    subgraph = graph.model.subgraphs[0]
    subgraph.inputs, subgraph.outputs = [int(first.outputs[0])], [int(last.inputs[0])]
    graph.model.signatureDefs = None
    graph.write(tmp_path / "codes.tflite")
    images = pictures(1, 16, seed=4).numpy()
    wanted = LiteRTSession(tmp_path / "int8.tflite")(images)["logits"]
    found = LiteRTSession(tmp_path / "codes.tflite")(images)["logits"]
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_dead_activation_is_reported_and_runs(tmp_path: Path) -> None:
    source = small(tmp_path, Small(bias=-100.0))
    report = quantize_tflite(source, tmp_path / "int8.tflite", small_images)
    assert len(report.statistics.always_zero) == 1
    images = pictures(1, 16, seed=4).numpy()
    wanted, found = LiteRTSession(source)(images)["logits"], LiteRTSession(tmp_path / "int8.tflite")(images)["logits"]
    np.testing.assert_allclose(found, wanted, atol=0.02)


def test_an_overflowing_net_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    model = Small()
    model.conv.weight.data.fill_(3e38)
    source = small(tmp_path, model)
    before = source.read_bytes()
    with pytest.raises(DataError, match="is not finite on the calibration images"):
        quantize_tflite(source, tmp_path / "int8.tflite", small_images)
    assert not (tmp_path / "int8.tflite").exists()
    assert source.read_bytes() == before


def test_a_net_without_anything_to_quantize(tmp_path: Path) -> None:
    source = small(tmp_path, nn.Softmax(dim=1))
    with pytest.raises(UsageError, match="no operator that runs in int8"):
        quantize_tflite(source, tmp_path / "int8.tflite", small_images)


def test_calibration_images_of_another_size(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"16×16 pixels do not fit this model, which takes 256×256"):
        quantize_tflite(exported.path, tmp_path / "x.tflite", small_images)


def test_static_needs_images(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs calibration images"):
        quantize_tflite(exported.path, tmp_path / "x.tflite", None)


def test_statistics_of_another_file(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no range for tensor"):
        quantize_tflite(exported.path, tmp_path / "x.tflite", Histograms())


def test_images_of_another_shape(exported: Exported) -> None:
    with pytest.raises(DataError, match=r"takes \(1, 3, 256, 256\)"):
        LiteRTSession(exported.path)(pictures(2, SIZE).numpy())


@pytest.mark.parametrize("content", [b"", b"not a model at all", b"\x1c\x00\x00\x00TFL3" + bytes(64)])
def test_torn_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "torn.tflite").write_bytes(content)
    with pytest.raises(LoadError, match=r"torn\.tflite"):
        LiteRTSession(tmp_path / "torn.tflite")
    with pytest.raises(LoadError, match=r"missing\.tflite"):
        LiteRTSession(tmp_path / "missing.tflite")


def test_codes_of_activations_and_weights() -> None:
    assert activation_codes(-1.0, 1.0, symmetric=True) == (1 / 127, 0)
    scale, zero_point = activation_codes(-0.28, 5.0, symmetric=False)
    assert scale == pytest.approx(5.28 / 255)
    assert abs((-128 - zero_point) * scale - -0.28) <= scale and abs((127 - zero_point) * scale - 5.0) <= scale
    weights = np.random.default_rng(0).normal(size=(4, 3, 3, 8)).astype(np.float32)
    for axis in (0, 3):
        codes, scales = quantize_weights(weights, axis)
        shape = [-1 if dimension == axis else 1 for dimension in range(4)]
        assert np.abs(codes * scales.reshape(shape) - weights).max() <= scales.max() / 2 + 1e-7
        assert np.abs(codes).max() == 127
