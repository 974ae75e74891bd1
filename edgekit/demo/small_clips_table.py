"""What came out of the comparison on small sets of clips: accuracies with intervals, and differences paired by clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.interval import Interval

RESAMPLES = 10_000


@dataclass(frozen=True)
class Result:
    """One way to classify clips, with one seed.

    Attributes:
        name: of the recipe or baseline.
        seed: of training and of its clips.
        train_acc: share of the plain training clips that the best checkpoint gets right.
        best_epoch: by the validation clips; 0 for what is not trained.
        last_val_acc: of the last epoch; of what is not trained, the only one.
        right: (M,) whether the best checkpoint is right on each test clip, the same ones for all seeds.
    """

    name: str
    seed: int
    train_acc: float
    best_epoch: int
    last_val_acc: float
    right: NDArray[np.bool_]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping that `of` reads back."""
        return {**vars(self), "right": [int(one) for one in self.right]}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Result:
        """Build from the mapping that `to_dict` made."""
        return cls(**{**values, "right": np.array(values["right"], bool)})


def mean_of_seeds(rows: NDArray[np.floating], *, seed: int = 0) -> Interval:
    """Return the mean of values (seeds, clips) with a 95 % bootstrap interval over both: seeds and clips are resampled.

    The clips are the same for every seed, so that a clip's values are drawn together. With three seeds their share in
    the interval is a rough one, and rather too small.
    """
    count, clips = rows.shape
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(count, np.full(count, 1 / count), RESAMPLES) / count
    shares = generator.multinomial(clips, np.full(clips, 1 / clips), RESAMPLES) / clips
    drawn = ((weights @ rows) * shares).sum(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(rows.mean()), float(low), float(high))


def by_name(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Return the results of each recipe and baseline, in the order in which they first come."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result.name, []).append(result)
    return found


def difference(results: Sequence[Result], others: Sequence[Result]) -> Interval:
    """Return the test accuracy of `results` minus that of `others`, over the seeds that both have, paired by clip."""
    other = {result.seed: result.right for result in others}
    pairs = [(result.right, other[result.seed]) for result in results if result.seed in other]
    return mean_of_seeds(np.array([a.astype(float) - b for a, b in pairs]))


def render(results: Sequence[Result], head: str) -> str:
    """Return the table as Markdown below `head`; differences are from the first recipe that was trained."""
    groups = by_name(results)
    first = next((name for name, group in groups.items() if group[0].best_epoch), None)
    minus_first = "" if first is None else f"minus {first}"
    lines = [
        head,
        "",
        f"| | seeds | train % | test % (95 %) | gap | last epoch's val % | best epochs | {minus_first} |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, group in groups.items():
        minus = "–" if first in (None, name) else _signed(difference(group, groups[first]))
        lines.append(_line(name, group, minus))
    return "\n".join(lines) + "\n"


def _line(name: str, group: Sequence[Result], minus: str) -> str:
    test = mean_of_seeds(np.array([result.right for result in group], float))
    train = float(np.mean([result.train_acc for result in group]))
    last = " ".join(f"{100 * result.last_val_acc:.1f}" for result in group)
    epochs = " ".join(str(result.best_epoch) for result in group) if group[0].best_epoch else "–"
    return (
        f"| {name} | {len(group)} | {100 * train:.1f} | {100 * test.value:.1f} ({100 * test.low:.1f}–"
        f"{100 * test.high:.1f}) | {100 * (train - test.value):.1f} | {last} | {epochs} | {minus} |"
    )


def _signed(interval: Interval) -> str:
    return f"{100 * interval.value:+.1f} ({100 * interval.low:+.1f} to {100 * interval.high:+.1f})"
