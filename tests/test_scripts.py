"""Scripts that are called by their module, `python -m edgekit…`, end as the command does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("edgekit.bench.against_naive --students resnet", 2, "Did you mean"),
        ("edgekit.bench.against_naive --run nowhere", 3, "error: nowhere"),
        ("edgekit.demo.parity_table --data nowhere", 2, "error: cannot read the data set nowhere"),
        ("edgekit.demo.small_clips --data nowhere --teacher t.onnx --still nowhere", 3, "error: nowhere"),
        ("edgekit.compress.pictures.throughput --data .", 2, "error: "),
        ("edgekit.compress.training.overhead resnet", 2, "error: "),
        ("edgekit.compress.forecast.backtest nowhere", 3, "error: cannot read nowhere"),
        ("edgekit.bench.streaming_memory --pictures .", 2, "error: . has no pictures"),
        ("edgekit.bench.devices.web.assets nowhere", 3, "error: nowhere"),
    ],
)
def test_a_script_ends_with_the_exit_codes_of_the_command(words: str, code: int, said: str, tmp_path: Path) -> None:
    script = [sys.executable, "-m", *words.split()]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr, done.stderr
