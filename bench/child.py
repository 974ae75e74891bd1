"""The process that holds one model under test: `python -m edgekit.bench.child`, started by `edgekit.bench.worker`.

It reads requests from standard input and answers on standard output, one JSON object a line; arrays follow their
line as raw bytes. Nothing of the conversation is timed: a visit's clock starts and stops in here, around the calls.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from edgekit.bench.machine import peak_memory_bytes
from edgekit.bench.timing import measure_cold, reason_of, visit
from edgekit.errors import LoadError
from edgekit.export.contained import limit_memory
from edgekit.export.session import FloatArray, Session, run_batched


class _Child:
    """Answers requests about one model."""

    def __init__(self, requests: BinaryIO) -> None:
        self._requests = requests
        self._session: Session | None = None
        self._pictures: dict[int, FloatArray] = {}

    def answer(self, request: Mapping[str, Any]) -> tuple[Mapping[str, Any], bytes]:
        """Return the reply to one request, and the bytes that follow it."""
        do = request["do"]
        if do == "load":
            return self._load(request["imports"]), b""
        if do == "open":
            return self._open(request), b""
        if do == "visit":
            return {"ns": visit(self._call(request["batch"]), request["samples"], request["calls"])}, b""
        if do == "run":
            return self._run(tuple(request["shape"]))
        assert do == "precision", do
        from edgekit.export.audit.audit import stored_precision

        return {"precision": stored_precision(Path(request["path"]))}, b""

    def _load(self, imports: Sequence[str]) -> Mapping[str, Any]:
        """Load libraries, which are no part of a model's cold start."""
        for name in imports:
            with suppress(ImportError):  # opening the model says what is missing, and how to get it
                importlib.import_module(name)
        return {}

    def _open(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Open the model and call it twice on one picture."""
        before = peak_memory_bytes()
        module, _, function = request["function"].partition(":")
        open_model: Callable[..., Session] = getattr(importlib.import_module(module), function)

        def opened() -> Session:
            self._session = open_model(*request["arguments"])
            return self._session

        cold = measure_cold(opened, self._one_picture)
        assert self._session is not None
        return {
            "info": asdict(cold.info),
            "input_shape": list(self._session.input_shape),
            "cold_s": [cold.load_s, cold.first_inference_s, cold.second_inference_s],
            "memory_bytes": [before, peak_memory_bytes()],
        }

    def _one_picture(self, session: Session) -> FloatArray:
        return self._random(session.input_shape[0] or 1)

    def _random(self, batch: int) -> FloatArray:
        """Return random pixels, which take as long as real ones; of a file that takes no pictures its own example."""
        assert self._session is not None
        if batch not in self._pictures:
            shape = (batch, *self._session.input_shape[1:])
            example = getattr(self._session, "example", None)
            drawn = np.random.default_rng(0).random(shape, np.float32) if example is None else example(batch)
            self._pictures[batch] = drawn
        return self._pictures[batch]

    def _call(self, batch: int) -> Callable[[], object]:
        assert self._session is not None
        session, images = self._session, self._random(batch)
        return lambda: session(images)

    def _run(self, shape: tuple[int, ...]) -> tuple[Mapping[str, Any], bytes]:
        """Run the images that follow the request through the model, in pieces of its batch."""
        content = self._requests.read(4 * int(np.prod(shape)))
        assert self._session is not None
        found = run_batched(self._session, np.frombuffer(content, np.float32).reshape(shape))
        arrays = {name: np.ascontiguousarray(values, np.float32) for name, values in found.items()}
        outputs = [[name, list(values.shape)] for name, values in arrays.items()]
        return {"outputs": outputs}, b"".join(values.tobytes() for values in arrays.values())


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer until there is no one to ask; an exception is an answer, too."""
    child = _Child(requests)
    while line := requests.readline():
        try:
            reply, content = child.answer(json.loads(line))
        except MemoryError:
            reply, content = {"error": "it needs more memory than a model may take here"}, b""
        except Exception as e:  # a native runtime raises its own types
            reply, content = {"error": reason_of(e)}, b""
        replies.write(json.dumps(reply).encode() + b"\n" + content)
        replies.flush()


def main() -> None:
    """Serve on the standard streams, out of reach of what native code prints."""
    if len(sys.argv) != 2:
        raise LoadError("this process is started by `edgekit bench`")
    limit_memory(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its children
    with os.fdopen(os.dup(1), "wb") as replies:
        os.dup2(2, 1)
        serve(sys.stdin.buffer, replies)


if __name__ == "__main__":
    main()
