"""Which of several quantized files of one model to keep: accuracy and time against the float file, then a rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.export.choice.paired import accuracy_drop, mcnemar_mid_p, speedup, time_in_turns
from edgekit.export.parity import snr_db
from edgekit.export.session import FloatArray, Session, run_batched
from edgekit.interval import Interval

SAME_SPEED = 0.02
"""Equal files differ by up to 2 % within one process, by where their buffers happen to lie."""

NEARLY_AS_GOOD = 0.08
"""Among files within 8 % of the fastest (or the smallest) the one that is closest to the float file is kept: three
convolutions in float cost a TFLite file 6 % of its time and give 3 dB."""


@dataclass(frozen=True)
class ChoiceConfig:
    """What a candidate must keep to.

    Attributes:
        max_drop: points of accuracy (0 to 100) that it may lose against the float file.
        rounds: rounds of timing.
        budget_s: seconds for the timing.
    """

    max_drop: float = 1.0
    rounds: int = 40
    budget_s: float = 10.0


@dataclass(frozen=True)
class Candidate:
    """One candidate: measured and judged.

    Attributes:
        name: its precision.
        size_bytes: of the file.
        reasons: why it is rejected; empty where it may be kept.
        drop: accuracy of the float file minus its own, in [-1, 1], paired; None where it could not be run.
        p_value: mid-p of McNemar's test on the same pictures.
        snr_db: of its logits against the float file's.
        speedup: time of the float file over its own; None where time says nothing (Core ML, interpreted).
        chosen: whether it is the one.
    """

    name: str
    size_bytes: int = 0
    reasons: tuple[str, ...] = ()
    drop: Interval | None = None
    p_value: float | None = None
    snr_db: float | None = None
    speedup: Interval | None = None
    chosen: bool = False

    @property
    def verdict(self) -> str:
        """In words."""
        return "kept" if self.chosen else "; ".join(self.reasons) or "good, another is better"

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return {**asdict(self), "verdict": self.verdict}


def measure(
    baseline: Session,
    candidates: Mapping[str, tuple[Session, int]],
    pictures: tuple[FloatArray, NDArray[np.int64]],
    config: ChoiceConfig,
    *,
    timed: bool,
) -> list[Candidate]:
    """Compare candidates with the float file and say of each why it may not be kept.

    Args:
        baseline: the float file.
        candidates: name to (session, bytes of its file).
        pictures: (N, 3, H, W) float32 in [0, 1] that no range was set on, and their (N,) labels (of clips,
            whose frames follow each other, one label for each clip).
        config: the limits.
        timed: take times, in interleaved rounds, batch 1.
    """
    images, labels = pictures
    reference = run_batched(baseline, images)["logits"]
    right = reference.argmax(1) == labels
    sessions = {"": baseline, **{name: session for name, (session, _) in candidates.items()}}
    calls = {name: _call(session, images) for name, session in sessions.items()}
    seconds = time_in_turns(calls, config.rounds, config.budget_s) if timed else {}
    found = []
    for name, (session, size) in candidates.items():
        logits = run_batched(session, images)["logits"]
        answers = logits.argmax(1) == labels
        faster = speedup(seconds[""], seconds[name]) if timed else None
        drop = accuracy_drop(right, answers)
        found.append(
            Candidate(
                name,
                size,
                reasons(drop, faster, config.max_drop),
                drop,
                mcnemar_mid_p(right, answers),
                snr_db(reference.astype(np.float64), logits.astype(np.float64)),
                faster,
            )
        )
    return found


def reasons(drop: Interval, faster: Interval | None, max_drop: float) -> tuple[str, ...]:
    """Return why a candidate may not be kept, in words; empty where it may."""
    found = []
    if 100 * drop.value > max_drop:
        interval = f"{100 * drop.low:.1f} to {100 * drop.high:.1f}"
        found.append(f"loses {100 * drop.value:.1f} points ({interval}), more than {max_drop:g}")
    if faster is not None and faster.value < 1 - SAME_SPEED and faster.high < 1:
        found.append(f"slower than fp32: {faster.value:.2f}× its speed ({faster.low:.2f} to {faster.high:.2f})")
    return tuple(found)


def choose(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Mark the best candidate that nothing speaks against, if there is one.

    The fastest where times are known, else the smallest. Those within 8 % of it count as equal, and of these the one
    with the highest SNR is kept.
    """
    good = [c for c in candidates if not c.reasons]
    if not good:
        return list(candidates)
    costs = {c.name: 1 / c.speedup.value if c.speedup else float(c.size_bytes) for c in good}
    limit = min(costs.values()) * (1 + NEARLY_AS_GOOD)
    best = max((c for c in good if costs[c.name] <= limit), key=lambda c: c.snr_db if c.snr_db is not None else 0.0)
    return [replace(c, chosen=c is best) for c in candidates]


def _call(session: Session, images: FloatArray) -> Callable[[], object]:
    """Return a call that runs one picture, or one clip."""
    rows = images[: session.input_shape[0] or 1]
    return lambda: session(rows)
