"""What is silenced is named, and only for the length of the block."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings

import pytest
from tqdm import tqdm

from edgekit.export.quiet import quiet


def test_named_loggers_let_only_errors_through(caplog: pytest.LogCaptureFixture) -> None:
    named, other = logging.getLogger("coremltools"), logging.getLogger("somebody.else")
    with quiet():
        named.warning("chatter")
        named.error("trouble")
        other.warning("another's")
    named.warning("afterwards")
    assert [record.message for record in caplog.records] == ["trouble", "another's", "afterwards"]


def test_only_known_warnings_are_dropped() -> None:
    with quiet():
        warnings.warn("Function _TORCH_OPS_REGISTRY.__contains__ is deprecated", DeprecationWarning, stacklevel=1)
        with pytest.raises(UserWarning, match="news"):
            warnings.warn("news", stacklevel=1)
    with pytest.raises(DeprecationWarning):
        warnings.warn("Function _TORCH_OPS_REGISTRY.__contains__ is deprecated", DeprecationWarning, stacklevel=1)


def test_progress_bars_are_off_inside_only(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet():
        assert list(tqdm([1, 2])) == [1, 2]
    assert capsys.readouterr().err == ""
    list(tqdm([1, 2]))
    assert "2/2" in capsys.readouterr().err


def test_importing_coremltools_prints_nothing() -> None:
    code = "from edgekit.export.coreml.convert import coremltools_module; coremltools_module()"
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
