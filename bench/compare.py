"""Compare two bench runs, made at different times or on different devices: what differs, and what is sure.

Two runs of the same file an hour apart differ by several percent on an ordinary machine, however narrow each run's own
interval is. Where a model was measured in both runs, unchanged, on the same device and runtime, it tells how much
faster the machine itself was: the others' times are then compared as multiples of that model's, taken in the same
rounds. The baseline serves where it can. Without such a model a difference must be larger to be called one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.bench.latency import LatencySamples, paired_s
from edgekit.bench.results import BenchReport, BenchRow
from edgekit.bench.significance import AccuracyVerdict, compare_accuracy
from edgekit.bench.statistics import Verdict, median_interval, paired_speedup
from edgekit.interval import Interval

WITH_REFERENCE = 0.03
"""Between runs, of times measured as multiples of a reference: the smallest effect. Every run has new processes, whose
memory lies elsewhere: over 20 runs of equal workloads the multiple itself varied by up to 1 %."""
WITHOUT_REFERENCE = 0.10
"""Between runs of bare times. Users saw the same file differ by 8 %."""
_FEWEST_ROUNDS = 10


@dataclass(frozen=True)
class SpeedChange:
    """How much faster the second run's model is.

    Attributes:
        ratio: time in the first run over time in the second; above 1 the second is faster.
        verdict: of the second, "faster" or "slower" only where the whole interval lies beyond the minimum effect.
        reference: the model that both runs measured times against; None where bare times are compared.
        minimum_effect: the smallest relative difference that is called one.
    """

    ratio: Interval
    verdict: Verdict
    reference: str | None
    minimum_effect: float


@dataclass(frozen=True)
class AccuracyChange:
    """How much more accurate the second run's model is.

    Attributes:
        difference: top-1 of the second minus that of the first.
        verdict: of the second.
        paired: whether both answered the same pictures, so that they were compared one by one.
    """

    difference: Interval
    verdict: AccuracyVerdict
    paired: bool


@dataclass(frozen=True)
class RowComparison:
    """One model in both runs.

    Attributes:
        first, second: its rows.
        differs: what is not the same, in words: the file, its precision, runtime, threads.
        speed, accuracy: None where one of the runs did not measure it.
    """

    first: BenchRow
    second: BenchRow
    differs: tuple[str, ...]
    speed: SpeedChange | None
    accuracy: AccuracyChange | None

    @property
    def regressed(self) -> bool:
        """Whether the second is slower, less accurate, or failed where the first did not."""
        broke = self.second.status == "failed" and self.first.status == "ok"
        slower = self.speed is not None and self.speed.verdict == "slower"
        return broke or slower or (self.accuracy is not None and self.accuracy.verdict == "worse")


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side.

    Attributes:
        differs: what of the runs as a whole is not the same, in words.
        rows: models that both have.
        only_first, only_second: names of models that one alone has.
    """

    differs: tuple[str, ...]
    rows: tuple[RowComparison, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]


def compare_reports(first: BenchReport, second: BenchReport) -> Comparison:
    """Compare what two runs found of the models that both have.

    Models are matched by name, else by the hash of their file; where each run has one artifact alone, these are.
    """
    pairs = list(_matched(first.rows, second.rows))
    seen_first, seen_second = {id(a) for a, _ in pairs}, {id(b) for _, b in pairs}
    same_device = device_of(first) == device_of(second)
    timed = first.samples.keys() & second.samples.keys()
    unchanged = [a.name for a, b in pairs if a.name in timed and a.name == b.name and _is_unchanged(a, b)]
    unchanged = unchanged if same_device else []
    reference = first.baseline if first.baseline in unchanged else next(iter(unchanged), None)
    rows = tuple(
        RowComparison(
            a,
            b,
            _row_differences(a, b),
            _speed(first, second, (a, b), reference),
            _accuracy(first, second, (a, b)),
        )
        for a, b in pairs
    )
    return Comparison(
        _run_differences(first, second),
        rows,
        tuple(row.name for row in first.rows if id(row) not in seen_first),
        tuple(row.name for row in second.rows if id(row) not in seen_second),
    )


def device_of(report: BenchReport) -> str:
    """Return what measured, in words by which history tells devices apart."""
    machine = report.machine
    return f"{report.device}: {machine.cpu or 'unknown CPU'}, {machine.logical_cores} cores, {machine.os.split()[0]}"


def _matched(first: Sequence[BenchRow], second: Sequence[BenchRow]) -> Iterator[tuple[BenchRow, BenchRow]]:
    by_name = {row.name: row for row in second}
    left = [row for row in first if row.name not in by_name]
    free = {row.name: row for row in second if row.name not in {one.name for one in first}}
    for row in first:
        if row.name in by_name:
            yield row, by_name[row.name]
    for row in left:
        same = [other for other in free.values() if row.sha256 is not None and other.sha256 == row.sha256]
        alone = [other for other in free.values() if other.kind == "artifact"]
        artifacts = [other for other in left if other.kind == "artifact"]
        if not same and row.kind == "artifact" and len(alone) == len(artifacts) == 1:
            same = alone
        if same:
            yield row, free.pop(same[0].name)


def _is_unchanged(first: BenchRow, second: BenchRow) -> bool:
    """Whether a row can stand for the machine: the same model in the same runtime, timed in both runs."""
    timed = first.latency is not None and second.latency is not None and first.status == second.status == "ok"
    known = first.sha256 is not None or first.kind == "teacher"
    return timed and known and not _row_differences(first, second)


def _row_differences(first: BenchRow, second: BenchRow) -> tuple[str, ...]:
    found = []
    if first.name != second.name:
        found.append(f"name: {first.name} → {second.name}")
    if first.sha256 != second.sha256 and first.sha256 and second.sha256:
        found.append(f"file: {first.sha256[:12]} → {second.sha256[:12]}")
    if first.precision != second.precision:
        found.append(f"precision: {first.precision} → {second.precision}")
    if first.parameters != second.parameters and first.parameters and second.parameters:
        found.append(f"parameters: {first.parameters} → {second.parameters}")
    if first.runtime and second.runtime and first.runtime != second.runtime:
        for name in ("runtime", "version", "provider", "threads"):
            before, after = getattr(first.runtime, name), getattr(second.runtime, name)
            if before != after:
                found.append(f"{'runtime version' if name == 'version' else name}: {before} → {after}")
    return tuple(found)


def _run_differences(first: BenchReport, second: BenchReport) -> tuple[str, ...]:
    pairs = (
        ("device", device_of(first), device_of(second)),
        ("edgekit", first.edgekit_version, second.edgekit_version),
        ("operating system", first.machine.os, second.machine.os),
        ("governor", first.machine.governor, second.machine.governor),
        ("data", first.data, second.data),
    )
    return tuple(f"{name}: {before} → {after}" for name, before, after in pairs if before != after)


def _speed(
    first: BenchReport, second: BenchReport, pair: tuple[BenchRow, BenchRow], reference: str | None
) -> SpeedChange | None:
    raw = first.samples.get(pair[0].name), second.samples.get(pair[1].name)
    if raw[0] is None or raw[1] is None or not raw[0].rounds or not raw[1].rounds:
        return None
    own = raw[0].samples(pair[0].name), raw[1].samples(pair[1].name)
    rounds = min(len(own[0].rounds), len(own[1].rounds))
    if reference is not None and reference not in (pair[0].name, pair[1].name):
        speedups = []
        for report, samples in zip((first, second), own, strict=True):
            base_s, own_s = paired_s(report.samples[reference].samples(reference), samples)
            if len(base_s):
                speedups.append(paired_speedup(base_s, own_s).interval)
        if len(speedups) == 2:
            ratio = _ratio(speedups[1], speedups[0])
            return SpeedChange(ratio, _verdict(ratio, WITH_REFERENCE, rounds), reference, WITH_REFERENCE)
    ratio = _ratio(*(_typical(samples, own) for samples in own))
    return SpeedChange(ratio, _verdict(ratio, WITHOUT_REFERENCE, rounds), None, WITHOUT_REFERENCE)


def _typical(samples: LatencySamples, both: Sequence[LatencySamples]) -> Interval:
    """Return the median over rounds of the fastest call; both runs count the same number of calls in a visit."""
    calls = min(one.seconds.shape[1] for one in both)
    return median_interval(np.min(samples.seconds[:, :calls], axis=1, keepdims=True))


def _ratio(above: Interval, below: Interval) -> Interval:
    """Return the ratio of two independent estimates: MOVER on logarithms (Zou & Donner, 2008, Stat Med 27:1693)."""
    up = math.hypot(math.log(above.high / above.value), math.log(below.value / below.low))
    down = math.hypot(math.log(above.value / above.low), math.log(below.high / below.value))
    value = above.value / below.value
    return Interval(value, value * math.exp(-down), value * math.exp(up), above.level)


def _verdict(ratio: Interval, margin: float, rounds: int) -> Verdict:
    if rounds < _FEWEST_ROUNDS:
        return "inconclusive"
    if ratio.low > 1 + margin:
        return "faster"
    return "slower" if ratio.high < 1 / (1 + margin) else "inconclusive"


def _accuracy(first: BenchReport, second: BenchReport, pair: tuple[BenchRow, BenchRow]) -> AccuracyChange | None:
    before, after = pair[0].top1, pair[1].top1
    if before is None or after is None:
        return None
    answers = first.answers.get(pair[0].name), second.answers.get(pair[1].name)
    if answers[0] and answers[1] and answers[0].pictures_sha256 == answers[1].pictures_sha256:
        found = compare_accuracy(answers[1].unpacked(), answers[0].unpacked())
        return AccuracyChange(found.difference, found.verdict, paired=True)
    # Newcombe's hybrid score interval (1998, Stat Med 17:873, method 10), which is MOVER on Wilson's
    value = after.value - before.value
    low = value - math.hypot(after.value - after.low, before.high - before.value)
    high = value + math.hypot(after.high - after.value, before.value - before.low)
    verdict: AccuracyVerdict = "better" if low > 0 else "worse" if high < 0 else "inconclusive"
    return AccuracyChange(Interval(value, low, high, after.level), verdict, paired=False)
