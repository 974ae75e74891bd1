"""What is said about the machine agrees with psutil and with what goes on there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from edgekit.bench import machine
from edgekit.bench.machine import describe_machine, machine_warnings, peak_memory_bytes


def test_facts_agree_with_psutil() -> None:
    here = describe_machine()
    assert here.memory_bytes == pytest.approx(psutil.virtual_memory().total, rel=0.01)
    assert here.logical_cores == len(psutil.Process().cpu_affinity() or [0] * psutil.cpu_count())
    assert here.physical_cores in (psutil.cpu_count(logical=False), None)
    assert here.python == sys.version.split()[0]
    assert here.cpu
    assert json.loads(json.dumps(here.to_dict()))["os"] == here.os


def test_peak_memory_counts_bytes_and_never_falls() -> None:
    """In a child of a process that holds more than the child ever does: the parent's memory must not show."""
    parent_holds = bytearray(b"x") * 300_000_000
    program = (
        "from edgekit.bench.machine import peak_memory_bytes as peak\n"
        "before = peak()\ngrab = bytearray(b'x') * 100_000_000\nheld = peak()\ndel grab\nprint(before, held, peak())"
    )
    answer = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    before, held, after = (int(number) for number in answer.stdout.split())
    assert held - before == pytest.approx(100_000_000, rel=0.1)
    assert after >= 0.99 * held  # the kernel counts pages in batches per core
    assert held < len(parent_holds)
    here = peak_memory_bytes()
    assert here is not None
    assert here >= 0.99 * psutil.Process().memory_info().rss


@pytest.mark.parametrize(
    ("load", "cores", "governor", "expected"),
    [
        (1.9, 2, None, ["Another process is using the CPU: load 1.9 on 2 cores."]),
        (1.0, 1, "performance", ["Another process is using the CPU: load 1.0 on 1 core."]),
        (0.2, 8, "performance", []),
        (None, 8, None, []),
        (0.1, 4, "powersave", ["The CPU governor is 'powersave', which varies the clock; 'performance' is steady."]),
    ],
)
def test_warnings_say_what_makes_timings_doubtful(
    load: float | None, cores: int, governor: str | None, expected: list[str]
) -> None:
    assert list(machine_warnings(load, cores, governor)) == expected


def test_an_arm_board_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Raspberry Pi's /proc/cpuinfo has no "model name"; its board stands once, at the end."""
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nBogoMIPS\t: 108.00\nCPU part\t: 0xd0b\n\nprocessor\t: 1\nBogoMIPS\t: 108.00\n\n"
        "Revision\t: c04170\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n"
    )
    monkeypatch.setattr(machine, "_PROC", tmp_path)
    assert describe_machine().cpu == "Raspberry Pi 5 Model B Rev 1.0"


def test_a_system_that_says_nothing_is_described_without_guesses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_PROC", tmp_path)
    monkeypatch.setattr(machine, "_SYS_CPU", tmp_path)
    here = describe_machine()
    assert here.governor is None
    assert here.physical_cores is None
    assert here.logical_cores >= 1


def test_a_container_limit_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "cpu.max"
    monkeypatch.setattr(machine, "_CPU_LIMIT", limit)
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    limit.write_text("150000 100000\n")
    assert any("limited to 1.5 CPUs" in warning for warning in describe_machine().warnings)
    limit.write_text("max 100000\n")
    assert not any("limited" in warning for warning in describe_machine().warnings)


def test_looking_at_the_machine_loads_no_torch() -> None:
    program = "import sys, edgekit.bench.table, edgekit.bench.latency\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
