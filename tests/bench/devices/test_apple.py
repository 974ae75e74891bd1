"""Apple's devices, as far as that goes without a Mac: what is said here, and what is made of coremltools' answers.

Apple's framework itself has not been run. The benchmarker below stands where coremltools' is on a Mac and answers with
coremltools' own type of measurement.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from whole_path_for_tests import WholePath

from edgekit.bench import variants
from edgekit.bench.candidates import artifact_candidates, given_artifacts
from edgekit.bench.devices.apple.device import AppleDevice, ApplePlace, Held, chosen
from edgekit.bench.devices.naming import DeviceOptions, open_device
from edgekit.bench.latency import LatencyConfig
from edgekit.bench.run import BenchConfig, run_bench
from edgekit.errors import LoadError, UsageError
from edgekit.export.coreml import session as coreml_session
from edgekit.export.coreml.session import (
    UNITS,
    CoreMLSession,
    PictureInput,
    counted,
    open_package,
    outputs_of,
    picture_input,
)
from edgekit.export.manifest import read_manifest
from edgekit.export.mil.interpreter import MilSession
from edgekit.export.verify import file as verify_file
from tests.bench.tiny_for_tests import write_classifier

SAY = DeviceOptions(lambda line: None)
QUICK = LatencyConfig(min_rounds=3, min_time_s=0.0, max_time_s=1.0, target_halfwidth=10.0)


class OfAnotherChip(MilSession):
    """Stands where Core ML is on a Mac: the same program, and `noise` of another order of sums."""

    noise = 0.0

    def __init__(self, path: Path, unit: str) -> None:
        super().__init__(path)

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        return {name: values * (1 + self.noise) for name, values in super().__call__(images).items()}


@pytest.mark.parametrize(("noise", "passes"), [(1e-3, True), (0.05, False)])
def test_on_a_mac_verify_asks_core_ml_and_compares_the_interpreter_with_it(
    whole_path: WholePath, monkeypatch: pytest.MonkeyPatch, noise: float, passes: bool
) -> None:
    monkeypatch.setattr(OfAnotherChip, "noise", noise)
    monkeypatch.setattr(verify_file, "on_macos", lambda: True)
    monkeypatch.setattr(coreml_session, "CoreMLSession", OfAnotherChip)
    files = read_manifest(whole_path.bundle).files
    number = next(n for n, record in enumerate(files) if record.path == "model.int8.mlpackage")
    checks = {c["check"]: c for c in verify_file.file_checks(str(whole_path.bundle), number, 1, None)}
    assert checks["golden vectors"]["passed"]
    assert "golden vectors, Core ML" in checks
    assert checks["interpreter"]["passed"] == passes


@pytest.mark.skipif(sys.platform == "darwin", reason="says what is said elsewhere")
def test_elsewhere_it_says_what_to_use_instead(whole_path: WholePath, tmp_path: Path) -> None:
    package = whole_path.bundle / "model.fp32.mlpackage"
    with pytest.raises(UsageError, match=r"needs a Mac with Xcode.*--device web"):
        open_device("apple:My iPhone", SAY).bench(BenchConfig((package,)))
    with pytest.raises(LoadError, match="Core ML runs on a Mac alone"):
        CoreMLSession(package, "Neural Engine")
    with pytest.raises(UsageError, match="--data cannot be used with --device apple"):
        AppleDevice("x", lambda line: None).bench(BenchConfig((package,), data=tmp_path))


def test_a_device_without_a_name_is_refused() -> None:
    with pytest.raises(UsageError, match="--device apple needs a name"):
        open_device("apple", SAY)
    with pytest.raises(UsageError, match="--development-team is for --device apple alone"):
        open_device("local", DeviceOptions(lambda line: None, development_team="ABC"))


def test_devices_are_found_by_name_and_by_identifier() -> None:
    phone = SimpleNamespace(name="My iPhone", identifier="1-2", udid="3")
    assert chosen("My iPhone", [phone]) is chosen("1-2", [phone]) is chosen("3", [phone]) is phone
    with pytest.raises(UsageError, match="devices: My iPhone"):
        chosen("other", [phone])
    with pytest.raises(UsageError, match="none is connected"):
        chosen("other", [])


def test_a_package_tells_how_it_takes_its_picture(whole_path: WholePath) -> None:
    package = whole_path.bundle / "model.int8.mlpackage"
    found = picture_input(open_package(package, "GPU"), package)
    assert found.image and (found.batch, found.height, found.width) == (1, 64, 64)
    picture = found.feed(np.full((1, 3, 64, 64), [[[1.0]], [[0.5]], [[0.0]]], np.float32))[found.name]
    assert picture.mode == "RGB" and picture.size == (64, 64) and picture.getpixel((3, 5)) == (255, 128, 0)


def test_no_package_is_told(tmp_path: Path) -> None:
    (tmp_path / "no.mlpackage").mkdir()
    with pytest.raises(LoadError, match="is no package that Core ML can load"):
        open_package(tmp_path / "no.mlpackage", "CPU")


def test_predictions_become_outputs() -> None:
    found = outputs_of({"classLabel": "a", "scores": {"a": 2.0, "b": 1.0}, "embedding": np.ones((1, 4), np.float16)})
    assert found["logits"].tolist() == [[2.0, 1.0]] and found["embedding"].shape == (1, 4)
    assert set(found) == {"logits", "embedding"}


def test_operations_are_counted_by_where_they_run() -> None:
    class MLCPUComputeDevice: ...

    class MLNeuralEngineComputeDevice: ...

    places = {"a": MLCPUComputeDevice(), "b": MLNeuralEngineComputeDevice(), "c": MLNeuralEngineComputeDevice()}

    def usage(operation: str) -> Any:
        return SimpleNamespace(preferred_compute_device=places[operation]) if operation in places else None

    plan = SimpleNamespace(get_compute_device_usage_for_mlprogram_operation=usage)
    assert counted(plan, ["a", "const", "b", "c"]) == "Neural Engine 2, CPU 1 operations"


class _Benchmarker:
    """Answers as coremltools' MLModelBenchmarker does; the Neural Engine takes half as long, the GPU is missing."""

    def __init__(self, unit: str) -> None:
        self._unit = unit

    async def benchmark_load(self, iterations: int = 1) -> Any:
        return _measured([50.0] * iterations)

    async def benchmark_predict(self, inputs: Any, iterations: int, warmup: bool) -> Any:
        assert set(inputs) == {"image"}
        if self._unit == "GPU":
            raise ValueError("The device has no GPU.\nsecond line")
        return _measured([4.0 if self._unit == "CPU" else 2.0] * iterations)


def _measured(samples: list[float]) -> Any:
    from coremltools.models.ml_program.experimental.perf_utils import MLModelBenchmarker

    return MLModelBenchmarker.Measurement.from_samples(samples)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


def test_packages_are_timed_by_compute_unit(whole_path: WholePath, loop: asyncio.AbstractEventLoop) -> None:
    taken = PictureInput("image", True, 1, 64, 64)
    onnx = whole_path.bundle / "model.fp32.onnx"
    package = whole_path.bundle / "model.fp32.mlpackage"
    held = Held("apple:Test", "iphone 26.0", (package, onnx), lambda path, unit: (_Benchmarker(unit), taken))
    report = run_bench(BenchConfig((package, onnx), latency=QUICK), None, ApplePlace(held, loop))
    rows = {row.name: row for row in report.rows}
    cpu, engine = rows["model.fp32.mlpackage (CPU)"], rows["model.fp32.mlpackage (Neural Engine)"]
    assert cpu.latency is not None and cpu.latency.p50_s == pytest.approx(0.004)
    assert cpu.cold is not None and cpu.cold.load_s == pytest.approx(0.05)
    assert engine.speedup is not None and engine.speedup.interval.value == pytest.approx(2.0)
    assert engine.runtime is not None and engine.runtime.provider == "Neural Engine" and engine.precision == "fp32"
    assert rows["model.fp32.mlpackage (GPU)"].failure == "on the device: The device has no GPU."
    assert rows["model.fp32.onnx"].failure == "Core ML runs .mlpackage alone"
    assert report.device == "apple:Test" and not report.complete


def test_on_a_mac_packages_are_opened_by_compute_unit(whole_path: WholePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "on_macos", lambda: True)
    package = whole_path.bundle / "model.fp32.mlpackage"
    found = variants.local_variants(artifact_candidates(given_artifacts([package]), 1))
    assert [one.accelerator for one in found] == list(UNITS) == list(variants.COMPUTE_UNITS)
    assert all(one.timed and one.opening and one.opening.function.endswith(":core_ml") for one in found)


def test_other_execution_providers_are_measured_where_the_runtime_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU's own stands in for one that this build has not: the file is opened and timed under its name."""
    monkeypatch.setattr(variants, "PROVIDERS", {"CPUExecutionProvider": "Again"})
    model = write_classifier(tmp_path / "model.onnx")
    report = run_bench(BenchConfig((model, tmp_path / "gone.onnx"), latency=QUICK))
    assert [row.name for row in report.rows] == ["model.onnx", "model.onnx (Again)", "gone.onnx"]
    again = report.rows[1]
    assert again.status == "ok" and again.speedup is not None
    assert again.runtime is not None and again.runtime.provider == "CPUExecutionProvider"
