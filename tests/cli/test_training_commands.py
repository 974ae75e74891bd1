"""`edgekit distill` resumed, refused, continued in a second phase and plotted, as a user does it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands_for_tests import ALONE, SMALL, draw_colours, refused

from edgekit.cli.main import run
from edgekit.cli.training_options import how_to_start
from edgekit.compress.training.run_folder import RunFolder
from edgekit.errors import OutputExistsError
from edgekit.models.checkpoint import load_student

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_colours(tmp_path_factory.mktemp("data") / "colours")


@pytest.fixture(scope="module")
def first(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("first") / "run"
    assert run([*settings(data, out), "--epochs", "2"]) == 0
    return out


def settings(data: Path, out: Path) -> list[str]:
    return ["distill", "--data", str(data), *SMALL, *ALONE, "-o", str(out), "-q"]


def test_an_output_that_is_there_is_refused_before_torch_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").touch()
    data, out = ["--data", "photos"], ["-o", str(tmp_path / "runs")]
    calls = [["distill", *data], *(["train", kind, *data] for kind in ("clip", "image", "text"))]
    calls += [["compress", str(tmp_path), "--qat"], ["export", str(tmp_path)]]
    code = (
        "import sys\n"
        "from edgekit.cli.main import run\n"
        f"print([run(call) for call in {[call + out for call in calls]}], 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{[2] * len(calls)} False"
    assert done.stderr.count("runs exists already") == len(calls), done.stderr


@pytest.mark.parametrize("launcher", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_of_several_processes_none_takes_the_run_of_the_first_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: str
) -> None:
    (tmp_path / "begun").touch()
    asked = {"output": tmp_path, "overwrite": False, "resume": "", "allow_change": ()}
    with pytest.raises(OutputExistsError):
        how_to_start(asked)
    monkeypatch.setenv(launcher, "2")
    assert how_to_start(asked)["overwrite"] is False


def test_resume_refuses_what_changed_and_says_what(data: Path, first: Path, tmp_path: Path, capsys: Capture) -> None:
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    again = [*settings(data, first), "--epochs", "2", "--resume", "auto"]
    line = refused(capsys, 2, *again, "--lr", "0.5", "--schedule", "linear")
    assert "fit.lr was 0.0015, now 0.5" in line
    assert "fit.schedule.name was cosine, now linear" in line
    assert "--allow-change schedule" in line
    line = refused(capsys, 2, *again, "--batch-size", "8", "--allow-change", "schedule")
    assert "fit.batch_size was 16, now 8" in line
    assert "--allow-change" not in line
    other = draw_colours(tmp_path / "other", train=15)
    line = refused(capsys, 2, "distill", "--data", other, *again[3:])
    assert "train was 42, now 45" in line
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before
    moved = tmp_path / "moved"
    data.rename(moved)
    try:
        assert run(["distill", "--data", str(moved), *again[3:]]) == 0  # the same pictures elsewhere are the same data
    finally:
        moved.rename(data)


def test_an_allowed_change_is_used_said_and_recorded(data: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "run"
    assert run([*settings(data, out), "--epochs", "1"]) == 0
    capsys.readouterr()
    assert run([*settings(data, out), "--epochs", "3", "--resume", "--allow-change", "schedule"]) == 0
    assert "fit.epochs was 1, now 3" in capsys.readouterr().err
    assert "epochs: 3" in (out / "config.yaml").read_text(encoding="utf-8")
    assert [row["epoch"] for row in RunFolder(out).read_metrics()] == [1, 2, 3]


def test_resume_begins_a_run_where_there_is_none_but_replaces_nothing(
    data: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert run([*settings(data, tmp_path / "new"), "--epochs", "1", "--resume"]) == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    assert "exists already" in refused(capsys, 2, *settings(data, tmp_path / "mine"), "--resume")


def test_a_run_folder_of_another_version_is_refused(data: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "run"
    assert run([*settings(data, out), "--epochs", "1"]) == 0
    facts = json.loads((out / "run.json").read_text(encoding="utf-8"))
    (out / "run.json").write_text(json.dumps(facts | {"schema_version": 99}), encoding="utf-8")
    assert "newer edgekit" in refused(capsys, 3, *settings(data, out), "--epochs", "1", "--resume")


def test_a_planted_restart_is_refused_before_step_one(data: Path, tmp_path: Path, capsys: Capture) -> None:
    plan = [*settings(data, tmp_path / "run"), "--epochs", "12", "--schedule", "cosine-restarts"]
    line = refused(capsys, 2, *plan)
    assert "epoch 11" in line
    assert "20.5 points" in line
    assert not (tmp_path / "run").exists()
    assert run([*plan, "--allow-restarts"]) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--checkpoint-every", "often"), "'often' is no interval"),
        (("--checkpoint-every", "0"), "no interval"),
        (("--guard", "pray"), "'pray' is not one of"),
        (("--patience", "-1"), "patience"),
        (("--resume", "tomorrow"), "'tomorrow' is not"),
        (("--init-from", "nowhere"), "holds no student"),
    ],
)
def test_wrong_values_are_refused(
    data: Path, tmp_path: Path, capsys: Capture, options: tuple[str, ...], words: str
) -> None:
    code = run([*settings(data, tmp_path / "run"), *options])
    assert code == (3 if "--init-from" in options else 2)
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_second_phase_begins_where_the_first_was_best_and_joins_its_history(
    data: Path, first: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "second"
    phase = ["distill", "--data", str(data), *ALONE, "--batch-size", "16", "--init-from", str(first), "-o", str(out)]
    assert run([*phase, "--epochs", "2", "--lr", "1e-12", "-q"]) == 0  # a rate that moves nothing: the student is told
    one, other = load_student(first), load_student(out)
    assert one.spec == other.spec
    for (name, before), after in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(before, after, atol=1e-6), name
    facts = RunFolder(out).facts()["init_from"]
    assert facts["run"] == str(first)
    history = RunFolder(out).read_history()
    assert [row["epoch"] for row in history] == list(range(1, facts["epoch"] + 1))
    capsys.readouterr()
    assert run(["plot", str(out), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["runs"] == [{"run": str(out), "epochs": facts["epoch"] + 2, "phases": 2}]
    assert (out / "plots" / "run.png").read_bytes().startswith(b"\x89PNG")
    line = refused(capsys, 2, *phase[:-1], tmp_path / "third", "--image-size", "48")
    assert "image size 32, now 48" in line


def test_plot_names_runs_apart_and_replaces_only_on_request(
    first: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["plot", str(first), str(first)]) == 0
    assert (tmp_path / "runs.png").is_file()
    assert "exists already" in refused(capsys, 2, "plot", first, first)
    assert run(["plot", str(first), str(first), "--overwrite"]) == 0
    assert "cannot be told apart" in refused(capsys, 2, "plot", *[first] * 11)
    assert "no metrics.jsonl" in refused(capsys, 3, "plot", tmp_path)
