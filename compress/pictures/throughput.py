"""How fast training is, against the loops people write: one student, the same pictures, steps taken in turns.

`python -m edgekit.compress.pictures.throughput --data DIR --teacher ViT-B-32:random` compares a step of
- `store`: pictures decoded once, the teacher's embeddings from the store;
- `no teacher`: the same without a teacher;
- `online`: a DataLoader of Pillow and torchvision, the teacher run on every batch;
- `plain`: the same DataLoader without a teacher.
Each loop has a process of its own, since edgekit changes how its process keeps memory. Which share of a step goes where
is measured stage by stage.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, get_args

import click

from edgekit.compress.pictures.training_loops import Loop, Setting, open_loop
from edgekit.data import load_dataset
from edgekit.errors import EdgekitError, LoadError
from edgekit.exits import run_command
from edgekit.terminal import Terminal

WARM_UP = 2
"""Steps of each loop that are not counted."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a loop.

    Attributes:
        wall_s, cpu_s: seconds by the clock, and of the processor.
    """

    wall_s: float
    cpu_s: float


class Contender:
    """One loop in a process of its own, and the steps it took.

    Raises:
        LoadError: the process ended, or could not begin.
    """

    def __init__(self, loop: Loop, setting: Setting, scratch: Path) -> None:
        self.name = loop
        self.steps: list[Step] = []
        here, there = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_serve, args=(there, loop, setting, scratch), daemon=True)
        self._process.start()
        there.close()
        self._pipe = here

    def wait(self) -> None:
        """Return once the loop is ready to step."""
        self._answer()

    def step(self) -> None:
        """Take one step."""
        self.steps.append(self._ask("step"))

    def stages(self) -> dict[str, float]:
        """Take one step and return the processor seconds of each of its stages."""
        stages: dict[str, float] = self._ask("stages")
        return stages

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(10)
        self._process.kill()

    def median(self, kind: Literal["wall_s", "cpu_s"]) -> float:
        """Return the median over the steps that count, in seconds."""
        counted = self.steps[WARM_UP:]
        return statistics.median(step.wall_s if kind == "wall_s" else step.cpu_s for step in counted)

    def _ask(self, what: str) -> Any:
        with suppress(BrokenPipeError):  # reading says so, too, and may have the reason
            self._pipe.send(what)
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self._pipe.recv()
        except (EOFError, ConnectionResetError) as e:
            raise LoadError(f"the process of the loop '{self.name}' ended; it may have run out of memory") from e
        if isinstance(answer, EdgekitError):
            raise answer
        return answer


def _serve(pipe: Connection, loop: Loop, setting: Setting, scratch: Path) -> None:
    """Open a loop and do what the pipe asks for, until it is closed."""
    with ExitStack() as until_end:
        try:
            step, stages = open_loop(loop, setting, scratch, until_end)
        except EdgekitError as e:
            pipe.send(e)
            return
        pipe.send(None)
        while True:
            try:
                asked = pipe.recv()
            except EOFError:
                return
            pipe.send(_timed(step) if asked == "step" else stages())


def _timed(step: Callable[[], None]) -> Step:
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    return Step(time.perf_counter() - wall, time.process_time() - cpu)


@contextmanager
def contenders(setting: Setting) -> Iterator[list[Contender]]:
    """Give every loop, ready to step; they are opened one after the other, as that takes all cores."""
    with ExitStack() as until_end:
        found = []
        for loop in get_args(Loop):
            scratch = Path(until_end.enter_context(tempfile.TemporaryDirectory()))
            contender = Contender(loop, setting, scratch)
            until_end.callback(contender.close)
            contender.wait()
            found.append(contender)
        yield found


def compare(setting: Setting, rounds: int, terminal: Terminal) -> tuple[list[Contender], dict[str, float]]:
    """Take `rounds` steps of every loop in turns, in random order; return them, and the stages of the stored one."""
    order, stages = random.Random(0), []
    with contenders(setting) as found, terminal.bar("steps of each loop", rounds) as advance:
        stored = next(contender for contender in found if contender.name == "store")
        for _ in range(rounds):
            for contender in order.sample(found, len(found)):
                contender.step()
            stages.append(stored.stages())
            advance(1)
    return found, {name: statistics.median(stage[name] for stage in stages[WARM_UP:]) for name in stages[0]}


@click.command()
@click.option(
    "--data", type=click.Path(exists=True, path_type=Path), required=True, help="Folder of labelled pictures."
)
@click.option("--teacher", default="ViT-B-32:random", show_default=True, help="As `edgekit distill --teacher`.")
@click.option("--student", default="mobilevit_xxs", show_default=True)
@click.option("--image-size", type=int, default=128, show_default=True)
@click.option("--batch-size", type=int, default=32, show_default=True)
@click.option("--pictures", type=int, default=256, show_default=True, help="Pictures per class split that are used.")
@click.option("--rounds", type=click.IntRange(WARM_UP + 1), default=12, show_default=True)
@click.option("--compile", "compiled", is_flag=True, help="Run edgekit's student through torch.compile.")
def main(data: Path, pictures: int, rounds: int, **options: Any) -> None:
    """Print how fast each loop trains, and where the time of edgekit's goes."""
    terminal = Terminal()
    dataset = load_dataset(data)
    step = max(1, len(dataset.train) // pictures)
    dataset = dataclasses.replace(dataset, train=dataset.train[::step], val=dataset.val[:: max(1, step // 4)])
    setting = Setting(data, dataset, **options)
    found, stages = compare(setting, rounds, terminal)
    terminal.heading(f"{setting.student} at {setting.image_size} px, batch {setting.batch_size}, {rounds} steps each")
    images = setting.batch_size
    for one in found:
        wall, cpu = one.median("wall_s"), one.median("cpu_s")
        terminal.say(
            f"{one.name:<12}{images / wall:9.1f} images/s   {1e3 * cpu / images:7.2f} ms of processor per image"
        )
    by_name = {one.name: one for one in found}
    pairs: tuple[tuple[Loop, Loop], ...] = (("store", "online"), ("no teacher", "plain"))
    for fast, slow in pairs:
        wall = by_name[slow].median("wall_s") / by_name[fast].median("wall_s")
        cpu = by_name[slow].median("cpu_s") / by_name[fast].median("cpu_s")
        terminal.say(f"{fast} / {slow}: {wall:.2f}x by the clock, {cpu:.2f}x by processor time")
    terminal.heading("Where a step of the store goes")
    total = sum(stages.values())
    for name, seconds in stages.items():
        terminal.say(f"{name:<20}{1e3 * seconds / images:7.2f} ms per image  {100 * seconds / total:5.1f} %")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], "python -m edgekit.compress.pictures.throughput"))
