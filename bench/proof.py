"""Golden vectors through a model on the device that measures: does it compute there what it did where it was made?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgekit.bench.accuracy import Progress
from edgekit.bench.results import GoldenParity
from edgekit.bench.state import State
from edgekit.errors import EdgekitError, LoadError
from edgekit.export.golden import Golden, read_golden
from edgekit.export.parity import GATES
from edgekit.export.verify.file import golden_parity
from edgekit.preprocess import to_input


def prove(states: Sequence[State], bar: Progress) -> None:
    """Run every bundled candidate's golden vectors and fill its parity; one that misses its gate has failed.

    A bundle without readable golden vectors is measured all the same; the row says that nothing was proven.
    """
    taking = [state for state in states if state.alive and state.candidate.golden is not None]
    read: dict[Path, Golden | LoadError] = {}
    with bar(f"golden vectors through {len(taking)} models", len(taking)) as advance:
        for state in taking:
            path = state.candidate.golden
            assert path is not None
            if path not in read:
                read[path] = _read(path)
            golden = read[path]
            if isinstance(golden, LoadError):
                state.row = replace(state.row, notes=(*state.row.notes, f"not proven here: {golden}"))
            else:
                _prove(state, golden)
            advance(1)


def _read(path: Path) -> Golden | LoadError:
    try:
        return read_golden(path)
    except LoadError as e:
        return e


def _prove(state: State, golden: Golden) -> None:
    assert state.worker is not None
    candidate = state.candidate
    assert candidate.claimed is not None
    try:
        found = state.worker(to_input(golden.pixels))
    except EdgekitError as e:
        state.fail(f"on golden vectors: {e}")
        return
    parity, problems = golden_parity(found, golden.outputs, candidate.outputs, GATES[candidate.claimed])
    if parity is not None:
        state.row = replace(state.row, parity=GoldenParity.of(parity))
    if problems:
        state.fail(f"on this device it does not compute what it should: {'; '.join(problems)}")
