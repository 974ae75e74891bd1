"""What guard, metrics and checkpoints cost: steps with them and bare steps of the same student, taken in turns.

`python -m edgekit.compress.training.overhead [ARCH] [IMAGE_SIZE] [BATCH_SIZE]`
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.compress.recipe import FitConfig
from edgekit.compress.show.display import Silent
from edgekit.compress.training.loop import _Fit
from edgekit.compress.training.run_folder import RunFolder
from edgekit.exits import run_command
from edgekit.models.spec import StudentSpec
from edgekit.models.student import build_student, student_preprocess

STEPS = 120
STEPS_PER_EPOCH = 500
"""Epochs are short for this measurement: a state is saved at the end of each."""


class _Noise:
    """Fit noise: only the time matters."""

    metric, checkpoint_name, steps_per_epoch = "val_acc", "student.safetensors", STEPS_PER_EPOCH

    def __init__(self, arch: str, image_size: int, batch_size: int) -> None:
        spec = StudentSpec(arch, 512, tuple("abcdefghij"), student_preprocess(arch, image_size))
        self.model: nn.Module = build_student(spec)
        self.images = torch.rand(batch_size, 3, image_size, image_size)
        self.labels = torch.arange(batch_size) % 10

    def batches(self, epoch: int, device: torch.device, start: int = 0) -> Iterator[Any]:
        yield from ()

    def loss(self, model: nn.Module, batch: Any) -> Mapping[str, Tensor]:
        return {"loss": F.cross_entropy(model(self.images).logits, self.labels)}

    def batch_length(self, batch: Any) -> int:
        return len(self.labels)

    def evaluate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        return {"val_acc": 0.0}

    def save(self, path: Path, model: nn.Module) -> None:
        torch.save(model.state_dict(), path)


def measure(arch: str, image_size: int, batch_size: int) -> dict[str, float]:
    """Return the medians in milliseconds of a bare step, of what watching adds to it, and of saving a state."""
    torch.set_num_threads(1)
    config = FitConfig(lr=1e-5, ema_decay=0.999, clip_norm=1.0, device="cpu")
    task = _Noise(arch, image_size, batch_size)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder))
        run.create({}, {})
        loop = _Fit(task, config, run, Silent())
        loop.state.model.train()
        bare: list[float] = []
        watched: list[float] = []
        saved: list[float] = []
        for number in range(STEPS):
            order = (bare, watched) if number % 2 else (watched, bare)
            for times in order:
                started = time.perf_counter()
                if times is bare:
                    _bare_step(loop, task)
                else:
                    loop._step([None], [])
                times.append(time.perf_counter() - started)
            if number % 20 == 10:
                started = time.perf_counter()
                loop._save()
                saved.append(time.perf_counter() - started)
    added = [one - other for one, other in zip(watched, bare, strict=True)]
    found = {"bare step": bare, "watching adds": added, "saving a state": saved}
    return {name: 1e3 * statistics.median(values[len(values) // 6 :]) for name, values in found.items()}


def _bare_step(loop: _Fit, task: _Noise) -> None:
    """Take a step as a loop without guard and metrics takes it: loss read, gradient clipped, average moved."""
    state = loop.state
    loss = task.loss(state.model, None)["loss"]
    float(loss.detach())
    state.accelerator.backward(loss)
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
    state.optimizer.step()
    state.optimizer.zero_grad()
    assert state.ema is not None
    state.ema.update(state.plain)


@click.command()
@click.argument("arch", default="mobilevit_xxs")
@click.argument("image_size", type=click.IntRange(min=32), default=128)
@click.argument("batch_size", type=click.IntRange(min=2), default=32)
def main(arch: str, image_size: int, batch_size: int) -> None:
    """Print the measurement and its share of an epoch of `STEPS_PER_EPOCH` steps."""
    found = measure(arch, image_size, batch_size)
    for name, value in found.items():
        click.echo(f"{name:<16}{value:9.2f} ms")
    per_step = found["watching adds"] + found["saving a state"] / STEPS_PER_EPOCH
    click.echo(
        f"{arch} at {image_size} px, batch {batch_size}: {100 * per_step / found['bare step']:.2f} % of a step, with a "
        f"state saved every {STEPS_PER_EPOCH} steps"
    )


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], "python -m edgekit.compress.training.overhead"))
