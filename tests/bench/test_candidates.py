"""The names of models in a table."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.bench.candidates import distinct_names


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
