"""A candidate on its way through a bench run."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgekit.bench.candidates import Candidate
from edgekit.bench.place import Holder, Place
from edgekit.bench.results import BenchRow
from edgekit.bench.timing import Timer
from edgekit.errors import EdgekitError
from edgekit.export.session import Outputs
from edgekit.preprocess import Preprocess


@dataclass
class State:
    """A candidate, what holds it, and its row, which grows as things are measured.

    Attributes:
        candidate, worker, row: as said.
        outputs: what it gave for the pictures.
        classes: which class each of its scores is; None takes the data's own order.
        labels: (N,) the right class of each picture, as a number of its scores, where `classes` tells.
    """

    candidate: Candidate
    row: BenchRow
    worker: Holder | None = None
    outputs: Outputs | None = None
    classes: tuple[str, ...] | None = None
    labels: NDArray[np.int64] | None = None

    @property
    def alive(self) -> bool:
        """Whether it could be opened and has not failed since."""
        return self.worker is not None and self.row.status == "ok"

    @property
    def contract(self) -> Preprocess:
        """Return how pictures are prepared for it: as its maker says, else its size and ImageNet's usual geometry."""
        assert self.worker is not None
        size = self.worker.input_shape[2]
        return self.candidate.contract or Preprocess(size, round(size / 0.875), "bilinear")

    def fail(self, reason: str) -> None:
        """Mark it failed; what was found before is kept."""
        self.row = replace(self.row, status="failed", failure=reason)

    def timer(self, batch: int | None = None) -> Timer:
        """Return what takes its time."""
        assert self.worker is not None
        return self.worker.timer(batch)


def start_state(candidate: Candidate, place: Place) -> State:
    """Begin to hold a candidate, its libraries loading meanwhile; the row of one that cannot be held says why."""
    row = BenchRow(
        candidate.name,
        candidate.kind,
        candidate.format,
        candidate.precision,
        candidate.size_bytes,
        candidate.parameters,
        sha256=candidate.sha256,
        notes=(candidate.note,) if candidate.note else (),
    )
    state = State(candidate, row)
    if candidate.problem is not None:
        state.fail(candidate.problem)
    elif candidate.opening is not None:
        state.worker = place.start(candidate)
    return state


def open_state(state: State) -> None:
    """Open the candidate in its process; where that fails the row says why."""
    if state.worker is None:
        return
    try:
        state.worker.open()
    except EdgekitError as e:
        state.fail(str(e))
    else:
        state.row = _with_cold_start(state.row, state.candidate, state.worker)


def wait_for_libraries(state: State) -> None:
    """Wait until the candidate's process has loaded what it needs."""
    if state.worker is None:
        return
    try:
        state.worker.loaded()
    except EdgekitError as e:
        state.fail(str(e))


def _with_cold_start(row: BenchRow, candidate: Candidate, worker: Holder) -> BenchRow:
    row = replace(row, runtime=worker.info)
    if not candidate.timed:
        return row  # neither the speed nor the memory of an interpreter says anything of the device it stands for
    return replace(
        row,
        cold=worker.cold,
        process_memory_bytes=worker.process_memory_bytes,
        peak_memory_bytes=worker.peak_memory_bytes,
    )


def read_precision(state: State) -> None:
    """Fill in what a file's weights are stored in; last of all, for reading a file takes memory and may end badly."""
    path = state.candidate.path
    if path is None or state.worker is None or state.worker.ended:
        return
    try:
        state.row = replace(state.row, precision=state.worker.precision(path))
    except EdgekitError as e:
        state.row = replace(state.row, notes=(*state.row.notes, f"its precision could not be read: {e}"))
