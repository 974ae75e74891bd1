"""`edgekit compress` from end to end on small real pictures: a run folder like any other, resumed bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from edgekit.bench.trained_on import trained_on_of_run
from edgekit.cli.main import run
from edgekit.compress.pictures.source import Batch
from edgekit.compress.slim.run import _told
from edgekit.compress.slim.task import RecoverTask
from edgekit.compress.training.run_folder import RunFolder
from edgekit.export.calibration.trained import read_trained
from edgekit.export.choice.paired import accuracy_drop
from edgekit.export.export_data import RunSplit, split_of_run
from edgekit.models.checkpoint import load_student
from tests.cli.commands_for_tests import ALONE, draw_colours, refused

Capture = pytest.CaptureFixture[str]
STUDENT = ("--student", "mobilevit_xxs", "--image-size", "32", "--batch-size", "8", "--device", "cpu")


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run folder of a student that learned for an epoch, beside its data."""
    folder = tmp_path_factory.mktemp("compress")
    data = draw_colours(folder / "data", train=14, val=6)
    out = folder / "student"
    assert run(["distill", "--data", str(data), *STUDENT, *ALONE, "--epochs", "1", "-o", str(out), "-q"]) == 0
    return out


def compress(capsys: Capture, *args: object) -> dict[str, Any]:
    """Run to a good end; return what `--json` prints."""
    code = run(["compress", *map(str, args), "--device", "cpu", "--json", "-q"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    result: dict[str, Any] = json.loads(captured.out, parse_constant=pytest.fail)
    return result


def weights(path: Path) -> dict[str, Tensor]:
    return load_student(path).state_dict()


def test_qat_leaves_a_run_that_is_exported(distilled: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "qat"
    result = compress(capsys, distilled, "--qat", "--epochs", 1, "--calibration-images", 12, "-o", out)
    done = result["compress"]["qat"]
    assert done["runtime"] == "tflite" and done["precision"] == "int8" and len(done["calibration"]) == 12
    trained = read_trained(out)
    assert trained is not None and (trained.runtime, trained.precision) == ("tflite", "int8")
    moved = [r for r in trained.ranges if abs(r.high - done["ranges"][r.name][1]) > 1e-5]
    assert done["ranges_learned"] and {r.name for r in trained.ranges} == set(done["ranges"]) and len(moved) > 50
    assert len(done["ranges"]) > 100 and all(low <= 0 <= high for low, high in done["ranges"].values())
    summary = result["summary"]
    assert summary["before"]["self_agreement"] == 1.0 and summary["before"]["self_drop"] == 0.0
    assert summary["self_drop"] == pytest.approx(summary["before"]["val_acc"] - summary["val_acc"])
    assert summary["self_drop_low"] < summary["self_drop"] < summary["self_drop_high"]
    settings = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
    assert settings["compress"]["guide"] == "self" and settings["recipe"]["fit"]["optimizer"] == "adamw"
    before, after = load_student(distilled), load_student(out)
    assert before.spec == after.spec
    assert before.state_dict().keys() == after.state_dict().keys()
    assert not torch.equal(before.projection.weight, after.projection.weight)
    bundle = tmp_path / "bundle"
    code = run(["export", str(out), "--format", "onnx", "--precision", "fp32,int8", "-o", str(bundle), "-q"])
    assert code in (0, 1), capsys.readouterr().err  # a net of one epoch may fail the gate of agreement
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["files"][0]["parity"]["agreement"]["value"] == 1.0


def test_qat_for_mixed_says_what_stays_float(distilled: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "mixed"
    given = ("--qat", "--precision", "mixed", "--hold-ranges", "--epochs", 1, "--calibration-images", 12)
    done = compress(capsys, distilled, *given, "-o", out)["compress"]["qat"]
    trained = read_trained(out)
    assert trained is not None and trained.precision == "mixed"
    assert [name for name, _ in trained.float_layers] == done["float_layers"] and 1 <= len(done["float_layers"]) <= 6
    assert not done["ranges_learned"]
    assert all(abs(r.high - done["ranges"][r.name][1]) < 1e-5 for r in trained.ranges)
    told = refused(capsys, 2, "compress", distilled, *given, "--runtime", "onnx", "-o", tmp_path / "no")
    assert "--precision mixed is trained for with --runtime tflite or coreml, not onnx" in told
    told = refused(capsys, 2, "compress", distilled, "--qat", "--precision", "fp16", "-o", tmp_path / "no")
    assert "'fp16' cannot be trained for" in told and "mixed" in told


def test_prune_leaves_a_smaller_student(distilled: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "pruned"
    result = compress(capsys, distilled, "--prune", 0.3, "--guide", "self", "--epochs", 1, "-o", out)
    before, after = result["compress"]["prune"]["macs"]
    assert after < 0.85 * before
    assert result["student"]["macs"] == after
    assert dict(load_student(out).spec.widths) == result["compress"]["prune"]["widths"]
    again = compress(
        capsys, out, "--qat", "--runtime", "onnx", "--epochs", 1, "--calibration-images", 8, "-o", tmp_path / "both"
    )
    assert load_student(tmp_path / "both").spec == load_student(out).spec
    assert again["student"]["parameters"] == result["student"]["parameters"]


def test_what_a_recovery_cost_is_told_with_intervals() -> None:
    drop = accuracy_drop(np.arange(100) < 60, np.arange(100) % 50 < 28)  # 60 right, then 56
    values = {"val_acc": 0.56, "fidelity_db": 28.04, "self_agreement": 0.97}
    told = _told({**values, "self_drop": drop.value, "self_drop_low": drop.low, "self_drop_high": drop.high}, 100)
    assert f"{drop.value:.2f}" == "0.04" and drop.low < 0 < drop.high
    assert f"56.00 %, which is -4.00 points ({-100 * drop.high:+.2f} to {-100 * drop.low:+.2f}); 28.0 dB" in told
    assert "97.00 % (91.5–99.0) agreement with the student before" in told


class Stopped(BaseException):
    """What ends a process without asking."""


def test_a_run_that_was_cut_off_goes_on_bit_for_bit(
    distilled: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = (distilled, "--qat", "--epochs", 2, "--calibration-images", 8, "--checkpoint-every", 2)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    compress(capsys, *given, "-o", whole)
    loss, steps = RecoverTask.loss, 0

    def failing(self: RecoverTask, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        nonlocal steps
        steps += 1
        if steps == 4:
            raise Stopped
        return loss(self, model, batch)

    with monkeypatch.context() as patch:
        patch.setattr(RecoverTask, "loss", failing)
        with pytest.raises(Stopped):
            compress(capsys, *given, "-o", cut)
    compress(capsys, *given, "--resume", "-o", cut)
    first, second = weights(whole), weights(cut)
    assert all(torch.equal(first[name], second[name]) for name in first)
    told = refused(capsys, 2, "compress", *given, "--lr", "0.5", "--resume", "-o", cut)
    assert "lr" in told


def test_the_float_student_is_what_is_aimed_at(distilled: Path, tmp_path: Path, capsys: Capture) -> None:
    """With a rate of nearly nothing the weights that come back are those that went in, but for the folding."""
    out = tmp_path / "still"
    compress(capsys, distilled, "--qat", "--epochs", 1, "--lr", 1e-12, "--calibration-images", 8, "-o", out)
    before, after = load_student(distilled), load_student(out)
    images = torch.from_numpy(np.random.default_rng(0).random((4, 3, 32, 32), np.float32))
    with torch.no_grad():
        torch.testing.assert_close(after(images).logits, before(images).logits, rtol=0, atol=1e-4)


def test_what_cannot_be_compressed_is_refused(distilled: Path, tmp_path: Path, capsys: Capture) -> None:
    out = ("-o", tmp_path / "out")
    assert "--qat trains for 8 bits" in refused(capsys, 2, "compress", distilled, *out)
    assert "one at a time" in refused(capsys, 2, "compress", distilled, "--qat", "--prune", "0.3", *out)
    for share in ("0", "1", "-0.5", "7"):
        assert "more than 0 and less than 1" in refused(capsys, 2, "compress", distilled, "--prune", share, *out)
    for option in (("--hold-ranges",), ("--precision", "mixed"), ("--runtime", "onnx")):
        said = refused(capsys, 2, "compress", distilled, "--prune", "0.3", *option, *out)
        assert f"{option[0]} belongs to --qat" in said
    assert "more than this student can lose" in refused(capsys, 2, "compress", distilled, "--prune", "0.99", *out, "-q")
    assert "did you mean 'tflite'?" in refused(capsys, 2, "compress", distilled, "--qat", "--runtime", "tflight", *out)
    assert "did you mean 'teacher'?" in refused(capsys, 2, "compress", distilled, "--qat", "--guide", "teach", *out)
    assert run(["compress", str(distilled), "--qat", "--epochs", "0", *map(str, out)]) == 2
    assert "epochs" in capsys.readouterr().err
    checkpoint = distilled / "student.safetensors"
    assert "give the run folder of an `edgekit distill`" in refused(capsys, 2, "compress", checkpoint, "--qat", *out)
    assert "does not say what it was trained on" in refused(capsys, 2, "compress", tmp_path, "--qat", *out)
    for more in ((), ("--overwrite",), ("--resume",)):
        said = refused(capsys, 2, "compress", distilled, "--qat", "-o", distilled, *more)
        assert "is what this command reads, and is not replaced" in said
    assert not (tmp_path / "out").exists()


def test_a_run_whose_data_are_gone_says_so(distilled: Path, tmp_path: Path, capsys: Capture) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(distilled, moved)
    settings = yaml.safe_load((moved / "config.yaml").read_text(encoding="utf-8"))
    settings["data"] = str(tmp_path / "nowhere")
    (moved / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    told = refused(capsys, 2, "compress", moved, "--qat", "-o", tmp_path / "out")
    assert "is not at" in told and "pass --data DIR" in told
    (moved / "student.safetensors").unlink()
    assert "holds no student" in refused(capsys, 3, "compress", moved, "--qat", "--data", distilled.parent / "data")


def test_a_run_without_a_task_loss_and_one_of_shards_are_taken(
    distilled: Path, tmp_path: Path, capsys: Capture
) -> None:
    settings = yaml.safe_load((distilled / "config.yaml").read_text(encoding="utf-8"))
    copied = tmp_path / "copied"
    shutil.copytree(distilled, copied)
    assert run(["data", "shard", "--data", settings["data"], "-o", str(tmp_path / "shards"), "-q"]) == 0
    settings["recipe"] |= {"alpha": 10.0, "gamma": 0.0}  # learned from a teacher alone
    settings["data"] = str(tmp_path / "shards" / "*.tar")
    (copied / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    given = (copied, "--prune", 0.1, "--guide", "self", "--epochs", 1)
    result = compress(capsys, *given, "-o", tmp_path / "out")
    assert result["data"]["train"] == 42
    longer = (*given[:-1], 2, "--resume", "-o", tmp_path / "out")
    assert "--allow-change schedule" in refused(capsys, 2, "compress", *longer, "--device", "cpu")
    compress(capsys, *longer, "--allow-change", "schedule")
    rows = RunFolder(tmp_path / "out").read_metrics()
    assert [row["epoch"] for row in rows if row["kind"] == "epoch"] == [1, 2]


def test_recovery_is_judged_on_the_pictures_that_the_run_held_out(tmp_path: Path, capsys: Capture) -> None:
    data = draw_colours(tmp_path / "data") / "train"
    out = tmp_path / "run"
    first = ("--data", str(data), "--val-fraction", "0.25", "--seed", "3", *STUDENT, *ALONE, "--epochs", "1")
    assert run(["distill", *first, "-o", str(out), "-q"]) == 0
    held_out = json.loads((out / "run.json").read_text(encoding="utf-8"))["data"]["fingerprint"]
    small = compress(capsys, out, "--prune", 0.1, "--epochs", 1, "--seed", 5, "-o", tmp_path / "small")
    assert small["data"]["fingerprint"] == held_out
    # who exports or judges it holds out the same, and so does a compressed run's next compression
    assert split_of_run(tmp_path / "small") == RunSplit(3, 0.25)
    trained_on = trained_on_of_run(tmp_path / "small")
    assert trained_on is not None and trained_on.seed == 3
    last = compress(capsys, tmp_path / "small", "--prune", 0.1, "--epochs", 1, "-o", tmp_path / "last")
    assert last["data"]["fingerprint"] == held_out


def test_other_classes_are_refused(distilled: Path, tmp_path: Path, capsys: Capture) -> None:
    other = draw_colours(tmp_path / "two", train=14, val=6, classes=2)
    told = refused(capsys, 3, "compress", distilled, "--qat", "--data", other, "-o", tmp_path / "out", "-q")
    assert "knows 3 classes, the data 2" in told
