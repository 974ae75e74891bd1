"""`edgekit teach`, `edgekit data shard`, and the ways in which `distill` takes what they leave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekit.cli.main import run
from edgekit.compress.training.run_folder import RunFolder
from tests.cli.commands_for_tests import SMALL, draw_colours, refused
from tests.teachers_for_tests import ColourNet, onnx_teacher, register_tiny_clip, tiny_clip_weights

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_colours(tmp_path_factory.mktemp("colours") / "data")


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_teacher(tmp_path_factory.mktemp("teacher") / "colours.onnx")


def good(capsys: Capture, *args: object) -> dict[str, object]:
    code = run([*map(str, args), "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    result: dict[str, object] = json.loads(captured.out, parse_constant=pytest.fail)
    return result


def timeless(folder: Path) -> list[dict[str, object]]:
    measured = {"seconds", "images_per_s", "peak_memory_bytes"}
    return [{k: v for k, v in row.items() if k not in measured} for row in RunFolder(folder).read_metrics()]


def test_a_store_made_ahead_serves_folder_and_shards_with_and_without_the_teacher(
    data: Path, onnx_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    store = tmp_path / "store"
    made = good(capsys, "teach", "--data", data, "--teacher", onnx_file, "--views", 2, "-o", store)
    assert made["stores"][0]["taught_now"] == 60  # type: ignore[index]
    again = good(capsys, "teach", "--data", data, "--teacher", onnx_file, "--views", 2, "-o", store)
    assert again["stores"][0]["taught_now"] == 0  # type: ignore[index]
    shards = good(capsys, "data", "shard", "--data", data, "-o", tmp_path / "shards", "--shard-size", "50KB")
    assert (shards["train"], shards["val"]) == (42, 18)
    settings = (*SMALL, "--views", 2, "--epochs", 1, "--teacher-store", store)
    pattern = tmp_path / "shards" / "train-*.tar"
    good(capsys, "distill", "--data", data, *settings, "--teacher", onnx_file, "-o", tmp_path / "a")
    good(capsys, "distill", "--data", data, *settings, "-o", tmp_path / "b")
    streamed = good(capsys, "distill", "--data", pattern, *settings, "-o", tmp_path / "c")
    assert timeless(tmp_path / "a") == timeless(tmp_path / "b") == timeless(tmp_path / "c")
    assert streamed["teacher"]["name"] == str(onnx_file)  # type: ignore[index]
    line = refused(capsys, 2, "distill", "--data", data, *settings, "--views", 3, "-o", tmp_path / "d")
    assert "2 views of each picture, wanted 3" in line


def test_class_scores_by_prompts_are_kept_in_the_store(data: Path, tmp_path: Path, capsys: Capture) -> None:
    arch = register_tiny_clip(tmp_path / "archs")
    teacher = f"{arch}:{tiny_clip_weights(tmp_path / 'clip.pt', seed=0)}"
    store = tmp_path / "store"
    good(capsys, "teach", "--data", data, "--teacher", teacher, "--views", 1, "-o", store)
    settings = ("--data", data, *SMALL, "--views", 1, "--epochs", 1, "--teacher-store", store)
    result = good(capsys, "distill", *settings, "-o", tmp_path / "a")
    assert result["teacher"]["class_scores"] == "prompts"  # type: ignore[index]
    line = refused(capsys, 3, "distill", *settings, "--template", "some {}", "-o", tmp_path / "b")
    assert "not for these 3 classes and 1 templates; give --teacher, too" in line


def test_two_teachers_have_a_store_each_and_teach_together(
    data: Path, onnx_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    second = onnx_teacher(tmp_path / "second.onnx", net=ColourNet(7))
    both = ("--teacher", onnx_file, "--teacher", second)
    settings = ("--data", data, *SMALL, "--views", 1, "--epochs", 1, *both)
    result = good(capsys, "distill", *settings, "--teacher-weight", 3, "--teacher-weight", 1, "-o", tmp_path / "a")
    assert result["teacher"]["embed_dim"] == 19  # type: ignore[index]
    assert result["teacher"]["val_acc"] > 0.9  # type: ignore[index]
    assert len(list((tmp_path / "teacher-store").iterdir())) == 2
    line = refused(capsys, 2, "distill", *settings, "--teacher-weight", 3, "-o", tmp_path / "b")
    assert "--teacher-weight 3 for 2 teacher(s)" in line


def test_a_teacher_that_cannot_be_had_is_missed_before_another_teaches(
    data: Path, onnx_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(onnx_file.read_bytes()[:200])
    both, out = ("--data", data, "--teacher", onnx_file, "--teacher", damaged), tmp_path / "out"
    for command in (("teach", *both, "--views", 1), ("distill", *both, *SMALL)):
        assert "damaged.onnx is not an ONNX model" in refused(capsys, 3, *command, "-o", out, "-q")
    assert list(tmp_path.iterdir()) == [damaged]


def test_the_teacher_in_the_loop(data: Path, onnx_file: Path, tmp_path: Path, capsys: Capture) -> None:
    settings = ("--data", data, *SMALL, "--epochs", 1, "--teacher-mode", "online")
    result = good(capsys, "distill", *settings, "--teacher", onnx_file, "-o", tmp_path / "a")
    assert result["teacher"]["views"] == 0  # type: ignore[index]
    line = refused(capsys, 2, "distill", *settings, "--teacher-embeddings", "x.npz", "-o", tmp_path / "b")
    assert "give --teacher" in line


@pytest.mark.parametrize(
    ("pattern", "code", "words"),
    [
        ("nowhere/train-{000..003}.tar", 2, "4 of 4 shards are not there"),
        ("nowhere/*.tar", 2, "no such file"),
        ("nowhere/train-{9..3}.tar", 2, "must go up"),
    ],
)
def test_shards_that_are_not_there_are_refused(
    tmp_path: Path, capsys: Capture, pattern: str, code: int, words: str
) -> None:
    line = refused(
        capsys, code, "distill", "--data", tmp_path / pattern, *SMALL, "--alpha", 0, "--beta", 0, "-o", tmp_path / "a"
    )
    assert words in line
