"""`--device apple:DEVICE`: an iPhone, iPad or another Apple device, through coremltools' remote device tooling.

coremltools builds a small runner app with Xcode, starts it on the device, and times predictions there. Written against
the sources of coremltools 9.0 (`MLModelBenchmarker`, `remote_device.Device`); it has not been run on a Mac.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bench.accuracy import Progress
from edgekit.bench.candidates import Candidate
from edgekit.bench.devices.device import Say
from edgekit.bench.devices.failed import candidates_of
from edgekit.bench.devices.timed import Runnable, TimedFile
from edgekit.bench.machine import Machine
from edgekit.bench.place import Holder
from edgekit.bench.results import BenchReport
from edgekit.bench.run import BenchConfig, run_bench
from edgekit.bench.timing import ColdStart, Timer
from edgekit.bench.variants import by_unit
from edgekit.errors import LoadError, MissingExtraError, UsageError
from edgekit.export.coreml.session import PictureInput, open_package, picture_input
from edgekit.export.runtimes import on_macos
from edgekit.export.session import RuntimeInfo

Benchmarker = Callable[[Path, str], tuple[Any, PictureInput]]
"""(package, compute unit) -> coremltools' MLModelBenchmarker on the device, and how the package takes its picture."""


@dataclass(frozen=True)
class AppleDevice:
    """An Apple device.

    Attributes:
        name: its name or identifier, as `xcrun devicectl list devices` shows it.
        say: shows a line to the user.
        team: development team that signs the runner app; None leaves it to Xcode's project.
    """

    name: str
    say: Say
    team: str | None = None

    def bench(self, config: BenchConfig, progress: Progress | None = None) -> BenchReport:
        """Measure on the device, each package by compute unit; see `Device`."""
        candidates_of(config, "apple")
        if not on_macos():
            raise UsageError(
                "--device apple needs a Mac with Xcode, which talks to the device; from here, use --device web in the "
                "device's browser, or --device ssh:USER@MAC"
            )
        loop = asyncio.new_event_loop()
        try:
            device = self._prepared(loop)
            system = f"{device.type.value} {device.os_version}"
            held = Held(f"apple:{device.name}", system, config.files, _benchmarker(device))
            return run_bench(config, progress, ApplePlace(held, loop))
        finally:
            loop.close()

    def _prepared(self, loop: asyncio.AbstractEventLoop) -> Any:
        """Find the device and start the runner app on it."""
        try:
            from coremltools.models.ml_program.experimental.remote_device import AppSigningCredentials, Device
        except ModuleNotFoundError as e:
            raise MissingExtraError("coremltools", "coreml", "--device apple") from e
        try:
            found = Device.get_devices()
            device = chosen(self.name, found)
            self.say(f"building coremltools' runner app for {device.name}; this takes minutes")
            credentials = AppSigningCredentials(development_team=self.team or "")
            return loop.run_until_complete(device.prepare_for_model_debugging(credentials=credentials))
        except UsageError:
            raise
        except Exception as e:  # devicectl's and xcodebuild's errors are exceptions of many kinds
            raise LoadError(f"apple:{self.name} cannot be used: {str(e).strip().splitlines()[-1][:300]}") from e


def chosen(name: str, found: Sequence[Any]) -> Any:
    """Return the device of that name or identifier.

    Raises:
        UsageError: there is none.
    """
    for device in found:
        if name in (device.name, device.identifier, device.udid):
            return device
    names = ", ".join(device.name for device in found) or "none is connected"
    raise UsageError(f"--device apple:{name} is not here; devices: {names}")


def _benchmarker(device: Any) -> Benchmarker:
    def make(path: Path, unit: str) -> tuple[Any, PictureInput]:
        from coremltools.models.ml_program.experimental.perf_utils import MLModelBenchmarker

        model = open_package(path, unit)
        return MLModelBenchmarker(model, device), picture_input(model, path)

    return make


@dataclass(frozen=True)
class Held:
    """What the place needs to know of a device.

    Attributes:
        name: for the report.
        system: what it runs.
        files: that the user named.
        benchmarker: opens a package on it.
    """

    name: str
    system: str
    files: Sequence[Path]
    benchmarker: Benchmarker


class ApplePlace:
    """The place where the packages of one run are held."""

    proves = False

    def __init__(self, held: Held, loop: asyncio.AbstractEventLoop) -> None:
        self._held, self._loop = held, loop
        self._runnable = Runnable(held.files, {"coreml"}, "Core ML runs .mlpackage alone")

    @property
    def device(self) -> str:
        """The device's name."""
        return self._held.name

    @property
    def notes(self) -> Sequence[str]:
        """What a reader must know."""
        notes = ["Nothing was proven on the device: coremltools' benchmarker does not tell what a model puts out."]
        if left_out := self._runnable.left_out:
            notes.append(f"Left out, as Core ML runs .mlpackage alone: {', '.join(left_out)}.")
        return notes

    def machine(self) -> Machine:
        """Return what coremltools tells."""
        return Machine(None, None, 0, None, None, None, self._held.system, None, ())

    def candidates(self, found: Sequence[Candidate]) -> Sequence[Candidate]:
        """Return the packages, once for each compute unit; they are timed, not scored."""
        possible: list[Candidate] = []
        for candidate in self._runnable.of(found):
            possible += [candidate] if candidate.problem is not None else by_unit(replace(candidate, scored=False))
        return possible

    def start(self, candidate: Candidate) -> Holder:
        """Prepare to hold a candidate."""
        return _OnDevice(candidate, self._held.benchmarker, self._loop)


class _OnDevice(TimedFile):
    """A package on the device."""

    tool = "coremltools' benchmarker"

    def __init__(self, candidate: Candidate, benchmarker: Benchmarker, loop: asyncio.AbstractEventLoop) -> None:
        self._candidate, self._open, self._loop = candidate, benchmarker, loop
        self._model: Any = None
        self._inputs: dict[str, Any] = {}

    def open(self) -> None:
        """Send the package and run it twice."""
        path, unit = self._candidate.path, self._candidate.accelerator
        assert path is not None
        self._model, taken = self._asked(lambda: self._open(path, unit))
        self.input_shape = (taken.batch, 3, taken.height, taken.width)
        shape = (taken.batch, 3, taken.height, taken.width)
        self._inputs = taken.feed(np.random.default_rng(0).random(shape, np.float32))
        load_s = self._samples(lambda: self._model.benchmark_load(iterations=1))[0]
        first_s, second_s = self._samples(lambda: self._predicting(2, warm=False))
        self.info = RuntimeInfo("Core ML", version("coremltools"), 0, unit)
        self.cold = ColdStart(load_s, first_s, second_s, self.info)

    def timer(self, batch: int | None = None) -> Timer:
        """Return what has the device make calls; it takes the time of each."""

        def take(samples: int, calls: int) -> Sequence[int]:
            seconds = self._samples(lambda: self._predicting(samples * calls, warm=True))
            if len(seconds) != samples * calls:
                raise LoadError(f"the device timed {len(seconds)} calls of {samples * calls}")
            return [max(1, round(1e9 * s)) for s in np.reshape(seconds, (samples, calls)).sum(axis=1)]

        return take

    def close(self) -> None:
        """Let go of the package."""
        self._model = None

    def _predicting(self, calls: int, *, warm: bool) -> Coroutine[Any, Any, Any]:
        asked: Coroutine[Any, Any, Any] = self._model.benchmark_predict(
            inputs=self._inputs, iterations=calls, warmup=warm
        )
        return asked

    def _samples(self, ask: Callable[[], Coroutine[Any, Any, Any]]) -> list[float]:
        """Return the seconds of a measurement; coremltools tells milliseconds."""
        return [1e-3 * float(s) for s in self._asked(lambda: self._loop.run_until_complete(ask())).samples]

    def _asked(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except LoadError:
            raise
        except Exception as e:  # the runner app's errors and a lost device's come as exceptions of many kinds
            said = (str(e).strip() or type(e).__name__).splitlines()[0][:300]
            raise LoadError(f"on the device: {said}") from e
