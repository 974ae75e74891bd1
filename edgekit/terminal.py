"""What the command line shows: text on standard error, JSON alone on standard output.

NO_COLOR is honoured (by rich); where standard error is not a terminal, bars become plain lines.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

JSON_SCHEMA_VERSION = 1
PLAIN_WIDTH = 120
"""Columns where standard error is a file or a pipe."""


class Terminal:
    """Messages, bars and tables for one command.

    Args:
        verbosity: −1 shows only warnings and errors, 0 is normal, 1 shows details.
    """

    def __init__(self, verbosity: int = 0) -> None:
        self.verbosity = verbosity
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        if not self.console.is_terminal:
            self.console.width = max(self.console.width, PLAIN_WIDTH)

    def say(self, text: str) -> None:
        """Show a line."""
        if self.verbosity >= 0:
            self.console.print(escape(text))

    def heading(self, text: str) -> None:
        """Show a line that opens a part."""
        if self.verbosity >= 0:
            self.console.print(f"\n[bold]{escape(text)}[/bold]")

    def detail(self, text: str) -> None:
        """Show a line under -v."""
        if self.verbosity >= 1:
            self.console.print(f"[dim]{escape(text)}[/dim]")

    def warn(self, text: str) -> None:
        """Show a warning, even under -q."""
        self.console.print(f"[yellow]warning:[/yellow] {escape(text)}")

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        title: str | None = None,
        left: Collection[str] = (),
    ) -> None:
        """Show a table; columns after the first are right-aligned, but those named in `left`."""
        if self.verbosity < 0:
            return
        table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
        for number, column in enumerate(columns):
            justify: JustifyMethod = "left" if number == 0 or column in left else "right"
            table.add_column(column, justify=justify, no_wrap=number == 0, overflow="fold")
        for row in rows:
            table.add_row(*(escape(cell) for cell in row))
        self.console.print(table)

    @contextmanager
    def bar(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show progress over `total` pieces; yields the function that advances it."""
        if self.verbosity < 0:
            yield lambda count: None
        elif self.console.is_terminal:
            with self.progress() as progress:
                task = progress.add_task(description, total=total, rate="")
                yield lambda count: progress.advance(task, count)
        else:
            started = time.perf_counter()
            yield lambda count: None
            self.say(f"{description}: {total} in {time.perf_counter() - started:.1f} s")

    def progress(self) -> Progress:
        """Return a bar with pieces done, a free "rate" text, and the time left; it vanishes when done."""
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )


def muted() -> Terminal:
    """Return a terminal that shows nothing, not even warnings: of several processes only one speaks."""
    terminal = Terminal(-1)
    terminal.console.quiet = True
    return terminal


def print_json(kind: str, values: Mapping[str, Any]) -> None:
    """Print one JSON object on standard output, with its kind and schema version."""
    content = {"schema_version": JSON_SCHEMA_VERSION, "kind": kind, **values}
    sys.stdout.write(json.dumps(content, indent=2, default=str) + "\n")
    sys.stdout.flush()  # here, where a reader that left is handled; at shutdown Python would complain


def human_bytes(size_bytes: float) -> str:
    """Return e.g. "3.81 MB" (decimal units, as file managers and app stores count)."""
    if size_bytes < 1e6:
        return f"{size_bytes / 1e3:.1f} kB"
    return f"{size_bytes / 1e6:.2f} MB" if size_bytes < 1e9 else f"{size_bytes / 1e9:.2f} GB"


def human_count(count: float) -> str:
    """Return e.g. "1.12 M" parameters."""
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= limit:
            return f"{count / limit:.2f}{unit}"
    return f"{count:.0f}"


def percent(share: float) -> str:
    """Return e.g. "75.28 %"."""
    return f"{100 * share:.2f} %"
