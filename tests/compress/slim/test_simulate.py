"""The simulated files are the real ones: the same ranges, and outputs far closer than the float student's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgekit.compress.slim.calibrate import calibrate
from edgekit.compress.slim.codes import activation_points, learn_ranges, record_ranges
from edgekit.compress.slim.folding import folded
from edgekit.compress.slim.simulate import Runtime, simulate
from edgekit.export.calibration.measured import CANDIDATES, noise_share
from edgekit.export.calibration.ranges import RangeConfig
from edgekit.export.coreml.activations import ActivationConfig, quantize_activations
from edgekit.export.coreml.convert import export_coreml
from edgekit.export.deploy import DeployModel, TorchSession
from edgekit.export.mil.interpreter import MilProgram
from edgekit.export.mil.program import Operation
from edgekit.export.onnx.convert import export_onnx
from edgekit.export.onnx.int8 import Int8Config, quantize_onnx
from edgekit.export.parity import snr_db
from edgekit.export.runtimes import SUFFIX_OF, open_session
from edgekit.export.session import run_batched
from edgekit.export.tflite.convert import export_tflite
from edgekit.export.tflite.int8 import TfliteQuantConfig, quantize_tflite
from edgekit.models.student import Student
from tests.compress.slim.students_for_tests import SIZE, batches, shallow_student, some, student
from tests.tolerances import SCALES_OF_A_FILE, SIMULATED_GAIN_DB

CALIBRATION = some(24)
SHOWN = some(24, seed=1)
RANGES = RangeConfig()
"""The same for files and simulation, which each would choose by their own noise."""


def made(plain: Student, runtime: Runtime, folder: Path) -> Path:
    """Write the int8 file as the exporters do, but for the biases of heads, which they mend when all else is done."""
    path, base = folder / f"model{SUFFIX_OF[runtime]}", folder / f"float{SUFFIX_OF[runtime]}"
    if runtime == "onnx":
        export_onnx(DeployModel(plain), SIZE, base)
        quantize_onnx(base, path, lambda: batches(CALIBRATION), Int8Config(ranges=RANGES))
    elif runtime == "coreml":
        export_coreml(DeployModel(plain), SIZE, base)
        quantize_activations(base, path, lambda: batches(CALIBRATION), ActivationConfig(ranges=RANGES))
    else:
        export_tflite(DeployModel(plain), SIZE, base)
        quantize_tflite(base, path, lambda: batches(CALIBRATION), TfliteQuantConfig(ranges=RANGES, repair=False))
    return path


def simulated(plain: Student, runtime: Runtime) -> Student:
    result = simulate(folded(plain, runtime), runtime).eval()
    calibrate(result, lambda: batches(CALIBRATION), RANGES)
    return result


def noise_db(want: NDArray[np.float32], have: NDArray[np.float32]) -> float:
    return snr_db(want.astype(np.float64), have.astype(np.float64))


def scales_in(path: Path) -> set[float]:
    """Return the scales of all activations of an int8 file."""
    if path.suffix == ".onnx":
        from edgekit.export.onnx.graph import OnnxGraph, of_kind

        graph = OnnxGraph.read(path)
        return {float(graph.array(node.input[1])) for node in of_kind(graph.nodes, "QuantizeLinear")}
    if path.suffix == ".mlpackage":
        return coreml_scales(MilProgram.load(path))
    from edgekit.export.tflite.graph import Graph

    file = Graph.read(path)
    found = set()
    for number, tensor in enumerate(file.tensors):
        scales = tensor.quantization.scale if tensor.quantization is not None else None
        if tensor.type == file.schema.TensorType.INT8 and scales is not None and file.constant(number) is None:
            found.add(float(scales[0]))
    return found - {1 / 256}  # of σ, which has one scale everywhere


def coreml_scales(program: MilProgram) -> set[float]:
    """Return the scales of all `quantize` operations whose scale stands by name.

    coremltools divides the scales about a sum of dequantized tensors by that of the second, which gets 1.
    """
    makers = {op.outputs[0][0]: op for op in program.operations}

    def scale_of(operation: Operation) -> float:
        return float(program.constants[str(operation.inputs["scale"][0])].value)

    found = set()
    for operation in program.operations:
        if operation.type != "quantize" or not isinstance(operation.inputs["scale"][0], str):
            continue
        scale = scale_of(operation)
        made = makers.get(str(operation.inputs["input"][0]))
        second = makers[str(made.inputs["y"][0])] if made is not None and made.type == "add" else None
        if second is not None and second.type == "dequantize":
            scale *= scale_of(makers[str(second.inputs["input"][0])]) / scale_of(second)
        found.add(scale)
    return found


def far(one: Iterable[float], others: set[float], tolerance: float) -> list[float]:
    return [value for value in one if min(abs(value - other) / other for other in others) > tolerance]


@pytest.mark.parametrize(
    ("runtime", "arch"),
    [
        ("onnx", "mobilevit_xxs"),
        ("coreml", "mobilevit_xxs"),
        pytest.param("tflite", "mobilevit_xxs", marks=pytest.mark.slow),
        ("onnx", "mobilevit_xxs_int8"),
        pytest.param("tflite", "mobilevit_xxs_int8", marks=pytest.mark.slow),
        ("onnx", "mobilevitv2_050"),
        ("coreml", "mobilevitv2_050"),
        pytest.param("tflite", "mobilevitv2_050", marks=pytest.mark.slow),
    ],
)
def test_the_simulation_is_the_file(runtime: Runtime, arch: str, tmp_path: Path) -> None:
    plain = shallow_student(arch)
    file = made(plain, runtime, tmp_path)
    model = simulated(plain, runtime)

    in_file, in_model = scales_in(file), {codes.scale for codes in activation_points(model) if not codes.redundant}
    assert len(in_model) > 15
    tolerance = SCALES_OF_A_FILE[runtime]
    assert not far(in_model, in_file, tolerance) and not far(in_file, in_model, tolerance)

    want = run_batched(open_session(file), SHOWN)
    have = run_batched(TorchSession(DeployModel(model)), SHOWN)
    floating = run_batched(TorchSession(DeployModel(plain)), SHOWN)
    for name in ("logits", "embedding"):
        gained = noise_db(want[name], have[name]) - noise_db(want[name], floating[name])
        assert gained > SIMULATED_GAIN_DB[runtime], name


@pytest.mark.parametrize("runtime", ["onnx", "tflite", "coreml"])
@pytest.mark.parametrize("arch", ["mobilevit_xxs", "mobilevitv2_050", "mobilevit_xxs_int8"])
@pytest.mark.parametrize("learned", [False, True])
def test_every_weight_learns_and_ranges_if_they_may(runtime: Runtime, arch: str, learned: bool) -> None:
    model = simulated(student(arch), runtime).train()
    if learned:
        learn_ranges(model)
    ranges = {codes.name: (codes.low, codes.high) for codes in activation_points(model)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    output = model(torch.from_numpy(SHOWN[:8]))
    (output.logits.square().mean() + output.embedding.square().mean()).backward()
    # a group of one token, as the last stage has at 64 px, attends to itself whatever queries and keys say, and a range
    # that clips nothing of few pictures may find its step good as it is
    idle = (".attention.q.", ".attention.k.", "learned_ranges.")
    telling = [(n, p.grad) for n, p in model.named_parameters() if not any(part in n for part in idle)]
    assert not [name for name, grad in telling if grad is None or not bool(grad.abs().sum() > 0)]
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    optimizer.step()
    moved = [name for name, span in record_ranges(model).items() if span != ranges[name]]
    assert (len(moved) > 0.8 * len(ranges)) if learned else not moved


def test_calibration_sees_the_float_net() -> None:
    """Ranges are the exporter's, which knows nothing of rounding yet; a second look must find the same."""
    model = simulated(student(), "tflite")
    first = {codes.name: codes.scale for codes in activation_points(model)}
    calibrate(model, lambda: batches(CALIBRATION), RANGES)
    assert {codes.name: codes.scale for codes in activation_points(model)} == first


def test_the_ranges_of_least_noise_are_taken() -> None:
    plain = shallow_student()
    model = simulate(folded(plain), "onnx").eval()
    want = torch_outputs(plain)

    def noise(config: RangeConfig | None) -> float:
        calibrate(model, lambda: batches(CALIBRATION), config)
        return noise_share(want, torch_outputs(model))

    noises = [noise(config) for config in CANDIDATES]
    assert noise(None) == min(noises) < max(noises)


@torch.no_grad()
def torch_outputs(student: Student) -> list[NDArray[np.float64]]:
    output = student(torch.from_numpy(CALIBRATION))
    return [output.logits.double().numpy(), output.embedding.double().numpy()]
