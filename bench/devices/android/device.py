"""`--device adb[:SERIAL]`: .tflite files on an Android phone, timed by TensorFlow Lite's `benchmark_model` there.

Each visit is one run of the tool, in the same interleaved rounds as everywhere. The tool tells means, not single calls:
a sample is the mean of about a quarter of a second of calls, and the percentiles are those of such means.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.bench.accuracy import Progress
from edgekit.bench.candidates import Candidate
from edgekit.bench.devices.android.adb import Adb
from edgekit.bench.devices.android.benchmark_tool import ToolResult, parse
from edgekit.bench.devices.device import Say
from edgekit.bench.devices.failed import candidates_of
from edgekit.bench.devices.timed import Runnable, TimedFile
from edgekit.bench.latency import LatencyConfig
from edgekit.bench.machine import Machine, machine_warnings
from edgekit.bench.place import Holder
from edgekit.bench.results import BenchReport
from edgekit.bench.run import BenchConfig, run_bench
from edgekit.bench.timing import ColdStart, Timer
from edgekit.errors import EdgekitError, LoadError, UsageError
from edgekit.export.session import RuntimeInfo

_FOLDER = "/data/local/tmp"
VISIT_S = 0.25
_WARM_S = 0.1
_RUN_LIMIT_S = 300.0
_GOVERNOR = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"


@dataclass(frozen=True)
class AdbDevice:
    """An Android phone.

    Attributes:
        adb: the phone.
        tool: `benchmark_model`, built for its processor.
        say: shows a line to the user.
    """

    adb: Adb
    tool: Path
    say: Say

    def bench(self, config: BenchConfig, progress: Progress | None = None) -> BenchReport:
        """Copy tool and files to the phone, measure there, and remove them; see `Device`."""
        candidates_of(config, "adb")
        if not self.tool.is_file():
            raise UsageError(f"--benchmark-model {self.tool} is not a file")
        self.adb.check()
        folder = f"{_FOLDER}/edgekit-{secrets.token_hex(6)}"
        try:
            code, said = self.adb.shell(f"mkdir {folder}")
            if code != 0:
                raise LoadError(f"{self.adb} lets nobody write to {_FOLDER}: {said.strip()[:200]}")
            self.adb.push(self.tool, f"{folder}/benchmark_model")
            self.adb.shell(f"chmod 755 {folder}/benchmark_model")
            fitted = replace(config, latency=_for_the_tool(config.latency))
            return run_bench(fitted, progress, _Phone(self.adb, folder, config))
        finally:
            with suppress(EdgekitError):  # a phone that is gone keeps them; their names say whose they are
                self.adb.shell(f"rm -rf {folder}")


def _for_the_tool(latency: LatencyConfig | None) -> LatencyConfig | None:
    """Have each visit be one run of the tool, and its mean the one sample."""
    if latency is None:
        return None
    return replace(latency, warmup_rounds=1, window_s=VISIT_S, min_calls=1, max_calls=1, min_rounds=10)


class _Phone:
    """The place where the models of one run are held."""

    proves = False

    def __init__(self, adb: Adb, folder: str, config: BenchConfig) -> None:
        self._adb, self._folder, self._threads = adb, folder, config.threads
        self._runnable = Runnable(config.files, {"tflite"}, "benchmark_model takes .tflite files alone")
        self._count = 0
        self._model = adb.ask("getprop ro.product.model")

    @property
    def device(self) -> str:
        """The phone's name."""
        return f"{self._adb}: {self._model or 'unknown phone'}"

    @property
    def notes(self) -> Sequence[str]:
        """How the numbers came about."""
        notes = [
            f"benchmark_model tells means: each sample is that of about {VISIT_S:g} s of calls, and the percentiles "
            "are those of such means. Nothing was proven on the phone: the tool does not tell what a model puts out."
        ]
        if left_out := self._runnable.left_out:
            notes.append(f"Left out, as benchmark_model takes .tflite alone: {', '.join(left_out)}.")
        return notes

    def machine(self) -> Machine:
        """Return what Android tells."""
        ask = self._adb.ask
        cores, memory, load = ask("nproc"), ask("grep MemTotal /proc/meminfo"), ask("cat /proc/loadavg")
        governor = ask(f"cat {_GOVERNOR}")
        kibibytes = next((word for word in (memory or "").split() if word.isdigit()), None)
        count = int(cores) if cores is not None and cores.isdigit() else 0
        average = _number(load)
        return Machine(
            cpu=ask("getprop ro.soc.model") or ask("getprop ro.board.platform") or ask("getprop ro.hardware"),
            physical_cores=None,
            logical_cores=count,
            governor=governor,
            load_average=average,
            memory_bytes=1024 * int(kibibytes) if kibibytes else None,
            os=f"Android {ask('getprop ro.build.version.release') or 'unknown'}",
            python=None,
            # a phone's load counts waiting threads of its own, and no phone lets its governor be set
            warnings=machine_warnings(None, count, None),
        )

    def candidates(self, found: Sequence[Candidate]) -> Sequence[Candidate]:
        """Return the .tflite files; they are timed, not scored."""
        return [replace(candidate, scored=False) for candidate in self._runnable.of(found)]

    def start(self, candidate: Candidate) -> Holder:
        """Prepare to hold a candidate."""
        self._count += 1
        return _OnPhone(self._adb, f"{self._folder}/{self._count}.tflite", candidate, self._threads)


class _OnPhone(TimedFile):
    """A file on the phone, run by the tool."""

    tool = "benchmark_model"

    def __init__(self, adb: Adb, target: str, candidate: Candidate, threads: int) -> None:
        self._adb, self._target, self._candidate, self._threads = adb, target, candidate, threads
        side = candidate.contract.image_size if candidate.contract else 1
        self.input_shape = (candidate.frames, 3, side, side)

    def open(self) -> None:
        """Push the file and run it once."""
        path = self._candidate.path
        assert path is not None
        self._adb.push(path, self._target)
        found = self._run(1, warm_s=0.0)
        memory = f"; grew by {found.memory_bytes / 1e6:.1f} MB" if found.memory_bytes else ""
        self.info = RuntimeInfo(
            "benchmark_model", "as given", self._threads, "XNNPACK", (found.partitions or "no delegate") + memory
        )
        self.cold = ColdStart(found.init_s, found.first_s, found.timed.first_s, self.info)

    def timer(self, batch: int | None = None) -> Timer:
        """Return what runs the tool once a visit."""

        def take(samples: int, calls: int) -> Sequence[int]:
            mean_s = self._run(samples * calls, warm_s=_WARM_S).timed.mean_s
            return [max(1, round(1e9 * mean_s * calls))] * samples

        return take

    def close(self) -> None:
        """Do nothing: the whole folder is removed at the end."""

    def _run(self, calls: int, warm_s: float) -> ToolResult:
        tool = self._target.rsplit("/", 1)[0] + "/benchmark_model"
        options = (
            f"--graph={self._target} --num_threads={self._threads} --use_xnnpack=true --num_runs={calls} "
            f"--min_secs=0 --warmup_runs=1 --warmup_min_secs={warm_s:g}"
        )
        code, output = self._adb.shell(f"{tool} {options}", _RUN_LIMIT_S)
        if code not in (0, 1) and "Inference timings" not in output:  # 1 is the tool's own no, with its reason
            raise LoadError(f"benchmark_model ended with code {code} on the phone{_killed(code)}")
        return parse(output)


def _killed(code: int) -> str:
    """Say which signal a shell's exit code stands for."""
    names = {132: "SIGILL, is it built for this processor?", 134: "SIGABRT", 137: "SIGKILL, out of memory?"}
    names |= {139: "SIGSEGV", 126: "it cannot be executed; is it built for this processor?", 127: "it is not there"}
    return f" ({names[code]})" if code in names else ""


def _number(text: str | None) -> float | None:
    try:
        return float((text or "").split()[0])
    except (IndexError, ValueError):
        return None
