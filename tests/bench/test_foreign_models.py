"""Classifiers of other tools against folders of pictures: uint8 in and out, and labels in an order of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit.bench.labels import class_numbers, labels_in, read_labels
from edgekit.bench.latency import LatencyConfig
from edgekit.bench.run import BenchConfig, run_bench
from edgekit.cli.main import run
from edgekit.errors import DataError, UsageError
from edgekit.export.runtimes import open_session
from tests.bench.foreign_for_tests import LABELS, write_uint8_onnx, write_uint8_tflite
from tests.bench.tiny_for_tests import CLASSES, SIZE, draw, write_bundle, write_classifier

QUICK = LatencyConfig(min_rounds=3, min_time_s=0.0, max_time_s=1.0, target_halfwidth=10.0)
GRIDS = {"unit": (1 / 255, 0), "mobilenet": (1 / 128, 128), "bytes": (1.0, 0)}


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.txt"
    path.write_text("\n".join(LABELS) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("grid", GRIDS)
def test_uint8_pixels_reach_a_tflite_file_as_they_are(tmp_path: Path, grid: str) -> None:
    scale, zero_point = GRIDS[grid]
    session = open_session(write_uint8_tflite(tmp_path / "m.tflite", scale=scale, zero_point=zero_point))
    colour = np.array([200, 100, 50], np.float32) / 255
    scores = session(np.broadcast_to(colour[None, :, None, None], (1, 3, SIZE, SIZE)).astype(np.float32))["logits"]
    expected = [0, 4 * colour[2], 4 * colour[1], 0, 4 * colour[0]]
    np.testing.assert_allclose(scores[0], expected, atol=1 / 32)  # the step of its 8-bit scores


def test_files_of_other_tools_are_judged_by_their_own_labels(tmp_path: Path, labels: Path) -> None:
    data = draw(tmp_path / "data") / "val"  # not split: all of it is used
    files = (
        write_uint8_tflite(tmp_path / "mobilenet.tflite", scale=1 / 128, zero_point=128),
        write_uint8_onnx(tmp_path / "last.onnx", channels_last=True),
        write_uint8_onnx(tmp_path / "first.onnx", channels_last=False),
    )
    report = run_bench(BenchConfig(files, data=data, labels=labels, latency=QUICK, duration_s=None))
    assert report.complete, report.failed
    for row in report.rows:
        assert row.top1 is not None and row.top1.value == 1.0, row.name
        assert row.latency is not None and report.answers[row.name].count == 12
    assert "gives probabilities; their logarithms were scored" in report.rows[1].notes
    assert report.rows[1].scores is not None and report.rows[1].scores.cross_entropy < 1.0
    assert report.data == "12 pictures of val"


def test_labels_inside_the_files_are_found(tmp_path: Path) -> None:
    data = draw(tmp_path / "data")
    packed = write_uint8_tflite(tmp_path / "packed.tflite", scale=1 / 255, zero_point=0, labels=LABELS)
    named = write_uint8_onnx(tmp_path / "named.onnx", channels_last=True, names=LABELS)
    assert labels_in(str(packed)) == labels_in(str(named)) == list(LABELS)
    report = run_bench(BenchConfig((packed, named), data=data, latency=QUICK))
    assert [row.top1 and row.top1.value for row in report.rows] == [1.0, 1.0]


def test_without_labels_five_scores_for_three_classes_fail_alone(tmp_path: Path) -> None:
    good = write_classifier(tmp_path / "good.onnx")
    bare = write_uint8_onnx(tmp_path / "bare.onnx", channels_last=True)
    report = run_bench(BenchConfig((good, bare), data=draw(tmp_path / "data"), latency=QUICK))
    assert report.rows[0].top1 is not None and report.rows[0].top1.value == 1.0
    assert "gives 5 scores, the data has 3 classes" in str(report.rows[1].failure)
    assert "--labels" in str(report.rows[1].failure)


def test_labels_that_do_not_fit_fail_alone(tmp_path: Path, labels: Path) -> None:
    good = write_uint8_onnx(tmp_path / "good.onnx", channels_last=True)
    three = write_classifier(tmp_path / "three.onnx")
    bundle = write_bundle(tmp_path / "bundle", [write_classifier(tmp_path / "known.onnx")])
    report = run_bench(BenchConfig((good, three, bundle), data=draw(tmp_path / "data"), labels=labels, latency=QUICK))
    rows = {row.name: row for row in report.rows}
    assert rows["good.onnx"].status == "ok"
    assert "it gives 3 scores, but there are 5 labels" in str(rows["three.onnx"].failure)
    known = rows["known.onnx"]
    assert known.top1 is not None and known.top1.value == 1.0, "a manifest knows better than --labels"


def test_a_bundle_of_other_classes_fails_by_name(tmp_path: Path) -> None:
    """Three classes and three folders, but not the same: the numbers alone would fit."""
    bundle = write_bundle(tmp_path / "bundle", [write_classifier(tmp_path / "known.onnx")])
    data = draw(tmp_path / "data")
    for split in ("train", "val"):
        (data / split / "a-red").rename(data / split / "a-yellow")
    (row,) = run_bench(BenchConfig((bundle,), data=data, latency=QUICK)).rows
    assert "does not know 1 of the data's classes: a-yellow" in str(row.failure)


def test_names_are_matched_as_they_are_then_in_a_common_spelling() -> None:
    assert class_numbers(list(CLASSES), (*LABELS[:4], "A Red")).tolist() == [4, 2, 1]
    assert class_numbers(["scarlet", "empty"], LABELS).tolist() == [4, 3]
    assert class_numbers(["Crane", "crane"], ["crane", "Crane"]).tolist() == [1, 0], "as they are comes first"
    with pytest.raises(DataError, match="may be any of the model's labels"):
        class_numbers(["CRANE"], ["crane", "Crane"])
    with pytest.raises(DataError, match="does not know 1 of the data's classes: dog"):
        class_numbers(["dog", "crane"], ["crane"])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("cat\ndog\n\n", ("cat", "dog")),
        ("\ufeff0 cat\n1 big dog\n", ("cat", "big dog")),
        ("0: cat\n1: dog", ("cat", "dog")),
        ("1 cat\n2 dog", ("1 cat", "2 dog")),
        ("101 dalmatians\n0 dogs", ("101 dalmatians", "0 dogs")),
    ],
)
def test_files_of_labels_are_read(tmp_path: Path, text: str, found: tuple[str, ...]) -> None:
    (tmp_path / "l.txt").write_text(text, encoding="utf-8")
    assert read_labels(tmp_path / "l.txt") == found


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "holds 0 labels"), (b"cat\n\ndog", "line 2 is empty"), (b"\xff\xfe", "no text in UTF-8")],
)
def test_files_that_are_no_labels_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "l.txt").write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_labels(tmp_path / "l.txt")
    with pytest.raises(DataError, match="cannot be read"):
        read_labels(tmp_path)


def test_labels_without_data_are_refused(tmp_path: Path, labels: Path) -> None:
    with pytest.raises(UsageError, match="add --data"):
        run_bench(BenchConfig((write_classifier(tmp_path / "m.onnx"),), labels=labels, latency=QUICK))


@pytest.mark.parametrize("value", ["{0: 'a', 1: 'b'}", '["a", "b"]', '{"0": "a", "1": "b"}', "a,b", "a\nb"])
def test_names_in_metadata_are_read_as_exporters_write_them(tmp_path: Path, value: str) -> None:
    import onnx

    path = write_uint8_onnx(tmp_path / "m.onnx", channels_last=True)
    model = onnx.load(path)
    model.metadata_props.add(key="labels", value=value)
    onnx.save(model, path)
    assert labels_in(str(path)) == ["a", "b"]


@pytest.mark.parametrize("value", ["{1: 'a', 2: 'b'}", "__import__('os')", "alone", "[" * 5000])
def test_metadata_that_is_no_list_of_names_counts_as_none(tmp_path: Path, value: str) -> None:
    import onnx

    path = write_uint8_onnx(tmp_path / "m.onnx", channels_last=True)
    model = onnx.load(path)
    model.metadata_props.add(key="names", value=value)
    onnx.save(model, path)
    assert labels_in(str(path)) is None


def test_the_command_takes_labels(tmp_path: Path, labels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_uint8_tflite(tmp_path / "m.tflite", scale=1 / 128, zero_point=128)
    data = draw(tmp_path / "data") / "val"
    arguments = ["bench", str(model), "--data", str(data), "--labels", str(labels), "--no-latency"]
    assert run(arguments) == 0
    assert "100.0" in capsys.readouterr().err
