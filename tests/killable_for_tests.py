"""A small training that runs in a process of its own, so that the process can be killed."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.compress.recipe import FitConfig
from edgekit.compress.training.checkpointing import Checkpoints
from edgekit.compress.training.loop import fit
from edgekit.compress.training.run_folder import RunFolder
from edgekit.errors import EdgekitError

BEST = "best.pt"
CONFIG = FitConfig(epochs=4, batch_size=16, lr=0.01, ema_decay=0.9, clip_norm=1.0, device="cpu", checkpoint_every="5")


class Pictures:
    """Tell noise patterns apart with a net that has batch norm and dropout; a step takes about `pause_s`."""

    metric = "val_acc"
    checkpoint_name = BEST
    steps_per_epoch = 12

    def __init__(self, pause_s: float = 0.0, started: Event | None = None) -> None:
        torch.manual_seed(0)
        self.pause_s, self.started = pause_s, started
        self.model: nn.Module = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8 * 36, 3)
        )
        generator = torch.Generator().manual_seed(1)
        self.y = torch.arange(192) % 3
        means = torch.randn(3, 3, 8, 8, generator=generator)
        self.x = means[self.y] * 0.5 + torch.randn(192, 3, 8, 8, generator=generator)

    def batches(self, epoch: int, device: torch.device, start: int = 0) -> Iterator[Tensor]:
        order = torch.randperm(192, generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(16)[start:]:  # type: ignore[no-untyped-call]
            if self.started is not None:
                self.started.set()
            time.sleep(self.pause_s)
            yield rows

    def loss(self, model: nn.Module, batch: Tensor) -> Mapping[str, Tensor]:
        return {"loss": F.cross_entropy(model(self.x[batch]), self.y[batch])}

    def batch_length(self, batch: Tensor) -> int:
        return len(batch)

    def evaluate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        return {"val_acc": float((model(self.x).argmax(1) == self.y).float().mean())}

    def save(self, path: Path, model: nn.Module) -> None:
        from edgekit import atomic

        with atomic.atomic_path(path) as temporary:
            torch.save(model.state_dict(), temporary)


@dataclass
class Training:
    """A training in its own process."""

    process: ForkServerProcess
    _said: Connection

    @property
    def pid(self) -> int:
        """Its process."""
        assert self.process.pid is not None
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether it is still there."""
        return self.process.exitcode is None

    def kill(self) -> None:
        """Send SIGKILL."""
        self.process.kill()

    def wait(self, timeout_s: float = 60.0) -> int:
        """Return the exit code, minus the signal where one ended it."""
        self.process.join(timeout_s)
        assert self.process.exitcode is not None, "it does not end"
        return self.process.exitcode

    def said(self) -> str:
        """Return the message of the error that ended it."""
        return str(self._said.recv())


def server() -> ForkServerContext:
    """Return a context whose processes start with torch loaded: in milliseconds, and really processes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "edgekit.compress.training.loop"])
    return context


def start(
    folder: Path,
    *,
    pause_s: float = 0.0,
    die_at: int | None = None,
    fail_from: int | None = None,
    limit_bytes: int | None = None,
    started: Event | None = None,
) -> Training:
    """Start or resume the training in `folder`.

    Args:
        folder: the run folder.
        pause_s: makes every step slower.
        die_at: kill the process just before its file operation of this number in `folder`.
        fail_from: every write and rename in `folder` from this number on fails, as on a full disk.
        limit_bytes: a file that would become larger fails in the middle of the write, as on a disk that fills up.
        started: set at the first step.
    """
    said, says = server().Pipe(duplex=False)
    process = server().Process(target=_work, args=(folder, pause_s, die_at, fail_from, limit_bytes, started, says))
    process.start()
    says.close()
    return Training(process, said)


def _work(
    folder: Path,
    pause_s: float,
    die_at: int | None,
    fail_from: int | None,
    limit_bytes: int | None,
    started: Event | None,
    said: Connection,
) -> None:
    torch.set_num_threads(1)
    run = RunFolder(folder)
    if not run.facts_path.is_file():
        run.create({}, {})
    if die_at is not None:
        _die_at(folder, die_at)
    if fail_from is not None:
        _fail_from(folder, fail_from)
    if limit_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    try:
        fit(Pictures(pause_s, started), CONFIG, run, resume=True)
    except EdgekitError as e:
        said.send(str(e))  # not a file: this process may be one that cannot write
        os._exit(e.exit_code)


def _fail_from(folder: Path, number: int) -> None:
    count = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        writes = event == "os.rename" or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if writes and str(args[0]).startswith(str(folder)):
            count += 1
            if count >= number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[0]))

    sys.addaudithook(hook)


def _die_at(folder: Path, number: int) -> None:
    count = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if event in ("open", "os.rename", "os.remove", "os.mkdir") and str(args[0]).startswith(str(folder)):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def newest_state(folder: Path) -> Any:
    """Return the newest training state in a run folder."""
    store = Checkpoints(folder / "last", pytest.fail)
    return torch.load(folder / "last" / store.entries()[0].name, weights_only=True)
