"""How the samples of one optimizer step are divided: first into micro-batches, then between processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import UsageError


@dataclass(frozen=True)
class Split:
    """Which part of every step this process works on; a pure function of (rows, rank, world, accumulate).

    Attributes:
        rank: of this process, 0-based.
        world: number of processes.
        accumulate: micro-batches per optimizer step.
    """

    rank: int = 0
    world: int = 1
    accumulate: int = 1

    @property
    def whole(self) -> bool:
        """Whether each step is one batch of one process."""
        return self.world == self.accumulate == 1

    def parts(self, rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Yield this process's part of each micro-batch of `rows`; sizes differ by one at most, and none is empty.

        The micro-batches do not depend on the number of processes: batch norm sees the same samples together. They
        are dealt out like cards: rows come sorted, so that neighbours are of one class, and a micro-batch cut off in
        one piece would show batch norm and contrast hardly anything else.

        Raises:
            UsageError: there are too few rows to give every part one.
        """
        self.refuse_too_small(len(rows))
        for number in range(self.accumulate):
            yield np.array_split(rows[number :: self.accumulate], self.world)[self.rank]

    def refuse_too_small(self, count: int) -> None:
        """Raise if a step of `count` samples cannot be divided.

        Raises:
            UsageError: with the numbers.
        """
        if count < self.world * self.accumulate:
            raise UsageError(
                f"a batch of {count} cannot be divided between {self.world} process(es) with --accumulate "
                f"{self.accumulate}: each part needs a sample. Raise --batch-size, or start fewer processes"
            )


WHOLE = Split()


@dataclass(frozen=True)
class Share:
    """How much of a whole step's means a part of it makes up; over all parts each sums to 1.

    A mean over the step is Σ share · (mean over the part), whatever the sizes of the parts.

    Attributes:
        samples: for means over samples.
        labelled: for means over labelled samples; 0 where the part, or the whole step, has none.
    """

    samples: float
    labelled: float

    @classmethod
    def of(cls, part: NDArray[np.int64], whole: NDArray[np.int64]) -> Share:
        """Return the share of labels `part` in those of the whole step; −1 marks an unlabelled sample."""
        labelled = int((whole >= 0).sum())
        return cls(len(part) / len(whole), int((part >= 0).sum()) / labelled if labelled else 0.0)
