"""A small training in several real processes, started as a launcher starts them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from killable_for_tests import BEST, Training, server
from torch import Tensor, nn
from torch.distributed import TCPStore
from torch.nn import functional as F

from edgekit.compress.parallel.processes import joined
from edgekit.compress.parallel.shares import Share, Split
from edgekit.compress.recipe import FitConfig
from edgekit.compress.training.loop import fit
from edgekit.compress.training.run_folder import RunFolder
from edgekit.errors import EdgekitError

CONFIG = FitConfig(epochs=4, batch_size=15, lr=0.01, ema_decay=0.9, clip_norm=1.0, device="cpu", checkpoint_every="5")
COUNT = 96


def small_net(norm: bool) -> nn.Module:
    """Return a net with or without batch norm, and without dropout."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=not norm),
        nn.BatchNorm2d(8) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 36, 3),
    )


class Patterns:
    """Tell noise patterns apart; every fifth one has no label.

    Args:
        norm: with batch norm.
        pause_s: makes every step slower.
        before: called with (rank, epoch, step) before each step.
    """

    metric, checkpoint_name = "val_acc", BEST
    steps_per_epoch = round(COUNT / CONFIG.batch_size)

    def __init__(
        self, *, norm: bool = True, pause_s: float = 0.0, before: Callable[[int, int, int], None] | None = None
    ) -> None:
        self.model, self.pause_s, self.before = small_net(norm), pause_s, before
        generator = torch.Generator().manual_seed(1)
        truth = torch.arange(COUNT) % 3
        means = torch.randn(3, 3, 8, 8, generator=generator)
        self.x = means[truth] * 0.5 + torch.randn(COUNT, 3, 8, 8, generator=generator)
        self.y = torch.where(torch.arange(COUNT) % 5 == 0, -1, truth)

    def batches(self, epoch: int, device: torch.device, start: int = 0) -> Iterator[Any]:
        return self.shares(epoch, device, start, Split())

    def shares(self, epoch: int, device: torch.device, start: int, split: Split) -> Iterator[Any]:
        order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(epoch)).numpy()
        labels = self.y.numpy()
        for number, step in list(enumerate(np.array_split(order, self.steps_per_epoch)))[start:]:
            if self.before is not None:
                self.before(split.rank, epoch, number)
            time.sleep(self.pause_s)
            for rows in split.parts(step):
                yield rows, Share.of(labels[rows], labels[step])

    def loss(self, model: nn.Module, batch: Any) -> Mapping[str, Tensor]:
        rows, share = batch
        logits, y = model(self.x[rows]), self.y[rows]
        labelled = y >= 0
        task = F.cross_entropy(logits[labelled], y[labelled]) if labelled.any() else logits.sum() * 0.0
        size = logits.square().mean()
        loss = task * share.labelled + 0.01 * size * share.samples
        return {"loss": loss, "_labelled": labelled.sum(), "_correct": (logits.argmax(1) == y).sum()}

    def batch_length(self, batch: Any) -> int:
        return len(batch[0])

    def evaluate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        return {"val_acc": float((model(self.x).argmax(1) == self.y).float().mean())}

    def save(self, path: Path, model: nn.Module) -> None:
        torch.save(model.state_dict(), path)


@dataclass
class Group:
    """The processes of one training, by rank, and the store by which they meet."""

    trainings: list[Training]
    store: TCPStore

    def wait(self, timeout_s: float = 60.0) -> list[int]:
        """Return the exit codes, by rank."""
        deadline = time.monotonic() + timeout_s
        return [training.wait(deadline - time.monotonic()) for training in self.trainings]

    def said(self) -> list[str]:
        """Return the messages of all errors, those of silent processes left out."""
        messages = []
        for training in self.trainings:
            with suppress(EOFError):
                messages.append(training.said())
        return messages


def launch(world: int, work: Callable[..., None], *arguments: Any) -> Group:
    """Start `world` processes that each call `work(*arguments)`, with what `torchrun` puts into their environment."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    trainings = []
    for rank in range(world):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
        environment = {name: str(value) for name, value in {**names, **place, "OMP_NUM_THREADS": 1}.items()}
        said, says = server().Pipe(duplex=False)
        process = server().Process(target=_enter, args=(environment, work, arguments, says))
        process.start()
        says.close()
        trainings.append(Training(process, said))
    return Group(trainings, store)


def _enter(environment: dict[str, str], work: Callable[..., None], arguments: tuple[Any, ...], says: Any) -> None:
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs have it off
    torch.set_num_threads(1)
    try:
        work(*arguments)
    except EdgekitError as e:
        says.send(str(e))
        raise SystemExit(e.exit_code) from None


def train(folder: Path, changes: Mapping[str, Any], options: Mapping[str, Any], resume: bool = True) -> None:
    """Train `Patterns(**options)` with CONFIG and `changes`."""
    run = RunFolder(folder)
    if os.environ["RANK"] == "0" and not run.facts_path.is_file():
        run.create({}, {})
    fit(Patterns(**options), CONFIG.model_copy(update=dict(changes)), run, resume=resume)
    assert joined().world == int(os.environ["WORLD_SIZE"])
