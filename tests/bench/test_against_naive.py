"""`make bench` in small: every file of a student is made, compared and timed, and one table holds all of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
from click.testing import CliRunner

from edgekit.bench.against_naive import RATIOS, main
from edgekit.bench.naive_files import Variant
from edgekit.exits import run_command


def test_a_table_that_is_there_stays_and_the_json_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, beside = tmp_path / "table.md", tmp_path / "table.json"
    for there, given, said in ((table, table, "table.md exists"), (beside, table, "table.json exists")):
        there.write_text("of last week")
        assert run_command(main, ["-o", str(given)], "against_naive") == 2
        assert said in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == [there.name] and there.read_text() == "of last week"
        there.unlink()
    assert run_command(main, ["-o", str(beside)], "against_naive") == 2
    assert "is the Markdown" in capsys.readouterr().err


@pytest.mark.long
def test_every_file_is_compared_and_timed(tmp_path: Path) -> None:
    options = ["--student", "mobilevit_xxs", "--image-size", "64", "--threads", "1", "--budget", "2"]
    done = CliRunner().invoke(main, [*options, "-o", str(tmp_path / "table.md")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (found,) = json.loads((tmp_path / "table.json").read_text())
    timed = {variant for variant in get_args(Variant) if not variant.startswith("coreml")}
    assert found["p50_s"]["1"].keys() == timed and len(found["speedups"]["1"]) == len(RATIOS)
    assert found["size_bytes"].keys() == found["parity"].keys() == set(get_args(Variant))
    noise = {variant: parity["snr_db"] for variant, parity in found["parity"].items()}
    assert min(noise[variant] for variant in noise if "fp32" in variant) > 90
    for form in ("onnx", "tflite", "coreml"):
        assert noise[f"{form} int8"] > noise[f"{form} int8 naive"] + 2
    table = (tmp_path / "table.md").read_text()
    assert all(variant in table for variant in get_args(Variant)) and "1 thread" in table
