"""`--precision auto`: make a format's quantized files, measure each against the float file, keep the best."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.export.attempt import Attempt, Workshop
from edgekit.export.choice.candidates import Candidate, ChoiceConfig, choose, measure
from edgekit.export.precisions import CANDIDATES
from edgekit.export.runtimes import CAN_BE_TIMED, DEFAULT_RUNTIME, Format, open_session
from edgekit.export.session import Session


@dataclass(frozen=True)
class Choice:
    """What `auto` found for one format.

    Attributes:
        format: of the files.
        pictures: validation pictures that accuracy was measured on.
        config: the limits.
        candidates: all that were tried, judged; one is `chosen`, or none.
        attempt: the file that is kept; without one, why.
    """

    format: Format
    pictures: int
    config: ChoiceConfig
    candidates: tuple[Candidate, ...]
    attempt: Attempt

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return {
            "format": self.format,
            "kept": self.attempt.name if not self.attempt.problems else None,
            "pictures": self.pictures,
            "max_drop": self.config.max_drop,
            "timed": self.timed,
            "candidates": [candidate.to_dict() for candidate in self.candidates],
        }

    @property
    def timed(self) -> bool:
        """Whether time was measured."""
        return CAN_BE_TIMED[DEFAULT_RUNTIME[self.format]]


def choose_precision(workshop: Workshop, form: Format, labels: NDArray[np.int64], config: ChoiceConfig) -> Choice:
    """Make, measure and choose.

    Args:
        workshop: makes the files; its comparison pictures are those that accuracy is measured on.
        form: the format.
        labels: (N,) classes of these pictures.
        config: the limits.
    """
    attempts = {precision: workshop.make(form, precision) for precision in ("fp32", *CANDIDATES[form])}
    base = attempts.pop("fp32")
    if base.problems:
        return _without(form, labels, config, f"the float file failed, so nothing can be chosen: {base.problems[0]}")
    failed = [Candidate(name, a.size_bytes, a.problems) for name, a in attempts.items() if a.problems]
    sessions: dict[str, tuple[Session, int]] = {
        name: (open_session(workshop.path(a)), a.size_bytes) for name, a in attempts.items() if not a.problems
    }
    timed = CAN_BE_TIMED[DEFAULT_RUNTIME[form]]
    pictures = (workshop.comparison[0], labels)
    measured = measure(open_session(workshop.path(base)), sessions, pictures, config, timed=timed)
    judged = choose([*measured, *failed])
    best = next((attempts[name] for name in attempts if any(c.chosen and c.name == name for c in judged)), None)
    if best is None:
        told = "; ".join(f"{c.name}: {c.verdict}" for c in judged)
        return _without(form, labels, config, f"no candidate may be kept ({told})", tuple(judged))
    choice = Choice(form, len(labels), config, tuple(judged), best)
    return replace(choice, attempt=replace(best, choice=choice.to_dict()))


def _without(
    form: Format,
    labels: NDArray[np.int64],
    config: ChoiceConfig,
    reason: str,
    candidates: tuple[Candidate, ...] = (),
) -> Choice:
    problem = Attempt(f"auto for {form}", form, "int8", problems=(reason,))
    return Choice(form, len(labels), config, candidates, problem)
