"""How fast training is, against the loops people write: one student, the same pictures, steps taken in turns.

`python -m edgekit.compress.pictures.throughput --data DIR --teacher ViT-B-32:random` compares a step of
- `store`: pictures decoded once, the teacher's embeddings from the store;
- `no teacher`: the same without a teacher;
- `online`: a DataLoader of Pillow and torchvision, the teacher run on every batch;
- `plain`: the same DataLoader without a teacher.
Which share of a step goes where is measured stage by stage.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
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
from edgekit.compress.training.loop import _Fit
from edgekit.compress.training.run_folder import RunFolder
from edgekit.data import ImageDataset, Sample, load_dataset
from edgekit.models.spec import StudentSpec
from edgekit.models.student import Student, build_student, student_preprocess
from edgekit.models.teacher import Teacher, load_teacher
from edgekit.terminal import Terminal

WARM_UP = 2
"""Steps of each loop that are not counted."""

EMBED_DIM = 512


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


@dataclass
class Contender:
    """One loop: `step()` trains on one batch; seconds of each step are kept, wall and processor time."""

    name: str
    step: Callable[[], None]
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def run(self) -> None:
        """Take one step."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.step()
        self.wall_s.append(time.perf_counter() - wall)
        self.cpu_s.append(time.process_time() - cpu)

    def median(self, times: list[float]) -> float:
        """Return the median without the first steps, in seconds."""
        return statistics.median(times[WARM_UP:])


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
        run = RunFolder(scratch / f"run-{teacher is not None}")
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


def compare(setting: Setting, rounds: int, terminal: Terminal) -> tuple[list[Contender], dict[str, float]]:
    """Take `rounds` steps of every loop in turns, in random order; return them, and the stages of the stored one."""
    recipe = load_recipe("edge", {"views": 2})
    teacher = load_teacher(setting.teacher, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as scratch:
        stored = StoredLoop(setting, recipe, setting.teacher, Path(scratch))
        alone = StoredLoop(setting, recipe, None, Path(scratch))
        contenders = [
            Contender("online", plain_loop(setting, recipe, teacher)),
            Contender("store", stored.step),
            Contender("plain", plain_loop(setting, recipe, None)),
            Contender("no teacher", alone.step),
        ]
        order, stages = random.Random(0), []
        with terminal.bar("steps of each loop", rounds) as advance:
            for _ in range(rounds):
                for contender in order.sample(contenders, len(contenders)):
                    contender.run()
                stages.append(stored.stages())
                advance(1)
    middle = {name: statistics.median(stage[name] for stage in stages[WARM_UP:]) for name in stages[0]}
    return contenders, middle


@click.command()
@click.option(
    "--data", type=click.Path(exists=True, path_type=Path), required=True, help="Folder of labelled pictures."
)
@click.option("--teacher", default="ViT-B-32:random", show_default=True, help="As `edgekit distill --teacher`.")
@click.option("--student", default="mobilevit_xxs", show_default=True)
@click.option("--image-size", type=int, default=128, show_default=True)
@click.option("--batch-size", type=int, default=32, show_default=True)
@click.option("--pictures", type=int, default=256, show_default=True, help="Pictures per class split that are used.")
@click.option("--rounds", type=int, default=12, show_default=True)
@click.option("--compile", "compiled", is_flag=True, help="Run edgekit's student through torch.compile.")
def main(data: Path, pictures: int, rounds: int, **options: Any) -> None:
    """Print how fast each loop trains, and where the time of edgekit's goes."""
    terminal = Terminal()
    dataset = load_dataset(data)
    step = max(1, len(dataset.train) // pictures)
    dataset = dataclasses.replace(dataset, train=dataset.train[::step], val=dataset.val[:: max(1, step // 4)])
    setting = Setting(data, dataset, **options)
    contenders, stages = compare(setting, rounds, terminal)
    terminal.heading(f"{setting.student} at {setting.image_size} px, batch {setting.batch_size}, {rounds} steps each")
    images = setting.batch_size
    for one in contenders:
        wall, cpu = one.median(one.wall_s), one.median(one.cpu_s)
        terminal.say(
            f"{one.name:<12}{images / wall:9.1f} images/s   {1e3 * cpu / images:7.2f} ms of processor per image"
        )
    by_name = {one.name: one for one in contenders}
    for fast, slow in (("store", "online"), ("no teacher", "plain")):
        ratios = [
            by_name[slow].median(getattr(by_name[slow], kind)) / by_name[fast].median(getattr(by_name[fast], kind))
            for kind in ("wall_s", "cpu_s")
        ]
        terminal.say(f"{fast} / {slow}: {ratios[0]:.2f}x by the clock, {ratios[1]:.2f}x by processor time")
    terminal.heading("Where a step of the store goes")
    total = sum(stages.values())
    for name, seconds in stages.items():
        terminal.say(f"{name:<20}{1e3 * seconds / images:7.2f} ms per image  {100 * seconds / total:5.1f} %")


if __name__ == "__main__":
    main()
