"""Keep converters and native runtimes from talking over edgekit's own output.

LiteRT, XNNPACK and MLIR write straight to file descriptors 1 and 2, out of reach of `logging` and `warnings`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def native_output_captured() -> Iterator[None]:
    """Hold back what native code writes to stdout and stderr in the block; on an exception, let stderr have it.

    Works on the process's descriptors: keep the block short and free of output that a user should see.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        saved = [(descriptor, os.dup(descriptor)) for descriptor in (1, 2)]
        try:
            for descriptor, _ in saved:
                os.dup2(held.fileno(), descriptor)
            yield
        except BaseException:
            _restore(saved)
            held.seek(0)
            os.write(2, held.read()[-4000:])
            raise
        else:
            _restore(saved)


def _restore(saved: list[tuple[int, int]]) -> None:
    """Put the saved descriptors back, once."""
    sys.stdout.flush()
    sys.stderr.flush()
    while saved:
        descriptor, copy = saved.pop()
        os.dup2(copy, descriptor)
        os.close(copy)
