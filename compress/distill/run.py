"""Distillation from start to end: data, teacher, student, training, summary."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from edgekit.compress.distill.config import DistillConfig
from edgekit.compress.distill.data import Prepared, load_data, prepare
from edgekit.compress.distill.report import DistillSummary, announce, describe_student, summarise
from edgekit.compress.distill.task import DistillTask
from edgekit.compress.guard.plan_ahead import refuse_restarts
from edgekit.compress.parallel.agreement import refuse_disagreement, without_places
from edgekit.compress.parallel.launcher import missing_launcher
from edgekit.compress.parallel.processes import Processes, join
from edgekit.compress.show.progress import TrainingDisplay
from edgekit.compress.store.probe import ClassHead
from edgekit.compress.store.teachers import try_teachers
from edgekit.compress.training.changed_settings import Allowed
from edgekit.compress.training.loop import fit, pick_device
from edgekit.compress.training.order import steps_per_epoch
from edgekit.compress.training.phases import EarlierPhase, take_over
from edgekit.compress.training.run_folder import MutedRunFolder, RunFolder
from edgekit.compress.training.run_lock import locked
from edgekit.compress.training.start import Start, begin, go_on, look
from edgekit.compress.video.start import earlier_phase, start_from_scores, start_from_still, takes_stills
from edgekit.data import ImageDataset
from edgekit.models.spec import StudentSpec
from edgekit.models.student import Student, build_student, student_preprocess
from edgekit.models.teacher_record import TEACHER_FILE, TeacherRecord
from edgekit.preprocess import Preprocess
from edgekit.shards import ShardDataset
from edgekit.terminal import Terminal, muted


def distill(
    config: DistillConfig,
    terminal: Terminal,
    *,
    overwrite: bool = False,
    resume: bool = False,
    allow_change: Collection[Allowed] = (),
) -> DistillSummary:
    """Train a student from a frozen teacher and leave a run folder.

    Args:
        config: what to distill.
        terminal: shows it.
        overwrite: replace a run that is there.
        resume: continue a run that is there; begin one where none is.
        allow_change: what may differ from the settings that a resumed run was begun with.

    Raises:
        EdgekitError: any of the errors that data, teacher, student and training name.
        SystemExit: another process of this run failed, and has said why.
    """
    processes = join(pick_device(config.recipe.fit))
    if (warning := missing_launcher()) is not None:
        terminal.warn(warning)
    with processes.together():
        config.check()
        config = config.fitted()
        run = RunFolder(config.output) if processes.is_main else MutedRunFolder(config.output)
        start = processes.from_main(
            lambda: look(run, config.to_dict(), overwrite=overwrite, resume=resume, allow_change=allow_change)
        )
        return _distill(config, terminal if processes.is_main else muted(), processes, run, start)


def _distill(
    config: DistillConfig, terminal: Terminal, processes: Processes, run: RunFolder, start: Start
) -> DistillSummary:
    """Do one process's part of the work."""
    dataset = load_data(config)
    fit_config = config.recipe.fit
    if not start.resume:
        refuse_restarts(fit_config, steps_per_epoch(len(dataset.train), fit_config.batch_size))
    said = {**without_places(config.to_dict()), "data": dataset.fingerprint() if processes.world > 1 else None}
    refuse_disagreement(processes, said, "the settings or the data")
    contract = student_preprocess(config.student, config.image_size)
    # tried before the pictures are read: a wrong image size or teacher shows in seconds, not after minutes
    build_student(_spec(config, dataset, contract, 1), weights=config.student_weights)
    with processes.main_first():  # it may download one
        try_teachers(config, processes.device)
    earlier = None if config.init_from is None else earlier_phase(config.init_from, config.frames, config.positions)
    prepared = prepare(config, dataset, contract, processes.device, terminal)
    if earlier is not None and (doubt := earlier.judged_on_trained(prepared.facts)) is not None:
        terminal.warn(doubt)
    student = _build(config, prepared, contract, earlier)
    student_facts = describe_student(student)
    refuse_disagreement(processes, {"data": prepared.facts, "teacher": prepared.teacher_facts or {}}, "what was read")
    with locked(run.path) if processes.is_main else nullcontext():
        if start.resume:
            processes.from_main(lambda: go_on(run, config.to_dict(), prepared.facts, start.changes, terminal))
        else:
            processes.from_main(lambda: _begin(run, config, prepared, student_facts, earlier))
        announce(terminal, prepared.facts, prepared.teacher_facts, student_facts)
        task = DistillTask(student, config.recipe, prepared.data)
        result = fit(task, fit_config, run, display=TrainingDisplay(terminal), resume=start.resume)
        return processes.from_main(lambda: summarise(run, task, result, terminal))


def _spec(
    config: DistillConfig, dataset: ImageDataset | ShardDataset, contract: Preprocess, embed_dim: int
) -> StudentSpec:
    arch = config.student.partition(".")[0]
    return StudentSpec(arch, embed_dim, dataset.classes, contract, config.frames, config.positions)


def _build(config: DistillConfig, prepared: Prepared, contract: Preprocess, earlier: EarlierPhase | None) -> Student:
    """Return the student as it is before the first step."""
    torch.manual_seed(config.recipe.fit.seed)
    alone_dim = earlier.student.spec.embed_dim if earlier is not None else config.embed_dim
    spec = _spec(config, prepared.dataset, contract, prepared.embed_dim or alone_dim)
    tagged = config.student if "." in config.student else None
    student = build_student(spec, weights=config.student_weights, pretrained=tagged)
    recipe, knows_classes = config.recipe, False
    if earlier is not None and takes_stills(student, earlier.student):
        clips = next(prepared.data.source.batches(1, torch.device("cpu"))).images
        knows_classes = start_from_still(student, earlier.student, clips, config.init_from)
    elif earlier is not None:
        take_over(student, earlier)
        knows_classes = True
    if recipe.init_classifier and prepared.data.head is not None and not knows_classes:
        _start_from_teacher(student, prepared.data.head)
    student.dropout = recipe.dropout
    student.freeze(recipe.freeze)
    if recipe.freeze_backbone and config.pretrained:
        student.freeze_backbone()
    return student


def _begin(
    run: RunFolder, config: DistillConfig, prepared: Prepared, student: Mapping[str, Any], earlier: EarlierPhase | None
) -> None:
    """Write what a new run knows before its first step."""
    facts = {
        "seed": config.recipe.fit.seed,
        "data": {**prepared.facts, **config.split_facts()},
        "teacher": prepared.teacher_facts,
        "student": student,
    }
    left = (run.path / DistillTask.checkpoint_name, run.path / TEACHER_FILE)
    begin(run, config.to_dict(), facts, earlier=earlier, left=left)
    data = prepared.data
    if data.val_teacher is not None and data.head is not None:
        keys = tuple(sample.key for sample in data.val.samples)
        weight, bias = data.head.weight.numpy(), data.head.bias.numpy()
        TeacherRecord(keys, data.val_teacher.astype(np.float32), weight, bias).save(run.path)


@torch.no_grad()
def _start_from_teacher(student: Student, head: ClassHead) -> None:
    if student.pool is not None:
        start_from_scores(student, head)
        return
    assert isinstance(student.classifier, nn.Linear), "a still student's"
    student.classifier.weight.copy_(head.weight)
    student.classifier.bias.copy_(head.bias)
