from __future__ import annotations

import os
import subprocess
import sys

import pytest

from edgekit.cores import usable_cores


def test_a_process_held_to_one_core_counts_one() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system does not hold processes to cores")
    code = (
        "import os; from edgekit.cores import usable_cores; before = usable_cores();"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(before, usable_cores())"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == [str(usable_cores()), "1"]
