"""The run folder: facts are merged, metrics survive a kill, and damage is one clear line."""

from __future__ import annotations

import json
import resource
import signal
from pathlib import Path

import pytest
import yaml

from edgekit.atomic import WriteError
from edgekit.compress.training.run_folder import RunFolder, environment, plain_settings
from edgekit.compress.training.schedule import ScheduleConfig
from edgekit.errors import LoadError


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "a")
    folder.create({"alpha": 0.5, "classes": ["Katze", "Hund", "größer"]}, {"seed": 3})
    return folder


def test_settings_and_facts_are_written(run: RunFolder) -> None:
    config = yaml.safe_load((run.path / "config.yaml").read_text(encoding="utf-8"))
    assert config == {"alpha": 0.5, "classes": ["Katze", "Hund", "größer"]}
    facts = run.facts()
    assert facts["seed"] == 3
    assert facts["schema_version"] == 1
    assert facts["versions"]["torch"]
    assert set(environment()) <= set(facts)


def test_facts_are_merged_not_replaced(run: RunFolder) -> None:
    run.update_facts({"summary": {"val_acc": 0.5}})
    run.update_facts({"seed": 4})
    assert (run.facts()["seed"], run.facts()["summary"]) == (4, {"val_acc": 0.5})


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00"])
def test_damaged_facts_are_refused_when_read_and_when_merged(run: RunFolder, content: str) -> None:
    run.facts_path.write_text(content, encoding="utf-8")
    for use in (run.facts, lambda: run.update_facts({"seed": 1})):
        with pytest.raises(LoadError, match="run"):
            use()
    assert run.facts_path.read_text(encoding="utf-8") == content


def test_settings_become_what_the_settings_file_reads_back() -> None:
    schedule = ScheduleConfig(name="wsd")
    plain = plain_settings(
        {"data": Path("a/b"), "weights": None, "frames": 8, "teachers": ("x", "y"), "plan": schedule}
    )
    assert plain == yaml.safe_load(yaml.safe_dump(plain))
    assert plain == {
        "data": str(Path("a/b")),
        "weights": None,
        "frames": 8,
        "teachers": ["x", "y"],
        "plan": schedule.model_dump(),
    }


def test_a_folder_without_facts_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="not a run folder"):
        RunFolder(tmp_path).facts()


def test_a_half_written_last_row_is_left_out(run: RunFolder) -> None:
    assert run.read_metrics() == []
    for epoch in (1, 2, 3):
        run.append_metrics({"kind": "epoch", "epoch": epoch, "loss": 1 / epoch})
    whole = run.read_metrics()
    with run.metrics_path.open("a", encoding="utf-8") as file:
        file.write('{"kind": "epoch", "epo')  # killed here
    assert run.read_metrics() == whole
    assert [row["epoch"] for row in whole] == [1, 2, 3]


def test_rows_after_an_epoch_are_dropped(run: RunFolder) -> None:
    for epoch in (1, 2, 3):
        run.append_metrics({"kind": "step", "epoch": epoch})
        run.append_metrics({"kind": "epoch", "epoch": epoch})
    run.keep_metrics(3)
    assert [row["epoch"] for row in run.read_metrics()] == [1, 1, 2, 2]
    run.keep_metrics(1)
    assert run.read_metrics() == []


def test_rows_from_after_a_step_of_the_epoch_in_progress_are_dropped(run: RunFolder) -> None:
    rows: list[dict[str, object]] = [{"kind": "step", "epoch": 1, "step": 50}, {"kind": "epoch", "epoch": 1}]
    rows += [{"kind": "step", "epoch": 2, "step": 50}, {"kind": "step", "epoch": 2, "step": 100}]
    for row in (*rows, {"kind": "epoch", "epoch": 2}):
        run.append_metrics(row)
    run.keep_metrics(2, 70)
    assert run.read_metrics() == rows[:3]


def test_a_full_disk_is_one_line_that_says_how_to_go_on(run: RunFolder) -> None:
    run.append_metrics({"epoch": 1, "text": "x" * 500})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python does at start
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
    try:
        with pytest.raises(WriteError, match="--resume") as caught:
            run.append_metrics({"epoch": 2, "text": "y" * 500})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(caught.value)
    assert [row["epoch"] for row in run.read_metrics()] == [1]


def test_an_output_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(WriteError):
        RunFolder(tmp_path / "file" / "run").create({}, {})
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_facts_are_plain_json(run: RunFolder) -> None:
    json.loads(run.facts_path.read_text(encoding="utf-8"), parse_constant=pytest.fail)  # no NaN, no Infinity
