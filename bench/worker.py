"""A model in a process of its own, held open for a whole bench run.

A crash of a native runtime there is one failed candidate here, and the process's peak memory is the model's alone.
A visit's samples are taken by the child; here nothing but the asking happens, outside of the clock.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from edgekit.bench.timing import ColdStart, Timer
from edgekit.errors import LoadError
from edgekit.export.contained import how_it_ended
from edgekit.export.session import FloatArray, RuntimeInfo
from edgekit.printable import printable

MEMORY_BYTES = 16 * 2**30
"""Private memory that a child may ask for (Linux)."""
TIMEOUTS_S: Mapping[str, float] = {"load": 300.0, "open": 300.0, "visit": 120.0, "run": 600.0, "precision": 300.0}
"""A request that takes longer is a hang. A piece of pictures through an interpreter is what takes longest."""
_MAX_LINE = 4 * 2**20
_MAX_OUTPUT_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Opening:
    """How a child opens a model.

    Attributes:
        function: "package.module:function", returns a `Session`.
        arguments: JSON values for it.
        imports: the libraries it needs, loaded before its clock starts: a cold start is that of the model.
    """

    function: str
    arguments: tuple[Any, ...]
    imports: tuple[str, ...] = ()


class Worker:
    """A model in its own process; once open a `Session`, and a source of `Timer`s. Close it, or use a `with` block.

    The process starts at once and loads its libraries while others do so; `open` then opens the model.

    Attributes:
        info, input_shape: as in `Session`.
        cold: what loading and the first call took.
        process_memory_bytes: most memory that the process had held before the model was opened, its runtime loaded.
        peak_memory_bytes: the same after the first calls on one picture; the model's own share is the difference.
    """

    info: RuntimeInfo
    input_shape: tuple[int | None, int, int, int]
    cold: ColdStart
    process_memory_bytes: int | None
    peak_memory_bytes: int | None

    def __init__(self, opening: Opening, *, memory_bytes: int = MEMORY_BYTES) -> None:
        # the empty folder is what `-m` puts first on the child's path: nothing there can pose as a library
        self._folder = tempfile.TemporaryDirectory(prefix="edgekit-bench-")
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed in `close`
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edgekit.bench.child", str(memory_bytes)],
            cwd=self._folder.name,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        self._opening = opening
        self._loading = True
        self._send("load", {"imports": opening.imports})

    def loaded(self) -> None:
        """Wait until its libraries are loaded.

        Raises:
            LoadError: the child died.
        """
        if self._loading:
            self._loading = False
            self._answered("load")

    def open(self) -> None:
        """Open the model and call it twice.

        Raises:
            LoadError: the model could not be opened, with the child's reason; or the child died, and of what.
        """
        self.loaded()
        opening = self._opening
        found = self._ask("open", {"function": opening.function, "arguments": opening.arguments})
        self.info = RuntimeInfo(**found["info"])
        batch, channels, height, width = found["input_shape"]
        self.input_shape = (batch, channels, height, width)
        load_s, first_s, second_s = found["cold_s"]
        self.cold = ColdStart(load_s, first_s, second_s, self.info)
        self.process_memory_bytes, self.peak_memory_bytes = found["memory_bytes"]

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether the process is no more."""
        return self._process.poll() is not None

    def __call__(self, images: FloatArray) -> dict[str, FloatArray]:
        """Run any number of images (N, 3, H, W) through the model; the child cuts them into its batches.

        Raises:
            LoadError: the model failed, or the child died.
        """
        content = np.ascontiguousarray(images, np.float32)
        reply = self._ask("run", {"shape": content.shape}, content.tobytes())
        sizes = [(str(name), tuple(int(n) for n in shape)) for name, shape in reply["outputs"]]
        if sum(4 * math.prod(shape) for _, shape in sizes) > _MAX_OUTPUT_BYTES:
            raise LoadError("its outputs are larger than those of any model")
        return {name: self._array(shape) for name, shape in sizes}

    def timer(self, batch: int | None = None) -> Timer:
        """Return what takes visits of a batch, by default the file's own or one picture."""
        size = batch or self.input_shape[0] or 1

        def take(samples: int, calls_per_sample: int) -> Sequence[int]:
            request = {"samples": samples, "calls": calls_per_sample, "batch": size}
            return [int(ticks) for ticks in self._ask("visit", request)["ns"]]

        return take

    def precision(self, path: Path) -> str:
        """Return what a file's weights are stored in, read by the child; ask when nothing is timed any more."""
        whole = path.absolute()  # the child works in another folder
        return str(self._ask("precision", {"path": str(whole)})["precision"])

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # a request that never left
                if stream is not None:
                    stream.close()
        self._errors.close()
        self._folder.cleanup()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, do: str, request: Mapping[str, Any], content: bytes = b"") -> dict[str, Any]:
        """Send a request and return the reply."""
        return self._answered(do, lambda: self._send(do, request, content))

    def _send(self, do: str, request: Mapping[str, Any], content: bytes = b"") -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # the pipe broke: reading the answer finds the process dead, and says of what
            self._process.stdin.write(json.dumps({"do": do, **request}).encode() + b"\n" + content)
            self._process.stdin.flush()

    def _answered(self, do: str, send: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Send and wait for the reply; a child that hangs is ended."""
        assert self._process.stdout is not None
        limit_s = TIMEOUTS_S[do]
        hung = threading.Event()

        def end() -> None:
            hung.set()
            self._process.kill()

        watchdog = threading.Timer(limit_s, end)
        watchdog.daemon = True
        watchdog.start()
        try:
            send()
            reply = json.loads(self._process.stdout.readline(_MAX_LINE))
        except ValueError as e:  # it ended, or what came was no answer
            if hung.is_set():
                raise LoadError(f"its process was stopped: no answer within {limit_s:g} s") from e
            raise LoadError(f"its process {self._ending()}") from e
        finally:
            watchdog.cancel()
        if not isinstance(reply, dict) or "error" in reply:
            raise LoadError(printable(str(reply["error"]) if isinstance(reply, dict) else "it gave no answer"))
        return reply

    def _array(self, shape: tuple[int, ...]) -> FloatArray:
        assert self._process.stdout is not None
        content = self._process.stdout.read(4 * math.prod(shape))
        if len(content) < 4 * math.prod(shape):
            raise LoadError(f"its process {self._ending()}")
        return np.frombuffer(content, np.float32).reshape(shape)

    def _ending(self) -> str:
        """Say how the child ended: by which signal, or with which last words."""
        try:
            code = self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return "gave an answer that makes no sense"
        self._errors.seek(0, 2)
        self._errors.seek(max(0, self._errors.tell() - 4000))
        return how_it_ended(code, self._errors.read())
