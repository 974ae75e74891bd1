"""An Android phone: adb's real client and server with a scripted phone, and what the tool is known to print."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from whole_path_for_tests import WholePath

from edgekit.bench.devices.android.adb import Adb, LostError
from edgekit.bench.devices.android.benchmark_tool import parse
from edgekit.bench.devices.android.device import AdbDevice
from edgekit.bench.devices.naming import DeviceOptions, open_device
from edgekit.bench.latency import LatencyConfig
from edgekit.bench.results import BenchReport
from edgekit.bench.run import BenchConfig
from edgekit.errors import LoadError, UsageError
from tests.bench.devices.phone_for_tests import Phone, plugged_in, write_tool

QUICK = LatencyConfig(min_time_s=0.0, max_time_s=2.0)

TRANSCRIPT = """\
INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Min num runs: [25]
INFO: Num threads: [4]
INFO: Graph: [/data/local/tmp/best_int8.tflite]
INFO: Loaded model /data/local/tmp/best_int8.tflite
INFO: Initialized TensorFlow Lite runtime.
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
VERBOSE: Replacing 539 out of 548 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 19 partitions for \
subgraph 0.
INFO: The input model file size (MB): 3.06409
INFO: Initialized session in 92.318ms.
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
INFO: count=3 first=235158 curr=200386 min=199462 max=235158 avg=211669 std=16613 p5=199462 median=200386 p95=235158

INFO: Running benchmark for at least 25 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
INFO: count=25 first=187533 curr=140990 min=140071 max=195121 avg=1.45528e+05 std=13583 p5=140545 median=141253 \
p95=187533

INFO: Inference timings in us: Init: 92318, First inference: 235158, Warmup (avg): 211669, Inference (avg): 1.45528e+05
INFO: Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to the actual \
memory footprint of the model at runtime. Take the information at your discretion.
INFO: Memory footprint delta from the start of the tool (MB): init=54.2852 overall=73.4102
INFO: Overall peak memory footprint (MB) via periodic monitoring: 81.5
"""
"""The lines of a run on a phone, in the format of a build of 2025: with levels, percentiles and memory."""


def test_a_run_of_the_tool_is_read() -> None:
    found = parse(TRANSCRIPT)
    assert (found.init_s, found.first_s) == pytest.approx((0.092318, 0.235158))
    assert found.warmup.count == 3 and found.timed.count == 25
    timed = found.timed
    assert (timed.first_s, timed.min_s, timed.max_s) == pytest.approx((0.187533, 0.140071, 0.195121))
    assert (timed.mean_s, timed.deviation_s) == pytest.approx((0.145528, 0.013583))
    assert (timed.p5_s, timed.median_s, timed.p95_s) == pytest.approx((0.140545, 0.141253, 0.187533))
    assert found.memory_bytes == int(73.4102 * 2**20) and found.peak_memory_bytes == int(81.5 * 2**20)
    assert found.partitions == "19 XNNPACK partitions with 539 of 548 operators"


def test_older_builds_and_logcat_are_read() -> None:
    old = "\n".join(line.removeprefix("INFO: ").partition(" p5=")[0] for line in TRANSCRIPT.splitlines()[:-2])
    assert parse(old).timed.p95_s is None and parse(old).timed.mean_s == pytest.approx(0.145528)
    logged = "\n".join(f"07-14 13:14:56.521 22838 22838 I tflite  : {line}" for line in TRANSCRIPT.splitlines())
    assert parse(logged) == parse(TRANSCRIPT)


def test_calls_that_all_took_as_long_are_read() -> None:
    text = "count=1 curr=300\ncount=5 curr=200(all same)\nInference timings in us: Init: 1, First inference: 300, "
    found = parse(text + "Warmup (avg): 300, Inference (avg): 200")
    assert found.timed.mean_s == found.timed.min_s == pytest.approx(200e-6) and found.timed.count == 5
    assert found.timed.deviation_s == 0.0 and found.memory_bytes is None and found.partitions is None


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("", "it printed nothing"),
        (
            "INFO: STARTING!\nERROR: Op type not registered\x1b[0m\nERROR: Benchmarking failed.",
            "Op type not registered",
        ),
        ("sh: benchmark_model: not executable: 64-bit ELF file", "64-bit ELF file"),
        (TRANSCRIPT[:600], "gave no timings"),
        (
            "count=0\nInference timings in us: Init: 1, First inference: 0, Warmup (avg): 0, Inference (avg): 0",
            "gave no",
        ),
    ],
)
def test_a_run_that_failed_tells_the_tools_own_reason(output: str, reason: str) -> None:
    with pytest.raises(LoadError, match="gave no timings") as caught:
        parse(output)
    assert reason in str(caught.value) and "\x1b" not in str(caught.value)


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Phone]:
    with plugged_in(tmp_path / "home", monkeypatch) as connected:
        yield connected


def _device(phone: Phone, tmp_path: Path) -> AdbDevice:
    return AdbDevice(Adb(phone.serial), write_tool(tmp_path / "tool"), lambda line: None)


def test_a_bundle_is_measured_on_the_phone_and_nothing_is_left_there(
    phone: Phone, whole_path: WholePath, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"no model")
    onnx = whole_path.bundle / "model.fp32.onnx"
    report = _device(phone, tmp_path).bench(BenchConfig((whole_path.bundle, broken, onnx), latency=QUICK))
    rows = {row.name: row for row in report.rows}
    for name in ("model.fp32.tflite", "model.int8.tflite"):
        row = rows[name]
        assert row.status == "ok" and row.latency is not None and row.cold is not None, row
        assert row.precision == name.split(".")[1]
        assert row.runtime is not None
        assert row.runtime.note == "1 XNNPACK partition with 3 of 3 operators; grew by 3.7 MB"
        raw = report.samples[name]
        assert len(raw.rounds) >= 1 and raw.calls_per_sample > 5
    assert rows["model.int8.tflite"].speedup is not None
    assert "Failed to load model" in str(rows["broken.tflite"].failure)
    assert "takes .tflite files alone" in " ".join(str(row.failure) for row in report.failed)
    assert report.device == f"adb:{phone.serial}: Scripted Phone 1"
    assert report.machine.os == "Android 14" and report.machine.cpu == "SM0000"
    assert any("means of" in note or "tells means" in note for note in report.notes)
    assert phone.left_over() == []
    runs = [line for line in phone.lines if "--graph=" in line]
    assert all("--use_xnnpack=true" in line and "--num_threads=1" in line for line in runs)
    assert BenchReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_a_phone_that_is_unplugged_fails_what_was_not_measured(
    phone: Phone, whole_path: WholePath, tmp_path: Path
) -> None:
    @contextmanager
    def unplug_while_timing(description: str, total: int) -> Iterator[Callable[[int], None]]:
        if description.startswith("latency"):
            unplugging = threading.Timer(0.3, phone.unplug)
            unplugging.start()
        yield lambda count: None

    report = _device(phone, tmp_path).bench(BenchConfig((whole_path.bundle,), latency=QUICK), unplug_while_timing)
    assert len(report.rows) == 2 and not report.complete
    assert all(row.cold is not None for row in report.rows), "what was found before is kept"
    assert all(row.failure is not None for row in report.rows)
    assert any(f"adb:{phone.serial} went away" in str(row.failure) for row in report.rows), report.failed


def test_a_tool_for_another_processor_says_so(phone: Phone, whole_path: WholePath, tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(60))
    device = AdbDevice(Adb(phone.serial), tool, lambda line: None)
    report = device.bench(BenchConfig((whole_path.bundle / "model.fp32.tflite",), latency=QUICK))
    assert "cannot be executed" in str(report.rows[0].failure) or "not executable" in str(report.rows[0].failure)


def test_a_phone_that_is_not_there_says_what_to_do(phone: Phone, tmp_path: Path) -> None:
    device = AdbDevice(Adb("no-such-phone"), write_tool(tmp_path / "tool"), lambda line: None)
    tiny = tmp_path / "m.tflite"
    tiny.write_bytes(b"x")
    with pytest.raises(LoadError, match=r"adb:no-such-phone cannot be used: .*adb devices"):
        device.bench(BenchConfig((tiny,), latency=QUICK))
    phone.unplug()
    with pytest.raises(LostError, match="went away"):
        for _ in range(20):
            Adb(phone.serial).shell("echo")


def test_what_the_tool_cannot_do_is_refused(tmp_path: Path) -> None:
    device = AdbDevice(Adb(), tmp_path / "none", lambda line: None)
    with pytest.raises(UsageError, match="--data cannot be used with --device adb"):
        device.bench(BenchConfig((tmp_path / "m.tflite",), data=tmp_path))
    with pytest.raises(UsageError, match=r"--benchmark-model .* is not a file"):
        device.bench(BenchConfig((tmp_path / "m.tflite",)))
    with pytest.raises(UsageError, match="needs --benchmark-model"):
        open_device("adb", DeviceOptions(lambda line: None))
    with pytest.raises(UsageError, match="not a serial number"):
        open_device("adb:-s; rm", DeviceOptions(lambda line: None, benchmark_model=tmp_path))
