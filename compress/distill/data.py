"""From a data set and a teacher to what the distillation task reads: pictures decoded, the teacher run once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.compress.distill.config import DistillConfig
from edgekit.compress.distill.report import describe_teacher
from edgekit.compress.distill.task import DistillData
from edgekit.compress.parallel.processes import joined
from edgekit.compress.pictures.decoding import data_facts, decode_both
from edgekit.compress.pictures.online_source import OnlineSource
from edgekit.compress.pictures.pixels import PixelStore, labels_of
from edgekit.compress.pictures.source import Source, StoredSource
from edgekit.compress.store.embeddings_file import read_embeddings
from edgekit.compress.store.probe import ClassHead
from edgekit.compress.store.table import TeacherTable, plain_rows
from edgekit.compress.store.teach import file_ids, pictures_of
from edgekit.compress.store.teachers import Pictures, ask, class_head, probe, teacher_weights
from edgekit.data import ImageDataset, Sample, load_dataset
from edgekit.errors import UsageError
from edgekit.listing import Kind
from edgekit.models.teacher import Teacher
from edgekit.preprocess import Preprocess
from edgekit.shards import ShardDataset, is_shards, load_shards
from edgekit.terminal import Terminal


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
    dataset: ImageDataset | ShardDataset
    facts: dict[str, Any]
    teacher_facts: dict[str, Any] | None
    embed_dim: int | None


def load_data(config: DistillConfig) -> ImageDataset | ShardDataset:
    """Find the pictures or clips that --data names.

    Raises:
        EdgekitError: there are none that will do.
    """
    if is_shards(config.data):
        if config.frames > 1:
            raise UsageError(f"--frames {config.frames} with tar shards: clips are read from folders or a CSV")
        if config.val_fraction is not None:
            raise UsageError(f"--val-fraction {config.val_fraction}: shards are split already; leave it out")
        return load_shards(config.data)
    kind: Kind = "clips" if config.frames > 1 else "pictures"
    return load_dataset(config.data, val_fraction=config.val_fraction, seed=config.own_split_seed, kind=kind)


def prepare(
    config: DistillConfig,
    dataset: ImageDataset | ShardDataset,
    contract: Preprocess,
    device: torch.device,
    terminal: Terminal,
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
    if isinstance(dataset, ShardDataset):
        from edgekit.compress.pictures.stream_data import prepare_stream  # it builds on this module

        return prepare_stream(config, dataset, contract, device, terminal)
    if dataset.kind == "clips":
        from edgekit.compress.video.data import prepare_clips  # it builds on this module

        return prepare_clips(config, dataset, contract, device, terminal)
    train, val = decode_both(
        (dataset.train, dataset.val), contract, config.output.parent, terminal, max_broken=config.max_broken
    )
    dataset = dataset.without((train.broken | val.broken).keys())
    facts = data_facts(dataset, train, val)
    with joined().main_first():  # it asks the teacher; the others find its store
        taught = _ask(config, train, val, dataset.classes, device, terminal)
    if taught is None:
        alone = StoredSource(train, None, config.recipe, contract)
        return Prepared(DistillData(alone, val, None, None), dataset, facts, None, None)
    source: Source
    if taught.teachers:
        weights = teacher_weights(config)
        source = OnlineSource(train, taught.teachers, weights, config.recipe, contract)
    else:
        assert taught.table is not None, "there is a table where the teacher is not in the loop"
        source = StoredSource(train, taught.table, config.recipe, contract)
    views = 0 if taught.table is None else taught.table.num_views
    described = describe_teacher(taught.facts, views, taught.val, taught.head, val)
    return Prepared(DistillData(source, val, taught.val, taught.head), dataset, facts, described, taught.val.shape[1])


@dataclass(frozen=True)
class _Taught:
    """What the teachers say of both splits.

    Attributes:
        table: of the training pictures; None where the teachers are in the loop.
        val: (M, D) plain rows of the others.
        head: class scores.
        facts: of the teachers.
        teachers: to run in the loop.
    """

    table: TeacherTable | None
    val: NDArray[np.float16]
    head: ClassHead
    facts: Sequence[Mapping[str, Any]]
    teachers: tuple[Teacher, ...] = ()


def _ask(
    config: DistillConfig,
    train: PixelStore,
    val: PixelStore,
    classes: tuple[str, ...],
    device: torch.device,
    terminal: Terminal,
) -> _Taught | None:
    if not config.recipe.needs_teacher:
        return None
    labels = torch.from_numpy(labels_of(train))
    if config.teacher_embeddings is not None:
        array, plain = read_embeddings(config.teacher_embeddings, train.samples, val.samples)
        head = probe(labels, array, len(classes), config.recipe.fit.seed)
        return _Taught(array, plain, head, [{"name": config.teacher_embeddings}])
    said = ask(
        config, _pictures(train.samples, val.samples, classes, online=config.teacher_mode == "online"), device, terminal
    )
    if said.teachers and not all(store.manifest.has_text for store in said.stores.stores):
        # a linear probe needs plain training pictures, seen once
        said = ask(config, _pictures(train.samples, val.samples, classes, online=False), device, terminal)
    train_keys, val_keys = ([sample.key for sample in store.samples] for store in (train, val))
    train_ids, val_ids = (file_ids(store.samples) for store in (train, val))
    plain = plain_rows(said.stores.table("val", val_keys, val_ids), len(val_keys))
    head = class_head(
        said, config, classes, lambda n: (labels, said.stores.one(n).table("train", train_keys, train_ids))
    )
    table = None if said.teachers else said.stores.table("train", train_keys, train_ids)
    return _Taught(table, plain, head, said.facts, said.teachers)


def _pictures(train: Sequence[Sample], val: Sequence[Sample], classes: tuple[str, ...], *, online: bool) -> Pictures:
    """Return what the teachers are asked about ahead of training; in the loop they see the training pictures then."""
    ahead = () if online else train
    return Pictures(lambda: pictures_of(ahead), lambda: pictures_of(val), len(ahead) + len(val), classes)
