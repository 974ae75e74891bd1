"""Keep the chatter of named third-party libraries off the terminal while they import or convert.

Nothing is hidden by level or by module alone: a logger is silenced below ERROR by its name, a warning by its text,
a progress bar only while the block runs. Errors always pass.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partialmethod
from typing import Any

LOGGERS = ("coremltools", "torch.utils._pytree")
"""coremltools 9.0 warns of every untested torch and scikit-learn and of the proxies that only macOS has; torch's pytree
repeats a deprecation that torchao causes."""

WARNINGS: tuple[tuple[str, type[Warning]], ...] = (
    # coremltools 9.0 warns of its own use of its own registry, some 100 times in each conversion
    (r"Function _TORCH_OPS_REGISTRY\.\S+ is deprecated", DeprecationWarning),
    # ... and leaves its temporary weight folder to the garbage collector
    (r"Implicitly cleaning up <TemporaryDirectory", ResourceWarning),
)


class _ErrorsOnly(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the libraries named above for the length of the block: log lines, known warnings, progress bars."""
    with ExitStack() as stack:
        for name in LOGGERS:
            stack.enter_context(_errors_only(logging.getLogger(name)))
        stack.enter_context(warnings.catch_warnings())
        for message, category in WARNINGS:
            warnings.filterwarnings("ignore", message=message, category=category)
        stack.enter_context(_no_progress_bars())
        yield


@contextmanager
def _errors_only(logger: logging.Logger) -> Iterator[None]:
    """Let only errors through one logger. A filter, not a level: coremltools sets its own level when it is imported."""
    errors_only = _ErrorsOnly()
    logger.addFilter(errors_only)
    try:
        yield
    finally:
        logger.removeFilter(errors_only)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Create tqdm bars disabled. coremltools 9.0 has no switch for its own, and tqdm reads TQDM_DISABLE at import."""
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        yield
        return
    bar: Any = tqdm
    original = bar.__init__
    bar.__init__ = partialmethod(original, disable=True)
    try:
        yield
    finally:
        bar.__init__ = original
