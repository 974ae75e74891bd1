"""Take the time beside the model: a visit of a few calls, and a first use. Runs in the process that holds the model."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat

from edgekit.errors import EdgekitError
from edgekit.export.session import FloatArray, RuntimeInfo, Session

Timer = Callable[[int, int], Sequence[int]]
"""(samples, calls per sample) -> nanoseconds of each sample, taken after one untimed call; as `visit` does it."""


@dataclass(frozen=True)
class ColdStart:
    """What the first use of a model costs.

    Attributes:
        load_s: seconds from nothing to a session that can be called.
        first_inference_s: seconds of its first call, which often compiles or allocates.
        second_inference_s: seconds of the call after it, for comparison.
        info: what ran it.
    """

    load_s: float
    first_inference_s: float
    second_inference_s: float
    info: RuntimeInfo


def measure_cold(open_session: Callable[[], Session], pictures: Callable[[Session], FloatArray]) -> ColdStart:
    """Open a session and call it twice, timing each.

    The file may still be in the operating system's cache: this is a cold process or session, not a cold disk.

    Args:
        open_session: loads the model anew.
        pictures: returns what the session is called with, (B, 3, H, W) float32 in [0, 1]; making them is not timed.
    """
    start = time.perf_counter()
    session = open_session()
    load_s = time.perf_counter() - start
    images = pictures(session)
    calls = []
    for _ in range(2):
        start = time.perf_counter()
        session(images)
        calls.append(time.perf_counter() - start)
    return ColdStart(load_s, calls[0], calls[1], session.info)


def visit(call: Callable[[], object], samples: int, calls_per_sample: int) -> list[int]:
    """Call once untimed, then take samples; return nanoseconds of each, the sum over `calls_per_sample` calls."""
    # Untimed: brings the weights back into the caches that another candidate has just filled, and lets the
    # other runtime's worker threads, which spin on for a while after their last call, go to sleep.
    call()
    return _timed(call, samples, calls_per_sample)


def reason_of(error: Exception) -> str:
    """Return why a candidate failed in one line; an error of ours speaks for itself, another's type says more."""
    first = (str(error).strip() or "no message").splitlines()[0][:300]
    return first if isinstance(error, EdgekitError) else f"{type(error).__name__}: {first}"


def _timed(call: Callable[[], object], samples: int, calls_per_sample: int) -> list[int]:
    """Return `samples` durations in nanoseconds, each of `calls_per_sample` calls."""
    clock = time.perf_counter_ns
    ticks = [0] * samples
    with _no_garbage_collection():
        for at in range(samples):
            start = clock()
            for _ in repeat(None, calls_per_sample):
                call()
            ticks[at] = clock() - start
    return ticks


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Hold the cyclic garbage collector back.

    A collection costs milliseconds in a process full of objects and hits whichever candidate happens to allocate
    the object that triggers it. Between visits it may run.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
