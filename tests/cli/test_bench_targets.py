"""Where bench writes is checked before it measures, and no option is passed over in silence."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from edgekit.bench.devices.device import LocalDevice
from edgekit.bench.results import BenchReport
from edgekit.cli.compare import read_result
from edgekit.cli.main import run
from tests.bench.tiny_for_tests import draw, write_classifier
from tests.cli.commands_for_tests import one_error_line, refused

Capture = pytest.CaptureFixture[str]
OrdinaryUser = Callable[[], AbstractContextManager[None]]
QUICK = ("--budget", "0.3")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_classifier(tmp_path / "model.onnx")


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where bench measures all the same."""

    def measured(*_: object) -> BenchReport:
        pytest.fail("it was measured")

    monkeypatch.setattr(LocalDevice, "bench", measured)


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["-o", "table.md"], 2, "the table goes beside it: give table.json"),
        (["-o", "old.json"], 2, "old.md exists already"),
        (["-o", "model.onnx", "--overwrite"], 2, "what this command reads"),
        (["-o", "folder", "--overwrite"], 3, "not a regular file"),
        (["--store", "results.json"], 2, "a history is named .sqlite"),
        (["--store", "text.sqlite"], 3, "cannot be used as a store of results"),
        (["--store", "other.sqlite"], 2, "a database of another program"),
        (["--store", "old.md/results.sqlite"], 3, "no folder that may be written to"),
        (["-o", "old.md/result.json"], 3, "no folder that may be written to"),
        (["--val-fraction", "0.3"], 2, "--val-fraction chooses pictures, of which there are none: add --data"),
        (["--max-images", "3", "--val-fraction", "0.3"], 2, "--val-fraction, --max-images chooses pictures"),
        (["--no-latency", "--batch-size", "8"], 2, "--batch-size is for the timing that --no-latency leaves out"),
        (["--no-latency", "--budget", "8"], 2, "--budget is for the timing"),
        (["--val-fraction", "5"], 2, "Invalid value for '--val-fraction'"),
    ],
)
def test_refusals_come_before_the_measuring(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    options: list[str],
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.md").write_text("results of yesterday")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "full").touch()
    (tmp_path / "text.sqlite").write_text("no database, but long enough to be looked into: " * 99)
    with sqlite3.connect(tmp_path / "other.sqlite") as database:
        database.execute("CREATE TABLE mine (a)")
    database.close()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert words in " ".join(refused(capsys, code, "bench", model.name, *options).split())
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_all_targets_are_written(model: Path, tmp_path: Path, capsys: Capture) -> None:
    out, store = tmp_path / "new" / "result.json", tmp_path / "new" / "results.sqlite"
    data = ["--data", str(draw(tmp_path / "data"))]
    assert run(["bench", str(model), *data, *QUICK, "-o", str(out), "--store", str(store), "--json", "-q"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert read_result(str(out)) == read_result(str(store))
    assert printed["rows"] == json.loads(out.read_text())["rows"]
    assert out.with_suffix(".md").read_text().startswith("| model")


def test_what_was_measured_is_printed_though_the_history_breaks_meanwhile(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    store, whole = tmp_path / "results.sqlite", LocalDevice.bench

    def bench(self: LocalDevice, *given: object) -> BenchReport:
        store.write_text("another program wrote here. " * 99)
        return whole(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalDevice, "bench", bench)
    assert run(["bench", str(model), *QUICK, "--store", str(store), "--json", "-q"]) == 3
    captured = capsys.readouterr()
    assert json.loads(captured.out)["rows"][0]["status"] == "ok"
    assert "cannot be used as a store" in one_error_line(captured.err)


@pytest.mark.usefixtures("unmeasured")
def test_a_folder_that_may_not_be_entered_is_told_in_one_line(
    open_tmp: Path, without_root: OrdinaryUser, capsys: Capture
) -> None:
    model = write_classifier(open_tmp / "model.onnx")
    model.chmod(0o644)
    closed = open_tmp / "closed"
    closed.mkdir(mode=0)
    with without_root():
        for options in (["-o", closed / "a.json"], ["--store", closed / "a.sqlite"]):
            assert "closed" in refused(capsys, 3, "bench", model, *options)


def test_an_input_in_a_folder_that_may_not_be_entered_is_told_in_one_line(
    open_tmp: Path, without_root: OrdinaryUser, capsys: Capture
) -> None:
    (open_tmp / "closed").mkdir(mode=0)
    with without_root():
        for given in (["bench", "m.onnx", "--data"], ["report"], ["verify"]):
            line = refused(capsys, 3, *given, open_tmp / "closed" / "given")
            assert "closed" in line and "ermission denied" in line
