"""Beginning and continuing a run: what is looked at, what is taken away, what is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgekit.compress.training.phases import EarlierEpochs, earlier_epochs, load_phase, take_over
from edgekit.compress.training.run_folder import RunFolder
from edgekit.compress.training.start import Start, begin, go_on, look
from edgekit.errors import OutputExistsError, UsageError
from edgekit.models.checkpoint import save_student
from edgekit.models.spec import StudentSpec
from edgekit.models.student import Student, build_student, student_preprocess
from edgekit.terminal import Terminal

SETTINGS: dict[str, Any] = {"student": "a", "recipe": {"fit": {"epochs": 3, "lr": 0.1, "schedule": {"name": "cosine"}}}}
MORE_EPOCHS: dict[str, Any] = {**SETTINGS, "recipe": {"fit": {**SETTINGS["recipe"]["fit"], "epochs": 5}}}
DATA = {"fingerprint": "f", "classes": ["x"], "train": 2, "labelled": 2, "val": 1, "broken": []}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    begin(folder, SETTINGS, {"data": DATA})
    return folder


def test_an_empty_place_is_begun_whether_or_not_it_should_go_on(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "new")
    for resume in (False, True):
        assert look(run, SETTINGS, overwrite=False, resume=resume, allow_change=()) == Start(False)
    assert not run.path.exists()  # it only looks


def test_a_run_that_is_there_is_kept_unless_told_otherwise(run: RunFolder) -> None:
    with pytest.raises(OutputExistsError, match="--overwrite"):
        look(run, SETTINGS, overwrite=False, resume=False, allow_change=())
    assert look(run, SETTINGS, overwrite=True, resume=False, allow_change=()) == Start(False)
    assert look(run, SETTINGS, overwrite=False, resume=True, allow_change=()) == Start(True)


def test_a_changed_setting_is_refused_or_allowed_said_and_written(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="--allow-change schedule"):
        look(run, MORE_EPOCHS, overwrite=False, resume=True, allow_change=())
    start = look(run, MORE_EPOCHS, overwrite=False, resume=True, allow_change=("schedule",))
    assert start == Start(True, ("fit.epochs was 3, now 5",))
    go_on(run, MORE_EPOCHS, DATA, start.changes, Terminal())
    assert "resumed with another setting: fit.epochs was 3, now 5" in capsys.readouterr().err
    assert look(run, MORE_EPOCHS, overwrite=False, resume=True, allow_change=()) == Start(True)


def test_other_data_leave_the_settings_as_they_were(run: RunFolder) -> None:
    before = run.config_path.read_bytes()
    with pytest.raises(UsageError, match="other data: train was 2, now 3"):
        go_on(run, MORE_EPOCHS, {**DATA, "fingerprint": "g", "train": 3}, ("fit.epochs was 3, now 5",), Terminal())
    assert run.config_path.read_bytes() == before


def test_a_replaced_run_leaves_nothing_that_is_mistaken_for_the_new_one(run: RunFolder) -> None:
    run.append_metrics({"epoch": 1})
    run.write_history([{"epoch": 1, "phase": 1}])
    run.update_facts({"summary": {"val_acc": 1.0}})
    checkpoint, other = run.path / "student.safetensors", run.path / "notes.txt"
    events = run.path / "tensorboard" / "events.out.tfevents.1"
    events.parent.mkdir()
    for path in (checkpoint, other, events):
        path.write_text("of the old run")
    begin(run, SETTINGS, {"data": DATA}, left=[checkpoint])
    assert not any(path.exists() for path in (run.metrics_path, run.history_path, checkpoint, events))
    assert "summary" not in run.facts()
    assert other.exists()  # the user's own


def test_epochs_may_grow_under_a_constant_rate_but_not_where_pictures_grow_with_them(run: RunFolder) -> None:
    fit = {"epochs": 3, "lr": 0.1, "schedule": {"name": "constant"}}
    for grow_from, same in ((1.0, True), (0.5, False)):
        settings = {"student": "a", "recipe": {"grow_from": grow_from, "fit": fit}}
        longer = {"student": "a", "recipe": {"grow_from": grow_from, "fit": {**fit, "epochs": 5}}}
        begin(run, settings, {"data": DATA})
        if same:
            assert look(run, longer, overwrite=False, resume=True, allow_change=()) == Start(True)
            continue
        with pytest.raises(UsageError, match="--allow-change schedule"):
            look(run, longer, overwrite=False, resume=True, allow_change=())


def test_a_phase_that_divides_the_same_pictures_otherwise_is_doubted(run: RunFolder) -> None:
    earlier = earlier_epochs(run.path)
    assert earlier.judged_on_trained(DATA) is None
    assert earlier.judged_on_trained({**DATA, "fingerprint": "g", "train": 3}) is None  # other pictures
    doubt = earlier.judged_on_trained({**DATA, "fingerprint": "g", "train": 1, "val": 2})
    assert doubt is not None and "Give the --seed of that run" in doubt


def test_classes_beyond_those_that_a_message_shows_are_compared(tmp_path: Path) -> None:
    names = tuple(f"k{number:02}" for number in range(10))

    def student(classes: tuple[str, ...]) -> Student:
        return build_student(StudentSpec("test_byobnet", 8, classes, student_preprocess("test_byobnet", 32)))

    save_student(tmp_path / "a.safetensors", student(names))
    earlier = load_phase(tmp_path / "a.safetensors")
    take_over(student(names), earlier)
    with pytest.raises(UsageError, match="class 9 'k09', now 'zebra'"):
        take_over(student((*names[:9], "zebra")), earlier)


def test_a_next_phase_knows_the_epochs_before_it(run: RunFolder) -> None:
    earlier = EarlierEpochs({"run": "first", "epoch": 1, "phase": 1}, [{"epoch": 1, "phase": 1}])
    begin(run, SETTINGS, {"data": DATA}, earlier=earlier)
    assert run.facts()["init_from"] == earlier.facts
    assert run.read_history() == earlier.history
