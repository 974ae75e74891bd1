"""--overwrite replaces results of before; never what the same command reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgekit.cli.main import run
from edgekit.errors import OutputExistsError
from edgekit.export.config import ExportConfig
from edgekit.export.export import export_run
from edgekit.terminal import Terminal
from tests.bench.reports_for_tests import made_report
from tests.cli.commands_for_tests import ALONE, SMALL, draw_colours, refused

Capture = pytest.CaptureFixture[str]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with data and a run that was trained on them."""
    root = tmp_path_factory.mktemp("made")
    draw_colours(root / "data", train=4, val=2)
    arguments = ["distill", "--data", str(root / "data"), *SMALL, *ALONE, "--epochs", "1", "-q"]
    assert run([*arguments, "-o", str(root / "run")]) == 0
    return root


@pytest.mark.parametrize("output", ["run", ".", "data", "data/val", "data/val/red"])
@pytest.mark.parametrize("given", ["run", "run/student.safetensors"])
def test_export_keeps_the_run_and_its_pictures(made: Path, capsys: Capture, given: str, output: str) -> None:
    before = content(made)
    line = refused(capsys, 2, "export", made / given, "--format", "onnx", "-o", made / output, "--overwrite")
    assert "this command reads, and is not replaced" in line
    assert content(made) == before


def test_export_keeps_other_pictures_that_are_given(made: Path, tmp_path: Path, capsys: Capture) -> None:
    data = shutil.copytree(made / "data", tmp_path / "data")
    before = content(tmp_path)
    refused(capsys, 2, "export", made / "run", "--data", data, "-o", data, "--overwrite")
    config = ExportConfig(made / "run", data / "train", ("onnx",), ("fp32",), data=data)
    with pytest.raises(OutputExistsError, match="reads"):
        export_run(config, Terminal(-1), overwrite=True)
    assert content(tmp_path) == before


@pytest.mark.parametrize("output", ["data", "data/train/blue", "."])
def test_shards_do_not_replace_their_pictures(made: Path, capsys: Capture, output: str) -> None:
    before = content(made)
    refused(capsys, 2, "data", "shard", "--data", made / "data", "-o", made / output, "--overwrite")
    assert content(made) == before


def test_shards_may_lie_beside_the_splits(made: Path, tmp_path: Path) -> None:
    data = shutil.copytree(made / "data", tmp_path / "data")
    for _ in range(2):
        arguments = ["data", "shard", "--data", str(data), "-o", str(data / "shards"), "--overwrite", "-q"]
        assert run(arguments) == 0
    assert (data / "shards" / "index.json").is_file() and (data / "val" / "red").is_dir()


def test_a_training_does_not_replace_the_run_that_it_starts_from(made: Path, capsys: Capture) -> None:
    before = content(made)
    more = ["--init-from", made / "run", "-o", made / "run", "--overwrite", "--epochs", 1]
    refused(capsys, 2, "distill", "--data", made / "data", *ALONE, "--device", "cpu", *more)
    assert content(made) == before


def test_a_report_does_not_replace_a_result(tmp_path: Path, capsys: Capture) -> None:
    result = tmp_path / "bench.json"
    result.write_text(json.dumps(made_report().to_json()))
    before = content(tmp_path)
    refused(capsys, 2, "report", result, "-o", result, "--overwrite")
    assert content(tmp_path) == before
