"""The training loops whose speed `edgekit.compress.pictures.throughput` compares: edgekit's and those people write."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from edgekit.compress.distill.config import DistillConfig
from edgekit.compress.distill.data import prepare
from edgekit.compress.distill.losses import cosine_feature_loss, response_loss, task_loss
from edgekit.compress.distill.task import DistillTask
from edgekit.compress.recipe import Recipe, load_recipe
from edgekit.compress.show.display import Silent
from edgekit.compress.training.allocator import memory_kept
from edgekit.compress.training.loop import _Fit
from edgekit.compress.training.run_folder import RunFolder
from edgekit.data import ImageDataset, Sample
from edgekit.models.spec import StudentSpec
from edgekit.models.student import Student, build_student, student_preprocess
from edgekit.models.teacher import Teacher, load_teacher
from edgekit.terminal import Terminal

EMBED_DIM = 512

Loop = Literal["online", "store", "plain", "no teacher"]
Stages = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class Setting:
    """What is compared.

    Attributes:
        data: folder of the data set.
        dataset: the pictures of it that are used.
        teacher: name, as `--teacher` takes it.
        student: timm name.
        image_size: side of the student's input in pixels.
        batch_size: pictures per step.
        compiled: the store's student runs through `torch.compile`.
    """

    data: Path
    dataset: ImageDataset
    teacher: str
    student: str
    image_size: int
    batch_size: int
    compiled: bool


class _Pictures(Dataset[tuple[Tensor, int]]):
    """What training scripts have: every access opens, decodes, crops and converts one file."""

    def __init__(self, samples: tuple[Sample, ...], size: int) -> None:
        self.samples = samples
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(size, (0.35, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
                transforms.RandomHorizontalFlip(),
                transforms.ColorJitter(0.3, 0.3, 0.3),
                transforms.ToTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        sample = self.samples[index]
        with Image.open(sample.path) as picture:
            return self.transform(picture.convert("RGB")), sample.label or 0


def plain_loop(setting: Setting, recipe: Recipe, teacher: Teacher | None) -> Callable[[], None]:
    """Return the step of the usual loop; with a teacher, pictures are cut at its size and shrunk for the student."""
    student = _student(setting).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    size = setting.image_size if teacher is None else teacher.preprocess.image_size
    batches = _forever(DataLoader(_Pictures(setting.dataset.train, size), setting.batch_size, shuffle=True))
    scores = nn.Linear(student.spec.embed_dim, student.spec.num_classes).requires_grad_(False)

    def step() -> None:
        images, labels = next(batches)
        target = None
        if teacher is not None:
            with torch.no_grad():
                target = teacher(images)
            images = F.interpolate(images, setting.image_size, mode="bilinear", antialias=True)
        output = student(images)
        loss = task_loss(output.logits, labels, recipe.label_smoothing)
        if target is not None:
            loss = loss + recipe.alpha * cosine_feature_loss(output.embedding, target)
            loss = loss + recipe.beta * response_loss(output.logits, scores(target), recipe.temperature)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


class StoredLoop:
    """edgekit's loop, guard, metrics and moving average included."""

    def __init__(self, setting: Setting, recipe: Recipe, teacher: str | None, scratch: Path) -> None:
        recipe = recipe if teacher else recipe.without_teacher()
        fit = recipe.fit.model_copy(update={"batch_size": setting.batch_size, "compile": setting.compiled})
        recipe = recipe.model_copy(update={"fit": fit, "grow_from": 1.0})
        config = DistillConfig(setting.data, scratch / "run", recipe, teachers=(teacher,) if teacher else ())
        contract = student_preprocess(setting.student, setting.image_size)
        prepared = prepare(config, setting.dataset, contract, torch.device("cpu"), Terminal(-1))
        run = RunFolder(scratch / "steps")
        run.create({}, {})
        self._loop = _Fit(DistillTask(_student(setting), recipe, prepared.data), recipe.fit, run, Silent())
        self._loop.state.model.train()
        self._batches = self._forever()

    def step(self) -> None:
        """Train on one batch."""
        self._loop._step(next(self._batches), [])

    def stages(self) -> dict[str, float]:
        """Train on one batch and return the processor seconds of each stage."""
        state, watch, clock = self._loop.state, self._loop.watch, _Clock()
        (batch,) = next(self._batches)
        clock.lap("cut, flip, colour")
        losses = state.losses(batch)
        clock.lap("forward")
        state.accelerator.backward(losses["loss"])
        clock.lap("backward")
        watch.gradients.clip(1.0)
        clock.lap("gradient norm")
        state.optimizer.step()
        state.optimizer.zero_grad()
        clock.lap("optimizer")
        if state.ema is not None:
            state.ema.update(state.plain)
        clock.lap("moving average")
        return clock.seconds

    def _forever(self) -> Iterator[Any]:
        for epoch in itertools.count(1):
            yield from self._loop.steps.batches(epoch, 0)


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.process_time()

    def lap(self, name: str) -> None:
        now = time.process_time()
        self.seconds[name] = now - self._last
        self._last = now


def _student(setting: Setting) -> Student:
    torch.manual_seed(0)
    contract = student_preprocess(setting.student, setting.image_size)
    return build_student(StudentSpec(setting.student, EMBED_DIM, setting.dataset.classes, contract))


def _forever(loader: DataLoader[tuple[Tensor, int]]) -> Iterator[Any]:
    while True:
        yield from loader


def open_loop(loop: Loop, setting: Setting, scratch: Path, until_end: ExitStack) -> tuple[Callable[[], None], Stages]:
    """Return the step of a loop, and one that times its stages where the loop is edgekit's.

    Args:
        loop: which.
        setting: what it trains on what.
        scratch: an empty folder.
        until_end: keeps what the loop changes in its process.
    """
    recipe = load_recipe("edge", {"views": 2})
    if loop in ("store", "no teacher"):
        until_end.enter_context(memory_kept())  # as `fit` does
        stored = StoredLoop(setting, recipe, setting.teacher if loop == "store" else None, scratch)
        return stored.step, stored.stages
    teacher = load_teacher(setting.teacher, torch.device("cpu")) if loop == "online" else None
    return plain_loop(setting, recipe, teacher), dict
