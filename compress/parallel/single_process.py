"""Trainings that run in one process: said before any file is touched."""

from __future__ import annotations

from edgekit.compress.parallel.launcher import world_size
from edgekit.errors import UsageError


def refuse_several(what: str) -> None:
    """Raise if the command was started in several processes, as by torchrun.

    Raises:
        UsageError: it was.
    """
    if (world := world_size()) > 1:
        raise UsageError(f"{what} runs in one process, and was started in {world}; start it without torchrun")
