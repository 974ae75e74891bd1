"""From `--teacher` and `--teacher-store` to what the teachers say: stores found, checked, made or gone on with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgekit.compress.distill.config import DistillConfig
from edgekit.compress.store.format import StoreKey, ViewPlan, is_store, read_manifest
from edgekit.compress.store.mapped import MappedTensors, file_sha256
from edgekit.compress.store.probe import ClassHead, fit_probe
from edgekit.compress.store.reader import TeacherStore
from edgekit.compress.store.table import Stores, TeacherTable
from edgekit.compress.store.teach import Picture, Taught, TeachPlan, teach
from edgekit.compress.store.writer import find_scores, refuse_other
from edgekit.errors import LoadError, UsageError
from edgekit.listing import name_some
from edgekit.models.teacher import Teacher, load_teacher
from edgekit.preprocess import Preprocess
from edgekit.terminal import Terminal

_PROBED_VIEWS = 2


@dataclass(frozen=True)
class Pictures:
    """What the teachers are to be asked about.

    Attributes:
        train: makes the training pictures; called once for each teacher, as they are read lazily.
        val: makes the evaluation pictures.
        count: of both together, for the bar.
        classes: class names, for prompts.
    """

    train: Callable[[], Iterator[Picture]]
    val: Callable[[], Iterator[Picture]]
    count: int
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Said:
    """What the teachers said of a data set.

    Attributes:
        stores: where it is kept.
        facts: name, fingerprint and parameters of each teacher.
        teachers: the teachers themselves, where they run inside the loop.
    """

    stores: Stores
    facts: tuple[dict[str, Any], ...]
    teachers: tuple[Teacher, ...] = ()


def teacher_weights(config: DistillConfig) -> tuple[float, ...]:
    """Return the teachers' weights, 1 in total.

    Raises:
        UsageError: not one for each teacher, or not positive.
    """
    count = max(1, len(config.teachers))
    given = config.teacher_weights or (1.0,) * count
    if len(given) != count or min(given) <= 0:
        raise UsageError(
            f"--teacher-weight {' '.join(f'{w:g}' for w in given)} for {count} teacher(s): give one positive number "
            f"for each --teacher, in the same order"
        )
    return tuple(weight / sum(given) for weight in given)


def ask(config: DistillConfig, pictures: Pictures, device: torch.device, terminal: Terminal) -> Said:
    """Return what the teachers say, teaching what is not in the stores yet.

    Without a teacher the store alone is used (`--teacher-store STORE`).

    Args:
        config: teachers, views, where the stores are.
        pictures: what to ask about.
        device: where the teachers run.
        terminal: shows progress.

    Raises:
        EdgekitError: a teacher or a store that cannot be used.
    """
    weights, place, wanted = teacher_weights(config), store_place(config), view_plan(config)
    if not config.teachers:
        store = _store_alone(place, wanted)
        return Said(Stores((store,), weights, wanted.stored), (_facts(store),))
    if len(config.teachers) > 1 and is_store(place):
        raise UsageError(
            f"--teacher-store {place} is the store of one teacher, and {len(config.teachers)} are given; give a folder "
            f"of stores, which keeps them apart"
        )
    taught: list[TeacherStore] = []
    kept: list[Teacher] = []
    for teacher, plan in lessons(config, pictures, device):
        if config.teacher_mode == "online":
            kept.append(teacher)
        if is_store(place):
            plan, path = as_stored(plan, read_manifest(place).key), place
        else:
            path = place / plan.key(teacher).folder_name()
        taught.append(taught_store(teacher, plan, path, pictures.count, terminal).store)
    return Said(Stores(tuple(taught), weights, wanted.stored), tuple(map(_facts, taught)), tuple(kept))


def try_teachers(config: DistillConfig, device: torch.device) -> None:
    """Load each teacher once and let it go, ahead of work that takes minutes or hours.

    Raises:
        EdgekitError: one of them cannot be had.
    """
    for name in config.teachers:
        load_teacher(name, device)


def lessons(config: DistillConfig, pictures: Pictures, device: torch.device) -> Iterator[tuple[Teacher, TeachPlan]]:
    """Load one teacher after the other, each with what it is to be asked."""
    centre: Preprocess | None = None
    for name in config.teachers:
        teacher = load_teacher(name, device)
        centre = centre or teacher.preprocess  # all must be shown the same square
        yield (
            teacher,
            TeachPlan(
                pictures.train(),
                pictures.val(),
                view_plan(config),
                centre,
                classes=pictures.classes,
                templates=config.templates,
            ),
        )


def taught_store(teacher: Teacher, plan: TeachPlan, path: Path, count: int, terminal: Terminal) -> Taught:
    """Teach into the store at `path`, showing progress."""
    with terminal.bar(f"{teacher.name} embeds {plan.views.stored} views of each picture", count) as advance:
        return teach(teacher, plan, path, advance=advance, note=terminal.say)


def view_plan(config: DistillConfig) -> ViewPlan:
    """Return which views the recipe wants stored; with the teacher in the loop, plain pictures alone."""
    count = 0 if config.teacher_mode == "online" else config.recipe.views
    return ViewPlan(config.recipe.augment, count, config.recipe.fit.seed)


def store_place(config: DistillConfig) -> Path:
    """Return the store or the folder of stores."""
    return config.teacher_cache or config.output.parent / "teacher-store"


def as_stored(plan: TeachPlan, key: StoreKey) -> TeachPlan:
    """Return the plan with a given store's own seed and centre.

    The views of a store that is named are replayed whatever the seed of the run, so that several seeds share it.
    """
    views = replace(plan.views, seed=int(key.views.get("seed", plan.views.seed)))
    centre = key.views.get("centre")
    return replace(plan, views=views, centre=Preprocess(*centre) if centre else plan.centre)


def _store_alone(place: Path, wanted: ViewPlan) -> TeacherStore:
    store = TeacherStore(place)
    key = store.manifest.key
    own = as_stored(TeachPlan((), (), wanted), key)
    contract = Preprocess.from_dict(dict(key.preprocess))
    refuse_other(place, key, StoreKey.of(key.teacher, contract, own.views, own.centre or contract))
    return store


def _facts(store: TeacherStore) -> dict[str, Any]:
    return {"fingerprint": store.manifest.key.teacher, **store.manifest.teacher}


def class_head(
    said: Said, config: DistillConfig, classes: tuple[str, ...], probed: Callable[[int], tuple[Tensor, TeacherTable]]
) -> ClassHead:
    """Return class scores from the (joined) embeddings.

    Several teachers' scores are averaged as logits, each with its weight: the geometric mean of their predictions,
    one of the two ways of Hinton et al. (arXiv 1503.02531, §1) to make soft targets of an ensemble. As each teacher's
    scores are linear in its embedding, so is their mean in the joined one.

    Args:
        said: the teachers' stores.
        config: templates, and the seed of linear probes.
        classes: their names.
        probed: returns labels (N,), −1 for none, and the table of the same training pictures for teacher number i.

    Raises:
        LoadError: the store alone is there, and was made with other classes or templates.
    """
    heads = []
    for number, store in enumerate(said.stores.stores):
        head = _stored_head(store, classes, config.templates)
        if head is None:
            head = probe(*probed(number), len(classes), config.recipe.fit.seed)
        heads.append(head)
    if len(heads) == 1:
        return heads[0]
    weights = said.stores.weights
    return ClassHead(
        # the joined embedding has √w · embedding in it, and the mean wants w · logits
        torch.cat([head.weight * weight**0.5 for head, weight in zip(heads, weights, strict=True)], dim=1),
        torch.stack([head.bias * weight for head, weight in zip(heads, weights, strict=True)]).sum(0),
        " + ".join(dict.fromkeys(head.source for head in heads)),
    )


def _stored_head(store: TeacherStore, classes: tuple[str, ...], templates: Sequence[str]) -> ClassHead | None:
    """Return the head from stored prompts; None where the teacher has no text encoder."""
    manifest = store.manifest
    if not manifest.has_text:
        return None
    scores = find_scores(manifest, classes, templates)
    if scores is None:
        known = name_some([f"{len(s.classes)} classes, {len(s.templates)} templates" for s in manifest.class_scores], 2)
        raise LoadError(
            f"the teacher store {store.path} has class scores for {known}, but not for these {len(classes)} classes "
            f"and {len(templates)} templates; give --teacher, too, so that the prompts can be encoded"
        )
    path = store.path / scores.file
    try:
        if file_sha256(path) != scores.sha256:
            raise LoadError("its content is not what was written")
        weight = torch.from_numpy(np.array(MappedTensors(path).arrays["weight"]))
    except (LoadError, KeyError) as e:
        raise LoadError(f"{path} is damaged ({e}); delete it and teach again with the same --teacher") from e
    return ClassHead(weight, torch.zeros(len(weight)), "prompts")


def probe(labels: Tensor, table: TeacherTable, num_classes: int, seed: int) -> ClassHead:
    """Fit class scores on the labelled rows of a table: labels (N,), −1 for none."""
    rows = np.flatnonzero(labels.numpy() >= 0)
    views = range(min(_PROBED_VIEWS, table.num_views))
    embeddings = [table.embeddings(rows, np.full(len(rows), number)) for number in views]
    return fit_probe(torch.from_numpy(np.stack(embeddings, axis=1)), labels[rows], num_classes, seed=seed)
