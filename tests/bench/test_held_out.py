"""What is scored was not trained on, as far as runs and bundles record that; else the report says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bench.classification_report import judge_classifier
from edgekit.bench.results import BenchReport
from edgekit.bench.run import BenchConfig, run_bench
from edgekit.cli.main import run
from edgekit.data import load_dataset
from edgekit.models.teacher_record import TeacherRecord
from edgekit.terminal import Terminal
from tests.bench.tiny_for_tests import write_bundle, write_classifier
from tests.cli.commands_for_tests import ALONE, SMALL, draw_colours

SEED, SHARE = 7, 0.3
BAR = Terminal(-1).bar


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return 42 pictures that nothing splits."""
    return draw_colours(tmp_path_factory.mktemp("data")) / "train"


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    settings = ["--val-fraction", str(SHARE), "--seed", str(SEED), "--epochs", "1", "-q", "-o", str(out)]
    assert run(["distill", "--data", str(data), *SMALL, *ALONE, *settings]) == 0
    return out


@pytest.fixture
def bundle(trained: Path, tmp_path: Path) -> Path:
    """Return a bundle whose manifest tells of the run."""
    made = write_bundle(tmp_path / "bundle", [write_classifier(tmp_path / "model.onnx")])
    manifest = json.loads((made / "manifest.json").read_text())
    facts = json.loads((trained / "run.json").read_text())
    manifest["training"] = {name: facts[name] for name in ("seed", "data")}
    manifest["classes"] = facts["data"]["classes"]
    (made / "manifest.json").write_text(json.dumps(manifest))
    return made


def without_share(bundle: Path) -> None:
    """Leave out what manifests did not tell before."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["training"]["data"]["val_fraction"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def bench(*files: Path, **options: Any) -> BenchReport:
    return run_bench(BenchConfig(files, latency=None, **options))


def said(report: BenchReport) -> str:
    return " ".join(report.notes)


@pytest.mark.parametrize("share", [None, SHARE])
def test_a_run_is_scored_on_what_it_held_out(data: Path, trained: Path, share: float | None) -> None:
    """Seed 0, which bench once took, holds out other pictures: most of them were trained on."""
    report = bench(baseline=trained, data=data, val_fraction=share)
    facts = json.loads((trained / "run.json").read_text())
    own, other = (load_dataset(data, val_fraction=SHARE, seed=seed).val for seed in (SEED, 0))
    assert {s.key for s in own} != {s.key for s in other}, "the test could not fail"
    (row,) = report.rows
    assert row.scores is not None and row.scores.pictures == len(own) == facts["data"]["val"]
    assert row.scores.top1.value == pytest.approx(facts["summary"]["val_acc"])
    assert said(report) == "Held out of training (a share of 0.3 by seed 7), as recorded: student."


def test_what_the_teacher_said_of_the_run_s_own_split_is_found(data: Path, trained: Path, tmp_path: Path) -> None:
    taught = shutil.copytree(trained, tmp_path / "taught")
    own = load_dataset(data, val_fraction=SHARE, seed=SEED).val
    embeddings = np.eye(4, dtype=np.float32)[[int(s.label or 0) for s in own]]
    heads = np.eye(3, 4, dtype=np.float32), np.zeros(3, np.float32)
    TeacherRecord(tuple(s.key for s in own), embeddings, *heads).save(taught)
    facts = json.loads((taught / "run.json").read_text())
    facts["teacher"] = {"name": "t", "fingerprint": None, "parameters": None}
    (taught / "run.json").write_text(json.dumps(facts))
    teacher, student = bench(baseline=taught, data=data).rows
    assert teacher.top1 is not None and teacher.top1.value == 1.0
    assert student.agreement_teacher is not None
    other = bench(baseline=taught, data=data, val_fraction=0.6)
    assert other.rows[0].scores is None and "does not hold what its teacher says of all of these" in said(other)


def test_another_share_than_the_run_s_may_hold_training_pictures(data: Path, trained: Path) -> None:
    report = bench(baseline=trained, data=data, val_fraction=0.6)
    assert "May include training pictures of student: they are not the data and split (a share of 0.6" in said(report)
    assert "Held out" not in said(report)


def test_pictures_that_were_added_since_are_told(data: Path, trained: Path, tmp_path: Path) -> None:

    more = shutil.copytree(data, tmp_path / "more")
    for number in range(12):
        shutil.copy(next((more / "red").iterdir()), more / "red" / f"new{number}.png")
    report = bench(baseline=trained, data=more)
    keys = {s.key for s in load_dataset(data, val_fraction=SHARE, seed=SEED).val}
    row = report.rows[0]
    assert row.scores is not None and len(keys) <= row.scores.pictures < len(keys) + 12
    assert "May include training pictures of student" in said(report)


def test_a_bundle_says_how_its_data_were_split(data: Path, bundle: Path) -> None:
    held = bench(bundle, data=data)
    assert said(held) == "Held out of training (a share of 0.3 by seed 7), as recorded: model.onnx."
    assert bench(bundle, data=data, val_fraction=SHARE).data == held.data


def test_a_bundle_that_does_not_tell_the_share_needs_it(data: Path, bundle: Path) -> None:
    without_share(bundle)
    held = bench(bundle, data=data, val_fraction=SHARE)
    assert said(held) == "Held out of training (a share of 0.3 by seed 7), as recorded: model.onnx."
    whole = bench(bundle, data=data)
    assert whole.data == "42 pictures of train"
    assert "May include training pictures of model.onnx: all of the source was scored. Give --val-fraction" in said(
        whole
    )


def test_of_a_file_that_nothing_tells_of_only_a_split_source_is_taken_on_trust(tmp_path: Path) -> None:
    root = draw_colours(tmp_path / "data", train=2, val=2)
    file = write_classifier(tmp_path / "model.onnx")
    told = "May include training pictures of model.onnx: nothing records what it was trained on."
    assert said(bench(file, data=root / "train")) == told
    assert said(bench(file, data=root)) == ""


def test_eval_classify_judges_on_what_was_held_out(data: Path, trained: Path, bundle: Path) -> None:
    facts = json.loads((trained / "run.json").read_text())
    report = judge_classifier(trained, data, 1, BAR)
    assert report.scores.top1.value == pytest.approx(facts["summary"]["val_acc"])
    assert report.subset == f"{facts['data']['val']} validation pictures"
    assert report.notes == ("Held out of training (a share of 0.3 by seed 7), as recorded: run.",)
    checkpoint = judge_classifier(trained / "student.safetensors", data, 1, BAR)
    assert checkpoint.scores == report.scores
    assert judge_classifier(bundle / "model.onnx", data, 1, BAR).scores.pictures == facts["data"]["val"]
    without_share(bundle)
    whole = judge_classifier(bundle / "model.onnx", data, 1, BAR)
    assert whole.scores.pictures == 42 and "May include training pictures of model.onnx" in whole.to_json()["notes"][0]
    held = judge_classifier(bundle / "model.onnx", data, 1, BAR, SHARE)
    assert held.scores.pictures == facts["data"]["val"] and "Held out" in held.notes[0]


def test_the_command_takes_a_share_to_judge_on(data: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    given = ["--val-fraction", "0.6", "--json"]
    assert run(["eval", "classify", str(trained), "--data", str(data), *given]) == 0
    captured = capsys.readouterr()
    assert "May include training pictures of run" in captured.err
    assert json.loads(captured.out)["notes"]


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def test_pictures_that_training_could_not_read_are_left_out(data: Path, tmp_path: Path) -> None:
    part = shutil.copytree(data, tmp_path / "data")
    own = load_dataset(part, val_fraction=SHARE, seed=SEED)
    damage(own.val[0].path)
    damage(own.train[0].path)
    out = tmp_path / "run"
    settings = ["--val-fraction", str(SHARE), "--seed", str(SEED), "--epochs", "1", "-q", "-o", str(out)]
    assert run(["distill", "--data", str(part), *SMALL, *ALONE, *settings, "--max-broken", "0.1"]) == 0
    report = bench(baseline=out, data=part)
    assert report.complete, report.problems
    row = report.rows[0]
    assert row.scores is not None and row.scores.pictures == len(own.val) - 1
    assert "Held out of training" in said(report) and "1 pictures that training could not read" in said(report)
    assert judge_classifier(out, part, 1, BAR).scores.top1 == row.top1


def test_one_unreadable_picture_in_a_hundred_is_tolerated(tmp_path: Path) -> None:
    root = draw_colours(tmp_path / "data", train=1, val=40)
    names = sorted((root / "val" / "green").iterdir())
    damage(names[3])
    file = write_classifier(tmp_path / "model.onnx")
    report = bench(file, write_classifier(tmp_path / "other.onnx", seed=1), data=root)
    assert report.complete, report.problems
    assert [row.scores and row.scores.pictures for row in report.rows] == [119, 119]
    assert report.data == "119 pictures of data"
    assert f"1 pictures are left out: cannot read the picture {names[3]}" in said(report)
    damage(names[9])
    assert "2 of 120 pictures or more cannot be read, and 1 % are tolerated" in bench(file, data=root).problems[0]


def test_eval_classify_tolerates_them_too(trained: Path, tmp_path: Path) -> None:
    root = draw_colours(tmp_path / "data", train=1, val=40)
    whole = judge_classifier(trained, root, 1, BAR).scores
    damage(sorted((root / "val" / "green").iterdir())[3])
    report = judge_classifier(trained, root, 1, BAR)
    assert (whole.pictures, report.scores.pictures) == (120, 119)
    assert any(note.startswith("1 pictures are left out: ") for note in report.notes)
    assert report.subset == "119 validation pictures"
