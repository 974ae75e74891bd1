"""Keep the memory of one training step for the next one, in place of giving it back to the kernel in between.

glibc's malloc maps large blocks on their own and unmaps them when they are freed. Activations of 10 to 40 MB come and
go in every step, so the kernel hands out, and zeroes, hundreds of megabytes of pages each time: a third of a step of
MobileViT-XXS on a CPU (LOG.md, "Training steps").
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# malloc.h; the C library knows them by number only
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3

_LARGE = 2**30
_LARGEST_OF_OLD = 2**25
"""Older versions of glibc take no more than this for a threshold; it is also where their own adaptation ends."""


@contextmanager
def memory_kept() -> Iterator[None]:
    """Let freed memory stay with the process within this block, where the C library is glibc; then give it back."""
    libc = _glibc()
    if libc is None:
        yield
        return
    if not libc.mallopt(_MMAP_THRESHOLD, _LARGE):
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST_OF_OLD)
    libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGE - 1)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST_OF_OLD)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_OF_OLD)
        libc.malloc_trim(0)


def _glibc() -> Any | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
