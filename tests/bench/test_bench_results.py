"""The report goes to JSON and back, and its tables fit, escape and explain."""

from __future__ import annotations

import json
from io import StringIO

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from edgekit.bench.latency import LatencyConfig, measure_latency
from edgekit.bench.machine import Machine
from edgekit.bench.metrics import CosineSummary, agreement, classification_scores, correct
from edgekit.bench.results import BenchReport, BenchRow, RawSamples, json_schema
from edgekit.bench.retrieval import retrieval_scores
from edgekit.bench.significance import compare_accuracy
from edgekit.bench.statistics import paired_speedup, summarize
from edgekit.bench.table import footnotes, render_markdown, render_terminal
from edgekit.bench.timing import ColdStart
from edgekit.errors import UsageError
from edgekit.export.session import RuntimeInfo

BASELINE = "student mobilevit_xxs"
MACHINE = Machine(
    "AMD EPYC", 2, 2, None, 1.9, 8 << 30, "Linux 6 x86_64", "3.11.7", ("Another process is using the CPU: load 1.9.",)
)


def measured_row(name: str, factor: float, *, noise: float = 0.0) -> BenchRow:
    """Return a row whose numbers come from the real functions on random inputs."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 15, 300)
    logits = random.standard_normal((300, 15)) + 3 * np.eye(15)[labels]
    own = logits + noise * random.standard_normal(logits.shape)
    base_s = random.normal(5e-3, 1e-4, (40, 3))
    own_s = base_s * factor
    return BenchRow(
        name=name,
        kind="artifact",
        format="onnx",
        precision="int8",
        size_bytes=1_310_000,
        parameters=1_300_000,
        scores=classification_scores(own, labels),
        agreement_teacher=agreement(own, logits),
        agreement_student=agreement(own, logits),
        kl_teacher=0.01,
        embedding_cosine=CosineSummary(0.987, 0.91),
        retrieval=retrieval_scores(np.eye(4), np.eye(4), np.arange(4), ks=(1,)),
        accuracy=compare_accuracy(correct(own, labels), correct(logits, labels)),
        latency=summarize(own_s),
        speedup=paired_speedup(base_s.min(axis=1), own_s.min(axis=1)),
        cold=ColdStart(0.1, 0.02, 0.005, RuntimeInfo("onnxruntime", "1.31.1", 1, "CPUExecutionProvider")),
        peak_memory_bytes=80_000_000,
        runtime=RuntimeInfo("onnxruntime", "1.31.1", 1, "CPUExecutionProvider"),
    )


@pytest.fixture(scope="module")
def report() -> BenchReport:
    config = LatencyConfig(min_rounds=10, min_time_s=0.0, target_halfwidth=10.0)
    samples = measure_latency({BASELINE: lambda: sum(range(20_000))}, config)
    rows = (
        measured_row(BASELINE, 1.0),
        measured_row("model_int8.onnx", 0.5, noise=0.5),
        measured_row("same|again.onnx", 1.0),
        measured_row("slow_with_a_rather_long_name_int8.tflite", 2.0),
        BenchRow(
            "broken.onnx", "artifact", "onnx", "int8", status="failed", failure="InvalidGraph: [bold]no[/bold] such op"
        ),
    )
    return BenchReport(
        rows=rows,
        baseline=BASELINE,
        machine=MACHINE,
        data="300 pictures of val",
        created="2026-01-02T03:04:05Z",
        edgekit_version="0.1.0",
        latency_config=config,
        samples={name: RawSamples.of(taken) for name, taken in samples.items()},
    )


def printed(report: BenchReport, width: int) -> str:
    out = StringIO()
    Console(file=out, width=width, soft_wrap=True).print(render_terminal(report, width))  # as edgekit's terminal
    return out.getvalue()


def test_no_footnote_is_cut_off(report: BenchReport) -> None:
    shown = " ".join(printed(report, 60).split())
    lines = footnotes(report)
    assert max(map(len, lines)) > 60
    assert all(line in shown for line in lines)


def test_json_comes_back_equal(report: BenchReport) -> None:
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert next(iter(content)) == "schema_version"
    assert content["schema_version"] == 1
    assert content["rows"][0]["scores"]["top1"]["level"] == 0.95
    assert BenchReport.from_json(content) == report


def test_raw_samples_are_kept_to_the_nanosecond(report: BenchReport) -> None:
    kept = BenchReport.from_json(json.loads(json.dumps(report.to_json()))).samples[BASELINE]
    assert len(kept.rounds) == len(kept.nanoseconds) >= 10
    assert min(min(row) for row in kept.nanoseconds) > 1000


def test_the_schema_describes_every_field(report: BenchReport) -> None:
    schema = json_schema()
    assert set(schema["properties"]) == set(report.to_json())
    assert set(schema["$defs"]["BenchRow"]["properties"]) == set(report.to_json()["rows"][0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version is 2, 1 is expected"),
        ({"schema_version": None}, "schema_version is None"),
        ({"rows": [{"name": "x"}]}, "rows.0.kind"),
        ({"machine": 3}, "machine"),
    ],
)
def test_other_json_is_refused_with_the_place(report: BenchReport, change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BenchReport.from_json({**report.to_json(), **change})
    with pytest.raises(UsageError, match="schema_version is None"):
        BenchReport.from_json([1, 2])


def test_names_are_unique(report: BenchReport) -> None:
    with pytest.raises(UsageError, match="same name"):
        BenchReport((report.rows[0], report.rows[0]), None, MACHINE, None, "", "")


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_no_line_is_wider_than_the_terminal_and_no_number_is_cut(report: BenchReport, width: int) -> None:
    text = printed(report, width)
    assert max(cell_len(line.rstrip()) for line in text.splitlines()) <= width
    assert "…" not in text
    for must in ("top-1 %", "speed-up", "2.00×", "≈1.00×", "0.50×", "baseline", "failed"):
        assert must in text
    assert "InvalidGraph: [bold]no[/bold] such op" in " ".join(text.split())


def test_what_is_left_out_at_80_columns_is_said(report: BenchReport) -> None:
    assert "Left out for want of width: " in printed(report, 80)
    assert "Left out" not in printed(report, 200)
    assert "p50 ms" in printed(report, 80)


def test_warnings_and_protocol_stand_below(report: BenchReport) -> None:
    text = " ".join(printed(report, 200).split())
    assert "Another process is using the CPU" in text
    assert "≈ is inconclusive" in text
    assert "4 images, 4 captions (1 per image)" in text


def test_markdown_is_one_table_whatever_the_names(report: BenchReport) -> None:
    table = [line for line in render_markdown(report).splitlines() if line.startswith("|")]
    unescaped = [line.replace("\\|", "").count("|") for line in table]
    assert len(table) == 2 + len(report.rows)
    assert len(set(unescaped)) == 1
    assert "same\\|again.onnx" in render_markdown(report)
    assert "] faster |" in render_markdown(report)
    assert "] inconclusive |" in render_markdown(report)


def test_columns_that_nobody_measured_are_not_shown() -> None:
    bare = BenchReport(
        (BenchRow("a.onnx", "artifact", "onnx", "fp32", size_bytes=10**6),), None, MACHINE, None, "now", "0.1.0"
    )
    text = printed(bare, 100)
    assert "top-1" not in text
    assert "speed-up" not in text
    assert "1.00" in text


def test_a_failed_row_must_say_why() -> None:
    with pytest.raises(AssertionError):
        BenchRow("x", "artifact", "onnx", "fp32", status="failed")
