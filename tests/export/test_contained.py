"""What happens in a child process stays there: crashes, hangs and memory bombs become one line."""

from __future__ import annotations

import time
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
