"""One bench run: every candidate in its own process, accuracy on the same pictures, then latency of all in turn."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from edgekit.bench.accuracy import Progress, answers, number_classes, run_pictures, score
from edgekit.bench.candidates import Candidate, artifact_candidates, given_artifacts
from edgekit.bench.labels import read_labels
from edgekit.bench.latency import LatencyConfig
from edgekit.bench.place import Place, ThisMachine
from edgekit.bench.proof import prove
from edgekit.bench.results import Answers, BenchReport, RawSamples
from edgekit.bench.run_candidates import student_candidate, teacher_candidate
from edgekit.bench.state import State, open_state, read_precision, start_state, wait_for_libraries
from edgekit.bench.timings import time_batches, time_one, time_sustained
from edgekit.bench.truth import Judged, Truth, load_truth
from edgekit.errors import DataError, UsageError


@dataclass(frozen=True)
class BenchConfig:
    """What to measure.

    Attributes:
        files: artifacts or bundles.
        baseline: run folder of the PyTorch student that speed-ups and accuracy changes refer to, whose teacher is
            shown beside it; None compares with the first file that can be timed.
        data: pictures with labels; None measures latency alone.
        val_fraction: as for distill; None takes what the run records.
        labels: one a line, which class each score of a file without manifest is; None asks the files themselves.
        threads: of every runtime.
        max_images: most validation pictures; None takes all.
        latency: how to time; None leaves it out.
        batch_size: time batches of this size, too, where a file takes them; None leaves it out.
        duration_s: call each model without a pause for this long at the end; None leaves it out.
    """

    files: tuple[Path, ...]
    baseline: Path | None = None
    data: Path | None = None
    val_fraction: float | None = None
    labels: Path | None = None
    threads: int = 1
    max_images: int | None = None
    latency: LatencyConfig | None = field(default_factory=LatencyConfig)
    batch_size: int | None = None
    duration_s: float | None = None


def run_bench(config: BenchConfig, progress: Progress | None = None, place: Place | None = None) -> BenchReport:
    """Measure every candidate; one that fails says why, and the others go on.

    Args:
        config: what to measure.
        progress: makes a progress bar from a description and a total.
        place: where the models are held; None takes processes of this machine.

    Raises:
        UsageError: nothing to measure, or data that is not there.
        LoadError: the baseline cannot be loaded.
    """
    bar = progress or (lambda description, total: nullcontext(lambda count: None))
    if config.data is not None and not config.data.exists():
        raise DataError(f"--data {config.data} is not there; give a folder of pictures by class, or a CSV")
    held = place or ThisMachine()
    labels = read_labels(config.labels) if config.labels is not None else None
    if labels is not None and config.data is None:
        raise UsageError("--labels tells which class each score is, which only pictures need: add --data")
    machine = held.machine()  # before anything runs: its load is that of others
    with _opened(_candidates(config, held), held, bar) as states:
        if held.proves:
            prove(states, bar)
        baseline = "student" if config.baseline else _first_timed(states)
        problems: list[str] = []
        truth, right = _accuracy(states, config, baseline, bar, problems, labels)
        samples = time_one(states, config.latency, baseline, bar) if config.latency else {}
        if config.latency and config.batch_size is not None:
            time_batches(states, config.latency, config.batch_size, bar)
        if config.duration_s is not None:
            time_sustained(states, config.duration_s, bar)
        for state in states:
            read_precision(state)
    return BenchReport(
        rows=tuple(state.row for state in states),
        baseline=baseline,
        machine=machine,
        data=f"{len(truth.samples)} {truth.kind} of {truth.name}" if truth else None,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        edgekit_version=metadata.version("edgekit"),
        latency_config=config.latency,
        samples={name: RawSamples.of(s) for name, s in samples.items()},
        answers=right,
        problems=tuple(problems),
        device=held.device,
        notes=(*(truth.notes if truth else ()), *_notes(states), *held.notes),
    )


@contextmanager
def _opened(candidates: Sequence[Candidate], place: Place, bar: Progress) -> Iterator[list[State]]:
    """Open every candidate where it is held, and let go of all at last.

    Processes load their libraries side by side, then open the models one after the other: a cold start is undisturbed.
    """
    with ExitStack() as stack:
        states = []
        for candidate in candidates:
            state = start_state(candidate, place)
            if state.worker is not None:
                stack.callback(state.worker.close)
            states.append(state)
        with bar(f"opening {len(candidates)} models", 2 * len(candidates)) as advance:
            for step in (wait_for_libraries, open_state):
                for state in states:
                    step(state)
                    advance(1)
        yield states


def _candidates(config: BenchConfig, place: Place) -> Sequence[Candidate]:
    found: list[Candidate] = []
    if config.baseline is not None:
        teacher = teacher_candidate(config.baseline, config.threads)
        found += [*([teacher] if teacher else []), student_candidate(config.baseline, config.threads)]
    found += artifact_candidates(given_artifacts(config.files), config.threads)
    if not found:
        raise UsageError("nothing to bench: give artifacts, bundles, or --baseline RUN")
    possible = place.candidates(found)
    if not possible:
        raise UsageError(f"nothing to bench on {place.device}: {' '.join(place.notes)}")
    return possible


def _first_timed(states: Sequence[State]) -> str:
    """Return the first model that others can be compared with; the first of all where there is none."""
    return next((s for s in states if s.alive and s.candidate.timed), states[0]).candidate.name


def _accuracy(
    states: Sequence[State],
    config: BenchConfig,
    baseline: str,
    bar: Progress,
    problems: list[str],
    labels: Sequence[str] | None,
) -> tuple[Truth | None, dict[str, Answers]]:
    """Score everything on the data; data that cannot be used is a problem of the run, and latency is still measured.

    Raises:
        UsageError: the models do not take the same pictures.
    """
    if config.data is None:
        return None, {}
    frames = _frames(states)
    try:
        truth = load_truth(
            config.data,
            config.baseline,
            _judged(states),
            val_fraction=config.val_fraction,
            max_images=config.max_images,
            frames=frames,
        )
        number_classes(states, truth, labels)
        truth = run_pictures(states, truth, bar)
    except DataError as e:
        problems.append(f"no accuracy: {e}")
        return None, {}
    score(states, truth, baseline)
    return truth, answers(states, truth)


def _judged(states: Sequence[State]) -> list[Judged]:
    """Return the models that will give class scores, as far as that is known."""
    return [
        Judged(one.name, one.trained)
        for one in (state.candidate for state in states if state.alive)
        if one.scored and (not one.outputs or "logits" in one.outputs)
    ]


def _frames(states: Sequence[State]) -> int:
    """Return how many frames all candidates that could be opened take.

    Raises:
        UsageError: some take pictures and some clips, or clips of several lengths.
    """
    taken = {state.candidate.frames: state.candidate.name for state in states if state.row.status == "ok"}
    if len(taken) > 1:
        named = ", ".join(f"{name} takes {frames}" for frames, name in sorted(taken.items()))
        raise UsageError(f"these models do not take the same pictures for one answer: {named}; bench them apart")
    return next(iter(taken), 1)


def _notes(states: Sequence[State]) -> tuple[str, ...]:
    frames = max((state.candidate.frames for state in states), default=1)
    notes = [f"Latency is of one clip of {frames} frames, the teacher's as well."] if frames > 1 else []
    notes += [f"{s.candidate.name}: {s.row.runtime.note}" for s in states if s.row.runtime and s.row.runtime.note]
    return tuple(dict.fromkeys(notes))
