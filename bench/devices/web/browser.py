"""Models held by a page in a browser: the same questions that a process of this machine answers, asked over HTTP."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bench.candidates import Candidate
from edgekit.bench.devices.stored import precision_here
from edgekit.bench.devices.timed import Runnable
from edgekit.bench.devices.web.exchange import Exchange
from edgekit.bench.devices.web.facts import Browser
from edgekit.bench.machine import Machine
from edgekit.bench.place import Holder
from edgekit.bench.timing import ColdStart, Timer
from edgekit.errors import LoadError
from edgekit.export.session import FloatArray, RuntimeInfo, run_batched
from edgekit.printable import printable

TIMEOUTS_S: Mapping[str, float] = {"load": 300.0, "open": 300.0, "visit": 120.0, "run": 300.0, "close": 60.0}
"""A slow network brings 30 MB of runtime in that time."""
_RUNS = ("onnx", "tflite")
_MAX_VALUES = 2**24
CLOCK_STEPS = 40
"""A sample lasts at least so many steps of the browser's clock: coarseness then adds under 2.5 % to one sample."""


class BrowserPlace:
    """The models of a run, held by one page.

    Args:
        exchange: to the page.
        browser: what it is.
        threads: of every runtime, where the browser gives threads.
        named: files that the user named, not as a part of a bundle: one that a browser cannot run is a failure.
        versions: of the runtime of each format.
    """

    proves = True

    def __init__(
        self, exchange: Exchange, browser: Browser, threads: int, named: Sequence[Path], versions: Mapping[str, str]
    ) -> None:
        self._exchange = exchange
        self._browser = browser
        self._threads = threads
        self._runnable = Runnable(named, _RUNS, "no browser runs it; give .onnx or .tflite")
        self._versions = versions
        self._numbers = 0

    @property
    def device(self) -> str:
        """The browser's name."""
        return f"web: {self._browser.name}"

    @property
    def notes(self) -> Sequence[str]:
        """What a reader must know of this browser."""
        browser = self._browser
        notes = [f"Browser: {browser.agent}; its clock has steps of {1e6 * browser.clock_s:.3g} µs."]
        if left_out := self._runnable.left_out:
            notes.append(f"Left out, as no browser runs them: {', '.join(left_out)}.")
        if self._threads > 1 and not browser.isolated:
            notes.append("The browser gives threads to https pages only (--device web:https): one was used.")
        if self._threads > 1:
            notes.append("LiteRT.js ran on one thread.")
        if browser.gpu is None:
            notes.append("No WebGPU here.")
        return notes

    def machine(self) -> Machine:
        """Return what the browser tells."""
        browser = self._browser
        return Machine(
            browser.gpu and f"GPU {browser.gpu}", None, browser.cores, None, None, browser.memory_bytes,
            browser.system, None, (),
        )  # fmt: skip

    def candidates(self, found: Sequence[Candidate]) -> Sequence[Candidate]:
        """Return what a browser can run, in WebAssembly and, where there is one, on the GPU."""
        possible: list[Candidate] = []
        for candidate in self._runnable.of(found):
            possible.append(candidate)
            if candidate.problem is None and self._browser.gpu is not None:
                possible.append(replace(candidate, name=f"{candidate.name} (WebGPU)", accelerator="webgpu"))
        return possible

    def start(self, candidate: Candidate) -> Holder:
        """Have the page load the candidate's runtime."""
        self._numbers += 1
        return _InBrowser(self._exchange, self._browser, candidate, self._numbers, self._threads, self._versions)


class _InBrowser:
    """A model that the page holds under a number."""

    info: RuntimeInfo
    input_shape: tuple[int | None, int, int, int]
    cold: ColdStart
    process_memory_bytes: int | None = None
    peak_memory_bytes: int | None = None

    def __init__(
        self,
        exchange: Exchange,
        browser: Browser,
        candidate: Candidate,
        number: int,
        threads: int,
        versions: Mapping[str, str],
    ) -> None:
        self._exchange, self._browser, self._candidate, self._number = exchange, browser, candidate, number
        self._threads = threads if browser.isolated and candidate.format == "onnx" else 1
        self._version = versions[candidate.format]
        self._call_s: dict[int, float] = {}

    @property
    def ended(self) -> bool:
        """Whether the page is gone."""
        return self._exchange.gone is not None

    def loaded(self) -> None:
        """Load the runtime."""
        candidate = self._candidate
        wanted = {"format": candidate.format, "accelerator": candidate.accelerator or "wasm", "threads": self._threads}
        self._ask("load", {"name": candidate.name, **wanted})

    def open(self) -> None:
        """Send the file; the page opens it and calls it twice."""
        path, candidate = self._candidate.path, self._candidate
        assert path is not None
        reply, _ = self._ask("open", {"outputs": list(candidate.outputs)}, path.read_bytes())
        try:
            batch, channels, height, width = reply["input_shape"]
            self.input_shape = (None if batch is None else int(batch), int(channels), int(height), int(width))
            if math.prod(side or 1 for side in self.input_shape) > _MAX_VALUES or channels != 3:
                raise LoadError(f"it takes {reply['input_shape']}, no picture of a usual size")
            load_s, first_s, second_s = (float(seconds) for seconds in reply["cold_s"])
            self._call_s[self.input_shape[0] or 1] = max(1e-9, float(reply["call_s"]))
            provider = printable(str(reply["provider"]), 60)
            note = printable(str(reply.get("note", "")), 300)
        except (KeyError, TypeError, ValueError) as e:
            raise LoadError(f"the page does not tell what it opened: {e!r}") from e
        runtime = "onnxruntime-web" if candidate.format == "onnx" else "LiteRT.js"
        self.info = RuntimeInfo(runtime, self._version, self._threads, provider, note)
        self.cold = ColdStart(load_s, first_s, second_s, self.info)

    def __call__(self, images: FloatArray) -> dict[str, FloatArray]:
        """Run any number of images (N, 3, H, W), a batch at a time."""
        return run_batched(_Batches(self), images)

    def run_batch(self, images: FloatArray) -> dict[str, FloatArray]:
        """Run one batch."""
        content, kind = _packed(images)
        reply, found = self._ask("run", {"shape": list(images.shape), "dtype": kind}, content)
        arrays: dict[str, FloatArray] = {}
        at = 0
        try:
            for name, shape in reply["outputs"]:
                sides = [int(side) for side in shape]
                count = math.prod(sides)
                arrays[str(name)] = np.frombuffer(found, "<f4", count, at).reshape(sides)
                at += 4 * count
        except (KeyError, TypeError, ValueError) as e:
            raise LoadError(f"the page's answer makes no sense: {e!r}") from e
        return arrays

    def timer(self, batch: int | None = None) -> Timer:
        """Return what takes visits; where the clock is coarse, samples are taken in groups that share their mean."""
        size = batch or self.input_shape[0] or 1

        def take(samples: int, calls: int) -> Sequence[int]:
            known_s = self._call_s.get(size, 0.0)
            needed = math.ceil(CLOCK_STEPS * self._browser.clock_s / (calls * known_s)) if known_s else 1
            group = max(1, min(needed, 100_000))
            count = math.ceil(samples / group)
            reply, _ = self._ask("visit", {"samples": count, "calls": calls * group, "batch": size})
            ticks = [tick / group for tick in _ticks(reply, count)]
            if size not in self._call_s and min(ticks) > 0:
                self._call_s[size] = 1e-9 * min(ticks) / calls
            return [max(1, round(tick)) for tick in ticks for _ in range(min(group, samples))][:samples]

        return take

    def precision(self, path: Path) -> str:
        """Read the precision here, in a process of its own."""
        return precision_here(path)

    def close(self) -> None:
        """Have the page let go of it; one that is gone has."""
        if not self.ended:
            try:
                self._ask("close", {})
            except LoadError:
                return

    def _ask(self, do: str, request: Mapping[str, Any], content: bytes = b"") -> tuple[dict[str, Any], bytes]:
        return self._exchange.ask({"do": do, "model": self._number, **request}, content, TIMEOUTS_S[do])


class _Batches:
    """A session of one batch at a time."""

    def __init__(self, held: _InBrowser) -> None:
        self._held = held
        self.info = held.info
        self.input_shape = held.input_shape

    def __call__(self, images: FloatArray) -> dict[str, FloatArray]:
        return self._held.run_batch(images)


def _packed(images: FloatArray) -> tuple[bytes, str]:
    """Return pictures as bytes where their values are those of 8-bit pixels, a quarter of what floats take."""
    pixels = np.rint(images * np.float32(255)).clip(0, 255).astype(np.uint8)
    if np.array_equal(pixels.astype(np.float32) / np.float32(255), images):
        return pixels.tobytes(), "uint8"
    return np.ascontiguousarray(images, "<f4").tobytes(), "float32"


def _ticks(reply: Mapping[str, Any], samples: int) -> list[float]:
    """Return nanoseconds, as many as were asked for."""
    found = reply.get("ns")
    if not isinstance(found, list) or len(found) != samples:
        raise LoadError("the page's timings make no sense")
    ticks = [float(tick) for tick in found if isinstance(tick, int | float)]
    if len(ticks) != samples or not all(math.isfinite(tick) and 0 <= tick < 1e15 for tick in ticks):
        raise LoadError("the page's timings make no sense")
    return ticks
