"""One command that asks what a small set of clips is good for: by default 75 clips of 15 classes, made of photos.

`python -m edgekit.demo.small_clips --data DIR --teacher FILE --still RUN -o small_clips.md`

The clips pan over the photos on which a still student was validated, and not trained. Each class gives some photos to
the test, which is the same for all seeds and decides nothing, and for each seed others to train on and to choose the
best epoch on. The clips' classes are named apart from the photos', as those of a user's clips are: recipes start from
the still student's backbone and projection, and not from its classifier.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from edgekit import atomic
from edgekit.clips import load_clips
from edgekit.compress.distill.config import DistillConfig
from edgekit.compress.distill.run import distill
from edgekit.compress.recipe import Recipe, load_recipe
from edgekit.compress.store.probe import fit_probe
from edgekit.compress.video.views import clip_embeddings
from edgekit.data import Sample, load_dataset
from edgekit.demo.panned_clips import choose_photos, clip_name, write_clips, write_split
from edgekit.demo.small_clips_table import Result, render
from edgekit.errors import UsageError
from edgekit.exits import run_command
from edgekit.models.checkpoint import STUDENT_FILE, load_student
from edgekit.models.student import Student
from edgekit.models.teacher import Teacher, load_teacher
from edgekit.preprocess import Preprocess, to_input
from edgekit.terminal import Terminal

CLIP_FRAMES, CLIP_SIDE = 24, 128
BACKBONE_ONLY = ":backbone"
"""Ends the name of a recipe that takes over the still student's backbone alone, as --student-weights does."""

ORIGIN = "origin"
_ORIGIN: Mapping[str, Any] = {
    "label_smoothing": 0.0,
    "dropout": 0.0,
    "views": 0,
    "init_classifier": False,
    "freeze_backbone": False,
    "augment": {"crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0], "flip": 0.5}
    | dict.fromkeys(("brightness", "contrast", "saturation"), 0.0),
    "fit": {"weight_decay": 0.01, "ema_decay": 0.0, "clip_norm": 0.0, "patience": 0},
}
"""What of ego4d edgekit added: without it the origin's settings are left, and flips."""


@dataclass(frozen=True)
class SmallClipsConfig:
    """What to compare, and on what.

    Attributes:
        work: folder for clips, runs and results. What is finished there is not done again.
        data: photos (`edgekit.data.load_dataset`), the validation split unseen by `still`.
        teacher: as for distill.
        still: run folder or checkpoint of a still student of that teacher.
        recipes: see `recipe_of`; the others are compared with the first.
        seeds: each with its own training clips.
        counts: clips of each class to train on, to choose the epoch on, and to judge on.
        frames: that the student sees.
        epochs: of every recipe; None leaves them as they are.
        same_classes: name the clips' classes as the photos', so that the still student's classifier is taken over.
    """

    work: Path
    data: Path
    teacher: str
    still: Path
    recipes: tuple[str, ...] = (ORIGIN + BACKBONE_ONLY, "ego4d")
    seeds: tuple[int, ...] = (0, 1, 2)
    counts: tuple[int, int, int] = (5, 5, 40)
    frames: int = 8
    epochs: int | None = None
    same_classes: bool = False


def recipe_of(name: str, seed: int, epochs: int | None = None) -> Recipe:
    """Return the recipe that NAME, NAME@RATE or either with `:backbone` stands for.

    NAME is a shipped recipe, a YAML file, or `origin`: the settings of the origin without what edgekit adds.

    Raises:
        UsageError: there is no such recipe, or the rate is none.
    """
    plain, _, rate = name.removesuffix(BACKBONE_ONLY).partition("@")
    try:
        fit = {"seed": seed, "epochs": epochs, "lr": float(rate) if rate else None}
    except ValueError as e:
        raise UsageError(f"recipe {name}: '{rate}' is no learning rate, such as 5e-4") from e
    if plain != ORIGIN:
        return load_recipe(plain, {"fit": fit})
    return load_recipe("ego4d", {**_ORIGIN, "fit": {**_ORIGIN["fit"], **fit}})


class SmallClips:
    """The clips of a comparison, and what is measured on them.

    Raises:
        EdgekitError: photos or still student are not usable.
    """

    def __init__(self, config: SmallClipsConfig, terminal: Terminal) -> None:
        self.config, self.terminal = config, terminal
        self.still = load_student(config.still).eval()
        self.photos = load_dataset(config.data)
        train, val, test = config.counts
        *drawn, self.test = choose_photos(self.photos.val, (*(train, val) * len(config.seeds), test), 0)
        self.train, self.val = (dict(zip(config.seeds, drawn[at::2], strict=True)) for at in (0, 1))
        self.clips = config.work / "clips"
        self._read: dict[str, NDArray[np.uint8]] = {}

    def write(self) -> None:
        """Write the clips, if they are not there, and a CSV for each seed."""
        if not self.clips.is_dir():
            self.terminal.heading("making clips")
            parts = [self.test, *self.train.values(), *self.val.values()]
            photos = [photo for part in parts for photo in part]
            write_clips(self.photos, photos, self.clips, frames=CLIP_FRAMES, side=CLIP_SIDE)
        label = "{}" if self.config.same_classes else "{} (clip)"
        for seed in self.config.seeds:
            splits = {"train": self.train[seed], "val": self.val[seed]}
            write_split(self.photos, splits, self.clips, self._csv(seed), label)

    def results(self) -> Iterator[Result]:
        """Yield two baselines and what every recipe comes to, seed by seed.

        Raises:
            EdgekitError: data, teacher or still student are not usable together.
        """
        for seed in self.config.seeds:
            yield self._kept("still student, mean of frames", seed, self._of_still)
            yield self._kept("teacher, linear probe", seed, self._of_teacher)
            for name in self.config.recipes:
                yield self._kept(name, seed, partial(self._trained, name))

    def _csv(self, seed: int) -> Path:
        return self.config.work / f"seed-{seed}.csv"

    def _kept(self, name: str, seed: int, make: Callable[[int], Result]) -> Result:
        """Return a result out of the work folder, or make it."""
        path = self.config.work / "results" / f"{_slug(name)}-{seed}.json"
        if not path.is_file():
            result = make(seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_json(path, result.to_dict())
        return Result.of(json.loads(path.read_text(encoding="utf-8")))

    def _trained(self, name: str, seed: int) -> Result:
        self.terminal.heading(f"{name}, seed {seed}")
        whole = not name.endswith(BACKBONE_ONLY)
        still = self.config.still
        checkpoint = still / STUDENT_FILE if still.is_dir() else still
        config = DistillConfig(
            data=self._csv(seed),
            output=self.config.work / "runs" / f"{_slug(name)}-{seed}",
            recipe=recipe_of(name, seed, self.config.epochs),
            student=self.still.spec.arch,
            image_size=self.still.spec.image_size,
            init_from=still if whole else None,
            student_weights=None if whole else checkpoint,
            teachers=(self.config.teacher,),
            frames=self.config.frames,
        )
        summary = distill(config, self.terminal, overwrite=True).facts["summary"]
        student = load_student(config.output).eval()
        train, test = (self._right(self._logits(student, part), part) for part in (self.train[seed], self.test))
        return Result(name, seed, float(train.mean()), summary["best_epoch"], summary["last_val_acc"], test)

    def _of_still(self, seed: int) -> Result:
        parts = (self.train[seed], self.val[seed], self.test)
        train, val, test = (self._right(self._logits(self.still, part), part) for part in parts)
        return Result("still student, mean of frames", seed, float(train.mean()), 0, float(val.mean()), test)

    def _of_teacher(self, seed: int) -> Result:
        teacher = load_teacher(self.config.teacher, torch.device("cpu"), threads=1)
        parts = (self.train[seed], self.val[seed], self.test)
        said = [self._embeddings(teacher, part) for part in parts]
        labels = torch.from_numpy(_labels(parts[0]))
        head = fit_probe(said[0][:, None], labels, len(self.photos.classes), seed=seed)
        train, val, test = (self._right(head(rows).numpy(), part) for rows, part in zip(said, parts, strict=True))
        return Result("teacher, linear probe", seed, float(train.mean()), 0, float(val.mean()), test)

    def _pixels(self, photos: Sequence[Sample], contract: Preprocess) -> NDArray[np.uint8]:
        """Return the frames (N, F, S, S, 3) of clips; those of the test are read once."""
        paths = [self.clips / clip_name(self.photos, photo) for photo in photos]
        if photos is not self.test:
            return load_clips(paths, self.config.frames, contract)
        key = repr(contract)
        if key not in self._read:
            self._read[key] = load_clips(paths, self.config.frames, contract)
        return self._read[key]

    @torch.no_grad()
    def _logits(self, student: Student, photos: Sequence[Sample]) -> NDArray[np.float32]:
        """Return the logits (N, C) of clips: those of a still student are the log of its mean probability."""
        rows = []
        for pixels in self._pixels(photos, student.spec.preprocess):
            frames = torch.from_numpy(to_input(pixels))
            logits = student.from_frames(frames).logits
            rows.append(logits[0] if student.pool is not None else logits.softmax(1).mean(0).log())
        return torch.stack(rows).numpy()

    def _embeddings(self, teacher: Teacher, photos: Sequence[Sample]) -> torch.Tensor:
        """Return the unit means (N, D) of the frames' embeddings."""
        clips = self._pixels(photos, teacher.preprocess)
        return torch.from_numpy(
            np.stack([clip_embeddings(teacher(torch.from_numpy(to_input(clip))).numpy()) for clip in clips])
        )

    def _right(self, logits: NDArray[np.float32], photos: Sequence[Sample]) -> NDArray[np.bool_]:
        right: NDArray[np.bool_] = logits.argmax(1) == _labels(photos)
        return right


def _labels(photos: Sequence[Sample]) -> NDArray[np.int64]:
    return np.array([photo.label for photo in photos], np.int64)


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in Path(name).name)


def _head(config: SmallClipsConfig, clips: SmallClips) -> str:
    train, val, test = (count * len(clips.photos.classes) for count in config.counts)
    return (
        f"{train} training clips of {len(clips.photos.classes)} classes, {config.frames} × "
        f"{clips.still.spec.image_size} px; best epoch chosen on {val}, judged on {test} others. Every seed has its "
        "own training clips. Intervals resample seeds and clips; training clips are judged plain, as the test is."
    )


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Photos, DIR/{train,val}/<class>/*.")
@click.option("--teacher", required=True, help="As for distill.")
@click.option(
    "--still", type=click.Path(path_type=Path), required=True, help="Still student, not trained on the val photos."
)
@click.option(
    "--recipes", default=",".join(SmallClipsConfig.recipes), show_default=True, help="NAME[@RATE][:backbone]."
)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="How many.")
@click.option("--train", type=click.IntRange(1), default=5, show_default=True, help="Training clips of each class.")
@click.option("--val", type=click.IntRange(1), default=5, show_default=True, help="To choose the best epoch on.")
@click.option("--test", type=click.IntRange(1), default=40, show_default=True, help="To judge on.")
@click.option("--frames", type=click.IntRange(2), default=8, show_default=True)
@click.option("--epochs", type=click.IntRange(1), help="Of every recipe.  [default: its own]")
@click.option("--same-classes", is_flag=True, help="Take the still student's classifier over, too.")
@click.option("--work", type=click.Path(path_type=Path), default="small_clips", show_default=True, help="Work folder.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default="small_clips.md", show_default=True)
def main(**options: Any) -> None:
    """Train recipes on small sets of clips made of photos, and write the table that compares them."""
    config = SmallClipsConfig(
        **{name: options[name] for name in ("work", "data", "teacher", "still", "frames", "epochs", "same_classes")},
        recipes=tuple(name for part in options["recipes"].split(",") if (name := part.strip())),
        seeds=tuple(range(options["seeds"])),
        counts=(options["train"], options["val"], options["test"]),
    )
    terminal = Terminal()
    results: list[Result] = []
    clips = SmallClips(config, terminal)
    clips.write()
    for result in clips.results():
        results.append(result)
        atomic.write_text(options["output"], render(results, _head(config, clips)))
    terminal.say(f"table: {options['output']}")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], "python -m edgekit.demo.small_clips"))
