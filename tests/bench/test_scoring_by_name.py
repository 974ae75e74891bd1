"""Scores are told apart by the names of their classes, and one model that cannot be scored fails alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgekit.bench.results import BenchReport
from edgekit.bench.run import BenchConfig, run_bench
from edgekit.cli.main import run
from edgekit.data import load_dataset
from edgekit.errors import LoadError
from edgekit.models.teacher_record import TeacherRecord
from tests.bench.tiny_for_tests import draw, write_classifier
from tests.cli.commands_for_tests import ALONE, SMALL, draw_colours, refused


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_colours(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def taught(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run whose teacher is right about all validation pictures, as its record says."""
    out = tmp_path_factory.mktemp("taught") / "run"
    assert run(["distill", "--data", str(data), *SMALL, *ALONE, "--epochs", "3", "-q", "-o", str(out)]) == 0
    val = load_dataset(data).val
    rows = np.eye(3, dtype=np.float32)[[int(sample.label or 0) for sample in val]]
    TeacherRecord(tuple(s.key for s in val), rows, np.eye(3, dtype=np.float32), np.zeros(3, np.float32)).save(out)
    facts = json.loads((out / "run.json").read_text())
    facts["teacher"] = {"name": "t", "fingerprint": None, "parameters": None}
    (out / "run.json").write_text(json.dumps(facts))
    return out


def bench(*files: Path, data: Path, baseline: Path | None = None) -> BenchReport:
    return run_bench(BenchConfig(files, baseline=baseline, data=data, latency=None))


def spoil(path: Path) -> Path:
    """Make all scores of a classifier not a number."""
    import onnx

    model = onnx.load(path)
    weights = next(one for one in model.graph.initializer if one.name == "weights")
    values = np.full(weights.dims, np.nan, np.float32)
    weights.CopyFrom(onnx.numpy_helper.from_array(values, "weights"))
    onnx.save(model, path)
    return path


def test_teacher_and_student_find_their_classes_by_name(data: Path, taught: Path, tmp_path: Path) -> None:
    """Of three classes two are left: by position both would be others."""
    part = shutil.copytree(data, tmp_path / "part")
    for split in ("train", "val"):
        shutil.rmtree(part / split / "blue")
    teacher, student = bench(data=part, baseline=taught).rows
    assert teacher.top1 is not None and teacher.top1.value == 1.0
    assert student.scores is not None and student.scores.pictures == 12
    assert student.agreement_teacher is not None
    assert student.agreement_teacher.value == pytest.approx(student.scores.top1.value), "the teacher is always right"


def test_a_renamed_class_fails_by_name(data: Path, taught: Path, tmp_path: Path) -> None:
    other = shutil.copytree(data, tmp_path / "other")
    for split in ("train", "val"):
        (other / split / "blue").rename(other / split / "turquoise")  # the last now, where it was the first
    report = bench(data=other, baseline=taught)
    teacher, student = report.rows
    assert "does not know 1 of the data's classes: turquoise" in str(student.failure)
    assert teacher.scores is None and student.scores is None and not report.complete
    assert "does not hold what its teacher says of all of these" in " ".join(report.notes)


@pytest.mark.parametrize("what", ["more scores than classes", "scores that are no numbers"])
def test_a_first_file_that_cannot_be_scored_leaves_the_others(tmp_path: Path, what: str) -> None:
    bad = write_classifier(tmp_path / "bad.onnx", classes=4 if what.startswith("more") else 3)
    if bad and what.startswith("scores"):
        spoil(bad)
    good = write_classifier(tmp_path / "good.onnx")
    first, second = bench(bad, good, data=draw(tmp_path / "data")).rows
    assert first.status == "failed" and first.scores is None
    assert second.top1 is not None and second.top1.value == 1.0 and second.accuracy is None
    assert second.status == "ok"


def test_changes_of_accuracy_refer_to_the_first_file(tmp_path: Path) -> None:
    good, same = (write_classifier(tmp_path / f"{name}.onnx") for name in ("good", "same"))
    first, second = bench(good, same, data=draw(tmp_path / "data")).rows
    assert first.accuracy is None
    assert second.accuracy is not None and second.accuracy.verdict == "inconclusive"


@pytest.mark.parametrize("content", ['{"teacher": {', "[]", "{}", '{"teacher": {"name": "t"}, "student": {}}', None])
def test_a_damaged_run_json_is_an_error_in_one_line(
    taught: Path, tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = shutil.copytree(taught, tmp_path / "damaged")
    (damaged / "run.json").unlink()
    if content is not None:
        (damaged / "run.json").write_text(content)
    line = refused(capsys, LoadError.exit_code, "bench", "--baseline", damaged, "--no-latency")
    assert "run.json" in line and "student.safetensors alone" in line
