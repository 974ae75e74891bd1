"""A whole bench run over small files: what fails is told, what does not is measured."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from edgekit.bench.latency import LatencyConfig
from edgekit.bench.results import BenchReport
from edgekit.bench.run import BenchConfig, run_bench
from edgekit.errors import DataError, UsageError
from edgekit.export.manifest import sha256_of
from tests.bench.tiny_for_tests import draw, write_bundle, write_classifier

QUICK = LatencyConfig(min_rounds=5, min_time_s=0.0, max_time_s=1.0, target_halfwidth=10.0)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [write_classifier(tmp_path / f"{name}.onnx", seed=seed) for seed, name in enumerate(("first", "second"))]


def test_everything_that_can_be_known_of_a_file_is_in_its_row(files: list[Path], tmp_path: Path) -> None:
    free = write_classifier(tmp_path / "free.onnx", batch="n")
    config = BenchConfig((files[0], free), data=draw(tmp_path / "data"), latency=QUICK, batch_size=8, duration_s=0.5)
    report = run_bench(config)
    assert report.complete
    one, many = report.rows
    assert one.sha256 == sha256_of(files[0])
    assert one.precision == "fp32" and one.format == "onnx" and one.size_bytes == files[0].stat().st_size
    assert one.cold is not None and one.cold.load_s > 0
    assert one.process_memory_bytes is not None and one.peak_memory_bytes is not None
    assert 10e6 < one.process_memory_bytes <= one.peak_memory_bytes < 1e9
    assert one.latency is not None and many.speedup is not None
    assert one.throughput is None and one.notes == ("takes a batch of 1, not 8 pictures at once",)
    assert many.throughput is not None and many.throughput.images_per_s.value > 1
    assert many.sustained is not None and 0.5 <= many.sustained.seconds < 5
    assert many.sustained.calls > 100 and len(many.sustained.at_s) == len(many.sustained.p50_s)
    assert report.answers["first.onnx"].count == 12
    assert one.top1 is not None
    assert report.answers["first.onnx"].unpacked().mean() == one.top1.value == 1.0
    assert BenchReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_a_process_that_dies_while_timed_fails_alone(files: list[Path]) -> None:
    before = set(psutil.Process().children())

    @contextmanager
    def kill_one(description: str, total: int) -> Iterator[Callable[[int], None]]:
        if description.startswith("latency"):
            children = sorted(set(psutil.Process().children()) - before, key=lambda child: child.pid)
            os.kill(children[1].pid, signal.SIGSEGV)
        yield lambda count: None

    report = run_bench(BenchConfig(tuple(files), latency=QUICK), kill_one)
    good, bad = report.rows
    assert good.status == "ok" and good.latency is not None
    assert bad.failure == "its process was killed by SIGSEGV"
    assert not report.complete
    assert not set(psutil.Process().children()) - before, "no process is left"


def test_rejected_changed_and_missing_files_fail_alone(files: list[Path], tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", files)
    with (bundle / "second.onnx").open("ab") as file:
        file.write(b"\0")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(files[0].read_bytes()[:100])
    text = tmp_path / "notes.txt"
    text.write_text("no model")
    report = run_bench(BenchConfig((bundle, broken, text, tmp_path / "gone.tflite", tmp_path / "gone"), latency=QUICK))
    reasons = {row.name: row.failure for row in report.rows}
    assert reasons.pop("first.onnx") is None and report.rows[0].latency is not None
    assert reasons["second.onnx"] is not None and "its sha256 differs from the manifest's" in reasons["second.onnx"]
    assert reasons["broken.onnx"] is not None and "not a model that ONNX Runtime can load" in reasons["broken.onnx"]
    assert reasons["notes.txt"] is not None and "no artifact that edgekit knows" in reasons["notes.txt"]
    assert reasons["gone.tflite"] is not None and "is not there" in reasons["gone.tflite"]
    assert reasons["gone"] is not None and "is not there" in reasons["gone"]


def test_a_bundle_that_cannot_be_read_fails_alone(files: list[Path], tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", files[:1])
    (bundle / "manifest.json").write_text("{")
    report = run_bench(BenchConfig((bundle, bundle / "first.onnx", files[1]), latency=QUICK))
    assert [row.status for row in report.rows] == ["failed", "failed", "ok"]
    assert all("is not JSON" in str(row.failure) for row in report.failed)


def test_a_manifest_cannot_point_out_of_its_bundle(files: list[Path], tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", files[:1])
    values = json.loads((bundle / "manifest.json").read_text())
    values["files"][0]["path"] = "../second.onnx"
    (bundle / "manifest.json").write_text(json.dumps(values))
    (row,) = run_bench(BenchConfig((bundle,), latency=QUICK)).rows
    assert "lies outside the bundle" in str(row.failure)


def test_a_file_beside_a_manifest_that_does_not_list_it_is_a_file_like_any(files: list[Path], tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", files[:1])
    shutil.copy(files[1], bundle / "mine.onnx")
    (row,) = run_bench(BenchConfig((bundle / "mine.onnx",), latency=QUICK)).rows
    assert row.status == "ok"


def test_without_pictures_the_latency_is_still_measured(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "empty" / "val" / "cats").mkdir(parents=True)
    report = run_bench(BenchConfig(tuple(files), data=tmp_path / "empty", latency=QUICK))
    assert all(row.latency is not None and row.scores is None for row in report.rows)
    assert len(report.problems) == 1 and report.problems[0].startswith("no accuracy: ")
    assert not report.complete


def test_a_picture_that_breaks_off_is_named_and_the_latency_measured(files: list[Path], tmp_path: Path) -> None:
    data = draw(tmp_path / "data")
    victim = data / "val" / "b-green" / "2.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(victim)
    victim.write_bytes(victim.read_bytes()[:2000])
    report = run_bench(BenchConfig(tuple(files), data=data, latency=QUICK))
    assert "2.png" in report.problems[0]
    assert all(row.latency is not None for row in report.rows)


def test_data_that_is_not_there_is_told_before_anything_runs(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="typo is not there"):
        run_bench(BenchConfig(tuple(files), data=tmp_path / "typo", latency=QUICK))


def test_a_folder_that_is_no_bundle_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"folder without manifest.json"):
        run_bench(BenchConfig((tmp_path,), latency=QUICK))


def test_other_classes_than_the_data_has_fail_alone(files: list[Path], tmp_path: Path) -> None:
    five = write_classifier(tmp_path / "five.onnx", classes=5)
    report = run_bench(BenchConfig((files[0], five), data=draw(tmp_path / "data"), latency=QUICK))
    assert report.rows[0].scores is not None
    assert "gives 5 scores, the data has 3 classes" in str(report.rows[1].failure)


def test_a_relative_path_is_read_as_an_absolute_one(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that reads the precision works in another folder."""
    monkeypatch.chdir(files[0].parent)
    (row,) = run_bench(BenchConfig((Path(files[0].name),), latency=QUICK)).rows
    assert row.precision == "fp32" and row.notes == ()
