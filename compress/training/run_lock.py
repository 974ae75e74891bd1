"""One writer per run folder: a lock that the system gives back when its process ends, however it ends."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgekit import atomic
from edgekit.errors import UsageError

_held: set[Path] = set()


class LockedError(UsageError):
    """Another process writes this run folder (exit 2)."""


@contextmanager
def locked(run: Path, file: str = "last/lock", *, waiting_for: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the run folder for this process, by a lock on `file` in it; a nested use in the same process passes.

    The file stays behind, as removing a lock that another process has just opened would let two of them in.

    Args:
        run: the folder.
        file: of the lock, in the folder.
        waiting_for: is told which process holds it, which is then waited for; None refuses.

    Raises:
        LockedError: naming the process that holds it.
        WriteError: the folder cannot be written.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    path = run.resolve() / file
    if path in _held:
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as e:
        raise atomic.WriteError(f"cannot write {run}: {e.strerror or e}. Choose another -o/--output") from e
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting_for is None:
                raise LockedError(_in_use(run, handle)) from None
            waiting_for(_holder(handle))
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # a network disk without locks: better to train than to refuse
            pass
        with suppress(OSError):  # the number is for the message only; a full disk has better errors ahead
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
        _held.add(path)
        try:
            yield
        finally:
            _held.discard(path)
    finally:
        os.close(handle)


def refuse_locked(run: Path) -> None:
    """Raise now if another process writes the folder; create nothing.

    Raises:
        LockedError: naming the process that holds it.
    """
    path = run.resolve() / "last" / "lock"
    try:
        import fcntl

        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except (ImportError, OSError):
        return
    try:
        if path not in _held:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LockedError(_in_use(run, handle)) from None
    except OSError:
        return
    finally:
        os.close(handle)


def _in_use(run: Path, handle: int) -> str:
    return f"{run} is in use: {_holder(handle)} trains into it. Wait for it, stop it, or choose another -o/--output"


def _holder(handle: int) -> str:
    return f"process {os.pread(handle, 20, 0).decode(errors='replace') or 'unknown'}"
