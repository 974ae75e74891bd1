"""The table of a bench run, for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from edgekit.bench.columns import COLUMNS, FULL_COLUMNS, NAME, NOT_MEASURED, SPEEDUP, Column
from edgekit.bench.results import BenchReport
from edgekit.bench.sustained import DRIFT_MARGIN

_FOLDED_NAME = 24
_STYLE = {"faster": "green", "slower": "red", "inconclusive": "dim"}


def render_terminal(report: BenchReport, width: int) -> RenderableType:
    """Return a rich renderable that fits `width` columns.

    Columns that do not fit are left out, the least important first, and named below the table.
    """
    columns = [c for c in COLUMNS if any(c.cell(row, report) != NOT_MEASURED for row in report.rows)]
    left_out: list[str] = []
    while len(columns) > 2 and _narrowest(report, columns) > width:
        least = max(columns, key=lambda c: c.rank)
        columns.remove(least)
        left_out.append(least.header)
    lines = list(footnotes(report))
    if left_out:
        lines.append(f"Left out for want of width: {', '.join(left_out)}. They are in the JSON and Markdown output.")
    failed = (_line(text, "red") for text in failures(report))
    return Group(_rich_table(report, columns), *failed, *(_line(text, "dim") for text in lines))


def _line(text: str, style: str) -> Padding:
    """Return a line that wraps: edgekit's console wraps nothing by itself, and padding cuts off what is too long."""
    return Padding(Text(text, style=style, no_wrap=False, overflow="fold"), (0, 1))


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
    return [c for c in FULL_COLUMNS if any(c.cell(row, report) != NOT_MEASURED for row in report.rows)]


def _rich_table(report: BenchReport, columns: Sequence[Column]) -> Table:
    table = Table(box=None, pad_edge=True, header_style="bold")
    for column in columns:
        # names may fold, numbers never
        table.add_column(column.header, justify=column.justify, no_wrap=column is not NAME, overflow="fold")
    for row in report.rows:
        cells = []
        for column in columns:
            style = _STYLE[row.speedup.verdict] if column is SPEEDUP and row.speedup else ""
            cells.append(Text(column.cell(row, report), style=style))
        table.add_row(*cells, style="dim" if row.status == "failed" else None)
    return table


def _narrowest(report: BenchReport, columns: Sequence[Column]) -> int:
    """Return the width that the table needs with long names folded and nothing else cut."""
    total = 0
    for column in columns:
        widest = max(cell_len(text) for text in (column.header, *(column.cell(row, report) for row in report.rows)))
        total += 2 + (min(widest, _FOLDED_NAME) if column is NAME else widest)
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


def _escape_markdown(text: str) -> str:
    """Keep a cell a cell: no pipes, no line breaks, no markup from file names."""
    flat = " ".join(text.split())
    return flat.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")
