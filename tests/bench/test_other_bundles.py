"""Bundles that are no picture classifier's: a CLIP's two towers, whose text tower takes ids."""

from __future__ import annotations

from pathlib import Path

import pytest
from captioned_for_tests import train_small_clip

from edgekit.bench.latency import LatencyConfig
from edgekit.bench.run import BenchConfig, run_bench
from edgekit.export.clip.export import export_clip_run
from edgekit.export.config import ExportConfig
from edgekit.terminal import Terminal
from tests.bench.tiny_for_tests import draw

QUICK = LatencyConfig(min_rounds=3, min_time_s=0.0, max_time_s=2.0, target_halfwidth=10.0)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    run = train_small_clip(folder)
    changes = {"formats": ("onnx",), "precisions": ("fp32",), "outputs": ("embedding",)}
    config = ExportConfig(run, folder / "bundle", **changes)  # type: ignore[arg-type]
    attempts = export_clip_run(config, Terminal(-1))
    assert [attempt.problems for attempt in attempts] == [()] * 2
    return folder / "bundle"


def test_both_towers_of_a_clip_are_timed(clip: Path, tmp_path: Path) -> None:
    report = run_bench(BenchConfig((clip,), data=draw(tmp_path / "data"), latency=QUICK))
    assert [row.name for row in report.rows] == ["image/model.fp32.onnx", "text/model.fp32.onnx"]
    for row in report.rows:
        assert row.status == "ok" and row.latency is not None and row.cold is not None, row
        assert row.precision == "fp32" and row.scores is None
        assert ("takes texts" in "".join(row.notes)) == row.name.startswith("text/")


def test_a_text_tower_alone_is_timed(clip: Path) -> None:
    report = run_bench(BenchConfig((clip / "text", clip / "text" / "model.fp32.onnx"), latency=QUICK))
    assert report.complete and len(report.rows) == 2
    assert report.rows[1].speedup is not None
