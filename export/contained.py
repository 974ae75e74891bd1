"""Run a function in a fresh process, so that a native crash, a hang or a memory bomb there is one clear line here.

Runtimes and parsers are native code; a damaged file can take the whole process with it. The function is named
"package.module:function", takes and returns JSON values. It runs in an empty working folder: pass absolute paths.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgekit.errors import EdgekitError, LoadError, MissingExtraError, UsageError, VerificationError
from edgekit.printable import printable

TIMEOUT_S = 120.0
_DEADLINE = "EDGEKIT_CONTAINED_UNTIL"
"""Set in a child and in all that it starts: when it will be stopped, in seconds since 1970."""

_MARGIN_S = 5.0
"""What a child within a child is stopped before the outer one, so that the outer one can say which was late."""

_LAST_WORDS_BYTES = 65536
MEMORY_BYTES = 16 * 2**30
"""Private memory that a child may ask for (Linux); PyTorch with all its libraries takes under 2 GiB."""

_ERRORS = {error.__name__: error for error in (MissingExtraError, LoadError, UsageError, VerificationError)}


def call_contained(
    function: str, *arguments: Any, timeout_s: float = TIMEOUT_S, memory_bytes: int = MEMORY_BYTES
) -> Any:
    """Call "package.module:function" with JSON arguments in a child process; return its JSON result.

    What the child prints is held back. An EdgekitError raised there is raised here, with its message in one line.

    Raises:
        LoadError: the child crashed (the message names the signal), took too long or too much memory, or raised
            anything but an EdgekitError.
    """
    request = {"function": function, "arguments": arguments, "memory_bytes": memory_bytes}
    # the empty folder is also what `-m` puts first on the child's path: nothing there can pose as a library
    with TemporaryDirectory(prefix="edgekit-") as folder:
        (Path(folder) / "request.json").write_text(json.dumps(request))
        timeout_s = min(timeout_s, max(1.0, _left_s() - _MARGIN_S))
        try:
            code, last_words = _run(Path(folder), timeout_s)
        except subprocess.TimeoutExpired as e:
            raise LoadError(f"the child process was stopped: no answer within {round(timeout_s, 1):g} s") from e
        answer = Path(folder) / "answer.json"
        if code != 0 or not answer.is_file():
            raise LoadError(f"the child process {how_it_ended(code, last_words)}")
        return _open_answer(json.loads(answer.read_text()))


def _left_s() -> float:
    """Return how long this process may go on: for ever, unless it is a child itself."""
    return float(os.environ.get(_DEADLINE, "inf")) - time.time()


def _run(folder: Path, timeout_s: float) -> tuple[int, bytes]:
    """Start the child and wait; return its exit code and its last words. However this ends, nothing of it is left.

    The child leads a group of processes with all that it starts, so that all end with it. What a child calls contained
    stays in the group. The terminal sends Ctrl-C to another group, ours; so the way out ends the child there, too.
    Where we are killed on the spot, the child's standard input ends, and it ends itself (`_end_with_parent`).

    Raises:
        subprocess.TimeoutExpired: no answer in time.
    """
    leads = _DEADLINE not in os.environ
    with tempfile.TemporaryFile() as errors:  # no pipe, which a grandchild would hold open after the child has ended
        process = subprocess.Popen(
            [sys.executable, "-m", "edgekit.export.contained"],
            cwd=folder,
            env={**os.environ, _DEADLINE: str(time.time() + timeout_s)},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=leads,  # does nothing on Windows
        )
        try:
            code = process.wait(timeout_s)
        finally:
            _end(process, whole_group=leads)
            assert process.stdin is not None
            process.stdin.close()
        errors.seek(max(0, errors.seek(0, os.SEEK_END) - _LAST_WORDS_BYTES))
        return code, errors.read()


def _end(process: subprocess.Popen[bytes], *, whole_group: bool) -> None:
    if whole_group and sys.platform != "win32":
        # the group is gone where all have ended; macOS says EPERM where only dead ones are left in it
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def _open_answer(answer: dict[str, Any]) -> Any:
    if "error" not in answer:
        return answer["result"]
    kind = _ERRORS.get(answer["error"], LoadError)
    error = kind.__new__(kind)  # the message is made already; MissingExtraError would make its own
    error.args = (printable(answer["message"]),)
    raise error


def how_it_ended(code: int, stderr: bytes) -> str:
    """Say how a child ended: by which signal, or with which last words."""
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    lines = stderr.decode(errors="replace").strip().splitlines()
    return f"ended with code {code}" + (f": {printable(lines[-1], 300)}" if lines else "")


def limit_memory(limit_bytes: int) -> None:
    """Have the system refuse this process more private memory than that, where it can (Linux)."""
    try:
        import resource
    except ImportError:  # Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or hard > limit_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, hard))


def _end_with_parent() -> None:
    """Have this child and all that it started end when its parent does, however that ends.

    The parent alone holds the other end of our standard input, and writes nothing. A function that never lets go of
    Python's lock keeps our thread from seeing it end; the deadline needs no lock.
    """
    watched = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # for whoever reads standard input here
    os.close(nothing)

    def watch() -> None:
        os.read(watched, 1)
        if sys.platform != "win32" and os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    faulthandler.dump_traceback_later(max(0.0, _left_s()) + _MARGIN_S, exit=True)


def _serve(folder: Path) -> None:
    """Do what `request.json` asks for and write `answer.json`. Only the parent writes requests: its own code is run."""
    request = json.loads((folder / "request.json").read_text())
    limit_memory(request["memory_bytes"])
    module, _, name = request["function"].partition(":")
    try:
        answer = {"result": getattr(importlib.import_module(module), name)(*request["arguments"])}
        text = json.dumps(answer)
    except EdgekitError as e:
        kind = next(error.__name__ for error in type(e).__mro__ if error.__name__ in _ERRORS or error is EdgekitError)
        text = json.dumps({"error": kind, "message": str(e)})
    except MemoryError:
        text = json.dumps({"error": "LoadError", "message": "it needs more memory than a file of this kind may take"})
    except Exception as e:  # whatever a parser raises on a damaged file
        first = (str(e).strip() or "no message").splitlines()[0][:300]
        text = json.dumps({"error": "LoadError", "message": f"{type(e).__name__}: {first}"})
    (folder / "answer.json").write_text(text)


if __name__ == "__main__":
    _end_with_parent()
    _serve(Path.cwd())
