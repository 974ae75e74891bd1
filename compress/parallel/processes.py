"""Several processes that train one model: who writes, how they agree, and how all of them end when one fails.

Started by `torchrun` or `accelerate launch`, which tell each process its rank in the environment. Settings, decisions
and files are the main process's (rank 0); the others get from it what they need, and write nothing.
"""

from __future__ import annotations

import atexit
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch import distributed as dist

from edgekit.compress.parallel.launcher import world_size
from edgekit.errors import EXIT_INTERRUPTED, EXIT_NEGATIVE, EdgekitError, UsageError, first_line

_T = TypeVar("_T")

STEP_TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others within a step: a hung one ends the run. A dead one is noticed at once."""
LONG = timedelta(days=7)
"""How long the others wait for the main process, which may be asking a teacher about millions of pictures."""
HEARING_S = 2.0
"""How long a process whose partner is gone waits for the reason."""
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo", "NCCL", "Timed out", "store")


class LostProcessError(EdgekitError):
    """Another process is gone without a word (exit 1)."""


class ElsewhereError(EdgekitError):
    """The main process failed, and this one ends with it.

    Args:
        message: the main process's.
        exit_code: with which it ends.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Processes:
    """The processes of this run as one of them sees them; with one process every method is free.

    Attributes:
        rank: of this process, 0-based.
        world: how many there are.
        device: where this process computes.
    """

    def __init__(self, device: torch.device, rank: int = 0, world: int = 1) -> None:
        self.device, self.rank, self.world = device, rank, world
        self._inside = False
        # beside the tensors' own group: decisions are made on the CPU, and may take the main process hours
        group = dist.new_group(backend="gloo", timeout=LONG) if world > 1 else None
        self._control = cast(dist.ProcessGroup | None, group)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums over all processes, in float64; bitwise the same in each."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self._control)
        return cast(list[float], total.tolist())

    def fill(self, rows: Tensor) -> Tensor:
        """Return `rows` (N, …) with every process's rows in place; each filled its own and left the others at 0."""
        if self.world > 1:
            dist.all_reduce(rows)
        return rows

    def all_rows(self, rows: Tensor) -> Tensor:
        """Return the rows (n, D) of all processes, by rank; gradients flow into this one's alone.

        A loss of all rows that every process computes so has its whole gradient in the sum over the processes.
        """
        if self.world == 1:
            return rows
        counts = [round(count) for count in self.sum([len(rows) * (rank == self.rank) for rank in range(self.world)])]
        padded = rows.detach().new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows.detach()
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        parts = [part[:count] for part, count in zip(parts, counts, strict=True)]
        parts[self.rank] = rows
        return torch.cat(parts)

    def once(self, value: Tensor) -> Tensor:
        """Return this process's part of a value that all of them computed: the sum is the value, gradient unchanged."""
        return value - value.detach() * (1 - 1 / self.world)

    def gather(self, value: _T) -> list[_T]:
        """Return every process's `value`, by rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self._control)
        return values

    def from_main(self, make: Callable[[], _T]) -> _T:
        """Return what `make` returns in the main process; the others do not call it, and wait.

        Raises:
            EdgekitError: the main process's own, an `ElsewhereError` in the others.
        """
        if self.world == 1:
            return make()
        answer: list[Any] = [None, None]
        error: EdgekitError | None = None
        if self.is_main:
            try:
                answer[0] = make()
            except EdgekitError as e:
                error, answer = e, [None, (str(e), e.exit_code)]
        dist.broadcast_object_list(answer, src=0, group=self._control)
        if error is not None:
            raise error
        if answer[1] is not None:
            raise ElsewhereError(*answer[1])
        return cast(_T, answer[0])

    def each_from_main(self, make: Callable[[], Iterable[_T]]) -> Iterator[_T]:
        """Yield the main process's items in all; every process must ask for the same number of them.

        Raises:
            EdgekitError: as `from_main`.
        """
        if self.world == 1:
            yield from make()
            return
        items = iter(make()) if self.is_main else iter(())
        while True:
            number, item = self.from_main(lambda: next(((1, item) for item in items), (0, None)))
            if not number:
                return
            yield cast(_T, item)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the main process do the block before the others do it: they find on the disk what it left there."""
        if self.world > 1 and not self.is_main:
            self.wait()
        yield
        if self.world > 1 and self.is_main:
            self.wait()

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.world > 1:
            dist.barrier(group=self._control)

    @contextmanager
    def together(self) -> Iterator[None]:
        """End all processes when one fails within the block, with one message and one exit code.

        The first to fail tells the others why and raises its error; the others end silently by SystemExit, with the
        same exit code. A process that waits for one that is gone learns so at once, as its connection breaks.

        Raises:
            LostProcessError: another process is gone without a word: killed, or its machine is.
        """
        if self.world == 1 or self._inside:
            yield
            return
        self._inside = True
        try:
            yield
        except SystemExit:
            raise
        except BaseException as e:
            error = self._lost(e) if _is_lost(e) else e
            code = error.exit_code if isinstance(error, EdgekitError) else EXIT_NEGATIVE
            if isinstance(error, KeyboardInterrupt):
                code = EXIT_INTERRUPTED
            first = self._tell(code, first_line(error))
            if not first:
                raise SystemExit(code) from None
            if error is e:
                raise
            raise error from e
        finally:
            self._inside = False

    def _lost(self, error: BaseException) -> BaseException:
        """Return why a connection broke: silence where another process has said it, else that one is lost."""
        _no_farewell()
        deadline = time.monotonic() + HEARING_S
        with suppress(RuntimeError):  # the store may be gone with its process
            store = _store()
            while time.monotonic() < deadline:
                if store.check(["edgekit/failure"]):
                    raise SystemExit(json.loads(store.get("edgekit/failure"))["exit_code"]) from None
                time.sleep(0.05)
        return LostProcessError(
            f"another process of this run is gone: it was killed, or its machine cannot be reached. The last saved "
            f"state is whole: go on with --resume ({first_line(error)})"
        )

    def _tell(self, code: int, text: str) -> bool:
        """Leave the reason for the others; return whether this process is the first to fail."""
        _no_farewell()
        try:
            store = _store()
            if store.add("edgekit/failures", 1) > 1:
                return False
            store.set("edgekit/failure", json.dumps({"rank": self.rank, "exit_code": code, "message": text}))
        except RuntimeError:
            pass  # nobody hears: say it oneself
        return True


_joined: Processes | None = None


def join(device: torch.device) -> Processes:
    """Meet the other processes that the launcher started; alone where there is no launcher.

    Args:
        device: where this one computes; with cuda, the GPU that its local rank names.

    Raises:
        UsageError: more processes than GPUs on this machine.
    """
    global _joined
    if world_size() == 1:
        return Processes(device)
    if _joined is not None:
        return _joined
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device.type == "cuda" and local_rank >= torch.cuda.device_count():
        raise UsageError(
            f"process {local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}. Start as many "
            f"processes as GPUs, or pass --device cpu"
        )
    from accelerate import PartialState

    state = PartialState(cpu=device.type == "cpu", timeout=STEP_TIMEOUT)
    # Accelerate numbers the CPU, which torch then cannot load a state to
    here = state.device if device.type == "cuda" else torch.device("cpu")
    _joined = Processes(here, state.process_index, state.num_processes)
    atexit.register(_leave)
    return _joined


def joined() -> Processes:
    """Return the processes that `join` met; this one alone where there are no others."""
    return _joined or Processes(torch.device("cpu"))


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _no_farewell() -> None:
    """Do not wait for the others at the end: after a failure they are not coming."""
    atexit.unregister(_leave)


def _is_lost(error: BaseException) -> bool:
    """Return whether an operation between processes broke; torch has no type of its own for all of these."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _LOST)


def _store() -> Any:
    """Return the key-value store by which the processes met; under a launcher it outlives each of them."""
    return dist.distributed_c10d._get_default_store()
