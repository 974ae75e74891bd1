"""Compress a run from start to end: read it, change its student, train to recover, record."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Collection, Mapping
from typing import Any

import torch

from edgekit.atomic import refuse_replacing
from edgekit.compress.distill.data import Prepared, load_data, prepare
from edgekit.compress.distill.report import describe_student
from edgekit.compress.distill.task import DistillTask
from edgekit.compress.parallel.launcher import world_size
from edgekit.compress.show.plots import plot_run
from edgekit.compress.show.progress import TrainingDisplay
from edgekit.compress.slim.config import CompressConfig
from edgekit.compress.slim.prune import without_least
from edgekit.compress.slim.qat import finished, with_fake_quantization
from edgekit.compress.slim.record import trained_codes
from edgekit.compress.slim.task import Changed, RecoverTask
from edgekit.compress.training.changed_settings import Allowed
from edgekit.compress.training.loop import FitResult, fit, pick_device
from edgekit.compress.training.run_folder import RunFolder
from edgekit.compress.training.run_lock import locked
from edgekit.compress.training.start import Start, begin, go_on, look
from edgekit.errors import LoadError, UsageError
from edgekit.export.calibration.trained import TRAINED
from edgekit.interval import wilson
from edgekit.listing import name_some
from edgekit.models.checkpoint import load_student
from edgekit.models.student import Student
from edgekit.models.teacher_record import TEACHER_FILE
from edgekit.terminal import Terminal, human_count, percent


def compress(
    config: CompressConfig,
    terminal: Terminal,
    *,
    overwrite: bool = False,
    resume: bool = False,
    allow_change: Collection[Allowed] = (),
) -> dict[str, Any]:
    """Compress the student of a run and leave a run folder; return its run.json.

    Args:
        config: what to do.
        terminal: shows it.
        overwrite: replace a run that is there.
        resume: continue a run that is there; begin one where none is.
        allow_change: settings that may differ from those that a resumed run was begun with.

    Raises:
        EdgekitError: any of the errors that the run, the data, the teacher and training name.
    """
    if world_size() > 1:
        raise UsageError("`edgekit compress` runs in one process; start it without torchrun or accelerate launch")
    config.check()
    student = load_student(config.run)
    before = RunFolder(config.run).facts()
    run = RunFolder(config.output)
    refuse_replacing(config.output, [config.run])
    start = look(run, config.to_dict(), overwrite=overwrite, resume=resume, allow_change=allow_change)
    training = config.training
    dataset = load_data(training)
    _same_classes(student, dataset.classes, config)
    prepared = prepare(training, dataset, student.spec.preprocess, pick_device(training.recipe.fit), terminal)
    torch.manual_seed(training.recipe.fit.seed)
    changed = change(config, student, prepared, terminal)
    with locked(run.path):
        _open(run, config, prepared, changed, start, before, terminal)
        task = recover_task(config, changed, prepared)
        device = pick_device(training.recipe.fit)
        with torch.no_grad():
            reference = task.evaluate(student.to(device), device)
            started = task.evaluate(changed.model.to(device).eval(), device)
        images = len(task.distill.val_labels)
        terminal.say(f"before   {percent(reference['val_acc'])} val accuracy on {images} pictures")
        terminal.say(f"changed  {_told(started, images)}")
        result = fit(task, training.recipe.fit, run, display=TrainingDisplay(terminal), resume=start.resume)
        ends = {"before": dict(reference), "untrained": dict(started), "val_images": images}
        return _summarise(run, result, ends, terminal)


def change(config: CompressConfig, student: Student, prepared: Prepared, terminal: Terminal) -> Changed:
    """Return the student as it is before the first step of recovering."""
    if config.qat is not None:
        ready = with_fake_quantization(student, prepared.dataset, config.qat)
        qat, layers = config.qat, ready.float_layers
        terminal.say(
            f"8 bits   as in the {qat.precision} file for {qat.runtime}: {len(ready.facts['ranges'])} activations, "
            f"ranges from {len(ready.facts['calibration'])} training pictures"
            + (", then learned" if qat.learn_ranges else "")
            + (f"; {name_some(layers)} stay float" if layers else "")
        )

        def kept(model: Student) -> Mapping[str, Any]:
            return {TRAINED: trained_codes(model, qat, layers).to_dict()}

        facts = {"qat": dict(ready.facts)}
        return Changed(ready.student, student, lambda model: finished(model, student), "fidelity_db", facts, kept)
    assert config.prune is not None, "`check` lets one of the two pass"
    smaller = without_least(student, config.prune, prepared.data.source.batches(1, torch.device("cpu")))
    before, after = describe_student(student), describe_student(smaller)
    saved = {name: [before[name], after[name]] for name in ("parameters", "macs", "size_bytes")}
    terminal.say(
        f"pruned   {human_count(before['parameters'])} → {human_count(after['parameters'])} parameters, "
        f"{human_count(before['macs'])} → {human_count(after['macs'])} MACs"
    )
    facts = {"prune": {"share": config.prune, "widths": dict(smaller.spec.widths), **saved}}
    return Changed(smaller, student, copy.deepcopy, "val_acc", facts)


def recover_task(config: CompressConfig, changed: Changed, prepared: Prepared) -> RecoverTask:
    """Return the task that trains the changed student."""
    inner = DistillTask(changed.model, config.training.recipe, prepared.data)
    return RecoverTask(changed, inner, config.guide)


def _open(
    run: RunFolder,
    config: CompressConfig,
    prepared: Prepared,
    changed: Changed,
    start: Start,
    before: Mapping[str, Any],
    terminal: Terminal,
) -> None:
    """Write what a run knows before its first step, or take up one that is there."""
    if start.resume:
        go_on(run, config.to_dict(), prepared.facts, start.changes, terminal)
        return
    facts = {
        "seed": config.training.recipe.fit.seed,
        "data": {**prepared.facts, **config.training.split_facts()},
        "teacher": prepared.teacher_facts or before.get("teacher"),
        "student": describe_student(changed.finish(changed.model)),
        "compress": {"from": str(config.run), "guide": config.guide, **changed.facts},
    }
    begin(run, config.to_dict(), facts, left=(run.path / RecoverTask.checkpoint_name, run.path / TEACHER_FILE))
    if (config.run / TEACHER_FILE).is_file():  # the teacher that the result is judged by stays the same
        shutil.copyfile(config.run / TEACHER_FILE, run.path / TEACHER_FILE)


def _same_classes(student: Student, classes: tuple[str, ...], config: CompressConfig) -> None:
    if student.spec.classes != classes:
        raise LoadError(
            f"the student of {config.run} knows {len(student.spec.classes)} classes, the data {len(classes)} others; "
            f"pass --data with the pictures it was trained on"
        )


def _summarise(run: RunFolder, result: FitResult, ends: Mapping[str, Any], terminal: Terminal) -> dict[str, Any]:
    """Record the result, draw it and show it; return run.json."""
    best = next((row for row in result.rows if row["epoch"] == result.best_epoch), {})
    summary = {
        "best_epoch": result.best_epoch,
        "val_acc": best.get("val_acc"),
        "last_val_acc": result.rows[-1].get("val_acc") if result.rows else None,
        **{name: best.get(name) for name in _OF_BEST},
        "seconds": result.seconds,
        **ends,
    }
    run.update_facts({"summary": summary})
    if result.rows:
        plot_run(result.rows, run.plots / "training.png", teacher_acc=ends["before"]["val_acc"], title=str(run.path))
    terminal.heading("Summary")
    terminal.say(f"before   {percent(ends['before']['val_acc'])} val accuracy")
    terminal.say(f"changed  {_told(ends['untrained'], ends['val_images'])}")
    if best:
        terminal.say(f"trained  {_told(best, ends['val_images'])}; epoch {result.best_epoch}")
    terminal.say(f"run      {run.path}  ({result.seconds:.0f} s of training)")
    return run.facts()


_OF_BEST = ("agreement", "cosine", "fidelity_db", "self_agreement", "self_drop", "self_drop_low", "self_drop_high")
"""What the summary tells of the best epoch."""


def _told(values: Mapping[str, float], images: int) -> str:
    """Say how a student is beside the one before, on so many pictures, with 95 % intervals."""
    agreement = wilson(values["self_agreement"] * images, images)
    # said as the change, so with the other sign; 0.0 is added for what would be -0.00
    lost, low, high = (100 * values[name] for name in ("self_drop", "self_drop_low", "self_drop_high"))
    return (
        f"{percent(values['val_acc'])}, which is {-lost + 0.0:+.2f} points ({-high:+.2f} to {-low:+.2f}); "
        f"{values['fidelity_db']:.1f} dB and {100 * agreement.value:.2f} % "
        f"({100 * agreement.low:.1f}–{100 * agreement.high:.1f}) agreement with the student before"
    )
