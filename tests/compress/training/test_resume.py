"""Going on with a run: bit for bit as undisturbed, past damaged states, and never from a foreign one."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit.atomic import WriteError
from edgekit.compress.training.checkpointing import Checkpoints
from edgekit.compress.training.loop import fit
from edgekit.compress.training.run_folder import RunFolder
from edgekit.compress.training.schedule import ScheduleConfig
from edgekit.errors import LoadError
from tests.sides_for_tests import CONFIG, Interrupted, Listening, Sides, saved, train, without_time


def test_a_plateau_follows_the_metric_through_a_resume_too(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"schedule": ScheduleConfig(name="plateau", patience=0, gamma=0.5)})
    values = (0.5, 0.6, 0.6, 0.6)
    _, result = train(tmp_path / "whole", config, values=values)
    assert [row["lr"] for row in result.rows] == pytest.approx([0.02, 0.02, 0.02, 0.01])
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", config, values=values, stop_in_epoch=4)
    _, resumed = train(tmp_path / "cut", config, values=values[3:], resume=True)
    assert without_time(resumed.rows) == without_time(result.rows)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("stop_in_epoch", [1, 3])
def test_a_resumed_run_is_bitwise_the_undisturbed_one(tmp_path: Path, ema_decay: float, stop_in_epoch: int) -> None:
    config = CONFIG.model_copy(update={"ema_decay": ema_decay, "clip_norm": 1.0, "decay_matrices_only": True})
    whole_task, whole = train(tmp_path / "whole", config)
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", config, stop_in_epoch=stop_in_epoch)
    torch.manual_seed(999)  # a new process is in another state
    task, resumed = train(tmp_path / "cut", config, resume=True)
    assert task.epochs == list(range(stop_in_epoch, 5))
    for name, tensor in task.model.state_dict().items():
        assert torch.equal(tensor, whole_task.model.state_dict()[name]), name
    for name, tensor in saved(tmp_path / "cut").items():
        assert torch.equal(tensor, saved(tmp_path / "whole")[name]), name
    assert without_time(resumed.rows) == without_time(whole.rows)
    assert without_time(RunFolder(tmp_path / "cut").read_metrics()) == without_time(whole.rows)
    assert replace(resumed, seconds=0, rows=[]) == replace(whole, seconds=0, rows=[])


def test_resuming_a_finished_run_trains_nothing_and_knows_the_result(tmp_path: Path) -> None:
    _, whole = train(tmp_path)
    task, again = train(tmp_path, resume=True)
    assert task.epochs == []
    assert (again.best, again.best_epoch, again.last) == (whole.best, whole.best_epoch, whole.last)
    assert again.rows == whole.rows


def test_more_epochs_continue_a_finished_run(tmp_path: Path) -> None:
    train(tmp_path)
    task, longer = train(tmp_path, CONFIG.model_copy(update={"epochs": 6}), resume=True)
    assert task.epochs == [5, 6]
    assert [row["epoch"] for row in longer.rows] == [1, 2, 3, 4, 5, 6]


def states(path: Path) -> Checkpoints:
    return Checkpoints(path / "last", lambda text: None)


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "gone"])
def test_a_damaged_newest_state_falls_back_to_the_one_before_and_says_so(tmp_path: Path, damage: str) -> None:
    _, whole = train(tmp_path)
    newest = tmp_path / "last" / states(tmp_path).entries()[0].name
    content = newest.read_bytes()
    newest.write_bytes({"cut": content[: len(content) // 2], "garbage": b"garbage"}.get(damage, b""))
    if damage == "gone":
        newest.unlink()
    shown = Listening()
    task = Sides()
    again = fit(task, CONFIG, RunFolder(tmp_path), display=shown, resume=True)
    assert task.epochs == [4]
    (warning,) = shown.warnings
    assert str(newest) in warning
    assert "going back to the one before" in warning
    assert without_time(again.rows) == without_time(whole.rows)


def test_without_any_whole_state_it_is_one_line(tmp_path: Path) -> None:
    train(tmp_path)
    for entry in states(tmp_path).entries():
        (tmp_path / "last" / entry.name).write_bytes(b"garbage")
    with pytest.raises(LoadError, match="none of its 2 training states is whole") as caught:
        train(tmp_path, resume=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", '{"version": 1, "states": [{"name": "../../x", "epoch": 1}]}'])
def test_a_lost_manifest_is_made_up_for_by_the_states(tmp_path: Path, content: str) -> None:
    _, whole = train(tmp_path)
    (tmp_path / "last" / "manifest.json").write_text(content, encoding="utf-8")
    shown = Listening()
    again = fit(Sides(), CONFIG, RunFolder(tmp_path), display=shown, resume=True)
    assert "is damaged" in shown.warnings[0]
    assert again.rows == whole.rows


@pytest.mark.parametrize("damage", ["list", "foreign", "version", "state.pt", "manifest"])
def test_a_state_of_something_else_is_one_line(tmp_path: Path, damage: str) -> None:
    train(tmp_path, CONFIG.model_copy(update={"epochs": 1}))
    store = states(tmp_path)
    (entry,) = store.entries()
    state = torch.load(tmp_path / "last" / entry.name, weights_only=True)
    foreign = {
        "list": [1, 2],
        "foreign": state | {"model": nn.Linear(2, 2).state_dict()},
        "version": state | {"version": 99},
    }
    if damage in foreign:
        store.save(lambda stream: torch.save(foreign[damage], stream), epoch=2, step=0)  # type: ignore[arg-type]
    elif damage == "manifest":
        (tmp_path / "last" / "manifest.json").write_text('{"version": 99, "states": []}', encoding="utf-8")
    else:
        store.clear()
        (tmp_path / "last" / "state.pt").write_bytes(b"of an old version")
    with pytest.raises(LoadError) as caught:
        train(tmp_path, resume=True)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "last") in str(caught.value)


def test_a_moving_average_switched_on_at_resume_is_refused(tmp_path: Path) -> None:
    train(tmp_path, CONFIG.model_copy(update={"epochs": 1}))
    with pytest.raises(LoadError, match="Give the settings it was trained with"):
        train(tmp_path, CONFIG.model_copy(update={"ema_decay": 0.9}), resume=True)


def test_a_full_disk_leaves_the_state_before_it(tmp_path: Path) -> None:
    train(tmp_path, CONFIG.model_copy(update={"epochs": 2}))
    before = {path.name: path.read_bytes() for path in (tmp_path / "last").iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(WriteError, match="state-000004"):
            train(tmp_path, resume=True, values=(0.0, 0.0, 0.0))  # no better checkpoint to write first
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in (tmp_path / "last").iterdir()} == before
