"""Every error a user can cause, and the exit code each one ends with.

A message says three things: what was given, what is allowed, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_OK = 0
EXIT_NEGATIVE = 1
EXIT_USAGE = 2
EXIT_LOAD = 3
EXIT_INTERRUPTED = 130


class EdgekitError(Exception):
    """Base of all errors meant for the user; the command line prints the message and no traceback."""

    exit_code = EXIT_NEGATIVE


class VerificationError(EdgekitError):
    """A valid negative result: a gate, a parity check or a budget was not met (exit 1)."""


class UsageError(EdgekitError):
    """An option, a configuration value or an input path is not acceptable (exit 2)."""

    exit_code = EXIT_USAGE


class DataError(UsageError):
    """The data set cannot be used as it is (exit 2)."""


class OutputExistsError(UsageError):
    """The output is already there and nothing said to replace it (exit 2)."""


class LoadError(EdgekitError):
    """A model, a runtime or a file could not be loaded (exit 3)."""

    exit_code = EXIT_LOAD


class StoppedError(EdgekitError):
    """A signal ended the command after it had saved its work (exit 128 + signal: 130 for Ctrl-C, 143 for SIGTERM)."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal


class MissingExtraError(LoadError):
    """An optional dependency is needed and absent (exit 3)."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package '{package}': pip install 'edgekit[{extra}]'")


_SHOWN_NAMES = 30


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """Return the sentence that ends an "unknown name" error: a near match, else the names, the first ones of many."""
    names = sorted(allowed)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{near[0]}'?"
    left = len(names) - _SHOWN_NAMES
    return f"allowed: {', '.join(names[:_SHOWN_NAMES])}" + (f" and {left} more" if left > 0 else "")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; its type's name where it says nothing, as a bare `assert` does."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
