"""What happens in a child process stays there: crashes, hangs and memory bombs become one line."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.errors import LoadError, MissingExtraError, UsageError
from edgekit.export.contained import call_contained


def test_arguments_go_in_and_the_result_comes_out() -> None:
    assert call_contained("operator:add", [1, "ü"], [None, 2.5]) == [1, "ü", None, 2.5]


def test_a_native_crash_is_named_by_its_signal() -> None:
    with pytest.raises(LoadError, match="killed by SIGSEGV"):
        call_contained("faulthandler:_sigsegv")
    with pytest.raises(LoadError, match="killed by SIGABRT"):
        call_contained("os:abort")


def test_an_exit_is_no_answer() -> None:
    with pytest.raises(LoadError, match="ended with code 7"):
        call_contained("os:_exit", 7)
    with pytest.raises(LoadError, match="ended with code 0"):
        call_contained("os:_exit", 0)


def test_a_hang_is_stopped() -> None:
    started = time.monotonic()
    with pytest.raises(LoadError, match="no answer within 1 s"):
        call_contained("time:sleep", 60, timeout_s=1)
    assert time.monotonic() - started < 30


def test_a_memory_bomb_is_one_line() -> None:
    with pytest.raises(LoadError, match="more memory than"):
        call_contained("operator:mul", [0], 10**9, memory_bytes=2**30)


def test_our_errors_keep_their_kind_and_message(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"nowhere\.onnx is not there"):
        call_contained("edgekit.export.audit.audit:audit_values", str(tmp_path / "nowhere.onnx"))
    with pytest.raises(UsageError, match="'onxx' is not known; did you mean 'onnx'"):
        call_contained("edgekit.export.runtimes:parse_formats", "onxx")


def test_a_missing_extra_is_still_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnx.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "model.onnx").write_bytes(b"x" * 16)
    with pytest.raises(MissingExtraError, match=r"needs the package 'onnx': pip install 'edgekit\[onnx\]'$"):
        call_contained("edgekit.export.audit.audit:audit_values", str(tmp_path / "model.onnx"))


def test_other_errors_are_one_printable_line() -> None:
    with pytest.raises(LoadError) as caught:
        call_contained("builtins:int", "\x1b[31m\n7x")
    assert str(caught.value).isprintable() and "ValueError" in str(caught.value)


def test_the_working_folder_cannot_pose_as_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnx.py").write_text("raise SystemExit('taken in')")
    (tmp_path / "model.onnx").write_bytes(b"x" * 16)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LoadError, match="damaged or of another type"):
        call_contained("edgekit.export.audit.audit:audit_values", str(tmp_path / "model.onnx"))


@pytest.fixture
def lingering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module `lingers` whose functions start a process that lives for a minute; its id goes to the file returned."""
    (tmp_path / "lingers.py").write_text(
        "import os, subprocess, sys, time\n"
        "def start(path):\n"
        "    code = 'import os, sys, time; open(sys.argv[1], \"w\").write(str(os.getpid())); time.sleep(60)'\n"
        "    subprocess.Popen([sys.executable, '-c', code, path])\n"
        "    while not os.path.exists(path) or not open(path).read(): time.sleep(0.05)\n"
        "def hang(path):\n"
        "    start(path); time.sleep(60)\n"
        "def crash(path):\n"
        "    start(path); os.abort()\n"
        "def stuck(path):\n"  # and never lets go of Python's lock
        "    import ctypes\n"
        "    open(path, 'w').write(str(os.getpid())); ctypes.PyDLL(None).sleep(60)\n"
        "def nested(path):\n"
        "    from edgekit.export.contained import call_contained\n"
        "    call_contained('lingers:hang', path, timeout_s=100)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "pid"


def assert_ended(path: Path, within_s: float = 10) -> None:
    """The process whose id a file holds is gone, or dead and not yet buried."""
    stat = Path(f"/proc/{path.read_text()}/stat")
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except OSError:
            return
        time.sleep(0.05)
    pytest.fail(f"process {path.read_text()} is still there")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize(("function", "said"), [("hang", "within 15 s"), ("nested", "no answer"), ("crash", "SIGABRT")])
def test_nothing_that_a_child_started_outlives_it(lingering: Path, function: str, said: str) -> None:
    started = time.monotonic()
    with pytest.raises(LoadError, match=said):
        call_contained(f"lingers:{function}", str(lingering), timeout_s=15)
    assert time.monotonic() - started < 50, "it waited for the grandchild"
    assert_ended(lingering)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_ctrl_c_ends_the_child_and_what_it_started(lingering: Path) -> None:
    """The terminal's signal goes to the parent's group alone."""
    with waiting_parent("hang", lingering) as parent:
        os.killpg(parent.pid, signal.SIGINT)
        _, said = parent.communicate(timeout=30)
    assert b"KeyboardInterrupt" in said
    assert_ended(lingering)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize("function", ["hang", "nested"])
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_a_parent_killed_on_the_spot_takes_its_children_with_it(
    lingering: Path, function: str, by: signal.Signals
) -> None:
    with waiting_parent(function, lingering) as parent:
        parent.send_signal(by)
        assert parent.wait(10) == -by
    assert_ended(lingering)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_a_child_whose_parent_was_killed_ends_at_its_deadline_whatever_it_does(lingering: Path) -> None:
    with waiting_parent("stuck", lingering, timeout_s=8) as parent:
        parent.kill()
    assert_ended(lingering, within_s=20)


@contextlib.contextmanager
def waiting_parent(function: str, lingering: Path, timeout_s: float = 100) -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits for a contained call of `lingers`, which has started its own."""
    call = f"call_contained('lingers:{function}', {str(lingering)!r}, timeout_s={timeout_s})"
    script = f"from edgekit.export.contained import call_contained; {call}"
    parent = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (lingering.exists() and lingering.read_text()):
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.05)
    with parent:
        try:
            yield parent
        finally:
            parent.kill()


def test_what_a_child_waits_for_is_late_before_the_child_is(lingering: Path) -> None:
    """So the check that failed is named, and the others of the child are told."""
    with pytest.raises(LoadError, match=r"no answer within (?!20 s)"):
        call_contained("lingers:nested", str(lingering), timeout_s=20)
