"""Core ML W8A8: activations in 8 bits on ranges of the calibration engine, read back from the package and run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekit.errors import DataError, UsageError
from edgekit.export.audit.audit import audit, check_precision
from edgekit.export.calibration.measured import CANDIDATES
from edgekit.export.calibration.ranges import RangeConfig
from edgekit.export.coreml.activations import ActivationConfig, ActivationReport, quantize_activations
from edgekit.export.coreml.convert import export_coreml, quantize_weights
from edgekit.export.coreml.measured import TriedRanges, with_ranges
from edgekit.export.mil.interpreter import MilProgram, MilSession
from edgekit.export.mil.package import read_package
from edgekit.export.mil.program import Constant
from edgekit.export.parity import snr_db
from edgekit.export.runtimes import size_bytes
from edgekit.export.session import run_batched
from edgekit.export.tflite.repair import SILU_FLOOR
from tests.export.nets_for_tests import TwoHeads, pictures

SIZE = 64
IMAGES = pictures(24, SIZE).mul(255).round().div(255).numpy().astype(np.float32)


def batches() -> Iterator[NDArray[np.float32]]:
    for at in range(16):
        yield IMAGES[at : at + 1]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("coreml") / "model.fp16.mlpackage"
    export_coreml(TwoHeads("mobilevit_xxs"), SIZE, path)
    return path


@pytest.fixture(scope="module")
def quantized(package: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ActivationReport]:
    """Return the package with everything in 8 bits that can be, and what was done; tests do not write there."""
    out = tmp_path_factory.mktemp("w8a8") / "model.w8a8.mlpackage"
    return out, quantize_activations(package, out, batches)


def test_the_program_computes_in_8_bits(package: Path, quantized: tuple[Path, ActivationReport]) -> None:
    out, report = quantized
    assert report.statistics.images == 16
    assert report.coded["conv"] > 20 and report.coded["linear"] > 20
    assert check_precision(audit(out), "w8a8") == ()
    assert check_precision(audit(package), "w8a8")
    assert size_bytes(out) < 0.75 * size_bytes(package)
    program = MilProgram.load(out)
    kinds = [operation.type for operation in program.operations]
    assert kinds.count("quantize") == kinds.count("dequantize") >= report.coded["conv"]

    shown = IMAGES[16:]
    want = run_batched(MilSession(package), shown)["logits"].astype(np.float64)
    have = run_batched(MilSession(out), shown)["logits"].astype(np.float64)
    assert snr_db(want, have) > 15


def test_a_relu_is_a_part_of_its_convolution(tmp_path: Path) -> None:
    export_coreml(TwoHeads("mobilevit_xxs_int8"), SIZE, tmp_path / "half.mlpackage")
    out = tmp_path / "model.w8a8.mlpackage"
    quantize_activations(tmp_path / "half.mlpackage", out, batches, ActivationConfig(ranges=RangeConfig()))
    program = MilProgram.load(out)
    readers = {str(op.inputs["x"][0]): op for op in program.operations if op.type == "relu"}
    coded = {str(op.inputs["input"][0]) for op in program.operations if op.type == "quantize"}
    assert len(readers) > 10
    assert all(op.outputs[0][0] in coded for op in readers.values()) and not coded & readers.keys()
    want, have = (run_batched(MilSession(path), IMAGES[16:])["logits"] for path in (tmp_path / "half.mlpackage", out))
    assert snr_db(want.astype(np.float64), have.astype(np.float64)) > 15


class GateAndSum(nn.Module):
    """A 1 × 1 convolution that reads values times gates, then separable attention as in MobileViTv2."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.gate, self.gated = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        self.parts, self.weighed = nn.Conv2d(16, 33, 1), nn.Conv2d(16, 24, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.stem(images)
        tokens = self.gated(tokens * torch.sigmoid(self.gate(tokens.mean((2, 3), keepdim=True)))).flatten(2)[:, :, None]
        scores, keys, values = self.parts(tokens).split([1, 16, 16], dim=1)
        context = (keys * scores.softmax(-1)).sum(-1, keepdim=True)
        y = self.weighed(values.relu() * context.expand_as(values)).flatten(1)
        return y.mean(1, keepdim=True), y


def test_products_with_sums_and_what_is_cut_apart_stay_half(tmp_path: Path) -> None:
    """A product with a gate, of 0 to 1, is coded like any other tensor."""
    export_coreml(GateAndSum().eval(), SIZE, tmp_path / "half.mlpackage")
    out = tmp_path / "model.w8a8.mlpackage"
    report = quantize_activations(tmp_path / "half.mlpackage", out, batches)
    program = MilProgram.load(out)
    makers = {op.outputs[0][0]: op.type for op in program.operations}
    readers = {
        str(name): op.type for op in program.operations for key in ("x", "input") for name in op.inputs.get(key, ())
    }
    reads = [
        (op.outputs[0][1].shape[1], makers[str(op.inputs["x"][0])]) for op in program.operations if op.type == "conv"
    ]
    assert reads == [*[(16, "dequantize")] * 3, (33, "dequantize"), (24, "mul")]
    (parts,) = (op for op in program.operations if op.type == "conv" and op.outputs[0][1].shape[1] == 33)
    assert readers[parts.outputs[0][0]] == "split" and report.coded["conv"] == 4
    assert check_precision(audit(out), "w8a8") == ()
    shown = [run_batched(MilSession(file), IMAGES[16:])["embedding"] for file in (tmp_path / "half.mlpackage", out)]
    want, have = (values.astype(np.float64) for values in shown)
    assert snr_db(want, have) > 30


class Outlier(nn.Module):
    """Five convolutions, the third of which gives one channel far from the others, which the fourth does not read."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        sides = ((3, 16, 4), (16, 16, 1), (16, 16, 1), (16, 16, 1), (16, 24, 1))
        self.layers = nn.ModuleList(nn.Conv2d(given, made, side, side) for given, made, side in sides)
        with torch.no_grad():
            self.layers[2].bias[5] = 100
            self.layers[3].weight[:, 5] = 0

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        first, *others = self.layers
        y = first(images)
        y = y + others[0](y)  # coremltools divides the scales of such a sum by one of them
        for layer in others[1:]:
            y = layer(y)
        y = y.mean((2, 3))
        return y[:, :1], y


def test_mixed_leaves_float16_what_one_range_serves_worst(tmp_path: Path) -> None:
    """Weights stay in 8 bits everywhere; so few multiplications of codes are still a mixed file's."""
    export_coreml(Outlier().eval(), SIZE, tmp_path / "half.mlpackage")
    want = run_batched(MilSession(tmp_path / "half.mlpackage"), IMAGES[16:])["embedding"].astype(np.float64)
    noise = {}
    for mixed in (False, True):
        out = tmp_path / f"{mixed}.mlpackage"
        report = quantize_activations(tmp_path / "half.mlpackage", out, batches, ActivationConfig(mixed=mixed))
        noise[mixed] = snr_db(want, run_batched(MilSession(out), IMAGES[16:])["embedding"].astype(np.float64))
    program = MilProgram.load(out)
    makers = {op.outputs[0][0]: op.type for op in program.operations}
    convolutions = [op for op in program.operations if op.type == "conv"]
    # what the third gives is float16, and so what the fourth reads
    assert report.kept == (convolutions[2].outputs[0][0],) and report.coded["conv"] == 4
    reads = [makers[str(op.inputs["x"][0])] for op in convolutions]
    assert [kind == "dequantize" for kind in reads] == [True, True, True, False, True]
    stored = {group.dtype: group.elements for group in audit(out).weights}
    assert stored["int8"] == 16 * 3 * 16 + 3 * 16 * 16 + 24 * 16
    assert noise[True] > noise[False] + 20 and check_precision(audit(out), "mixed") == ()
    quantize_weights(tmp_path / "half.mlpackage", tmp_path / "weights.mlpackage", 1)
    (reason,) = check_precision(audit(tmp_path / "weights.mlpackage"), "mixed")
    assert "none of its products is computed in 8 bits" in reason


def number(program: MilProgram, argument: str | Constant) -> float:
    """Return a constant of one element, which a package holds by name or in place."""
    constant = program.constants[argument] if isinstance(argument, str) else argument
    return float(np.asarray(constant.value).ravel()[0])


def test_no_code_is_spent_where_a_silu_is_flat(package: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.w8a8.mlpackage"
    quantize_activations(package, out, batches, ActivationConfig(ranges=RangeConfig(), operations=("conv",)))
    lowest = []
    program = MilProgram.load(out)
    silus = {name for op in program.operations if op.type == "silu" for name in op.inputs["x"]}
    for op in program.operations:
        if op.type == "dequantize" and op.outputs[0][0] in silus:
            scale, zero = (
                np.asarray(program.constants[str(op.inputs[key][0])].value) for key in ("scale", "zero_point")
            )
            lowest.append(float(scale.ravel()[0]) * (-128 - float(zero.ravel()[0])))
    assert lowest and min(lowest) > SILU_FLOOR * 1.02


def ranges_of(report: ActivationReport, package: Path, config: RangeConfig) -> dict[str, tuple[float, float]]:
    """Return the ranges that an export would take in one way, floors under SiLUs included."""
    ranges = report.statistics.ranges(config)
    silus = {str(name) for op in MilProgram.load(package).operations if op.type == "silu" for name in op.inputs["x"]}
    return ranges | {name: (max(ranges[name][0], SILU_FLOOR), ranges[name][1]) for name in silus & ranges.keys()}


def test_ranges_are_tried_without_converting(
    package: Path, quantized: tuple[Path, ActivationReport], tmp_path: Path
) -> None:
    """The numbers that are put in place of a package's are those that a conversion would have written."""
    config = RangeConfig(method="minmax")
    files = [quantized[0], tmp_path / "minmax.mlpackage"]
    report = quantize_activations(package, files[-1], batches, ActivationConfig(ranges=config))
    wide = ranges_of(report, package, config)
    feeds = {"image": np.rint(IMAGES[:1] * 255)}
    other, want = (MilProgram.load(file).run(feeds)["logits"] for file in files)
    have = MilProgram(with_ranges(read_package(files[0]), wide)).run(feeds)["logits"]
    np.testing.assert_array_equal(have, want)
    assert not np.array_equal(other, want)


def test_the_nearest_ranges_are_kept(package: Path, quantized: tuple[Path, ActivationReport]) -> None:
    out, report = quantized
    tried = TriedRanges(out, package, IMAGES[:16])
    noises = [tried.noise(ranges_of(report, package, config)) for config in CANDIDATES]
    assert tried.noise({}) == min(noises) < max(noises)


def test_what_cannot_be_calibrated_leaves_nothing_behind(package: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.w8a8.mlpackage"
    with pytest.raises(DataError, match="8"):
        quantize_activations(package, out, lambda: [IMAGES[:1]] * 3)
    with pytest.raises(DataError):
        quantize_activations(package, out, lambda: [np.zeros_like(IMAGES[:1])] * 12)
    with pytest.raises(UsageError, match="has no max_pool to quantize"):
        quantize_activations(package, out, batches, ActivationConfig(operations=("max_pool",)))
    assert not out.exists()
