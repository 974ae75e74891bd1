"""The table of a bench run, for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from edgekit.bench.results import BenchReport, BenchRow
from edgekit.bench.sustained import DRIFT_MARGIN
from edgekit.interval import Interval

NOT_MEASURED = "–"
_FOLDED_NAME = 24
_STYLE = {"faster": "green", "slower": "red", "inconclusive": "dim"}


@dataclass(frozen=True)
class Column:
    """A column: its header, how to fill a cell, and what it is worth when the terminal is narrow (1 goes last)."""

    header: str
    rank: int
    cell: Callable[[BenchRow, BenchReport], str]
    justify: Literal["left", "right"] = "right"


def render_terminal(report: BenchReport, width: int) -> RenderableType:
    """Return a rich renderable that fits `width` columns.

    Columns that do not fit are left out, the least important first, and named below the table.
    """
    columns = [c for c in _COLUMNS if any(c.cell(row, report) != NOT_MEASURED for row in report.rows)]
    left_out: list[str] = []
    while len(columns) > 2 and _narrowest(report, columns) > width:
        least = max(columns, key=lambda c: c.rank)
        columns.remove(least)
        left_out.append(least.header)
    lines = list(footnotes(report))
    if left_out:
        lines.append(f"Left out for want of width: {', '.join(left_out)}. They are in the JSON and Markdown output.")
    notes = [Padding(Text(line, style="dim"), (0, 1)) for line in lines]
    failed = [Padding(Text(line, style="red"), (0, 1)) for line in failures(report)]
    return Group(_rich_table(report, columns), *failed, *notes)


def render_markdown(report: BenchReport) -> str:
    """Return the table with all columns that hold anything, its intervals and its footnotes, as Markdown."""
    columns = full_columns(report)
    lines = ["| " + " | ".join(_escape_markdown(c.header) for c in columns) + " |"]
    lines.append("|" + "|".join("---" if c.justify == "left" else "---:" for c in columns) + "|")
    for row in report.rows:
        cells = [_escape_markdown(c.cell(row, report)) for c in columns]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    lines += [f"- {_escape_markdown(line)}" for line in (*failures(report), *footnotes(report))]
    return "\n".join(lines) + "\n"


def full_columns(report: BenchReport) -> list[Column]:
    """Return all columns that hold anything, for a page with room."""
    return [c for c in _FULL_COLUMNS if any(c.cell(row, report) != NOT_MEASURED for row in report.rows)]


def _rich_table(report: BenchReport, columns: Sequence[Column]) -> Table:
    table = Table(box=None, pad_edge=True, header_style="bold")
    for column in columns:
        # names may fold, numbers never
        table.add_column(column.header, justify=column.justify, no_wrap=column is not _NAME, overflow="fold")
    for row in report.rows:
        cells = []
        for column in columns:
            style = _STYLE[row.speedup.verdict] if column is _SPEEDUP and row.speedup else ""
            cells.append(Text(column.cell(row, report), style=style))
        table.add_row(*cells, style="dim" if row.status == "failed" else None)
    return table


def _narrowest(report: BenchReport, columns: Sequence[Column]) -> int:
    """Return the width that the table needs with long names folded and nothing else cut."""
    total = 0
    for column in columns:
        widest = max(cell_len(text) for text in (column.header, *(column.cell(row, report) for row in report.rows)))
        total += 2 + (min(widest, _FOLDED_NAME) if column is _NAME else widest)
    return total


def failures(report: BenchReport) -> tuple[str, ...]:
    """Return what failed, and why."""
    return (*report.problems, *(f"{row.name} failed: {row.failure}" for row in report.failed))


def footnotes(report: BenchReport) -> tuple[str, ...]:
    """Return the sentences without which the numbers could be misread."""
    lines = list(report.machine.warnings)
    if report.data:
        lines.append(f"Accuracy on {report.data}; intervals cover 95 %.")
    speedups = [row.speedup for row in report.rows if row.speedup]
    if report.baseline and speedups:
        effect = 100 * speedups[0].minimum_effect
        lines.append(
            f"Speed-up against {report.baseline}, median of paired rounds; ≈ is inconclusive: the interval does not "
            f"lie beyond ±{effect:g} %."
        )
    if any(sample.stopped == "budget" for sample in report.samples.values()):
        lines.append("The time budget ended before all intervals were as narrow as asked.")
    held = [row.process_memory_bytes for row in report.rows if row.process_memory_bytes]
    if held:
        lines.append(
            f"Each model ran in a process of its own, in turn; MB peak is of that process after its first calls, of "
            f"which {min(held) / 1e6:.0f} to {max(held) / 1e6:.0f} were Python and the runtime's libraries."
        )
    sustained = next((row.sustained for row in report.rows if row.sustained), None)
    if sustained:
        lines.append(
            f"Drift: the last quarter of {sustained.seconds:.0f} s without a pause against the first; "
            f"within ±{100 * DRIFT_MARGIN:g} % is steady."
        )
    retrieval = next((row.retrieval for row in report.rows if row.retrieval), None)
    if retrieval:
        lines.append(f"Retrieval: {retrieval.protocol}.")
    machine = report.machine
    threads = {row.runtime.threads for row in report.rows if row.runtime}
    counted = f", {threads.pop()} threads" if len(threads) == 1 and 0 not in threads else ""
    measured_by = machine.cpu or ("unknown CPU" if report.device == "local" else report.device)
    cores = f", {machine.logical_cores} cores" if machine.logical_cores else ""  # a device that is gone tells none
    lines.append(f"{measured_by}{cores}{counted}; {machine.os}; {report.created}.")
    concerned: dict[str, list[str]] = {}
    for row in report.rows:
        for note in row.notes:
            concerned.setdefault(note, []).append(row.name)
    lines += [f"{', '.join(names)}: {note}" for note, names in concerned.items()]
    return (*lines, *report.notes)


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


_NAME = Column("model", 1, _name, "left")
_SPEEDUP = Column("speed-up", 3, _speedup)
_COLUMNS = (
    _NAME,
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
    _SPEEDUP,
    Column("MB peak", 12, _memory),
    Column("load ms", 13, _load),
    Column("first ms", 14, _first),
    Column("images/s", 15, _images_per_s),
    Column("drift %", 16, _drift),
    Column("runtime", 17, _runtime, "left"),
)
_FULL_COLUMNS = (
    _NAME,
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


def _escape_markdown(text: str) -> str:
    """Keep a cell a cell: no pipes, no line breaks, no markup from file names."""
    flat = " ".join(text.split())
    return flat.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")
