"""`edgekit distill --frames` from end to end on clips that the test draws: training, export, verify, bad clips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from edgekit.cli.main import run
from edgekit.clips import load_clips
from edgekit.compress.recipe import load_recipe
from edgekit.compress.training.run_folder import RunFolder
from edgekit.export.deploy import DeployModel, TorchSession
from edgekit.export.golden import read_golden
from edgekit.export.manifest import GOLDEN_FILE, read_manifest
from edgekit.export.runtimes import open_session
from edgekit.export.session import run_batched
from edgekit.models.checkpoint import load_student, save_student
from edgekit.models.spec import StudentSpec
from edgekit.models.student import Student, student_preprocess
from edgekit.preprocess import to_input
from tests.cli.commands_for_tests import ALONE, one_error_line, refused
from tests.teachers_for_tests import onnx_teacher
from tests.videos_for_tests import grey_frames, two_colours, write_frames, write_video

Capture = pytest.CaptureFixture[str]
SMALL = ("--student", "test_byobnet", "--image-size", "32", "--frames", "4", "--batch-size", "4", "--device", "cpu")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    two_colours(folder / "data" / "train", 6, seed=1)
    two_colours(folder / "data" / "val", 4, suffix=".mp4", seed=2)
    return folder / "data"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_teacher(tmp_path_factory.mktemp("teacher") / "colours.onnx")


def distill(capsys: Capture, *args: object) -> dict[str, Any]:
    code = run(["distill", *map(str, args), "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    facts: dict[str, Any] = json.loads(captured.out)
    return {**facts, "stderr": captured.err}


def test_clips_are_distilled_exported_and_verified(clips: Path, teacher: Path, tmp_path: Path, capsys: Capture) -> None:
    args = ("--data", clips, "--teacher", teacher, *SMALL, "--recipe", "ego4d", "--epochs", 3, "--lr", 2e-3)
    facts = distill(capsys, *args, "-o", tmp_path / "run")
    assert facts["data"]["frames"] == 4 and facts["data"]["kept_frames"] == 16
    assert facts["student"]["frames"] == 4 and facts["teacher"]["views"] == 2
    assert facts["teacher"]["val_acc"] == 1.0  # warm and cold are what this teacher sees
    assert "4 × 32 px" in facts["stderr"] and "12 train clips" in facts["stderr"]
    rows = [row for row in RunFolder(tmp_path / "run").read_metrics() if row["kind"] == "epoch"]
    assert len(rows) == 3 and rows[-1]["loss"] < rows[0]["loss"]

    # another run reads the teacher's store, and with the same seed is the same run
    again = distill(capsys, *args, "-o", tmp_path / "again")
    assert len(list((tmp_path / "teacher-store").iterdir())) == 1
    assert again["summary"]["val_acc"] == facts["summary"]["val_acc"]
    first, second = (load_student(tmp_path / name) for name in ("run", "again"))
    assert all((a == b).all() for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))

    bundle = tmp_path / "bundle"
    assert (
        run(["export", str(tmp_path / "run"), "--format", "onnx", "--precision", "fp32,int8", "-o", str(bundle)]) == 0
    )
    assert "8 validation clips, 4 frames each" in capsys.readouterr().err
    manifest = read_manifest(bundle)
    assert manifest.input.frames == 4 and manifest.files[0].inputs[0].shape == (4, 3, 32, 32)
    golden = read_golden(bundle / GOLDEN_FILE)
    assert golden.pixels.shape == (16, 32, 32, 3) and golden.outputs["logits"].shape == (4, 2)
    assert run(["verify", str(bundle)]) == 0
    assert "one clip: 4 pictures" in (bundle / "MODEL_CARD.md").read_text()
    assert run(["verify", str(bundle / "model.fp32.onnx"), "--reference", str(tmp_path / "run")]) == 0

    # a file runs on a clip as the student does
    paths = sorted((clips / "val").rglob("*.mp4"))
    frames = to_input(load_clips(paths, 4, first.spec.preprocess).reshape(-1, 32, 32, 3))
    ours = run_batched(TorchSession(DeployModel(first)), frames)
    theirs = run_batched(open_session(bundle / "model.fp32.onnx"), frames)
    assert ours["logits"].shape == (8, 2)
    np.testing.assert_allclose(theirs["logits"], ours["logits"], atol=1e-4)


def test_without_a_teacher_and_with_positions(clips: Path, tmp_path: Path, capsys: Capture) -> None:
    args = ("--data", clips, *SMALL, *ALONE, "--positions", "--epochs", 1, "--dropout", 0.2)
    distill(capsys, *args, "-o", tmp_path / "run")
    student = load_student(tmp_path / "run")
    assert student.pool is not None and student.pool.positions is not None and student.spec.positions
    # its next phase takes frames and positions from it
    next_phase = ("--data", clips, *ALONE, "--init-from", tmp_path / "run", "--epochs", 1, "--device", "cpu")
    distill(capsys, *next_phase, "--freeze", 1, "--batch-size", 4, "-o", tmp_path / "next")
    frozen = [name for name in student.state_dict() if name.startswith("backbone.stem")]
    after = load_student(tmp_path / "next").state_dict()
    assert frozen and all(bool((after[name] == student.state_dict()[name]).all()) for name in frozen)


def test_clips_start_from_a_still_student(clips: Path, teacher: Path, tmp_path: Path, capsys: Capture) -> None:
    classes = ("cold", "warm")
    still = Student(StudentSpec("test_byobnet", 12, classes, student_preprocess("test_byobnet", 32)))
    save_student(tmp_path / "still.safetensors", still)
    args = ("--data", clips, "--teacher", teacher, "--init-from", tmp_path / "still.safetensors", "--device", "cpu")
    # the rate is next to nothing, and the batch norms hold: what comes out is what it starts as
    settings = ("--frames", 4, "--recipe", "ego4d", "--views", 0, "--epochs", 1, "--lr", 1e-9, "--batch-size", 4)
    distill(capsys, *args, *settings, "-o", tmp_path / "run")
    clip = load_student(tmp_path / "run").eval()
    assert clip.pool is not None and clip.spec.image_size == 32
    paths = sorted((clips / "val").rglob("*.mp4"))
    frames = torch.from_numpy(to_input(load_clips(paths, 4, clip.spec.preprocess).reshape(-1, 32, 32, 3)))
    with torch.no_grad():
        ours, each = clip.from_frames(frames).embedding, still.eval()(frames).embedding.view(8, 4, 12)
    mean = F.layer_norm(F.layer_norm(each, (12,)).mean(1), (12,))
    torch.testing.assert_close(ours, mean, rtol=1e-3, atol=1e-4)
    # its next phase is of clips, too
    line = refused(
        capsys, 2, "distill", *args[:4], "--init-from", tmp_path / "run", "--positions", "-o", tmp_path / "a"
    )
    assert "was trained with no --positions" in line


def test_folders_of_frames_and_broken_clips(tmp_path: Path, capsys: Capture) -> None:
    for split in ("train", "val"):
        for label, level in (("dark", 40), ("light", 200)):
            for number in range(3):
                frames = grey_frames([level + 3 * number + i for i in range(5)])
                write_frames(tmp_path / "data" / split / label / f"clip {number}", frames)
    write_video(tmp_path / "data/train/dark/one frame.avi", grey_frames([7]))
    args = ("--data", tmp_path / "data", *SMALL, *ALONE, "--epochs", 1, "-o", tmp_path / "run")
    line = refused(capsys, 2, "distill", *args)
    assert "1 of 13 clips cannot be read" in line and "one frame only" in line and "--max-broken" in line
    facts = distill(capsys, *args, "--max-broken", 0.1)
    assert facts["data"]["broken"] == ["train/dark/one frame.avi"] and facts["data"]["train"] == 6
    assert "skipped: cannot read the clip" in facts["stderr"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (("--frames", "0"), "--frames is 0"),
        (("--frames", "65"), "must lie between 1 (still pictures) and 64"),
        (("--frames", "1", "--positions"), "--positions tells the frames of clips apart"),
        (("--freeze", "2"), "would hold random weights"),
    ],
)
def test_refused_settings(clips: Path, tmp_path: Path, capsys: Capture, change: tuple[str, ...], line: str) -> None:
    assert line in refused(capsys, 2, "distill", "--data", clips, *SMALL, *ALONE, *change, "-o", tmp_path / "run")


def test_teacher_embeddings_are_of_pictures(clips: Path, tmp_path: Path, capsys: Capture) -> None:
    np.savez(tmp_path / "rows.npz", files=np.array(["a"]), embeddings=np.ones((1, 1, 1), np.float16))
    given = ("--teacher-embeddings", tmp_path / "rows.npz", "-o", tmp_path / "run")
    assert "a clip needs one for each frame" in refused(capsys, 2, "distill", "--data", clips, *SMALL, *given)


def test_videos_without_frames_say_what_to_do(clips: Path, tmp_path: Path, capsys: Capture) -> None:
    args = ("--data", clips, "--student", "test_byobnet", *ALONE, "-o", tmp_path / "run")
    assert "Clips train with --frames 8" in refused(capsys, 2, "distill", *args)


def test_dynamic_batch_is_for_pictures(clips: Path, tmp_path: Path, capsys: Capture) -> None:
    distill(capsys, "--data", clips, *SMALL, *ALONE, "--epochs", 1, "-o", tmp_path / "run")
    code = run(["export", str(tmp_path / "run"), "--format", "onnx", "--dynamic-batch", "-o", str(tmp_path / "bundle")])
    assert code == 2 and "takes one clip" in one_error_line(capsys.readouterr().err)


def test_the_recipe_is_the_origins() -> None:
    recipe = load_recipe("ego4d")
    assert (recipe.alpha, recipe.beta, recipe.gamma, recipe.temperature) == (0.5, 1.0, 1.0, 3.0)
    assert (recipe.fit.lr, recipe.fit.epochs, recipe.fit.batch_size) == (5e-5, 30, 16)


@pytest.mark.realdata
@pytest.mark.long
def test_real_clips(real_data: Path, tmp_path: Path, capsys: Capture) -> None:
    source, teacher = real_data / "ucf101_15", real_data / "har15" / "teacher_mobilenetv2_512.onnx"
    args = ("--data", source, "--val-fraction", 0.3, "--teacher", teacher, "--frames", 8, "--image-size", 64)
    settings = ("--recipe", "ego4d", "--views", 1, "--epochs", 2, "--batch-size", 4, "--device", "cpu")
    facts = distill(capsys, *args, *settings, "-o", tmp_path / "run")
    assert facts["data"]["train"] + facts["data"]["val"] == 15 and facts["teacher"]["embed_dim"] == 512
    bundle = tmp_path / "bundle"
    assert run(["export", str(tmp_path / "run"), "--precision", "fp32", "-o", str(bundle)]) == 0
    assert {record.format for record in read_manifest(bundle).files} == {"onnx", "coreml", "tflite"}
    assert run(["verify", str(bundle)]) == 0
