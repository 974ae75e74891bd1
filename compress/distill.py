"""Distillation from start to end: data, teacher, student, training, summary."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgekit.atomic import refuse_existing
from edgekit.compress.changed_settings import Allowed, refuse_changes, refuse_other_data
from edgekit.compress.distill_report import (
    DistillSummary,
    announce,
    data_facts,
    describe_student,
    describe_teacher,
    summarise,
)
from edgekit.compress.distill_task import DistillData, DistillTask
from edgekit.compress.loop import fit, pick_device
from edgekit.compress.phases import load_phase, take_over
from edgekit.compress.pixels import PixelStore, decode_eval, decode_train
from edgekit.compress.plan_ahead import refuse_restarts
from edgekit.compress.probe import ClassHead, fit_probe
from edgekit.compress.progress import TrainingDisplay
from edgekit.compress.recipe import Recipe
from edgekit.compress.run_folder import RunFolder
from edgekit.compress.run_lock import locked, refuse_locked
from edgekit.compress.teacher_store import TeacherTable, TeachPlan, read_embeddings, teach
from edgekit.data import ImageDataset, check_broken, load_dataset
from edgekit.errors import UsageError
from edgekit.models.prompts import TEMPLATES
from edgekit.models.spec import StudentSpec
from edgekit.models.student import Student, build_student, check_arch, student_preprocess
from edgekit.models.teacher import Teacher, load_teacher
from edgekit.models.teacher_record import TEACHER_FILE, TeacherRecord
from edgekit.preprocess import Preprocess
from edgekit.terminal import Terminal

STORE_SCALE = 1.25
"""Training pictures are kept a little larger than the student's input, so that crops need not be blown up much."""


@dataclass(frozen=True)
class DistillConfig:
    """What to distill.

    Attributes:
        data: folder or CSV (`edgekit.data.load_dataset`).
        output: the run folder.
        recipe: loss weights, optimisation, augmentation.
        student: timm name; one with a tag ("mobilevit_xxs.cvnets_in1k") starts from timm's hub weights.
        image_size: side of the student's input in pixels.
        student_weights: local weights that the backbone starts from.
        init_from: run folder or checkpoint whose whole student this run starts from, as its next phase.
        teacher: see `edgekit.models.teacher.load_teacher`.
        teacher_embeddings: precomputed embeddings, instead of a teacher.
        templates: prompt templates with a {} for the class name.
        val_fraction: where the data has no validation split of its own.
        max_broken: share of unreadable pictures that is tolerated.
        embed_dim: of a student without a teacher; else it is the teacher's.
        teacher_cache: where teacher stores are kept; None puts them beside the run folder.
    """

    data: Path
    output: Path
    recipe: Recipe
    student: str = "mobilevit_xxs"
    image_size: int = 256
    student_weights: Path | None = None
    init_from: Path | None = None
    teacher: str | None = None
    teacher_embeddings: Path | None = None
    templates: tuple[str, ...] = TEMPLATES
    val_fraction: float | None = None
    max_broken: float = 0.01
    embed_dim: int = 512
    teacher_cache: Path | None = None

    def check(self) -> None:
        """Refuse what cannot work, before any work is done.

        Raises:
            UsageError: the teacher is missing, double, or not used; or the student is unknown.
        """
        given = [o for o, v in (("--teacher", self.teacher), ("--teacher-embeddings", self.teacher_embeddings)) if v]
        if len(given) > 1:
            raise UsageError("--teacher and --teacher-embeddings exclude each other; give one")
        if self.recipe.needs_teacher and not given:
            raise UsageError(
                "no teacher given: pass --teacher ARCH:TAG, --teacher FILE.onnx or --teacher-embeddings FILE.npz; "
                "or train without one with --alpha 0 --beta 0"
            )
        if given and not self.recipe.needs_teacher:
            raise UsageError(f"{given[0]} is given, but with --alpha 0 --beta 0 nothing learns from it; leave it out")
        if self.init_from is not None and self.student_weights is not None:
            raise UsageError("--init-from and --student-weights exclude each other; give one")
        check_arch(self.student)

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved settings, for config.yaml."""
        plain = {k: str(v) if isinstance(v, Path) else v for k, v in vars(self).items()}
        return {**plain, "templates": list(self.templates), "recipe": self.recipe.model_dump(mode="json")}


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
    """
    config.check()
    run = RunFolder(config.output)
    refuse_locked(run.path)
    resume = resume and run.facts_path.is_file()
    changes: list[str] = []
    if resume:
        changes = refuse_changes(run, config.to_dict(), allow_change)
    else:
        refuse_existing(config.output, overwrite=overwrite)
    dataset = load_dataset(config.data, val_fraction=config.val_fraction, seed=config.recipe.fit.seed)
    fit_config = config.recipe.fit
    if not resume:
        refuse_restarts(fit_config, max(1, round(len(dataset.train) / fit_config.batch_size)))
    contract = student_preprocess(config.student, config.image_size)
    # tried before the pictures are read: a wrong image size or teacher shows in seconds, not after minutes
    build_student(_spec(config, dataset, contract, 1), weights=config.student_weights)
    earlier = load_phase(config.init_from) if config.init_from is not None else None
    device = pick_device(config.recipe.fit)
    teacher = load_teacher(config.teacher, device) if config.teacher else None
    train, val, dataset = _decode(config, dataset, contract, terminal)
    table = _teach(config, teacher, train, val, terminal)
    head = _class_head(config, teacher, table, train, dataset)
    torch.manual_seed(config.recipe.fit.seed)
    alone_dim = earlier.student.spec.embed_dim if earlier is not None else config.embed_dim
    spec = _spec(config, dataset, contract, table.embed_dim if table is not None else alone_dim)
    tagged = config.student if "." in config.student else None
    student = build_student(spec, weights=config.student_weights, pretrained=tagged)
    if earlier is not None:
        take_over(student, earlier)
    elif config.recipe.init_classifier and head is not None:
        _start_from_teacher(student, head)
    teacher_facts = describe_teacher(config.teacher or config.teacher_embeddings, teacher, table, head, val)
    student_facts = describe_student(student)
    data = data_facts(dataset, train, val)
    with locked(run.path):
        if resume:
            refuse_other_data(run, data)
            for change in changes:
                terminal.warn(f"resumed with another setting: {change}")
            run.write_config(config.to_dict())
        else:
            _clear(run)
            facts = {"seed": fit_config.seed, "data": data, "teacher": teacher_facts, "student": student_facts}
            run.create(config.to_dict(), facts if earlier is None else {**facts, "init_from": earlier.facts})
            if earlier is not None and earlier.history:
                run.write_history(earlier.history)
            if table is not None and head is not None:
                keys = tuple(sample.key for sample in val.samples)
                record = TeacherRecord(keys, table.val.astype(np.float32), head.weight.numpy(), head.bias.numpy())
                record.save(run.path)
        announce(terminal, dataset, teacher_facts, student_facts)
        task = DistillTask(student, config.recipe, DistillData(train, val, table, head))
        result = fit(task, fit_config, run, display=TrainingDisplay(terminal), resume=resume)
        return summarise(run, task, result, terminal)


def _spec(config: DistillConfig, dataset: ImageDataset, contract: Preprocess, embed_dim: int) -> StudentSpec:
    return StudentSpec(config.student.partition(".")[0], embed_dim, dataset.classes, contract)


def _decode(
    config: DistillConfig, dataset: ImageDataset, contract: Preprocess, terminal: Terminal
) -> tuple[PixelStore, PixelStore, ImageDataset]:
    scratch = config.output.parent
    with terminal.bar("reading pictures", len(dataset.train) + len(dataset.val)) as advance:
        size = math.ceil(contract.image_size * STORE_SCALE)
        train = decode_train(dataset.train, size, scratch=scratch, advance=advance)
        val = decode_eval(dataset.val, contract, scratch=scratch, advance=advance)
    broken = train.broken | val.broken
    check_broken(broken, len(dataset.train) + len(dataset.val), config.max_broken)
    for reason in broken.values():
        terminal.warn(f"skipped: {reason}")
    return train, val, dataset.without(broken.keys())


def _teach(
    config: DistillConfig, teacher: Teacher | None, train: PixelStore, val: PixelStore, terminal: Terminal
) -> TeacherTable | None:
    recipe = config.recipe
    if config.teacher_embeddings is not None:
        return read_embeddings(config.teacher_embeddings, train.samples, val.samples)
    if teacher is None:
        return None
    plan = TeachPlan(train.samples, train.aspects, val.samples, recipe.augment, recipe.views, recipe.fit.seed)
    cache = config.teacher_cache or config.output.parent / "teacher-store"
    views = recipe.views or 2
    with terminal.bar(
        f"teacher embeds {views} views of each picture", len(train.samples) + len(val.samples)
    ) as advance:
        return teach(teacher, plan, cache, advance=advance)


def _class_head(
    config: DistillConfig,
    teacher: Teacher | None,
    table: TeacherTable | None,
    train: PixelStore,
    dataset: ImageDataset,
) -> ClassHead | None:
    if table is None:
        return None
    weights = teacher.class_scores(dataset.classes, config.templates) if teacher is not None else None
    if weights is not None:
        weights = weights.cpu()
        return ClassHead(weights, torch.zeros(len(weights)), "prompts")
    labels = torch.tensor([-1 if s.label is None else s.label for s in train.samples])
    embeddings = torch.from_numpy(table.train.astype(np.float32))
    return fit_probe(embeddings, labels, len(dataset.classes), seed=config.recipe.fit.seed)


@torch.no_grad()
def _start_from_teacher(student: Student, head: ClassHead) -> None:
    student.classifier.weight.copy_(head.weight)
    student.classifier.bias.copy_(head.bias)


def _clear(run: RunFolder) -> None:
    """Take away what a replaced run left, so that nothing of it is mistaken for this one."""
    left = (DistillTask.checkpoint_name, TEACHER_FILE, "run.json")
    for path in (
        run.metrics_path,
        run.history_path,
        *run.path.glob("tensorboard/events*"),
        *(run.path / name for name in left),
    ):
        path.unlink(missing_ok=True)
    # the states go in `fit`
