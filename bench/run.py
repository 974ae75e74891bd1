"""One bench run: accuracy of every candidate on the same pictures, then the latency of all of them in turn."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path

import numpy as np

from edgekit.bench.accuracy import Progress, State, load_truth, run_pictures, score
from edgekit.bench.candidates import (
    Candidate,
    artifact_candidates,
    artifact_paths,
    student_candidate,
    teacher_candidate,
)
from edgekit.bench.latency import LatencyConfig, LatencySamples, measure_latency, paired_s
from edgekit.bench.machine import describe_machine
from edgekit.bench.results import BenchReport, BenchRow, RawSamples
from edgekit.bench.statistics import paired_speedup, summarize
from edgekit.errors import EdgekitError, UsageError
from edgekit.export.session import Session


@dataclass(frozen=True)
class BenchConfig:
    """What to measure.

    Attributes:
        files: artifacts or bundles.
        baseline: run folder of the PyTorch student that speed-ups and accuracy changes refer to, whose teacher is
            shown beside it; None compares with the first file.
        data: pictures with labels; None measures latency alone.
        val_fraction: as for distill.
        threads: of every runtime.
        max_images: most validation pictures; None takes all.
        latency: how to time; None leaves it out.
        seed: of the split, where `val_fraction` makes one.
    """

    files: tuple[Path, ...]
    baseline: Path | None = None
    data: Path | None = None
    val_fraction: float | None = None
    threads: int = 1
    max_images: int | None = None
    latency: LatencyConfig | None = field(default_factory=LatencyConfig)
    seed: int = 0


def run_bench(config: BenchConfig, progress: Progress | None = None) -> BenchReport:
    """Measure every candidate; one that fails says why, and the others go on.

    Args:
        config: what to measure.
        progress: makes a progress bar from a description and a total.

    Raises:
        UsageError: nothing to measure, or unusable data.
        LoadError: the baseline cannot be loaded.
    """
    bar = progress or (lambda description, total: nullcontext(lambda count: None))
    machine = describe_machine()  # before anything runs: its load is that of others
    states = [_open(candidate) for candidate in _candidates(config)]
    baseline = "student" if config.baseline else states[0].candidate.name
    truth = None
    if config.data is not None:
        truth = load_truth(
            config.data,
            config.baseline,
            val_fraction=config.val_fraction,
            max_images=config.max_images,
            seed=config.seed,
            frames=_frames(states),
        )
        run_pictures(states, truth, bar)
        score(states, truth, baseline)
    samples = _time(states, config.latency, baseline, bar) if config.latency else {}
    return BenchReport(
        rows=tuple(state.row for state in states),
        baseline=baseline,
        machine=machine,
        data=f"{len(truth.samples)} {'clips' if truth.frames > 1 else 'pictures'} of {truth.name}" if truth else None,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        edgekit_version=metadata.version("edgekit"),
        latency_config=config.latency,
        samples={name: RawSamples.of(s) for name, s in samples.items()},
        notes=_notes(states),
    )


def _candidates(config: BenchConfig) -> list[Candidate]:
    found: list[Candidate] = []
    if config.baseline is not None:
        teacher = teacher_candidate(config.baseline, config.threads)
        found += [*([teacher] if teacher else []), student_candidate(config.baseline, config.threads)]
    found += artifact_candidates(artifact_paths(config.files), config.threads)
    if not found:
        raise UsageError("nothing to bench: give artifacts, bundles, or --baseline RUN")
    return found


def _frames(states: Sequence[State]) -> int:
    """Return how many frames all candidates take.

    Raises:
        UsageError: some take pictures and some clips, or clips of several lengths.
    """
    taken = {state.candidate.frames: state.candidate.name for state in states}
    if len(taken) > 1:
        named = ", ".join(f"{name} takes {frames}" for frames, name in sorted(taken.items()))
        raise UsageError(f"these models do not take the same pictures for one answer: {named}; bench them apart")
    return next(iter(taken))


def _open(candidate: Candidate) -> State:
    row = BenchRow(
        candidate.name,
        candidate.kind,
        candidate.format,
        candidate.precision,
        candidate.size_bytes,
        candidate.parameters,
    )
    state = State(candidate, row)
    try:
        state.session = candidate.open()
        state.row = replace(row, runtime=state.session.info)
    except EdgekitError as e:
        state.fail(str(e))
    return state


def _time(states: Sequence[State], config: LatencyConfig, baseline: str, bar: Progress) -> Mapping[str, LatencySamples]:
    """Time one picture through every candidate, interleaved, and fill the latency columns."""
    calls = {s.candidate.name: _call(s.session) for s in states if s.alive and s.candidate.timed and s.session}
    if not calls:
        return {}
    compared = baseline if baseline in calls else None
    with bar(f"latency of {len(calls)} models, interleaved", 1) as advance:
        samples = measure_latency(calls, config, baseline=compared)
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


def _call(session: Session) -> Callable[[], object]:
    """Return one inference of one picture; random pixels take as long as real ones."""
    batch, _, height, width = session.input_shape
    images = np.random.default_rng(0).random((batch or 1, 3, height, width), np.float32)
    return lambda: session(images)


def _notes(states: Sequence[State]) -> tuple[str, ...]:
    frames = max((state.candidate.frames for state in states), default=1)
    notes = [f"Latency is of one clip of {frames} frames, the teacher's as well."] if frames > 1 else []
    notes += [f"{s.candidate.name}: {s.row.runtime.note}" for s in states if s.row.runtime and s.row.runtime.note]
    return tuple(dict.fromkeys(notes))
