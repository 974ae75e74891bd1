"""What a file's weights are stored in, read here for devices that cannot tell."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from edgekit.export.contained import call_contained


def precision_here(path: Path) -> str:
    """Return the precision of a file, read in a process of its own; once for all variants of it in a run.

    Raises:
        LoadError: it cannot be read.
    """
    whole = path.absolute()
    return _read(str(whole), whole.stat().st_mtime_ns)


@cache
def _read(path: str, _: int) -> str:
    return str(call_contained("edgekit.bench.openers:precision", path))
