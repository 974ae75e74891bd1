"""What TensorFlow Lite's `benchmark_model` prints, read back.

The formats are those of its sources (tensorflow/lite/tools/benchmark): lines may have a level or logcat's columns in
front, and statistics have percentiles in newer builds only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgekit.errors import LoadError
from edgekit.printable import printable

_NUMBER = r"([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)"
_COUNT = re.compile(r"\bcount=(\d+)(.*)")
_FIELD = re.compile(rf"\b(first|curr|min|max|avg|std|p5|median|p95)={_NUMBER}")
_TIMINGS = re.compile(
    rf"Inference timings in us: Init: {_NUMBER}, First inference: {_NUMBER}, Warmup \(avg\): {_NUMBER}, "
    rf"Inference \(avg\): {_NUMBER}"
)
_MEMORY = re.compile(rf"Memory footprint delta from the start of the tool \(MB\): init={_NUMBER} overall={_NUMBER}")
_PEAK = re.compile(rf"Overall peak memory footprint \(MB\) via periodic monitoring: {_NUMBER}")
_PARTITIONS = re.compile(
    r"Replacing (\d+) out of (\d+) node\(s\) with delegate \((\w+)\) node, yielding (\d+) partition"
)
_ERROR = re.compile(r"\b(?:ERROR|FATAL): ?(.*)|^(.*(?:[Ff]ailed|not executable|No such file|Permission denied).*)$")


@dataclass(frozen=True)
class Statistics:
    """Statistics of a series of calls, seconds.

    Attributes:
        count: calls.
        first_s, min_s, max_s, mean_s, deviation_s: of them.
        p5_s, median_s, p95_s: where the build of the tool tells them.
    """

    count: int
    first_s: float
    min_s: float
    max_s: float
    mean_s: float
    deviation_s: float
    p5_s: float | None = None
    median_s: float | None = None
    p95_s: float | None = None


@dataclass(frozen=True)
class ToolResult:
    """One run of the tool.

    Attributes:
        init_s: from the start to a loaded model.
        first_s: its first call.
        warmup, timed: the calls before the timed ones, and those.
        memory_bytes: growth of the process until its end; None where the system does not tell.
        peak_memory_bytes: most memory held, where it was asked for.
        partitions: e.g. "1 XNNPACK partition with 540 of 548 operators"; None where no delegate took any.
    """

    init_s: float
    first_s: float
    warmup: Statistics
    timed: Statistics
    memory_bytes: int | None = None
    peak_memory_bytes: int | None = None
    partitions: str | None = None


def parse(output: str) -> ToolResult:
    """Read what a run of the tool printed.

    Raises:
        LoadError: it did not get to its end; with the tool's own last reason.
    """
    timings = _TIMINGS.search(output)
    series = [_statistics(count, rest) for count, rest in _COUNT.findall(output) if int(count)]
    if timings is None or len(series) < 2:
        raise LoadError(f"benchmark_model gave no timings: {_reason(output)}")
    memory, peak, partitions = _MEMORY.search(output), _PEAK.search(output), _PARTITIONS.search(output)
    return ToolResult(
        init_s=1e-6 * float(timings[1]),
        first_s=1e-6 * float(timings[2]),
        warmup=series[-2],
        timed=series[-1],
        memory_bytes=int(float(memory[2]) * 2**20) if memory else None,
        peak_memory_bytes=int(float(peak[1]) * 2**20) if peak else None,
        partitions=_told(partitions) if partitions else None,
    )


def _statistics(count: str, rest: str) -> Statistics:
    """Read "first=… curr=… …"; of calls that all took as long, the tool tells `curr` alone."""
    found = {name: 1e-6 * float(value) for name, value in _FIELD.findall(rest)}
    if "curr" not in found:
        raise LoadError("benchmark_model's statistics have another format than any known")
    same = found["curr"]
    return Statistics(
        int(count),
        found.get("first", same),
        found.get("min", same),
        found.get("max", same),
        found.get("avg", same),
        found.get("std", 0.0),
        found.get("p5"),
        found.get("median"),
        found.get("p95"),
    )


def _told(found: re.Match[str]) -> str:
    taken, operators, delegate, count = found.groups()
    name = delegate.removeprefix("TfLite").removesuffix("Delegate").replace("XNNPack", "XNNPACK")
    return f"{count} {name} partition{'' if count == '1' else 's'} with {taken} of {operators} operators"


def _reason(output: str) -> str:
    """Return the tool's own reason: its first error, else its last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for line in lines:
        found = _ERROR.search(line)
        if found is not None:
            return printable((found[1] or found[2]).strip(), 300)
    return printable(lines[-1], 300) if lines else "it printed nothing"
