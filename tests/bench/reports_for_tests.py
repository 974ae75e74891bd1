"""Bench reports of made-up models whose numbers come from the real statistics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgekit.bench.latency import LatencyConfig, LatencySamples, paired_s
from edgekit.bench.machine import Machine
from edgekit.bench.metrics import classification_scores, correct
from edgekit.bench.results import Answers, BenchReport, BenchRow, RawSamples
from edgekit.bench.statistics import paired_speedup, summarize
from edgekit.bench.sustained import SustainedSummary, run_sustained
from edgekit.export.session import RuntimeInfo

MACHINE = Machine("AMD EPYC", 2, 2, None, 0.1, 8 << 30, "Linux 6 x86_64", "3.11.7", ())
ORT = RuntimeInfo("onnxruntime", "1.31.1", 1, "CPUExecutionProvider")
TORCH = RuntimeInfo("torch", "2.14.1", 1, "eager")


def samples_of(name: str, latency_s: float, *, rounds: int = 60, seed: int = 0) -> LatencySamples:
    """Return timings with a little noise and now and then an interruption, the same rounds for every model."""
    random = np.random.default_rng(seed)
    noise = 1 + 0.01 * random.exponential(size=(rounds, 3)) + 2 * (random.random((rounds, 3)) < 0.03)
    return LatencySamples(name, latency_s * noise, np.arange(rounds), 1, "precise")


def made_report(
    *,
    machine_factor: float = 1.0,
    model_factor: float = 1.0,
    wrong: int = 30,
    sha256: str = "a" * 64,
    model: str = "model.onnx",
    seed: int = 0,
) -> BenchReport:
    """Return a report of a student of 20 ms and a file of 5 ms on 300 pictures.

    Args:
        machine_factor: how much slower the whole machine was.
        model_factor: how much slower the file alone was.
        wrong: pictures that the file gets wrong, the first ones.
        sha256: of the file.
        model: its name.
        seed: of the noise.
    """
    labels = np.arange(300) % 15
    answers = labels.copy()
    answers[:wrong] = (answers[:wrong] + 1) % 15
    logits = 4 * np.eye(15)[answers]
    student_s = samples_of("student", 20e-3 * machine_factor, seed=2 * seed)
    own_s = samples_of(model, 5e-3 * machine_factor * model_factor, seed=2 * seed + 1)
    speedup = paired_speedup(*paired_s(student_s, own_s))
    rows = (
        BenchRow("student", "student", "pytorch", "fp32", 4_000_000, 10**6, sha256="5" * 64, runtime=TORCH),
        BenchRow(model, "artifact", "onnx", "int8", 1_300_000, sha256=sha256, runtime=ORT, speedup=speedup),
    )
    scores = classification_scores(logits, labels)
    rows = (
        replace(rows[0], latency=summarize(student_s.seconds), scores=scores),
        replace(rows[1], latency=summarize(own_s.seconds), scores=scores, sustained=sustained(1.0)),
    )
    right = Answers.of(correct(logits, labels), "d" * 64)
    return BenchReport(
        rows=rows,
        baseline="student",
        machine=MACHINE,
        data="300 pictures of val",
        created="2026-01-02T03:04:05+00:00",
        edgekit_version="0.1.0",
        latency_config=LatencyConfig(),
        samples={"student": RawSamples.of(student_s), model: RawSamples.of(own_s)},
        answers={"student": right, model: right},
    )


def sustained(slow_down: float) -> SustainedSummary:
    """Return a long run of a device whose calls take `slow_down` times as long at its end, by a clock of its own."""
    clock = [0.0]

    def timer(samples: int, calls: int) -> list[int]:
        call_s = 0.01 * (1 + (slow_down - 1) * min(1.0, clock[0] / 10))
        clock[0] += (samples + 1) * call_s
        return [round(1e9 * call_s)] * samples

    return run_sustained(timer, 20.0, now=lambda: clock[0])
