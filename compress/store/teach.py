"""Run a frozen teacher once over views of every picture, and keep what it says.

Dataset reinforcement (MobileCLIP, arXiv 2311.17049, §4): the student then trains from the store at full speed and
sees exactly the views that the teacher saw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgekit.compress.pictures.views import VIEW_FIELDS, Views, draw_views
from edgekit.compress.store.format import (
    Split,
    StoreKey,
    ViewPlan,
    content_digest,
    is_store,
    picture_ids,
    read_manifest,
)
from edgekit.compress.store.reader import TeacherStore
from edgekit.compress.store.sight import cut_views, plain_and_flipped, say
from edgekit.compress.store.writer import StoreWriter, find_scores, writing
from edgekit.compress.training.randomness import sample_ids
from edgekit.cores import usable_cores
from edgekit.data import Sample
from edgekit.images import ImageError, rgb_of
from edgekit.models.teacher import Teacher
from edgekit.preprocess import Preprocess, fit_pixels

CHUNK = 32
"""Pictures per call of the teacher."""
ROWS_PER_SHARD = 512
"""Pictures between two saves; with ten views of 512 numbers 5 MB."""


@dataclass(frozen=True)
class Picture:
    """A picture that can be read when its turn comes.

    Attributes:
        key: its name in the data set.
        read: returns the file's bytes; may raise ImageError.
    """

    key: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class TeachPlan:
    """What to run the teacher on.

    Attributes:
        train: training pictures, in a fixed order; read lazily.
        val: evaluation pictures.
        views: which views of the training pictures.
        centre: the contract whose central square views without random crops have; None takes the teacher's. Several
            teachers must be shown the same square.
        rows_per_shard: pictures between two saves.
        classes, templates: for class scores from prompts, where the teacher has a text encoder; none where empty.
    """

    train: Iterable[Picture]
    val: Iterable[Picture]
    views: ViewPlan
    centre: Preprocess | None = None
    rows_per_shard: int = ROWS_PER_SHARD
    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()

    def key(self, teacher: Teacher) -> StoreKey:
        """Return what the rows of this plan depend on."""
        centre = self.centre or teacher.preprocess
        return StoreKey.of(teacher.fingerprint(), teacher.preprocess, self.views, centre)


@dataclass
class Taught:
    """What a call of `teach` did.

    Attributes:
        store: the store, with every readable picture in it.
        pictures: pictures that the teacher was shown.
        broken: key → reason of those that could not be read.
    """

    store: TeacherStore
    pictures: int = 0
    broken: dict[str, str] = field(default_factory=dict)


def pictures_of(samples: Sequence[Sample]) -> Iterator[Picture]:
    """Yield the pictures of a data set."""
    for sample in samples:
        yield Picture(sample.key, lambda path=sample.path: _read(path))  # type: ignore[misc]


def file_ids(samples: Sequence[Sample]) -> NDArray[np.uint64]:
    """Return the identities (N, 2) of the files of a data set.

    Raises:
        ImageError: one cannot be read.
    """
    with ThreadPoolExecutor(max_workers=usable_cores()) as pool:
        digests = list(pool.map(lambda sample: content_digest(_read(sample.path)), samples))
    return picture_ids([sample.key for sample in samples], digests)


def teach(
    teacher: Teacher,
    plan: TeachPlan,
    path: Path,
    *,
    advance: Callable[[int], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> Taught:
    """Make the store at `path`, or go on with the one that is there; pictures that are in it are not shown again.

    Killed at any moment and called again, it leaves the same bytes as an uninterrupted run. Where another process is
    teaching into it, that one is waited for.

    Args:
        teacher: frozen.
        plan: pictures and views.
        path: the store's folder.
        advance: called with the number of pictures that are done since the last call.
        note: called with a line to show.

    Raises:
        StoreMismatchError: a store of another teacher, preprocessing or views is there.
        LoadError: the store is damaged.
        WriteError: the disk refuses.
    """
    with writing(path, note or (lambda line: None)), ThreadPoolExecutor(max_workers=usable_cores()) as pool:
        plan = _with_all_views(plan, path)
        writer = StoreWriter(path, plan.key(teacher), teacher)
        taught = Taught(writer.store)
        lesson = _Lesson(teacher, plan, pool, advance or (lambda count: None), taught)
        lesson.run(writer, "train")
        lesson.run(writer, "val")
        _add_class_scores(writer, teacher, plan)
        taught.store = writer.store
    return taught


@dataclass(frozen=True)
class _Lesson:
    """One call of `teach`: what its steps share."""

    teacher: Teacher
    plan: TeachPlan
    pool: ThreadPoolExecutor
    advance: Callable[[int], None]
    taught: Taught

    def run(self, writer: StoreWriter, split: Split) -> None:
        """Teach the pictures of a split that are not in the store, a shard for each slice of the list.

        Slices are of the list, not of what is missing: so a run that goes on makes the same shards.
        """
        pictures = iter(self.plan.train if split == "train" else self.plan.val)
        size = max(CHUNK, self.plan.rows_per_shard // CHUNK * CHUNK)
        known = writer.store
        while part := list(islice(pictures, size)):
            arrays = [
                a for a in (self._chunk(known, split, part[at : at + CHUNK]) for at in range(0, size, CHUNK)) if a
            ]
            if arrays:
                writer.begin()
                writer.add(split, {name: np.concatenate([a[name] for a in arrays]) for name in arrays[0]})

    def _chunk(self, known: TeacherStore, split: Split, part: Sequence[Picture]) -> dict[str, NDArray[Any]]:
        """Return the arrays of those pictures of a chunk that are not in the store; empty for none."""
        self.advance(len(part))
        contents = list(self.pool.map(self._content, part))
        read = [(picture, content) for picture, content in zip(part, contents, strict=True) if content is not None]
        if not read:
            return {}
        ids = picture_ids([p.key for p, _ in read], [content_digest(content) for _, content in read])
        fresh = known.places(split, ids[:, 1]) < 0
        decoded = self.pool.map(self._decoded, [pair for pair, is_fresh in zip(read, fresh, strict=True) if is_fresh])
        rows, pictures = [], []
        for row, picture in zip(np.flatnonzero(fresh), decoded, strict=True):
            if picture is not None:
                rows.append(row)
                pictures.append(picture)
        arrays = self._embed(split, [read[row][0].key for row in rows], pictures) if rows else {}
        self.taught.pictures += len(rows)
        return {"ids": ids[rows], **arrays} if rows else {}

    def _content(self, picture: Picture) -> bytes | None:
        try:
            return picture.read()
        except ImageError as e:
            self.taught.broken[picture.key] = str(e)
            return None

    def _decoded(self, pair: tuple[Picture, bytes]) -> Image.Image | None:
        try:
            return rgb_of(pair[1], pair[0].key)
        except ImageError as e:
            self.taught.broken[pair[0].key] = str(e)
            return None

    def _embed(self, split: Split, keys: Sequence[str], pictures: Sequence[Image.Image]) -> dict[str, NDArray[Any]]:
        """Return the embeddings (n, V, D) of decoded pictures and the parameters of their views."""
        contract, plan = self.teacher.preprocess, self.plan
        if split == "val":
            plain = np.stack(list(self.pool.map(lambda p: fit_pixels(p, contract), pictures)))
            return {"embeddings": say(self.teacher, plain, None)[:, None]}
        if not plan.views.count:
            both = np.stack(list(self.pool.map(lambda p: plain_and_flipped(p, contract), pictures)))
            return {"embeddings": np.stack([say(self.teacher, both[:, n], None) for n in (0, 1)], axis=1)}
        views = self._draw(keys, pictures)
        size = contract.image_size
        cuts = self.pool.map(lambda row: cut_views(pictures[row], views, row, size), range(len(pictures)))
        pixels = np.stack(list(cuts))
        rows = [say(self.teacher, pixels[:, number], view) for number, view in enumerate(views)]
        stored = {f"view.{name}": np.stack([getattr(v, name) for v in views], axis=1) for name in VIEW_FIELDS}
        return {"embeddings": np.stack(rows, axis=1), **stored}

    def _draw(self, keys: Sequence[str], pictures: Sequence[Image.Image]) -> list[Views]:
        """Return V sets of views, each number a function of (seed, view, picture's name) alone."""
        plan, aspects = self.plan.views, np.array([p.width / p.height for p in pictures], np.float32)
        centre, ids = self.plan.centre or self.teacher.preprocess, sample_ids(keys)
        return [draw_views(plan.augment, centre, aspects, ids, (plan.seed, "view", n)) for n in range(plan.count)]


def _with_all_views(plan: TeachPlan, path: Path) -> TeachPlan:
    """Return the plan with as many views as the store that is there, if it has more: all rows are equally wide."""
    stored = int(read_manifest(path).key.views["count"]) if is_store(path) else 0
    if not plan.views.count or stored <= plan.views.count:
        return plan
    return replace(plan, views=replace(plan.views, count=stored))


def _add_class_scores(writer: StoreWriter, teacher: Teacher, plan: TeachPlan) -> None:
    if not plan.classes or find_scores(writer.manifest, plan.classes, plan.templates) is not None:
        return
    weights = teacher.class_scores(plan.classes, plan.templates)
    if weights is not None:
        writer.begin()
        writer.add_class_scores(plan.classes, plan.templates, weights.cpu().numpy())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        reason = e.strerror or str(e)
        raise ImageError(f"cannot read the picture {path}: {reason}", reason=reason) from e
