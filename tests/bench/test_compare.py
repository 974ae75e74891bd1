"""Two runs side by side: a slow machine is no slow model, and every difference is named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgekit.bench.compare import compare_reports
from edgekit.bench.compare_table import comparison_json, comparison_notes, comparison_rows
from edgekit.bench.results import Answers, BenchReport
from edgekit.errors import UsageError
from tests.bench.reports_for_tests import MACHINE, made_report


def only_file(report: BenchReport) -> BenchReport:
    """Leave the student out."""
    return replace(report, rows=report.rows[1:], baseline=None)


@pytest.mark.parametrize("machine_factor", [0.8, 1.0, 1.3])
@pytest.mark.parametrize(("model_factor", "verdict"), [(1.0, "inconclusive"), (1.06, "slower"), (0.94, "faster")])
def test_what_the_machine_did_cancels(machine_factor: float, model_factor: float, verdict: str) -> None:
    second = made_report(machine_factor=machine_factor, model_factor=model_factor, seed=1)
    row = compare_reports(made_report(), second).rows[1]
    assert row.speed is not None
    assert row.speed.reference == "student"
    assert row.speed.verdict == verdict
    assert row.speed.ratio.low <= 1 / model_factor <= row.speed.ratio.high
    assert row.regressed == (verdict == "slower")


@pytest.mark.parametrize(("factor", "verdict"), [(1.08, "inconclusive"), (1.5, "slower"), (0.6, "faster")])
def test_without_a_reference_a_difference_must_be_large(factor: float, verdict: str) -> None:
    second = only_file(made_report(machine_factor=factor, seed=1))
    comparison = compare_reports(only_file(made_report()), second)
    (row,) = comparison.rows
    assert row.speed is not None and row.speed.reference is None
    assert row.speed.verdict == verdict
    assert any("bare times of two runs" in line for line in comparison_notes(comparison))


def test_a_reference_that_changed_is_none() -> None:
    second = made_report(seed=1)
    newer = replace(second.rows[0], runtime=replace(second.rows[0].runtime, version="2.15"))  # type: ignore[type-var]
    comparison = compare_reports(made_report(), replace(second, rows=(newer, second.rows[1])))
    assert comparison.rows[1].speed is not None and comparison.rows[1].speed.reference is None
    assert comparison.rows[0].speed is not None and comparison.rows[0].speed.reference == "model.onnx"
    assert comparison.rows[0].differs == ("runtime version: 2.14.1 → 2.15",)


def test_another_device_is_no_reference() -> None:
    second = replace(made_report(machine_factor=0.5, seed=1), machine=replace(MACHINE, cpu="Cortex-A76"))
    comparison = compare_reports(made_report(), second)
    assert comparison.differs[0] == "device: local: AMD EPYC, 2 cores, Linux → local: Cortex-A76, 2 cores, Linux"
    assert [row.speed.verdict for row in comparison.rows if row.speed] == ["faster", "faster"]


@pytest.mark.parametrize(
    ("wrong", "verdict"), [(30, "inconclusive"), (33, "inconclusive"), (50, "worse"), (10, "better")]
)
def test_the_same_pictures_are_compared_one_by_one(wrong: int, verdict: str) -> None:
    row = compare_reports(made_report(), made_report(wrong=wrong, sha256="b" * 64)).rows[1]
    assert row.accuracy is not None and row.accuracy.paired
    assert row.accuracy.verdict == verdict
    assert row.accuracy.difference.value == pytest.approx((30 - wrong) / 300)
    assert row.differs == ("file: aaaaaaaaaaaa → bbbbbbbbbbbb",)


def test_other_pictures_are_not() -> None:
    second = made_report(wrong=45)
    elsewhere = {name: replace(one, pictures_sha256="e" * 64) for name, one in second.answers.items()}
    comparison = compare_reports(made_report(), replace(second, answers=elsewhere))
    accuracy = comparison.rows[1].accuracy
    assert accuracy is not None and not accuracy.paired
    assert accuracy.verdict == "inconclusive", "5 points of 300 pictures are not sure where they are others"
    assert accuracy.difference.low < -0.05 < accuracy.difference.high


def test_models_are_matched_by_name_by_file_and_alone() -> None:
    first = made_report()
    renamed = made_report(model="renamed.onnx")
    assert [row.second.name for row in compare_reports(first, renamed).rows] == ["student", "renamed.onnx"]
    alone = made_report(model="other.onnx", sha256="b" * 64)
    assert compare_reports(first, alone).rows[1].differs[0] == "name: model.onnx → other.onnx"
    more = replace(alone, rows=(*alone.rows, replace(alone.rows[1], name="third.onnx", sha256="c" * 64)))
    comparison = compare_reports(first, more)
    assert len(comparison.rows) == 1
    assert comparison.only_first == ("model.onnx",)
    assert comparison.only_second == ("other.onnx", "third.onnx")


def test_a_model_that_fails_now_has_regressed() -> None:
    second = made_report()
    broken = replace(second.rows[1], status="failed", failure="its process was killed by SIGSEGV", latency=None)
    comparison = compare_reports(made_report(), replace(second, rows=(second.rows[0], broken), samples={}))
    assert comparison.rows[1].regressed and comparison.rows[1].speed is None
    assert "model.onnx failed in the second: its process was killed by SIGSEGV" in comparison_notes(comparison)


def test_table_and_json_say_the_same() -> None:
    comparison = compare_reports(made_report(), made_report(model_factor=1.2, wrong=60))
    cells = comparison_rows(comparison)[1]
    values = comparison_json(comparison)["rows"][1]
    assert "slower" in cells and "worse" in cells
    assert values["speed"]["verdict"] == "slower" and values["accuracy"]["verdict"] == "worse" and values["regressed"]
    assert cells[0] == values["second"] == "model.onnx"


def test_answers_come_back_and_damaged_ones_are_refused() -> None:
    answers = made_report().answers["model.onnx"]
    assert answers.unpacked().tolist() == [False] * 30 + [True] * 270
    for wrong in (replace(answers, right="zz"), replace(answers, right="ff")):
        with pytest.raises(UsageError, match="not a valid bench result"):
            wrong.unpacked()
    assert isinstance(answers, Answers)


def test_samples_that_do_not_fit_are_refused() -> None:
    raw = made_report().samples["student"]
    for wrong in (replace(raw, rounds=raw.rounds[:-1]), replace(raw, rounds=(0,) * len(raw.rounds))):
        with pytest.raises(UsageError, match="one row for each round"):
            wrong.samples("student")
