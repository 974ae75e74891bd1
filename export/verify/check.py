"""What a verification says, line by line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """One line of the result: what was checked, on what, how it came out.

    Attributes:
        subject: a file of the bundle, or "bundle".
        check: e.g. "sha256", "golden vectors".
        passed: whether it held.
        detail: numbers, or what is wrong.
        unavailable: it could not be checked here, because a package is missing; does not count as passed.
    """

    subject: str
    check: str
    passed: bool
    detail: str
    unavailable: bool = False


def summary(checks: Sequence[Check]) -> dict[str, Any]:
    """Return the checks as JSON-ready values."""
    return {"passed": all(check.passed for check in checks), "checks": [vars(check) for check in checks]}
