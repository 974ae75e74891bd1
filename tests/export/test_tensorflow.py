"""TensorFlow as a second opinion on TFLite files, in a process of its own. Skipped where there is none to ask."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from whole_path_for_tests import WholePath

from edgekit.errors import LoadError, MissingExtraError, UsageError
from edgekit.export.tflite.tensorflow import run_tensorflow, tensorflow_python
from edgekit.export.verify.bundle import verify_bundle
from tests.export.nets_for_tests import pictures


@pytest.fixture(scope="session")
def python_with_tensorflow() -> Path:
    """EDGEKIT_TENSORFLOW_PYTHON, else this Python if TensorFlow is beside it."""
    given = os.environ.get("EDGEKIT_TENSORFLOW_PYTHON")
    if given is None and importlib.util.find_spec("tensorflow") is None:
        pytest.skip("no TensorFlow here; set EDGEKIT_TENSORFLOW_PYTHON to the python of an environment that has it")
    return tensorflow_python(Path(given) if given else None)


def test_tensorflow_agrees_with_pytorch(whole_path: WholePath, python_with_tensorflow: Path) -> None:
    checks = verify_bundle(whole_path.bundle, tensorflow_python=python_with_tensorflow)
    opinions = [check for check in checks if check.check == "golden vectors, TensorFlow"]
    assert [check.subject for check in opinions] == ["model.fp32.tflite", "model.int8.tflite"]
    assert all(check.passed for check in checks), [check for check in checks if not check.passed]


def test_a_broken_file_is_one_line(tmp_path: Path, python_with_tensorflow: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(b"\0\0\0\0TFL3" + bytes(64))
    with pytest.raises(LoadError, match=r"TensorFlow cannot run m\.tflite") as caught:
        run_tensorflow(tmp_path / "m.tflite", pictures(1, 32).numpy(), python_with_tensorflow)
    assert str(caught.value).isprintable()


def test_a_python_without_tensorflow_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("tensorflow") is not None:
        pytest.skip("TensorFlow is beside edgekit here")
    with pytest.raises(MissingExtraError, match=r"edgekit\[tensorflow\]"):
        run_tensorflow(tmp_path / "m.tflite", pictures(1, 32).numpy(), Path(sys.executable))
    monkeypatch.delenv("EDGEKIT_TENSORFLOW_PYTHON", raising=False)
    with pytest.raises(MissingExtraError, match="EDGEKIT_TENSORFLOW_PYTHON"):
        tensorflow_python(None)


def test_a_python_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not there"):
        tensorflow_python(tmp_path / "python")
