"""Signals end a training in order, and only one process may write a run folder."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from killable_for_tests import BEST, CONFIG, Pictures, server, start

from edgekit.atomic import WriteError
from edgekit.compress.training.loop import fit
from edgekit.compress.training.run_folder import RunFolder
from edgekit.compress.training.run_lock import LockedError, locked, refuse_locked
from edgekit.compress.training.stopping import stop_signals
from edgekit.errors import StoppedError


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_saves_and_ends_with_its_code(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    started = server().Event()
    process = start(tmp_path / "run", pause_s=0.05, started=started)
    assert started.wait(60)
    time.sleep(0.2)
    os.kill(process.pid, number)
    assert process.wait() == code
    assert "go on with --resume" in process.said()
    assert start(tmp_path / "run").wait() == 0
    assert start(tmp_path / "whole").wait() == 0
    one, other = (torch.load(tmp_path / name / BEST, weights_only=True) for name in ("run", "whole"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_second_ctrl_c_leaves_at_once(tmp_path: Path) -> None:
    started = server().Event()
    process = start(tmp_path / "run", pause_s=30.0, started=started)
    assert started.wait(60)
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(1.0)
    assert process.running, "the first one waits for the step"
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(10) != 0


def test_handlers_are_given_back_and_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as under nohup
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        with stop_signals() as request:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            assert request.signal == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is interrupt
    finally:
        signal.signal(signal.SIGTERM, before)


def test_training_works_outside_the_main_thread(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.create({}, {})
    reached: list[float] = []
    config = CONFIG.model_copy(update={"epochs": 1})
    thread = threading.Thread(target=lambda: reached.append(fit(Pictures(), config, run).best))
    thread.start()
    thread.join()
    assert reached


def test_a_stop_between_two_epochs_is_in_order_too(tmp_path: Path) -> None:
    class StopsInEvaluation(Pictures):
        def evaluate(self, model: torch.nn.Module, device: torch.device) -> dict[str, float]:
            os.kill(os.getpid(), signal.SIGTERM)
            return dict(super().evaluate(model, device))

    run = RunFolder(tmp_path)
    run.create({}, {})
    with pytest.raises(StoppedError, match="epoch 2 after 0 of its 12 steps") as caught:
        fit(StopsInEvaluation(), CONFIG, run)
    assert caught.value.exit_code == 143
    assert [row["epoch"] for row in run.read_metrics()] == [1]


def test_a_run_folder_in_use_is_refused_and_names_the_process(tmp_path: Path) -> None:
    started = server().Event()
    process = start(tmp_path / "run", pause_s=0.5, started=started)
    assert started.wait(60)
    run = RunFolder(tmp_path / "run")
    before = {path: path.read_bytes() for path in run.last.iterdir() if path.is_file()}
    for use in (lambda: fit(Pictures(), CONFIG, run), lambda: refuse_locked(run.path)):
        with pytest.raises(LockedError, match=f"process {process.pid} trains into it") as caught:
            use()
        assert caught.value.exit_code == 2
    assert all(path.read_bytes() == content for path, content in before.items())
    process.kill()
    process.wait()
    refuse_locked(run.path)  # the system took the lock back
    fit(Pictures(), CONFIG.model_copy(update={"epochs": 1}), run)


def test_the_lock_may_be_taken_again_within_a_process(tmp_path: Path) -> None:
    with locked(tmp_path), locked(tmp_path):
        refuse_locked(tmp_path)
    refuse_locked(tmp_path / "nothing here")
    assert not (tmp_path / "nothing here").exists()


def test_a_read_only_run_folder_is_one_line(open_tmp: Path, without_root: object) -> None:
    assert callable(without_root)
    run = open_tmp / "run"
    run.mkdir()
    run.chmod(0o555)
    with without_root(), pytest.raises(WriteError, match="cannot write") as caught, locked(run):
        pass
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
