"""Training an image classifier from start to end: labelled pictures, a timm backbone, the one loop, summary."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch

from edgekit.compress.guard.plan_ahead import refuse_restarts
from edgekit.compress.image.data import load_labelled, prepare_pictures
from edgekit.compress.image.recipe import ImageRecipe
from edgekit.compress.image.task import ImageTask
from edgekit.compress.parallel.single_process import refuse_several
from edgekit.compress.show.progress import TrainingDisplay
from edgekit.compress.show.run_plots import plot_runs
from edgekit.compress.training.changed_settings import Allowed
from edgekit.compress.training.history import read_history
from edgekit.compress.training.loop import FitResult, fit
from edgekit.compress.training.order import steps_per_epoch
from edgekit.compress.training.phases import EarlierPhase, load_phase, take_over
from edgekit.compress.training.run_folder import RunFolder, plain_settings
from edgekit.compress.training.run_lock import locked
from edgekit.compress.training.start import begin, go_on, look
from edgekit.errors import UsageError, did_you_mean
from edgekit.interval import wilson
from edgekit.models.complexity import measure_complexity
from edgekit.models.spec import StudentSpec
from edgekit.models.student import Student, build_student, student_preprocess
from edgekit.terminal import Terminal, human_bytes, human_count, percent


@dataclass(frozen=True)
class TrainImageConfig:
    """What classifier to train on what.

    Attributes:
        data: folder or CSV (`edgekit.data.load_dataset`), or tar shards (`edgekit.shards.load_shards`).
        output: the run folder.
        recipe: loss, augmentation, optimisation.
        model: timm name; one with a tag starts from timm's hub weights.
        image_size: side of the input in pixels.
        embed_dim: width of the embedding between backbone and classes, which a student of this teacher learns.
        weights: local weights that the backbone starts from.
        init_from: run folder or checkpoint whose classifier this run trains on, as its next phase.
        val_fraction: where the data has no validation split of its own.
        max_broken: share of unreadable pictures that is tolerated.
    """

    data: Path
    output: Path
    recipe: ImageRecipe
    model: str = "resnet50"
    image_size: int = 224
    embed_dim: int = 512
    weights: Path | None = None
    init_from: Path | None = None
    val_fraction: float | None = None
    max_broken: float = 0.01

    def check(self) -> None:
        """Refuse what cannot work, before any work is done.

        Raises:
            UsageError: an unknown model, or options that exclude each other.
        """
        base = self.model.partition(".")[0]
        if not timm.is_model(base):
            raise UsageError(f"--model '{self.model}' is not a timm model; {did_you_mean(base, timm.list_models())}")
        if self.init_from is not None and self.weights is not None:
            raise UsageError("--init-from and --weights exclude each other; give one")

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved settings, for config.yaml."""
        return plain_settings(vars(self))


def train_image(
    config: TrainImageConfig,
    terminal: Terminal,
    *,
    overwrite: bool = False,
    resume: bool = False,
    allow_change: Collection[Allowed] = (),
) -> FitResult:
    """Train a classifier and leave a run folder that export, bench and `distill --teacher` take.

    Args:
        config: what to train.
        terminal: shows it.
        overwrite: replace a run that is there.
        resume: continue a run that is there; begin one where none is.
        allow_change: what may differ from the settings that a resumed run was begun with.

    Raises:
        EdgekitError: any of the errors that data, net and training name.
    """
    config.check()
    refuse_several("train image")
    run, recipe = RunFolder(config.output), config.recipe
    start = look(run, config.to_dict(), overwrite=overwrite, resume=resume, allow_change=allow_change)
    dataset = load_labelled(config.data, config.val_fraction, recipe.fit.seed, terminal)
    if not start.resume:
        refuse_restarts(recipe.fit, steps_per_epoch(len(dataset.train), recipe.fit.batch_size))
    earlier = load_phase(config.init_from) if config.init_from is not None else None
    net = _build(config, dataset.classes, earlier)
    scratch = config.output.parent
    ready = prepare_pictures(dataset, recipe, net.spec.preprocess, scratch, terminal, config.max_broken)
    with locked(run.path):
        if start.resume:
            go_on(run, config.to_dict(), ready.facts, start.changes, terminal)
        else:
            _begin(run, config, ready.facts, net, earlier)
        _announce(terminal, config, ready.facts, run)
        task = ImageTask(net, recipe, ready.train, ready.val)
        result = fit(task, recipe.fit, run, display=TrainingDisplay(terminal), resume=start.resume)
        _summarise(run, task, result, terminal)
        return result


def _build(config: TrainImageConfig, classes: tuple[str, ...], earlier: EarlierPhase | None) -> Student:
    arch, _, tag = config.model.partition(".")
    contract = student_preprocess(config.model, config.image_size)
    spec = StudentSpec(arch, config.embed_dim, classes, contract)
    torch.manual_seed(config.recipe.fit.seed)
    net = build_student(spec, weights=config.weights, pretrained=config.model if tag else None)
    if earlier is not None:
        take_over(net, earlier)
    return net


def _begin(
    run: RunFolder, config: TrainImageConfig, data: Mapping[str, Any], net: Student, earlier: EarlierPhase | None
) -> None:
    """Write what is known before the first step."""
    cost = measure_complexity(net, net.spec.image_size)
    student = {
        "arch": net.spec.arch,
        "image_size": net.spec.image_size,
        "parameters": cost.parameters,
        "macs": cost.macs,
        "size_bytes": cost.size_bytes,
    }
    facts = {"kind": "image", "seed": config.recipe.fit.seed, "data": dict(data), "teacher": None, "student": student}
    begin(run, config.to_dict(), facts, earlier=earlier, left=[run.path / ImageTask.checkpoint_name])


def _announce(terminal: Terminal, config: TrainImageConfig, data: Mapping[str, Any], run: RunFolder) -> None:
    student, fit_config = run.facts()["student"], config.recipe.fit
    shards = f" in {data['shards']} shards" if "shards" in data else ""
    terminal.say(f"data     {data['train']} train{shards}, {data['val']} val, {len(data['classes'])} classes")
    terminal.say(
        f"model    {student['arch']} at {student['image_size']} px: {human_count(student['parameters'])} parameters, "
        f"{human_count(student['macs'])} MACs, {human_bytes(student['size_bytes'])}"
    )
    terminal.say(
        f"training {fit_config.optimizer}, batches of {fit_config.batch_size}, peak rate {fit_config.lr:g}, "
        f"{fit_config.schedule.name} over {fit_config.epochs} epochs"
    )


def _summarise(run: RunFolder, task: ImageTask, result: FitResult, terminal: Terminal) -> None:
    """Record the result, draw it with its earlier phases, and show it."""
    count = len(task.val.samples)
    summary: dict[str, Any] = {"best_epoch": result.best_epoch, "last_val_acc": result.last, "seconds": result.seconds}
    if result.best_epoch:
        interval = wilson(round(result.best * count), count)
        summary |= {"val_acc": result.best, "val_acc_low": interval.low, "val_acc_high": interval.high}
        terminal.heading("Summary")
        terminal.say(
            f"best     {percent(result.best)} validation accuracy (95 %: {100 * interval.low:.1f}-"
            f"{100 * interval.high:.1f}, n = {count}) at epoch {result.best_epoch}; last {percent(result.last)}"
        )
    run.update_facts({"summary": summary})
    if result.rows:
        plot_runs([read_history(run.path)], run.plots / "training.png", title=str(run.path))
    terminal.say(f"run      {run.path}  ({result.seconds:.0f} s of training); export, bench and --teacher take it")
