"""Files of a student whose ranges were trained have these ranges, and `mixed` ones leave float what training left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgekit.compress.slim.calibrate import calibrate
from edgekit.compress.slim.codes import activation_points, learn_ranges
from edgekit.compress.slim.config import QatConfig
from edgekit.compress.slim.folding import folded
from edgekit.compress.slim.kept_float import leave_float, worst_units
from edgekit.compress.slim.record import trained_codes
from edgekit.compress.slim.simulate import Precision, Runtime, simulate
from edgekit.compress.slim.weight_codes import CodedConv2d
from edgekit.export.calibration.ranges import RangeConfig
from edgekit.export.deploy import DeployModel, TorchSession
from edgekit.export.exporters import Conversion, write_file
from edgekit.export.parity import Precision as FilePrecision
from edgekit.export.parity import snr_db
from edgekit.export.runtimes import SUFFIX_OF, open_session
from edgekit.export.session import run_batched
from edgekit.models.student import Student
from tests.compress.slim.students_for_tests import SIZE, batches, shallow_student, some, student
from tests.compress.slim.test_simulate import far, scales_in
from tests.tolerances import SCALES_OF_A_FILE, SIMULATED_GAIN_DB

BEFORE_TOKENS: Mapping[Runtime, str] = {"tflite": "stages.2.1.conv_kxk", "coreml": "stages.2.1.conv_kxk.conv.out"}
"""The layer of tokens behind it then reads and gives float in LiteRT."""
CALIBRATION = some(16)
SHOWN = some(16, seed=1)
PRECISIONS: Mapping[tuple[Runtime, Precision], FilePrecision] = {
    ("onnx", "int8"): "int8",
    ("coreml", "int8"): "w8a8",
    ("tflite", "int8"): "int8",
    ("coreml", "mixed"): "mixed",
    ("tflite", "mixed"): "mixed",
}


def trained(plain: Student, config: QatConfig) -> tuple[Student, tuple[str, ...]]:
    """Return a simulation whose every range has moved by a factor of its own, and what it leaves float."""
    model = simulate(folded(plain, config.runtime), config.runtime).eval()
    calibrate(model, lambda: batches(CALIBRATION), RangeConfig())
    left: tuple[str, ...] = ()
    if config.precision == "mixed":
        worst = worst_units(model, config.runtime, torch.from_numpy(CALIBRATION))
        left = tuple(dict.fromkeys((*worst, BEFORE_TOKENS[config.runtime])))
        leave_float(model, config.runtime, left)
    learn_ranges(model)
    with torch.no_grad():
        for number, parameter in enumerate(model.learned_ranges.parameters()):
            parameter.add_(0.01 * np.sin(number))
    return model, left


@pytest.mark.parametrize(
    ("runtime", "precision", "arch"),
    [
        ("onnx", "int8", "mobilevit_xxs"),
        ("coreml", "int8", "mobilevit_xxs"),
        ("coreml", "mixed", "mobilevitv2_050"),
        pytest.param("tflite", "int8", "mobilevit_xxs", marks=pytest.mark.slow),
        pytest.param("tflite", "mixed", "mobilevit_xxs", marks=pytest.mark.slow),
        pytest.param("tflite", "mixed", "mobilevitv2_050", marks=pytest.mark.slow),
    ],
)
def test_the_file_has_the_trained_ranges(runtime: Runtime, precision: Precision, arch: str, tmp_path: Path) -> None:
    plain = shallow_student(arch)
    config = QatConfig(runtime, precision)
    model, left = trained(plain, config)
    codes = trained_codes(model, config, left)
    conversion = Conversion(DeployModel(plain).eval(), CALIBRATION, tmp_path, trained=codes)
    file = tmp_path / f"model{SUFFIX_OF[runtime]}"
    recipe = write_file(conversion, runtime, PRECISIONS[runtime, precision], file)
    assert recipe.endswith("as trained")

    wanted, found = {point.scale for point in activation_points(model) if not point.redundant}, scales_in(file)
    tolerance = SCALES_OF_A_FILE[runtime]
    assert len(wanted) > 15 and not far(wanted, found, tolerance) and not far(found, wanted, tolerance)
    simulation, floating = (run_batched(TorchSession(DeployModel(net)), SHOWN)["embedding"] for net in (model, plain))
    real = run_batched(open_session(file), SHOWN)["embedding"].astype(np.float64)
    gained = snr_db(real, simulation.astype(np.float64)) - snr_db(real, floating.astype(np.float64))
    assert gained > SIMULATED_GAIN_DB[runtime]


def test_what_stays_float_is_what_a_file_would_leave() -> None:
    """Sums of which one part is float are float; what reads them rounds them again."""
    plain = student()
    model = simulate(folded(plain), "tflite").eval()
    names = ("stem", "stages.1.0.conv3_1x1")
    leave_float(model, "tflite", names)
    convolutions = {name: module for name, module in model.backbone.named_modules() if isinstance(module, CodedConv2d)}
    points = {point.name for point in activation_points(model)}
    assert "stem.conv" not in convolutions and "stages.1.0.conv3_1x1.conv" not in convolutions
    assert {"stem.conv.in", "stem.conv", "stem.act", "stages.1.0.conv3_1x1.conv"}.isdisjoint(points)
    assert {"stages.0.0.conv1_1x1.conv.in", "stages.1.1.conv1_1x1.conv.in"} <= points
    # the first block of stage 1 has no shortcut; the sums of the next two begin with what it gives
    assert {"stages.1.1.sum", "stages.1.2.sum"}.isdisjoint(points)
    others = simulate(folded(plain), "tflite")
    leave_float(others, "tflite", ("stages.0.0.conv1_1x1",))
    assert {"stages.1.1.sum", "stages.1.2.sum"} <= {point.name for point in activation_points(others)}


@pytest.mark.parametrize(
    ("runtime", "spoilt"), [("tflite", "stages.1.1.conv2_kxk"), ("coreml", "stages.1.1.conv2_kxk.conv.out")]
)
def test_the_units_of_most_noise_are_found(runtime: Runtime, spoilt: str) -> None:
    plain = shallow_student()
    model = simulate(folded(plain, runtime), runtime).eval()
    calibrate(model, lambda: batches(CALIBRATION), RangeConfig())
    before = torch_outputs(model)
    (point,) = (p for p in activation_points(model) if p is model.backbone.stages[1][1].conv2_kxk.conv.output_codes)
    point.span(point.low / 20, point.high / 20)
    assert worst_units(model, runtime, torch.from_numpy(CALIBRATION))[0] == spoilt
    point.span(point.low * 20, point.high * 20)
    np.testing.assert_array_equal(torch_outputs(model), before)  # looking changes nothing


@torch.no_grad()
def torch_outputs(model: Student) -> NDArray[np.float32]:
    result: NDArray[np.float32] = model(torch.from_numpy(SHOWN)).logits.numpy()
    return result


def test_only_the_file_that_was_trained_for_takes_them(tmp_path: Path) -> None:
    model, _ = trained(student(), config := QatConfig("tflite"))
    codes = trained_codes(model, config)
    conversion = Conversion(DeployModel(student()).eval(), CALIBRATION, tmp_path, trained=codes)
    assert conversion.trained_for("tflite", "int8") is codes
    assert conversion.trained_for("tflite", "mixed") is None and conversion.trained_for("onnx", "int8") is None
    other = replace(conversion, trained=replace(codes, runtime="coreml", precision="w8a8"))
    assert other.trained_for("coreml", "w8a8") is not None and other.trained_for("coreml", "int8") is None
    assert model.spec.image_size == SIZE
