"""Measure the measuring: are equal models called equal, is a real difference found, does timing cost time?

    python -m edgekit.bench.self_check --repeats 20

Runs on any machine in a few minutes, every candidate in a process of its own as `edgekit bench` has them, or with
`--one-process` all in one. The workload is small matrix products (below the size at which BLAS starts
threads), the disturbance a process that keeps one core busy throughout.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace

import click
import numpy as np

from edgekit.bench.latency import LatencyConfig, measure_latency, measure_timers, paired_s
from edgekit.bench.machine import describe_machine
from edgekit.bench.statistics import Speedup, paired_speedup
from edgekit.bench.worker import Opening, Worker
from edgekit.exits import run_command
from edgekit.export.session import FloatArray, Outputs, RuntimeInfo

_SIDE = 64
"""OpenBLAS stays on one thread up to 64³ multiplications."""
_KEPT = 64
"""Calls whose own times the model keeps to tell."""

Workload = Callable[[], object]


@dataclass(frozen=True)
class VerdictCheck:
    """Verdicts over repeated measurements of a workload, of its equal, and of one that is slower by a known share.

    Attributes:
        equal: the speed-up of the equal workload in each repeat; every verdict but "inconclusive" is false.
        slowed: the speed-up of the slowed workload in each repeat; the right verdict is "slower".
        seconds: wall-clock time of all repeats.
    """

    equal: tuple[Speedup, ...]
    slowed: tuple[Speedup, ...]
    seconds: float

    @property
    def false_verdicts(self) -> int:
        """Count the repeats in which equal workloads were called different."""
        return sum(s.verdict != "inconclusive" for s in self.equal)

    @property
    def found(self) -> int:
        """Count the repeats in which the slow-down was called one."""
        return sum(s.verdict == "slower" for s in self.slowed)


def matrix_workload(products: int) -> Workload:
    """Return a call that multiplies two small matrices `products` times, on buffers of its own."""
    left = np.random.default_rng(0).standard_normal((_SIDE, _SIDE)).astype(np.float32)
    out = np.empty_like(left)

    def run() -> None:
        for _ in range(products):
            np.matmul(left, left, out=out)

    return run


def products_for(latency_s: float) -> int:
    """Return how many products take about `latency_s` here, a multiple of 20 so that 5 % more is a whole number."""
    probe = matrix_workload(100)
    fastest_s = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        probe()
        fastest_s = min(fastest_s, (time.perf_counter() - start) / 100)
    return max(20, 20 * round(latency_s / fastest_s / 20))


@contextmanager
def busy_core(limit_s: float = 3600.0) -> Iterator[None]:
    """Keep one core busy with another process while the block runs; the process ends itself after `limit_s`."""
    program = f"import time\nend = time.monotonic() + {limit_s}\nwhile time.monotonic() < end: pass"
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def check_verdicts(
    make: Callable[[int], Workload], amount: int, repeats: int, config: LatencyConfig | None = None
) -> VerdictCheck:
    """Compare a workload with its equal and with one of 5 % more work, `repeats` times over.

    Args:
        make: returns a fresh workload of a given amount; called anew for each candidate and repeat, as a model is
            loaded anew.
        amount: the amount, a multiple of 20.
        repeats: independent measurements.
        config: how each is measured; its seed is replaced by the number of the repeat.
    """
    base_config = config or LatencyConfig(max_time_s=6.0)
    equal, slowed = [], []
    start = time.perf_counter()
    for seed in range(repeats):
        candidates = {"base": make(amount), "equal": make(amount), "slowed": make(amount * 21 // 20)}
        samples = measure_latency(candidates, replace(base_config, seed=seed), baseline="base")
        equal.append(paired_speedup(*paired_s(samples["base"], samples["equal"]), seed=seed))
        slowed.append(paired_speedup(*paired_s(samples["base"], samples["slowed"]), seed=seed))
    return VerdictCheck(tuple(equal), tuple(slowed), time.perf_counter() - start)


class MatrixModel:
    """The workload as a model, which also keeps its own time."""

    info = RuntimeInfo("numpy", np.__version__, 1, "CPU")
    input_shape = (1, 3, 1, 1)

    def __init__(self, products: int) -> None:
        self._work = matrix_workload(products)
        self._own_ns: list[int] = []

    def __call__(self, images: FloatArray) -> Outputs:
        """Do the work; return the nanoseconds of all calls so far, this one included, (1, calls) float32."""
        start = time.perf_counter_ns()
        self._work()
        self._own_ns.append(time.perf_counter_ns() - start)
        return {"ns": np.asarray([self._own_ns[-_KEPT:]], np.float32)}


def matrix_opening(products: int) -> Opening:
    """Return how a process of its own opens the workload."""
    return Opening("edgekit.bench.self_check:MatrixModel", (products,))


def check_verdicts_in_processes(amount: int, repeats: int, config: LatencyConfig | None = None) -> VerdictCheck:
    """Do `check_verdicts` with every candidate in a process of its own, started anew for each repeat."""
    base_config = config or LatencyConfig(max_time_s=6.0)
    equal, slowed = [], []
    start = time.perf_counter()
    for seed in range(repeats):
        with ExitStack() as stack:
            products = {"base": amount, "equal": amount, "slowed": amount * 21 // 20}
            workers = {name: stack.enter_context(Worker(matrix_opening(n))) for name, n in products.items()}
            for worker in workers.values():
                worker.open()
            timers = {name: worker.timer() for name, worker in workers.items()}
            samples = measure_timers(timers, replace(base_config, seed=seed), baseline="base")
        equal.append(paired_speedup(*paired_s(samples["base"], samples["equal"]), seed=seed))
        slowed.append(paired_speedup(*paired_s(samples["base"], samples["slowed"]), seed=seed))
    return VerdictCheck(tuple(equal), tuple(slowed), time.perf_counter() - start)


def check_process_overhead(products: int, visits: int = 20, calls: int = 10) -> float:
    """Return how much longer than the model's own count of a call is what a visit reports of it, as a share.

    The same calls, counted twice: inside of the model, and by the visit around it, both in the process of the model.
    Asking for the visit through the pipe would show here if it were in the sample.
    """
    ratios = []
    with Worker(matrix_opening(products)) as worker:
        worker.open()
        timer = worker.timer()
        for _ in range(visits):
            reported = np.asarray(timer(calls, 1), np.float64)
            own = worker(np.zeros((1, 3, 1, 1), np.float32))["ns"][0, -calls - 1 : -1]  # the last call asks
            ratios.append(reported.min() / own.min())
    return float(np.median(ratios)) - 1


def check_overhead(call: Workload, pairs: int = 20, calls: int = 50) -> float:
    """Return measured latency over that of a bare loop around the call, minus 1; the median over paired repeats.

    Each side is the fastest of its calls: an overhead would be in every call, an interruption is not.
    """
    ratios = []
    for pair in range(pairs):
        config = LatencyConfig(min_rounds=calls // 5, min_time_s=0.0, max_time_s=1.0, target_halfwidth=1e9, seed=pair)
        if pair % 2:
            measured_s, bare_s = _measured_s(call, config), _bare_s(call, calls)
        else:
            bare_s, measured_s = _bare_s(call, calls), _measured_s(call, config)
        ratios.append(measured_s / bare_s)
    return float(np.median(ratios)) - 1


def _measured_s(call: Workload, config: LatencyConfig) -> float:
    return float(measure_latency({"call": call}, config)["call"].seconds.min())


def _bare_s(call: Workload, calls: int) -> float:
    stamps = [time.perf_counter()]
    for _ in range(calls):
        call()
        stamps.append(time.perf_counter())
    return float(np.diff(stamps).min())


@click.command()
@click.option("--repeats", default=20, show_default=True, help="Independent measurements.")
@click.option("--latency-ms", default=1.5, show_default=True, help="Length of the workload.")
@click.option("--one-process", is_flag=True, help="All candidates in this process.")
@click.option("--quiet-machine", is_flag=True, help="Start no process that keeps a core busy.")
def main(repeats: int, latency_ms: float, one_process: bool, quiet_machine: bool) -> None:
    """Check on this machine that equal models are called equal and a 5 % slow-down is found."""
    for warning in describe_machine().warnings:
        click.echo(warning)
    amount = products_for(latency_ms * 1e-3)
    short = products_for(1e-3)
    overhead = check_overhead(matrix_workload(short)) if one_process else check_process_overhead(short)
    with nullcontext() if quiet_machine else busy_core():
        if one_process:
            check = check_verdicts(matrix_workload, amount, repeats)
        else:
            check = check_verdicts_in_processes(amount, repeats)
    click.echo(f"equal workload:  {check.false_verdicts} false verdicts in {repeats}, {_spread(check.equal)}")
    click.echo(f"5 % more work:   found {check.found} times in {repeats}, {_spread(check.slowed)}")
    click.echo(
        f"overhead:        {100 * overhead:+.2f} % on 1 ms, beside {'a bare loop' if one_process else 'its own count'}"
    )
    click.echo(f"{check.seconds / repeats:.1f} s per measurement of three candidates")


def _spread(speedups: Sequence[Speedup]) -> str:
    ratios = [s.interval.value for s in speedups]
    return f"speed-up {np.median(ratios):.4f} (from {min(ratios):.4f} to {max(ratios):.4f})"


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], "python -m edgekit.bench.self_check"))
