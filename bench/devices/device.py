"""The protocol of everything that measures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from edgekit.bench.accuracy import Progress
from edgekit.bench.results import BenchReport
from edgekit.bench.run import BenchConfig, run_bench

Say = Callable[[str], None]
"""Shows a line to the user."""


class Device(Protocol):
    """Something that measures artifacts and reports what it found, always in the same form."""

    def bench(self, config: BenchConfig, progress: Progress | None = None) -> BenchReport:
        """Measure every candidate of `config`; one that fails says why, and the others go on.

        A device that goes away while it measures is the failure of what it had not measured yet.

        Args:
            config: what to measure.
            progress: makes a progress bar from a description and a total.

        Raises:
            UsageError: nothing to measure, or something that this device cannot do.
            LoadError: the device cannot be reached, or lacks what it needs.
        """
        ...


class LocalDevice:
    """This machine: each model in a process of its own."""

    def bench(self, config: BenchConfig, progress: Progress | None = None) -> BenchReport:
        """Measure here; see `edgekit.bench.run.run_bench`."""
        return run_bench(config, progress)
