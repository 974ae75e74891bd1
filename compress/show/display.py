"""Where the progress of training goes: a terminal (`edgekit.compress.show.progress`), or nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Display(Protocol):
    """Where progress goes: a terminal, or nowhere.

    Attributes:
        forecasts: whether a forecast at the ends of epochs is wanted, as a note.
    """

    @property
    def forecasts(self) -> bool: ...

    def start(self, epochs: int, steps_per_epoch: int, done_steps: int = 0) -> None: ...

    def step(self, epoch: int, images: int, loss: float) -> None: ...

    def epoch(self, row: Mapping[str, Any]) -> None: ...

    def warn(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...

    def finish(self) -> None: ...


class Silent:
    """A display that shows nothing."""

    forecasts = False

    def start(self, epochs: int, steps_per_epoch: int, done_steps: int = 0) -> None:
        """Ignore."""

    def step(self, epoch: int, images: int, loss: float) -> None:
        """Ignore."""

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Ignore."""

    def warn(self, text: str) -> None:
        """Ignore: what matters is in metrics.jsonl, too."""

    def note(self, text: str) -> None:
        """Ignore."""

    def finish(self) -> None:
        """Ignore."""
