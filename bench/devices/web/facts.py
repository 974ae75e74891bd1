"""What a page tells of its browser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.errors import LoadError
from edgekit.printable import printable


@dataclass(frozen=True)
class Browser:
    """What a page tells of its browser; every text may be anything.

    Attributes:
        agent: user agent.
        system: what it runs on, as the user agent puts it.
        name: of the browser, with its version.
        cores: processors that it tells of.
        memory_bytes: as coarse as browsers tell it; None where they do not.
        clock_s: step of its clock, seconds.
        gpu: name of the WebGPU adapter; None without one.
        isolated: whether the page is isolated from others, which makes the clock finer and threads possible.
    """

    agent: str
    system: str
    name: str
    cores: int
    memory_bytes: int | None
    clock_s: float
    gpu: str | None
    isolated: bool

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Browser:
        """Read the page's greeting.

        Raises:
            LoadError: something is missing or impossible.
        """
        try:
            gigabytes = facts["memory"]
            clock_s = float(facts["clock_s"])
            if not 0 < clock_s <= 1:
                raise ValueError(f"a clock of {clock_s} s")
            return cls(
                agent=printable(str(facts["agent"]), 300),
                system=printable(str(facts["system"]), 100) or "unknown system",
                name=printable(str(facts["name"]), 60),
                cores=min(4096, max(1, int(facts["cores"]))),
                memory_bytes=None if gigabytes is None else int(float(gigabytes) * 2**30),
                clock_s=clock_s,
                gpu=None if facts["gpu"] is None else printable(str(facts["gpu"]), 100),
                isolated=facts["isolated"] is True,
            )
        except (KeyError, TypeError, ValueError, OverflowError) as e:
            raise LoadError(f"the browser's page does not tell what it runs on: {e!r}") from e
