"""The names of models in a table, and what is loaded before they are opened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.bench.candidates import artifact_candidates, distinct_names, given_artifacts
from tests.bench.foreign_for_tests import write_uint8_tflite
from tests.bench.tiny_for_tests import write_classifier

OPEN = """
import importlib, json, sys
import edgekit.bench.child
module, function, arguments, imports = json.loads(sys.argv[1])
for name in imports:
    importlib.import_module(name)
opened = getattr(importlib.import_module(module), function)
before = set(sys.modules)
opened(*arguments)
print(json.dumps(sorted(set(sys.modules) - before)))
"""


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/one/a.onnx", "/tmp/b.onnx"], ["a.onnx", "b.onnx"]),
        (["/x/one/a.onnx", "/x/two/a.onnx", "/x/two/b.onnx"], ["one/a.onnx", "two/a.onnx", "b.onnx"]),
        (["/x/one/deep/a.onnx", "/x/two/deep/a.onnx"], ["one/deep/a.onnx", "two/deep/a.onnx"]),
        (["/r/x/a.onnx", "/r/y/x/a.onnx", "/a.onnx"], ["r/x/a.onnx", "y/x/a.onnx", "/a.onnx"]),
        (["/x/a.onnx"] * 3, ["a.onnx", "a.onnx (again)", "a.onnx (again 2)"]),
        (["/x/a.onnx", "/y/a.onnx", "/x/a.onnx"], ["x/a.onnx", "y/a.onnx", "x/a.onnx (again)"]),
    ],
)
def test_names_are_the_shortest_that_tell_files_apart(paths: list[str], names: list[str]) -> None:
    assert distinct_names([Path(path) for path in paths]) == names


def test_a_file_is_the_same_however_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert distinct_names([Path("a.onnx"), tmp_path / "a.onnx"]) == ["a.onnx", "a.onnx (again)"]


@pytest.mark.parametrize("form", ["onnx", "tflite"])
def test_no_library_is_loaded_while_the_clock_of_a_cold_start_runs(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"model.{form}"
    if form == "onnx":
        write_classifier(path)
    else:
        write_uint8_tflite(path, scale=1 / 255, zero_point=0)
    (candidate,) = artifact_candidates(given_artifacts([path]), 1)
    assert candidate.opening is not None
    module, _, function = candidate.opening.function.partition(":")
    request = json.dumps([module, function, candidate.opening.arguments, candidate.opening.imports])
    done = subprocess.run([sys.executable, "-c", OPEN, request], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
