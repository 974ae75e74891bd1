"""A model in its own process: same numbers, honest times, and an end that is told."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest

from edgekit.bench import worker as worker_module
from edgekit.bench.worker import Opening, Worker
from edgekit.errors import LoadError
from edgekit.export.runtimes import open_session
from edgekit.export.session import run_batched
from tests.bench.tiny_for_tests import SIZE, opened, write_classifier


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_classifier(tmp_path / "model.onnx")


def test_it_gives_what_the_model_gives_here(model: Path) -> None:
    images = np.random.default_rng(0).random((70, 3, SIZE, SIZE), np.float32)
    with opened(model) as worker:
        found = worker(images)
        assert worker.info == open_session(model).info
        assert worker.input_shape == (1, 3, SIZE, SIZE)
    np.testing.assert_array_equal(found["logits"], run_batched(open_session(model), images)["logits"])


def test_cold_start_and_memory_are_its_own(model: Path, tmp_path: Path) -> None:
    held = np.ones(300 * 2**17)  # 300 MiB here must not count there
    with opened(model) as worker:
        assert 0 < worker.cold.load_s < 60
        assert 0 < worker.cold.second_inference_s < 60
        assert worker.process_memory_bytes is not None and worker.peak_memory_bytes is not None
        assert worker.process_memory_bytes <= worker.peak_memory_bytes < held.nbytes
        assert worker.precision(model) == "fp32"


def test_visits_are_timed_in_the_process_of_the_model(tmp_path: Path) -> None:
    short = write_classifier(tmp_path / "short.onnx")
    long = write_classifier(tmp_path / "long.onnx", work=40)
    with opened(short) as quick, opened(long) as slow:
        times = [min(timer(20, 1)) for timer in (quick.timer(), slow.timer())]
    assert times[1] > 4 * times[0] > 0


def test_batches_are_timed_where_the_file_takes_them(tmp_path: Path) -> None:
    with opened(write_classifier(tmp_path / "free.onnx", batch="n")) as worker:
        assert worker.input_shape[0] is None
        assert len(worker.timer(8)(4, 2)) == 4
    with opened(write_classifier(tmp_path / "one.onnx")) as worker:
        with pytest.raises(LoadError, match="this model takes"):
            worker.timer(8)(1, 1)
        assert len(worker.timer()(2, 1)) == 2, "a refused call is no end"


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        ("ctypes:string_at", (0,), "was killed by SIGSEGV"),
        ("os:abort", (), "was killed by SIGABRT"),
        ("os:_exit", (7,), "ended with code 7"),
        ("edgekit.bench.openers:artifact", ("/nowhere.onnx", 1), "/nowhere.onnx is not there"),
        ("builtins:print", ("nothing to call",), "AttributeError"),
        ("os:write", (1, "x"), "TypeError"),
    ],
)
def test_what_ends_the_process_is_told(function: str, arguments: tuple[object, ...], words: str) -> None:
    with Worker(Opening(function, arguments)) as worker, pytest.raises(LoadError, match=words):
        worker.open()


def test_what_native_code_prints_is_no_answer(model: Path) -> None:
    talker = Opening("os:system", ("echo '{}'; echo noise >&2",))
    with Worker(talker) as worker, pytest.raises(LoadError, match="AttributeError: 'int' object"):
        worker.open()


def test_a_process_that_goes_away_between_two_visits_is_told(model: Path) -> None:
    with opened(model) as worker:
        assert worker.timer()(1, 1)
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(LoadError, match=r"was killed by SIGKILL \(out of memory\?\)"):
            worker.timer()(1, 1)
        with pytest.raises(LoadError, match="SIGKILL"):
            worker(np.zeros((400, 3, SIZE, SIZE), np.float32))
        assert worker.ended


def test_a_hang_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "TIMEOUTS_S", {"load": 60.0, "open": 0.5})
    with Worker(Opening("time:sleep", (600,))) as worker, pytest.raises(LoadError, match=r"no answer within 0.5 s"):
        worker.open()
    assert not psutil.pid_exists(worker.pid)


def test_memory_is_limited(model: Path) -> None:
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("only Linux limits what a process may ask for")
    glutton = Opening("numpy:ones", (2**29,))
    with Worker(glutton, memory_bytes=2**30) as worker, pytest.raises(LoadError, match="more memory than a model may"):
        worker.open()


def test_no_process_is_left(model: Path) -> None:
    with opened(model) as worker:
        child = psutil.Process(worker.pid)
        assert child.is_running()
    assert not child.is_running()
