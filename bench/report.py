"""What a report says of bench results, training runs and bundles; `edgekit.bench.page` makes a page of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.bench.figures import Point, Series, distributions, lines, trade_off
from edgekit.bench.page import Cell, Column, Page, PageFigure, PageTable, Row, Section
from edgekit.bench.report_bundle import Bundle, bundle_sections, fact
from edgekit.bench.results import BenchReport, BenchRow
from edgekit.bench.table import failures, footnotes, full_columns

_LOSSES = ("loss", "feature", "response", "task", "affinity", "contrastive", "val_loss")
_SHARES = {
    "train_acc": "train",
    "val_acc": "validation",
    "zeroshot_acc": "zero-shot",
    "agreement": "agreement with teacher",
    "mean_r1": "mean R@1",
}
_MOST_NOTES = 60


@dataclass(frozen=True)
class Training:
    """A training run.

    Attributes:
        name: of the run.
        facts: its run.json.
        epochs: (N,) epochs.
        columns: name -> (N,) values, NaN where there is none.
        notes: what had to be put in order.
        phase_ends: epochs after which a new phase began (--init-from); epochs count through all phases.
    """

    name: str
    facts: Mapping[str, Any]
    epochs: Sequence[float]
    columns: Mapping[str, Sequence[float]]
    notes: tuple[str, ...] = ()
    phase_ends: Sequence[float] = ()


def build_page(
    title: str, benches: Sequence[BenchReport], trainings: Sequence[Training], bundles: Sequence[Bundle]
) -> Page:
    """Return the page: the table first, then what it rests on."""
    sections: list[Section] = []
    for bench in benches:
        sections += _bench_sections(bench)
    sections += [_training_section(training) for training in trainings]
    for bundle in bundles:
        sections += bundle_sections(bundle)
    sections += [_device_section(bench) for bench in benches]
    made = [f"measured {bench.created} by edgekit {bench.edgekit_version}" for bench in benches]
    made += [f"bundle {bundle.name} of {bundle.manifest.created}" for bundle in bundles]
    return Page(
        title,
        "; ".join(made) or "a training run",
        tuple(sections),
        tuple(line for bench in benches for line in failures(bench)),
        tuple(dict.fromkeys(line for bench in benches for line in bench.machine.warnings)),
    )


def _bench_sections(bench: BenchReport) -> list[Section]:
    numbers = {row.name: number for number, row in enumerate(bench.rows, 1)}
    columns = full_columns(bench)
    rows = tuple(
        Row(tuple(Cell(c.cell(row, bench), _mark(row, c.header)) for c in columns), numbers[row.name])
        for row in bench.rows
    )
    head = tuple(Column(c.header, "text" if c.justify == "left" else "") for c in columns)
    shown = [line for line in footnotes(bench) if line not in bench.machine.warnings]
    sections = [Section("From teacher to artifacts", PageTable(head, rows), notes=tuple(shown[:_MOST_NOTES]))]
    figures = tuple(_bench_figures(bench, numbers))
    if figures:
        key = tuple((number, name) for name, number in numbers.items())
        sections.append(Section("Accuracy and latency", figures=figures, key=key))
    return sections


def _mark(row: BenchRow, header: str) -> str:
    if header == "speed-up":
        return "failed" if row.status == "failed" else row.speedup.verdict if row.speedup else ""
    if header == "drift %" and row.sustained is not None:
        return row.sustained.verdict
    return row.accuracy.verdict if header == "top-1 %" and row.accuracy is not None else ""


def _bench_figures(bench: BenchReport, numbers: Mapping[str, int]) -> list[PageFigure]:
    """Return accuracy against latency, the distributions, and long runs, as far as they were measured.

    Times of 0, of a clock too coarse for the model, have no place on a logarithmic axis.
    """
    found = []
    points = [
        Point(numbers[row.name], row.latency.p50_s, row.top1.value, row.top1.low, row.top1.high)
        for row in bench.rows
        if row.latency is not None and row.top1 is not None and row.latency.p50_s > 0
    ]
    if points:
        caption = "Up and to the left is better; the dashed line is the Pareto front. Bars: 95 % intervals."
        found.append(PageFigure(trade_off(points), caption))
    samples = [
        (numbers[name], raw.samples(name).seconds.ravel())
        for name, raw in bench.samples.items()
        if name in numbers and raw.nanoseconds
    ]
    samples = [(number, seconds) for number, seconds in samples if seconds.min() > 0]
    if samples:
        caption = "Box: middle half of the calls; stroke: median; line: 5 to 95 %; dot: 99 %."
        found.append(PageFigure(distributions(sorted(samples, key=lambda s: s[0])), caption))
    long = [
        Series(numbers[row.name], None, row.sustained.at_s, [t / row.sustained.p50_s[0] for t in row.sustained.p50_s])
        for row in bench.rows
        if row.sustained is not None and row.sustained.p50_s and row.sustained.p50_s[0] > 0
    ]
    if long:
        figure = lines("sustained", "Without a pause", long, x="seconds", y="time of a call, of its first")
        found.append(PageFigure(figure, "Above 1 the model has become slower, as a device does that grows warm."))
    return found


def _training_section(training: Training) -> Section:
    losses = [_series(training, name, number, name.replace("_", " ")) for number, name in enumerate(_LOSSES, 1)]
    shares = [_series(training, name, number, label, 100.0) for number, (name, label) in enumerate(_SHARES.items(), 1)]
    rate = [_series(training, "lr", 1, None)]
    figures = []
    for name, title, unit, series in (
        ("loss", "Losses", "loss", losses),
        ("accuracy", "Accuracy", "%", shares),
        ("rate", "Learning rate", "learning rate", rate),
    ):
        drawn = [one for one in series if len(one.x)]
        if drawn:
            figure = lines(f"training-{name}", title, drawn, x="epoch", y=unit, marks=training.phase_ends)
            phases = "Dashed: a new phase begins." if training.phase_ends else ""
            figures.append(PageFigure(figure, phases))
    return Section(
        f"Training of {training.name}",
        figures=tuple(figures),
        facts=tuple(_training_facts(training.facts)),
        notes=training.notes,
    )


def _series(training: Training, name: str, number: int, label: str | None, scale: float = 1.0) -> Series:
    epochs, values = np.asarray(training.epochs, float), np.asarray(training.columns.get(name, ()), float)
    if len(values) != len(epochs):
        return Series(number, label, (), ())
    kept = np.isfinite(values)
    return Series(number, label, epochs[kept].tolist(), (scale * values[kept]).tolist())


def _training_facts(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what of run.json a reader wants, as far as it is there; file names without their folders."""
    found = []
    for part, names in (
        ("teacher", ("name", "parameters", "class_scores", "val_acc")),
        ("student", ("arch", "image_size", "parameters", "macs")),
        ("data", ("train", "labelled", "val", "fingerprint")),
        ("summary", ("best_epoch", "val_acc", "agreement", "seconds")),
    ):
        values = facts.get(part)
        if isinstance(values, Mapping):
            said = [f"{n.replace('_', ' ')} {fact(values[n])}" for n in names if values.get(n) is not None]
            found.append((part, ", ".join(said)))
    versions = facts.get("versions")
    if isinstance(versions, Mapping):
        found.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)))
    found += [(name, fact(facts[name])) for name in ("seed", "git", "cuda") if facts.get(name) is not None]
    return found


def _device_section(bench: BenchReport) -> Section:
    machine = bench.machine
    memory = f"{machine.memory_bytes / 2**30:.1f} GiB" if machine.memory_bytes else "unknown"
    load = f"{machine.load_average:.2f}" if machine.load_average is not None else "unknown"
    cores = f"{machine.logical_cores} usable" + (
        f", {machine.physical_cores} physical" if machine.physical_cores else ""
    )
    facts = [
        ("device", bench.device),
        ("processor", machine.cpu or "unknown"),
        ("cores", cores),
        ("memory", memory),
        ("governor", machine.governor or "not told"),
        ("load before", load),
        ("system", machine.os),
        *([("Python", machine.python)] if machine.python else []),
    ]
    config = bench.latency_config
    if config is not None:
        facts.append(
            (
                "timing",
                f"interleaved rounds in random order (seed {config.seed}), at least {config.min_rounds}, until ±"
                f"{100 * config.target_halfwidth:g} % or {config.max_time_s:g} s",
            )
        )
    return Section("Device", facts=tuple(facts))
