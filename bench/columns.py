"""The columns of a bench table: how each cell is filled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from edgekit.bench.results import BenchReport, BenchRow
from edgekit.interval import Interval

NOT_MEASURED = "–"


@dataclass(frozen=True)
class Column:
    """A column: its header, how to fill a cell, and what it is worth when the terminal is narrow (1 goes last)."""

    header: str
    rank: int
    cell: Callable[[BenchRow, BenchReport], str]
    justify: Literal["left", "right"] = "right"


def _name(row: BenchRow, _: BenchReport) -> str:
    return row.name


def _size(row: BenchRow, _: BenchReport) -> str:
    return NOT_MEASURED if row.size_bytes is None else f"{row.size_bytes / 1e6:.2f}"


def _parameters(row: BenchRow, _: BenchReport) -> str:
    return NOT_MEASURED if row.parameters is None else f"{row.parameters / 1e6:.2f}"


def _percent(value: Interval | None) -> str:
    """Return a share as "68.1 ±2.6" percent, ± the longer arm of the interval."""
    if value is None:
        return NOT_MEASURED
    return f"{100 * value.value:.1f} ±{100 * max(value.high - value.value, value.value - value.low):.1f}"


def _percent_range(value: Interval | None) -> str:
    if value is None:
        return NOT_MEASURED
    return f"{100 * value.value:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def _cosine(row: BenchRow, _: BenchReport) -> str:
    return NOT_MEASURED if row.embedding_cosine is None else f"{row.embedding_cosine.mean:.4f}"


def _parity(row: BenchRow, _: BenchReport) -> str:
    """Return how close to PyTorch it computes on this device, in dB; ∞ where nothing differs."""
    if row.parity is None:
        return NOT_MEASURED
    return "∞" if row.parity.snr_db is None else f"{row.parity.snr_db:.0f}"


def _p50(row: BenchRow, _: BenchReport) -> str:
    return NOT_MEASURED if row.latency is None else _milliseconds(row.latency.p50_s)


def _p90(row: BenchRow, _: BenchReport) -> str:
    return NOT_MEASURED if row.latency is None else _milliseconds(row.latency.p90_s)


def _milliseconds(seconds: float) -> str:
    """Return milliseconds with three significant digits, more than which no timing deserves."""
    milliseconds = 1e3 * seconds
    decimals = 0 if milliseconds >= 100 else 1 if milliseconds >= 10 else 2 if milliseconds >= 1 else 3
    return f"{milliseconds:.{decimals}f}"


def _load(row: BenchRow, _: BenchReport) -> str:
    return NOT_MEASURED if row.cold is None else _milliseconds(row.cold.load_s)


def _first(row: BenchRow, _: BenchReport) -> str:
    return NOT_MEASURED if row.cold is None else _milliseconds(row.cold.first_inference_s)


def _memory(row: BenchRow, _: BenchReport) -> str:
    return NOT_MEASURED if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 1e6:.0f}"


def _images_per_s(row: BenchRow, _: BenchReport) -> str:
    if row.throughput is None:
        return NOT_MEASURED
    return f"{row.throughput.images_per_s.value:.4g} at {row.throughput.batch}"


def _drift(row: BenchRow, _: BenchReport) -> str:
    """Return how much slower the end of a long run was than its beginning, in percent."""
    if row.sustained is None:
        return NOT_MEASURED
    percent = 100 * (row.sustained.drift.value - 1)
    return f"{percent:+.1f} {row.sustained.verdict}"


def _speedup(row: BenchRow, report: BenchReport) -> str:
    if row.status == "failed":
        return "failed"
    if row.name == report.baseline:
        return "baseline"
    if row.speedup is None:
        return NOT_MEASURED
    doubtful = "≈" if row.speedup.verdict == "inconclusive" else ""
    return f"{doubtful}{row.speedup.interval.value:.2f}×"


def _speedup_range(row: BenchRow, report: BenchReport) -> str:
    short = _speedup(row, report)
    if row.speedup is None or row.status == "failed" or row.name == report.baseline:
        return short
    interval = row.speedup.interval
    return f"{short} [{interval.low:.2f}, {interval.high:.2f}] {row.speedup.verdict}"


def _runtime(row: BenchRow, _: BenchReport) -> str:
    return (
        NOT_MEASURED if row.runtime is None else f"{row.runtime.runtime} {row.runtime.version}, {row.runtime.provider}"
    )


def _recall(row: BenchRow, _: BenchReport) -> str:
    """Return R@1 of both directions, image to text first."""
    if row.retrieval is None:
        return NOT_MEASURED
    directions = (row.retrieval.image_to_text, row.retrieval.text_to_image)
    return " / ".join(f"{100 * d.recall[1].value:.1f}" for d in directions)


NAME = Column("model", 1, _name, "left")
SPEEDUP = Column("speed-up", 3, _speedup)
COLUMNS = (
    NAME,
    Column("precision", 7, lambda row, _: row.precision, "left"),
    Column("MB", 5, _size),
    Column("top-1 %", 2, lambda row, _: _percent(row.top1)),
    Column("= teacher %", 6, lambda row, _: _percent(row.agreement_teacher)),
    Column("= student %", 8, lambda row, _: _percent(row.agreement_student)),
    Column("cosine", 10, _cosine),
    Column("parity dB", 9, _parity),
    Column("R@1 %", 9, _recall),
    Column("p50 ms", 4, _p50),
    Column("p90 ms", 11, _p90),
    SPEEDUP,
    Column("MB peak", 12, _memory),
    Column("load ms", 13, _load),
    Column("first ms", 14, _first),
    Column("images/s", 15, _images_per_s),
    Column("drift %", 16, _drift),
    Column("runtime", 17, _runtime, "left"),
)
FULL_COLUMNS = (
    NAME,
    Column("precision", 0, lambda row, _: row.precision, "left"),
    Column("MB", 0, _size),
    Column("top-1 %", 0, lambda row, _: _percent_range(row.top1)),
    Column("p50 ms", 0, _p50),
    Column("speed-up", 0, _speedup_range),
    Column("agrees with teacher %", 0, lambda row, _: _percent_range(row.agreement_teacher)),
    Column("agrees with student %", 0, lambda row, _: _percent_range(row.agreement_student)),
    Column("parity with PyTorch dB", 0, _parity),
    Column("cosine to teacher", 0, _cosine),
    Column("R@1 % image→text / text→image", 0, _recall),
    Column("p90 ms", 0, _p90),
    Column("load ms", 0, _load),
    Column("first inference ms", 0, _first),
    Column("peak memory MB", 0, _memory),
    Column("images/s", 0, _images_per_s),
    Column("drift %", 0, _drift),
    Column("M parameters", 0, _parameters),
    Column("format", 0, lambda row, _: row.format, "left"),
    Column("runtime", 0, _runtime, "left"),
)
"""Where there is room: what decides comes first."""
