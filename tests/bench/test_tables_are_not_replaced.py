"""The scripts that write tables after hours of work replace none that is there, and say so before they begin."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from edgekit.bench.against_naive import main as against_naive
from edgekit.demo.parity_table import main as parity_table
from edgekit.demo.small_clips import main as small_clips


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (against_naive, ()),
        (parity_table, ("--work", "work")),
        (small_clips, ("--work", "work", "--data", "data", "--teacher", "t.onnx", "--still", "run")),
    ],
)
def test_a_table_that_is_there_stays(
    command: click.Command, options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("table.md").write_text("of last week")
    done = CliRunner().invoke(command, [*options, "-o", "table.md"])
    assert done.exit_code != 0 and "table.md exists" in str(done.exception), (done.output, done.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["table.md"] and Path("table.md").read_text() == "of last week"


def test_the_json_beside_a_table_stays_too(tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text("{}")
    for name, said in (("table.md", "table.json exists"), ("table.json", "is the Markdown")):
        done = CliRunner().invoke(against_naive, ["-o", str(tmp_path / name)])
        assert said in str(done.exception)
    assert (tmp_path / "table.json").read_text() == "{}"
