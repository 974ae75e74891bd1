"""From a data set and a teacher to what the distillation task reads: pictures decoded, the teacher run once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edgekit.compress.distill_config import DistillConfig
from edgekit.compress.distill_report import data_facts, describe_teacher
from edgekit.compress.distill_task import DistillData
from edgekit.compress.pixels import PixelStore, decode_eval, decode_train
from edgekit.compress.probe import ClassHead, fit_probe
from edgekit.compress.source import StoredSource
from edgekit.compress.teacher_store import TeacherTable, TeachPlan, read_embeddings, teach
from edgekit.data import ImageDataset, check_broken
from edgekit.models.teacher import Teacher, load_teacher
from edgekit.preprocess import Preprocess
from edgekit.terminal import Terminal

STORE_SCALE = 1.25
"""Training pictures are kept a little larger than the student's input, so that crops need not be blown up much."""


@dataclass(frozen=True)
class Prepared:
    """Data and teacher, ready to train on.

    Attributes:
        data: what the task reads.
        dataset: the data set without its broken pictures.
        facts: the data's, for run.json.
        teacher_facts: the teacher's; None without one.
        embed_dim: of the teacher's embedding; None without one.
    """

    data: DistillData
    dataset: ImageDataset
    facts: dict[str, Any]
    teacher_facts: dict[str, Any] | None
    embed_dim: int | None


def prepare(
    config: DistillConfig, dataset: ImageDataset, contract: Preprocess, device: torch.device, terminal: Terminal
) -> Prepared:
    """Decode the pictures and ask the teacher about them.

    Args:
        config: what to distill.
        dataset: its pictures, unread so far.
        contract: the student's preprocessing.
        device: where the teacher runs.
        terminal: shows progress.

    Raises:
        EdgekitError: too many broken pictures; a teacher or a store that cannot be used.
    """
    if dataset.kind == "clips":
        from edgekit.compress.video_data import prepare_clips  # it builds on this module

        return prepare_clips(config, dataset, contract, device, terminal)
    teacher = load_teacher(config.teacher, device) if config.teacher else None
    train, val, dataset = _decode(config, dataset, contract, terminal)
    table = _teach(config, teacher, train, val, terminal)
    head = _class_head(config, teacher, table, train, dataset)
    source = StoredSource(train, table, config.recipe, contract)
    return Prepared(
        DistillData(source, val, None if table is None else table.val, head),
        dataset,
        data_facts(dataset, train, val),
        describe_teacher(config.teacher or config.teacher_embeddings, teacher, table, head, val),
        None if table is None else table.embed_dim,
    )


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
