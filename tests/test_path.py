"""The whole path, small: what each stage leaves is what the next one reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from whole_path_for_tests import WholePath

from edgekit.bench.results import BenchReport
from edgekit.export.manifest import read_manifest
from edgekit.models.checkpoint import load_student
from edgekit.models.teacher_record import read_record


def test_run_folder_holds_what_design_promises(whole_path: WholePath) -> None:
    run = whole_path.run
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    expected = {
        "config.yaml",
        "run.json",
        "metrics.jsonl",
        "student.safetensors",
        "last/manifest.json",
        "plots/training.png",
    }
    assert expected <= names
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    epochs = [row for row in rows if row["kind"] == "epoch"]
    assert [row["epoch"] for row in epochs] == list(range(1, whole_path.epochs + 1))
    assert {"loss", "feature", "response", "task", "train_acc", "val_acc", "lr", "seconds"} <= set(epochs[0])
    with Image.open(run / "plots/training.png") as picture:
        assert picture.size[0] > 1000


def test_student_learned_from_its_teacher(whole_path: WholePath) -> None:
    facts = json.loads((whole_path.run / "run.json").read_text())
    assert facts["teacher"]["class_scores"] == "prompts"
    assert facts["summary"]["val_acc"] > 3 / len(load_student(whole_path.run).spec.classes), "three times chance"
    record = read_record(whole_path.run)
    assert record is not None and len(record.keys) == facts["data"]["val"]


def test_every_file_is_proven_and_in_the_manifest(whole_path: WholePath) -> None:
    manifest = read_manifest(whole_path.bundle)
    assert {(record.format, record.precision) for record in manifest.files} == {
        (form, precision) for form in ("onnx", "coreml", "tflite") for precision in ("fp32", "int8")
    }
    for record in manifest.files:
        if record.precision == "fp32":
            assert record.parity["max_abs"] < 1e-3
            assert record.parity["agreement"]["value"] == 1.0
    assert not set(manifest.calibration.values()) & set(manifest.verification.values())
    assert manifest.input.preprocess["image_size"] == whole_path.image_size


def test_int8_files_are_smaller(whole_path: WholePath) -> None:
    sizes = {(r.format, r.precision): r.size_bytes for r in read_manifest(whole_path.bundle).files}
    for form in ("onnx", "coreml", "tflite"):
        assert sizes[form, "int8"] < 0.36 * sizes[form, "fp32"]


def test_card_says_what_it_was_trained_on(whole_path: WholePath) -> None:
    card = (whole_path.bundle / "MODEL_CARD.md").read_text()
    for words in (
        "teacher:",
        "95 % interval",
        "Known limits",
        "interpreted, not run on Apple hardware",
        "Normalisation is inside",
    ):
        assert words in card


def test_bench_compares_teacher_student_and_every_file(whole_path: WholePath) -> None:
    report = BenchReport.from_json(json.loads((whole_path.folder / "bench.json").read_text()))
    assert [row.kind for row in report.rows] == ["teacher", "student"] + 6 * ["artifact"]
    assert not report.failed
    by_name = {row.name: row for row in report.rows}
    student, onnx, core = by_name["student"], by_name["model.fp32.onnx"], by_name["model.fp32.mlpackage"]
    assert student.top1 is not None and onnx.top1 is not None and core.top1 is not None
    assert onnx.top1.value == core.top1.value == student.top1.value
    assert onnx.speedup is not None and onnx.latency is not None and onnx.latency.p50_s > 0
    assert core.latency is None, "an interpreter's speed says nothing of Apple hardware"
    facts = json.loads((whole_path.run / "run.json").read_text())
    assert student.top1.value == pytest.approx(facts["summary"]["val_acc"]), "bench measures what training reported"
    teacher = by_name["teacher"]
    assert teacher.top1 is not None and teacher.top1.value == pytest.approx(facts["teacher"]["val_acc"])


def test_results_page_tells_all_three(whole_path: WholePath) -> None:
    page = (whole_path.folder / "RESULTS.md").read_text()
    assert "CLIP teacher" in page and "distilled from it" in page and "labels alone" in page


def test_drawings_are_shown(whole_path: WholePath) -> None:
    assert Path(whole_path.folder / "drawings.png").stat().st_size > 20_000
