"""Facts about the machine that measured, and what about it makes its numbers doubtful.

Read from the operating system's own files and commands; a fact that cannot be had is None, never a guess.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgekit.cores import usable_cores

_PROC = Path("/proc")
_SYS_CPU = Path("/sys/devices/system/cpu")
_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
_BUSY_LOAD = 0.5
"""A load average above this share of one core, before we add ours, is another process at work."""


@dataclass(frozen=True)
class Machine:
    """What was measured on.

    Attributes:
        cpu: marketing name of the processor.
        physical_cores: cores, hyper-threads not counted.
        logical_cores: processors that this process may use (affinity masks and containers respected).
        governor: frequency governor, e.g. "performance"; None where it cannot be read (virtual machines, macOS).
        load_average: processes running or waiting, mean of the last minute.
        memory_bytes: physical memory.
        os: system, release and machine type.
        python: interpreter version; None where none ran the models.
        warnings: sentences a reader of the numbers must see.
    """

    cpu: str | None
    physical_cores: int | None
    logical_cores: int
    governor: str | None
    load_average: float | None
    memory_bytes: int | None
    os: str
    python: str | None
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return {**asdict(self), "warnings": list(self.warnings)}


def describe_machine() -> Machine:
    """Look at this machine. Call it before measuring: the load average then tells of others, not of ourselves."""
    logical = usable_cores()
    governor = _read(_SYS_CPU / "cpu0/cpufreq/scaling_governor")
    load = _load_average()
    return Machine(
        cpu=_cpu_name(),
        physical_cores=_physical_cores(),
        logical_cores=logical,
        governor=governor,
        load_average=load,
        memory_bytes=_memory_bytes(),
        os=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        warnings=(*machine_warnings(load, logical, governor), *_container_warning(logical)),
    )


def machine_warnings(load: float | None, logical_cores: int, governor: str | None) -> tuple[str, ...]:
    """Return what makes timings on such a machine doubtful, as sentences."""
    warnings = []
    if load is not None and load > _BUSY_LOAD:
        cores = f"{logical_cores} core{'s' if logical_cores != 1 else ''}"
        warnings.append(f"Another process is using the CPU: load {load:.1f} on {cores}.")
    if governor is not None and governor != "performance":
        warnings.append(f"The CPU governor is '{governor}', which varies the clock; 'performance' is steady.")
    return tuple(warnings)


def peak_memory_bytes() -> int | None:
    """Return the most physical memory this process has held so far, None where the system does not say.

    It never falls: to know one model's share, measure it in a process of its own.
    """
    # VmHWM first: Linux's ru_maxrss survives exec, so a small child of a large parent would report the parent's peak
    for line in (_read(_PROC / "self/status") or "").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)  # macOS counts bytes, others KiB


def _container_warning(logical_cores: int) -> tuple[str, ...]:
    """Say when a container may use less than the cores it sees: it is then paused in every period, which looks slow."""
    quota, _, period = (_read(_CPU_LIMIT) or "").partition(" ")
    if not quota.isdigit() or not period.isdigit() or int(quota) >= logical_cores * int(period):
        return ()
    return (f"This container is limited to {int(quota) / int(period):g} CPUs of the {logical_cores} it sees.",)


def _load_average() -> float | None:
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows; some containers
        return None


def _cpu_name() -> str | None:
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string")
    fields = _cpuinfo()
    for key in ("model name", "Model", "Hardware", "Processor"):  # x86; then boards with ARM, whose kernels differ
        if fields.get(key):
            return fields[key]
    return platform.processor() or None


def _physical_cores() -> int | None:
    if sys.platform == "darwin":
        count = _sysctl("hw.physicalcpu")
        return int(count) if count is not None and count.isdigit() else None
    siblings = {_read(path) for path in _SYS_CPU.glob("cpu[0-9]*/topology/thread_siblings_list")}
    return len(siblings - {None}) or None


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _cpuinfo() -> dict[str, str]:
    """Return the fields of the first processor in /proc/cpuinfo, and those that stand once for the board."""
    pairs = [line.split(":", 1) for line in (_read(_PROC / "cpuinfo") or "").splitlines() if ":" in line]
    fields: dict[str, str] = {}
    for key, value in pairs:
        fields.setdefault(key.strip(), value.strip())
    return fields


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _sysctl(name: str) -> str | None:
    try:
        answer = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
