"""`edgekit distill` from end to end on small real pictures: every kind of teacher, and every bad input of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray

from edgekit.cli.main import run
from edgekit.compress.recipe import load_recipe
from edgekit.compress.training.run_folder import RunFolder
from edgekit.data import load_dataset
from edgekit.models.checkpoint import load_student
from edgekit.models.teacher_record import read_record
from edgekit.preprocess import Preprocess, load_batch
from tests.cli.commands_for_tests import ALONE, SMALL, draw_colours, refused
from tests.teachers_for_tests import ColourNet, onnx_teacher, register_tiny_clip, tiny_clip_weights

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_colours(tmp_path_factory.mktemp("colours") / "data")


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_teacher(tmp_path_factory.mktemp("teacher") / "colours.onnx")


def embed(data: Path, out: Path, **change: NDArray[np.generic]) -> Path:
    """Write what ColourNet says of every picture and of its flip, as `--teacher-embeddings` takes it."""
    dataset = load_dataset(data)
    samples = [*dataset.train, *dataset.val]
    images = torch.from_numpy(load_batch([sample.path for sample in samples], Preprocess(32, 37, "bilinear")))
    with torch.no_grad():
        rows = torch.stack([ColourNet()(images), ColourNet()(images.flip(3))], dim=1).half().numpy()
    arrays = {"files": np.array([sample.key for sample in samples]), "embeddings": rows, **change}
    np.savez(out, **arrays)  # type: ignore[arg-type]
    return out


def distill(capsys: Capture, *args: object) -> dict[str, Any]:
    """Run to a good end; return what `--json` prints."""
    code = run(["distill", *map(str, args), "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    result: dict[str, Any] = json.loads(captured.out, parse_constant=pytest.fail)
    result["stderr"] = captured.err
    return result


def check_run_folder(folder: Path, result: dict[str, Any], *, teacher: bool) -> None:
    rows = RunFolder(folder).read_metrics()
    best = max(row["val_acc"] for row in rows)
    assert result["summary"]["val_acc"] == best
    student = load_student(folder)
    dataset = load_dataset(Path(result["data"]["root"]))
    assert student.spec.classes == dataset.classes
    images = torch.from_numpy(load_batch([sample.path for sample in dataset.val], student.spec.preprocess))
    with torch.no_grad():
        predicted = student(images).logits.argmax(1)
    labels = torch.tensor([sample.label for sample in dataset.val])
    assert float((predicted == labels).float().mean()) == pytest.approx(best)  # the file is the best epoch's student
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert config["recipe"]["fit"]["epochs"] == len([row for row in rows if row["kind"] == "epoch"])
    assert (folder / "plots" / "training.png").read_bytes().startswith(b"\x89PNG")
    assert any(path.suffix == ".pt" for path in (folder / "last").iterdir())
    assert {"versions", "seed", "data", "teacher", "student", "summary"} <= set(RunFolder(folder).facts())
    assert (read_record(folder) is not None) == teacher


def test_from_precomputed_embeddings(data: Path, tmp_path: Path, capsys: Capture) -> None:
    rows = embed(data, tmp_path / "rows.npz")
    result = distill(
        capsys, "--data", data, *SMALL, "--teacher-embeddings", rows, "--epochs", 4, "-o", tmp_path / "run"
    )
    check_run_folder(tmp_path / "run", result, teacher=True)
    teacher = result["teacher"]
    assert teacher["class_scores"] == "linear probe"
    assert teacher["val_acc"] > 0.9
    assert (teacher["embed_dim"], teacher["views"]) == (12, 2)
    assert load_student(tmp_path / "run").spec.embed_dim == 12
    epochs = RunFolder(tmp_path / "run").read_metrics()
    assert {"feature", "response", "task", "agreement", "cosine"} <= set(epochs[-1])
    recipe = load_recipe("edge")
    for row in epochs:
        parts = sum(weight * row[name] for name, weight in recipe.weights.items() if weight)
        assert row["loss"] == pytest.approx(parts, rel=1e-4)
    assert epochs[-1]["feature"] < epochs[0]["feature"]
    assert result["summary"]["agreement"] > 0.5
    record = read_record(tmp_path / "run")
    assert record is not None
    assert record.select([sample.key for sample in load_dataset(data).val]) is not None
    for word in ("teacher", "student", "linear probe", "agrees with it on", "val accuracy", "MACs"):
        assert word in result["stderr"]


def test_from_an_onnx_teacher_through_stored_views(
    data: Path, onnx_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    settings = ("--data", data, *SMALL, "--teacher", onnx_file, "--views", 2, "--epochs", 2)
    first = distill(capsys, *settings, "-o", tmp_path / "a")
    check_run_folder(tmp_path / "a", first, teacher=True)
    assert first["teacher"]["views"] == 2
    (store,) = (tmp_path / "teacher-store").iterdir()
    written = store.stat().st_mtime_ns
    second = distill(capsys, *settings, "-o", tmp_path / "b")  # from the store this time
    assert store.stat().st_mtime_ns == written
    assert list((tmp_path / "teacher-store").iterdir()) == [store]
    for one, other in zip(*(RunFolder(tmp_path / name).read_metrics() for name in "ab"), strict=True):
        measured = {"seconds", "images_per_s", "peak_memory_bytes"}
        timeless = [{k: v for k, v in row.items() if k not in measured} for row in (one, other)]
        assert timeless[0] == timeless[1]  # the same numbers to the last bit
    assert second["summary"]["val_acc"] == first["summary"]["val_acc"]
    other_seed = distill(capsys, *settings, "--seed", 1, "--epochs", 1, "-o", tmp_path / "c")
    assert other_seed["seed"] == 1
    assert len(list((tmp_path / "teacher-store").iterdir())) == 2  # other views


def test_from_a_clip_through_its_prompts(data: Path, tmp_path: Path, capsys: Capture) -> None:
    arch = register_tiny_clip(tmp_path / "archs")
    weights = tiny_clip_weights(tmp_path / "clip.pt", seed=0)
    result = distill(
        capsys, "--data", data, *SMALL, "--recipe", "v2", "--teacher", f"{arch}:{weights}", "--epochs", 1,
        "--template", "a {} picture.", "-o", tmp_path / "run",
    )  # fmt: skip
    check_run_folder(tmp_path / "run", result, teacher=True)
    assert result["teacher"]["class_scores"] == "prompts"
    assert result["summary"]["compression"] == pytest.approx(
        result["teacher"]["parameters"] / result["student"]["parameters"]
    )
    assert "by prompts" in result["stderr"]


@pytest.mark.slow
def test_from_a_real_vit_b_32_with_random_weights(data: Path, tmp_path: Path, capsys: Capture) -> None:
    """The true teacher path at its true size: 151 million weights, 224 px, seven prompts for each class."""
    result = distill(
        capsys, "--data", data, *SMALL, "--teacher", "ViT-B-32:random", "--views", 1, "--epochs", 1,
        "-o", tmp_path / "run",
    )  # fmt: skip
    check_run_folder(tmp_path / "run", result, teacher=True)
    assert result["teacher"]["class_scores"] == "prompts"
    assert (result["teacher"]["parameters"], result["teacher"]["embed_dim"]) == (151_277_313, 512)


def test_without_a_teacher(data: Path, tmp_path: Path, capsys: Capture) -> None:
    result = distill(capsys, "--data", data, *SMALL, *ALONE, "--epochs", 3, "-o", tmp_path / "run")
    check_run_folder(tmp_path / "run", result, teacher=False)
    assert result["teacher"] is None
    assert result["summary"]["agreement"] is None
    assert result["summary"]["val_acc"] > 0.5


def test_pictures_without_label_learn_from_the_teacher(tmp_path: Path, onnx_file: Path, capsys: Capture) -> None:
    data = draw_colours(tmp_path / "data", train=4, val=4, unlabelled=12)
    result = distill(
        capsys, "--data", data, *SMALL, "--teacher", onnx_file, "--views", 1, "--epochs", 2, "-o", tmp_path / "run"
    )
    check_run_folder(tmp_path / "run", result, teacher=True)
    assert (result["data"]["train"], result["data"]["labelled"]) == (48, 12)
    assert "36 of them unlabelled" in result["stderr"]


def test_a_broken_picture_is_named_and_skipped_within_the_tolerance(tmp_path: Path, capsys: Capture) -> None:
    data = draw_colours(tmp_path / "data")
    (data / "train" / "red" / "2-0.png").write_bytes(b"not a picture")
    settings = ("--data", data, *SMALL, *ALONE, "--epochs", 1, "-o", tmp_path / "run")
    assert "2-0.png" in refused(capsys, 2, "distill", *settings)
    assert not (tmp_path / "run").exists()
    result = distill(capsys, *settings, "--max-broken", 0.05)
    assert result["data"]["broken"] == ["train/red/2-0.png"]
    assert "warning: skipped: " in result["stderr"]


def test_a_folder_is_split_by_a_share(tmp_path: Path, capsys: Capture) -> None:
    data = draw_colours(tmp_path / "data") / "train"
    assert "--val-fraction" in refused(capsys, 2, "distill", "--data", data, *SMALL, *ALONE)
    result = distill(
        capsys, "--data", data, *SMALL, *ALONE, "--val-fraction", 0.25, "--epochs", 1, "-o", tmp_path / "run"
    )
    assert result["data"]["train"] + result["data"]["val"] == 42


def test_data_that_cannot_teach_is_refused(tmp_path: Path, capsys: Capture) -> None:
    settings = (*SMALL, *ALONE, "-o", tmp_path / "run")
    (tmp_path / "empty").mkdir()
    assert "no pictures" in refused(capsys, 2, "distill", "--data", tmp_path / "empty", *settings)
    assert "cannot read the data set" in refused(capsys, 2, "distill", "--data", tmp_path / "nowhere", *settings)
    one = draw_colours(tmp_path / "one", classes=1)
    assert "one class only (blue)" in refused(capsys, 2, "distill", "--data", one, *settings)
    unbalanced = draw_colours(tmp_path / "unbalanced", train=3, val=2)
    for path in (unbalanced / "val" / "red").iterdir():
        path.unlink()
    assert "no validation pictures: red" in refused(capsys, 2, "distill", "--data", unbalanced, *settings)
    assert not (tmp_path / "run").exists()


def test_embeddings_that_do_not_match_are_refused(data: Path, tmp_path: Path, capsys: Capture) -> None:
    settings = ("--data", data, *SMALL, "-o", tmp_path / "run", "--teacher-embeddings")
    other = embed(data, tmp_path / "other.npz", files=np.array([f"x/{number}.jpg" for number in range(60)]))
    assert "60 of 60 pictures are not in it" in refused(capsys, 2, "distill", *settings, other)
    doubled = embed(data, tmp_path / "doubled.npz", embeddings=np.ones((60, 2, 12), np.float32))
    assert "not unit vectors" in refused(capsys, 3, "distill", *settings, doubled)
    assert "cannot be read" in refused(capsys, 3, "distill", *settings, tmp_path / "missing.npz")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--student", "mobilevit_xxx", *ALONE], 2, "did you mean 'mobilevit_x"),
        (["--image-size", "16", "--student", "mobilevit_xxs", *ALONE], 2, "at least 32 pixels"),
        (["--image-size", "0", *ALONE], 2, "image size 0"),
        (["--teacher", "ViT-B-23:openai"], 2, "did you mean 'ViT-B-"),
        (["--teacher", "ViT-B-32:opneai"], 2, "did you mean 'openai'?"),
        (["--teacher", "nowhere.onnx"], 3, "is not there"),
        (["--teacher", "nowhere.safetensors"], 3, "nowhere.safetensors"),
        (["--teacher", "a.onnx", "--teacher-embeddings", "b.npz"], 2, "exclude each other"),
        (["--teacher", "ViT-B-32:openai", *ALONE], 2, "nothing learns from it"),
        (["--student-weights", "nowhere.pt", *ALONE], 3, "is not there"),
        (["--val-fraction", "0.1", *ALONE], 2, "has its own train and val split"),
        (["--max-broken", "2", *ALONE], 2, "--max-broken"),
        (["--device", "gpu", *ALONE], 2, "fit.device"),
        (["--recipe", "nowhere.yaml", *ALONE], 2, "nowhere.yaml cannot be read"),
    ],
)
def test_settings_that_cannot_work_are_refused_and_write_nothing(
    data: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, args: list[str], code: int, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["distill", "--data", str(data), *SMALL, *args]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err
    assert "Traceback" not in captured.err and "reading pictures" not in captured.err
    assert list(tmp_path.iterdir()) == []


def test_an_output_is_replaced_only_on_request_and_then_wholly(
    data: Path, tmp_path: Path, onnx_file: Path, capsys: Capture
) -> None:
    out = tmp_path / "run"
    settings = ("--data", data, *SMALL, "-o", out)
    distill(capsys, *settings, "--teacher", onnx_file, "--views", 1, "--epochs", 2)
    assert "exists already" in refused(capsys, 2, "distill", *settings, *ALONE)
    assert "at least 32" in refused(capsys, 2, "distill", *settings, *ALONE, "--image-size", 16, "--overwrite")
    assert len(RunFolder(out).read_metrics()) == 2  # a refused run replaces nothing
    result = distill(capsys, *settings, *ALONE, "--epochs", 1, "--overwrite")
    check_run_folder(out, result, teacher=False)
    assert len(RunFolder(out).read_metrics()) == 1


def test_resuming_with_another_student_is_refused_and_costs_nothing(
    data: Path, tmp_path: Path, capsys: Capture
) -> None:
    settings = ("--data", data, *SMALL, *ALONE, "-o", tmp_path / "run")
    distill(capsys, *settings, "--epochs", 1)
    before = (tmp_path / "run" / "student.safetensors").read_bytes()
    line = refused(capsys, 2, "distill", *settings, "--epochs", 1, "--resume", "--student", "test_efficientnet")
    assert "student was test_byobnet, now test_efficientnet" in line
    assert (tmp_path / "run" / "student.safetensors").read_bytes() == before
    assert RunFolder(tmp_path / "run").facts()["student"]["arch"] == "test_byobnet"
