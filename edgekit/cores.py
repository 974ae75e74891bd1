"""How many processor cores this process may use."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Return the cores that this process may run on, at least 1.

    What taskset, a container's cpuset or a cluster's scheduler left of the machine's: with a thread for each core of
    the machine, a job of 8 cores out of 128 would be slower than with 8.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS, Windows
