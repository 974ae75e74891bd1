"""Times the demo's steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from edgekit.terminal import Terminal


class Clock:
    """Times the steps and announces each with what it is for."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, title: str, why: str) -> Iterator[None]:
        self._terminal.heading(title)
        self._terminal.say(why)
        started = time.perf_counter()
        yield
        self.seconds[title.split("  ", 1)[-1].strip()] = time.perf_counter() - started
