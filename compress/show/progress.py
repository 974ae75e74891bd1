"""Training as a person watches it: a bar with its speed and the time left, and a row per epoch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.progress import Progress, TaskID

from edgekit.compress.training.history import LOSS_PARTS
from edgekit.terminal import Terminal

_PERCENT = ("train_acc", "val_acc", "zeroshot_acc", "text_r1", "image_r1", "mean_r1", "agreement")
_TITLES = {
    "train_acc": "train %",
    "val_acc": "val %",
    "zeroshot_acc": "0-shot %",
    "agreement": "agree %",
    "text_r1": "i→t R@1",
    "image_r1": "t→i R@1",
    "mean_r1": "mean R@1",
    "contrastive": "contrast",
}


class TrainingDisplay:
    """Shows `fit` on a terminal; plain rows where there is none.

    Args:
        terminal: where.
        unit: what the task counts, e.g. "texts".
    """

    def __init__(self, terminal: Terminal, unit: str = "images") -> None:
        self._terminal, self._unit = terminal, unit
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._columns: list[str] = []
        self._images = 0
        self._epochs = 0
        self._started = time.perf_counter()
        self.forecasts = terminal.verbosity >= 0

    def start(self, epochs: int, steps_per_epoch: int, done_steps: int = 0) -> None:
        """Open the bar; a resumed run begins at `done_steps`, and says so."""
        self._epochs = epochs
        if done_steps:
            done, step = divmod(done_steps, steps_per_epoch)
            within = f", after {step} of its {steps_per_epoch} steps" if step else ""
            where = f"in epoch {done + 1} of {epochs}{within}" if done < epochs else f"after all {epochs} epochs"
            self._terminal.say(f"resumed  {where}")
        self._started = time.perf_counter()
        if self._terminal.verbosity >= 0 and self._terminal.console.is_terminal:
            self._progress = self._terminal.progress()
            self._progress.start()
            self._task = self._progress.add_task(
                "training", total=epochs * steps_per_epoch, completed=done_steps, rate=""
            )

    def step(self, epoch: int, images: int, loss: float) -> None:
        """Advance the bar by one step."""
        self._images += images
        if self._progress is not None:
            rate = self._images / (time.perf_counter() - self._started)
            self._progress.update(
                self._task,
                advance=1,
                description=f"epoch {epoch}/{self._epochs}",
                rate=f"{rate:.0f} {self._unit}/s  loss {loss:.3f}",
            )

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Print the row of an evaluated epoch; the first one brings the header."""
        if not row["evaluated"]:
            return
        if not self._columns:
            self._columns = [name for name in (*LOSS_PARTS, *_PERCENT) if name in row]
            titles = [_TITLES.get(name, name) for name in self._columns]
            self._terminal.say(
                "epoch  " + "".join(f"{title:>9}" for title in titles) + f"{'lr':>10}{'seconds':>9}  best"
            )
        cells = "".join(
            f"{100 * row[name]:9.2f}" if name in _PERCENT else f"{row[name]:9.4f}" for name in self._columns
        )
        mark = "  *" if row["best"] else ""
        self._terminal.say(f"{row['epoch']:>5}  {cells}{row['lr']:10.2e}{row['seconds']:9.1f}{mark}")

    def warn(self, text: str) -> None:
        """Show a warning above the bar."""
        self._terminal.warn(text)

    def note(self, text: str) -> None:
        """Show a line above the bar."""
        self._terminal.say(text)

    def finish(self) -> None:
        """Close the bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
