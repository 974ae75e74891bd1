"""From clips and a picture teacher to what the distillation task reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from edgekit.clips import ClipError, read_clip
from edgekit.compress.distill.config import DistillConfig
from edgekit.compress.distill.data import Prepared
from edgekit.compress.distill.report import describe_teacher
from edgekit.compress.distill.task import DistillData
from edgekit.compress.parallel.processes import joined
from edgekit.compress.pictures.decoding import data_facts, stored_size, tolerate
from edgekit.compress.pictures.pixels import Decoded, PixelStore, decode_rows, labels_of, squeeze_pixels
from edgekit.compress.store.probe import ClassHead, fit_probe
from edgekit.compress.video.source import ClipSource
from edgekit.compress.video.teacher import ClipPlan, ClipTable, teach_clips
from edgekit.compress.video.views import clip_embeddings, kept_frames
from edgekit.data import ImageDataset
from edgekit.models.teacher import Teacher, load_teacher
from edgekit.preprocess import Preprocess, fit_pixels
from edgekit.terminal import Terminal


def prepare_clips(
    config: DistillConfig, dataset: ImageDataset, contract: Preprocess, device: torch.device, terminal: Terminal
) -> Prepared:
    """Decode the clips and ask the teacher about their frames.

    Arguments and errors as `edgekit.compress.distill.data.prepare`.
    """
    teacher = load_teacher(config.teacher, device) if config.teacher else None
    train, val, dataset = _decode(config, dataset, contract, terminal)
    with joined().main_first():  # it asks the teacher; the others find its store
        clips = None if teacher is None else _teach(config, teacher, train, val, terminal)
    head = None if clips is None or teacher is None else _class_head(config, teacher, clips, train, dataset)
    source = ClipSource(train, clips, config.recipe, contract, config.frames)
    facts = {**data_facts(dataset, train, val), "frames": config.frames, "kept_frames": train.pixels.shape[1]}
    if teacher is None or clips is None or head is None:
        return Prepared(DistillData(source, val, None, None), dataset, facts, None, None)
    said = {name: getattr(teacher, name) for name in ("name", "parameters")} | {"fingerprint": teacher.fingerprint()}
    described = describe_teacher([said], clips.train.shape[1], clips.val, head, val)
    return Prepared(DistillData(source, val, clips.val, head), dataset, facts, described, clips.embed_dim)


def _decode(
    config: DistillConfig, dataset: ImageDataset, contract: Preprocess, terminal: Terminal
) -> tuple[PixelStore, PixelStore, ImageDataset]:
    scratch, frames, kept = config.output.parent, config.frames, kept_frames(config.frames)
    size, side = stored_size(contract), contract.image_size

    def squeezed(path: Path) -> Decoded:
        pictures = read_clip(path, kept)
        return np.stack([squeeze_pixels(picture, size) for picture in pictures]), _aspect(path, pictures[0].size)

    def fitted(path: Path) -> Decoded:
        pictures = read_clip(path, frames)
        return np.stack([fit_pixels(picture, contract) for picture in pictures]), _aspect(path, pictures[0].size)

    with terminal.bar("reading clips", len(dataset.train) + len(dataset.val)) as advance:
        shape = (kept, size, size, 3)
        train = decode_rows(dataset.train, shape, squeezed, scratch=scratch, advance=advance, chunk=1)
        shape = (frames, side, side, 3)
        val = decode_rows(dataset.val, shape, fitted, scratch=scratch, advance=advance, chunk=1)
    broken = train.broken | val.broken
    tolerate(broken, len(dataset.train) + len(dataset.val), config.max_broken, terminal, "clips")
    return train, val, dataset.without(broken.keys())


def _aspect(path: Path, size: tuple[int, int]) -> float:
    if min(size) < 2:
        raise ClipError(f"cannot read the clip {path}: {size[0]} x {size[1]} pixels")
    return size[0] / size[1]


def _teach(
    config: DistillConfig, teacher: Teacher, train: PixelStore, val: PixelStore, terminal: Terminal
) -> ClipTable:
    recipe = config.recipe
    plan = ClipPlan(
        train.samples,
        train.aspects,
        val.samples,
        recipe.augment,
        recipe.views,
        recipe.fit.seed,
        config.frames,
        train.pixels.shape[1],
    )
    cache = config.teacher_cache or config.output.parent / "teacher-store"
    what = f"teacher embeds {plan.kept} frames of {recipe.views or 2} views of each clip"
    with terminal.bar(what, len(train.samples) + len(val.samples)) as advance:
        return teach_clips(teacher, plan, cache, advance=advance)


def _class_head(
    config: DistillConfig, teacher: Teacher, clips: ClipTable, train: PixelStore, dataset: ImageDataset
) -> ClassHead:
    weights = teacher.class_scores(dataset.classes, config.templates)
    if weights is not None:
        return ClassHead(weights.cpu(), torch.zeros(len(weights)), "prompts")
    embeddings = torch.from_numpy(clip_embeddings(clips.train))  # of whole clips
    labels = torch.from_numpy(labels_of(train))
    return fit_probe(embeddings, labels, len(dataset.classes), seed=config.recipe.fit.seed)
