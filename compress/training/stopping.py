"""Ctrl-C and SIGTERM while training: finish the step, save, stop. A second Ctrl-C leaves at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """What the user or the system asked for.

    Attributes:
        signal: the number of the signal that came, None while none has.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request within the block; signals that were ignored stay ignored."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # Python lets only the main thread do this
        yield request
        return
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            before[number] = signal.signal(number, request._receive)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
