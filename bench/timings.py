"""The timings of a bench run: one picture through every candidate in turn, batches, and long runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgekit.bench.accuracy import Progress
from edgekit.bench.latency import LatencyConfig, LatencySamples, measure_timers, paired_s
from edgekit.bench.state import State
from edgekit.bench.statistics import paired_speedup, summarize
from edgekit.bench.sustained import run_sustained, throughput
from edgekit.errors import EdgekitError


def time_one(
    states: Sequence[State], config: LatencyConfig, baseline: str, bar: Progress
) -> Mapping[str, LatencySamples]:
    """Time one picture through every candidate, interleaved, and fill the latency columns."""
    timers = {s.candidate.name: s.timer() for s in _timed(states)}
    if not timers:
        return {}
    compared = baseline if baseline in timers else None
    with bar(f"latency of {len(timers)} models, interleaved", 1) as advance:
        samples = measure_timers(timers, config, baseline=compared)
        advance(1)
    for state in states:
        found = samples.get(state.candidate.name)
        if found is None:
            continue
        if found.failure is not None:
            state.fail(found.failure)
            continue
        state.row = replace(state.row, latency=summarize(found.seconds))
        if compared is not None and state.candidate.name != compared and samples[compared].failure is None:
            state.row = replace(state.row, speedup=paired_speedup(*paired_s(samples[compared], found)))
    return samples


def time_batches(states: Sequence[State], config: LatencyConfig, batch: int, bar: Progress) -> None:
    """Time batches through every candidate whose file takes them, interleaved; the others say that they do not."""
    taking = []
    for state in _timed(states):
        assert state.worker is not None
        fixed = state.worker.input_shape[0]
        if state.candidate.frames == 1 and fixed in (None, batch):
            taking.append(state)
        else:
            unit = f"a batch of {fixed}" if state.candidate.frames == 1 else f"one clip of {fixed} frames"
            state.row = replace(state.row, notes=(*state.row.notes, f"takes {unit}, not {batch} pictures at once"))
    if not taking:
        return
    with bar(f"batches of {batch} through {len(taking)} models, interleaved", 1) as advance:
        samples = measure_timers({s.candidate.name: s.timer(batch) for s in taking}, config)
        advance(1)
    for state in taking:
        found = samples[state.candidate.name]
        if found.failure is not None:
            state.fail(f"at a batch of {batch}: {found.failure}")
        else:
            state.row = replace(state.row, throughput=throughput(found.seconds, batch, summarize(found.seconds)))


def time_sustained(states: Sequence[State], duration_s: float, bar: Progress) -> None:
    """Call one candidate after the other for `duration_s` without a pause; the others rest meanwhile."""
    taking = _timed(states)
    with bar(f"{duration_s:g} s without a pause through each of {len(taking)} models", len(taking)) as advance:
        for state in taking:
            try:
                state.row = replace(state.row, sustained=run_sustained(state.timer(), duration_s))
            except EdgekitError as e:
                state.fail(f"while it ran for {duration_s:g} s: {e}")
            advance(1)


def _timed(states: Sequence[State]) -> list[State]:
    return [state for state in states if state.alive and state.candidate.timed]
