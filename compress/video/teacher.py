"""A picture teacher on clips: every kept frame of every view is embedded once, and kept on the disk.

Frames are stored one by one, so that whichever of them training draws, their mean is that of these frames.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from edgekit.clips import read_clip
from edgekit.compress.pictures.pixels import to_images
from edgekit.compress.pictures.views import Views, draw_views
from edgekit.compress.recipe import AugmentConfig
from edgekit.compress.store.sight import cut
from edgekit.compress.training.randomness import sample_ids
from edgekit.compress.video.views import clip_embeddings, retouch_clips
from edgekit.data import Sample, content_hashes
from edgekit.errors import LoadError
from edgekit.models.teacher import Teacher
from edgekit.models.weights import read_safetensors, write_safetensors
from edgekit.preprocess import fit_pixels

SCHEMA_VERSION = 1
_READERS = 2
_BATCH = 64


@dataclass(frozen=True)
class ClipTable:
    """What a teacher says of the frames of clips.

    Attributes:
        train: (N, V, K, D) float16 unit rows: clips, views, kept frames.
        val: (M, D) float16 unit rows, of whole clips.
        views: parameters of the V views; empty where view 0 is the plain clip and view 1 its flip.
    """

    train: NDArray[np.float16]
    val: NDArray[np.float16]
    views: tuple[Views, ...]

    @property
    def embed_dim(self) -> int:
        """D."""
        return int(self.val.shape[1])


@dataclass(frozen=True)
class ClipPlan:
    """What to run the teacher on.

    Attributes:
        train: training clips, all readable.
        aspects: (N,) width / height of their frames.
        val: evaluation clips.
        augment: what views may vary.
        views: stored views per training clip; 0 stores the plain clip and its flip.
        seed: of the views.
        frames: evenly spread frames of an evaluation clip.
        kept: of a training clip.
    """

    train: Sequence[Sample]
    aspects: NDArray[np.float32]
    val: Sequence[Sample]
    augment: AugmentConfig
    views: int
    seed: int
    frames: int
    kept: int

    def key(self, teacher: Teacher) -> str:
        """Return the hash of everything that the stored embeddings depend on, the clips' contents included."""
        identity = {
            "schema": SCHEMA_VERSION,
            "teacher": teacher.fingerprint(),
            "preprocess": teacher.preprocess.to_dict(),
            # plain clips do not depend on what views may vary
            "views": [self.views, self.seed, self.augment.model_dump()] if self.views else [],
            "frames": [self.frames, self.kept],
            "train": sorted(content_hashes(self.train).items()),
            "val": sorted(content_hashes(self.val).items()),
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def draw(self, teacher: Teacher) -> tuple[Views, ...]:
        """Return the stored views' parameters, a function of (seed, view, sample)."""
        ids = sample_ids([sample.key for sample in self.train])
        return tuple(
            draw_views(self.augment, teacher.preprocess, self.aspects, ids, (self.seed, "view", number))
            for number in range(self.views)
        )


def teach_clips(
    teacher: Teacher, plan: ClipPlan, cache: Path, *, advance: Callable[[int], None] | None = None
) -> ClipTable:
    """Return the teacher's table for `plan`, from `cache` if it is there, else by running the teacher once.

    Args:
        teacher: frozen.
        plan: clips and views.
        cache: folder of stores, one file per key.
        advance: called with the number of clips embedded since the last call.

    Raises:
        LoadError: the stored file is damaged.
        ClipError: a clip cannot be read any more.
    """
    key, views = plan.key(teacher), plan.draw(teacher)
    path = cache / f"clips-{key[:16]}.safetensors"
    if path.is_file():
        return _read(path, key, plan, views)
    report = advance or (lambda count: None)
    train = [_embed_views(teacher, frames, [v.take(np.array([row])) for v in views])
             for row, frames in _pictures(plan.train, plan.kept, report)]  # fmt: skip
    val = [
        clip_embeddings(_embed(teacher, _plain(teacher, frames)))
        for _, frames in _pictures(plan.val, plan.frames, report)
    ]
    table = ClipTable(np.stack(train), np.stack(val).astype(np.float16), views)
    tensors = {"train": torch.from_numpy(table.train), "val": torch.from_numpy(table.val)}
    write_safetensors(path, tensors, {"schema_version": SCHEMA_VERSION, "key": key})
    return table


def _pictures(
    samples: Sequence[Sample], count: int, report: Callable[[int], None]
) -> Iterator[tuple[int, list[Image.Image]]]:
    """Yield each clip's number and `count` frames, reading a few clips ahead and no more."""
    with ThreadPoolExecutor(max_workers=_READERS) as pool:
        for start in range(0, len(samples), _READERS):
            part = samples[start : start + _READERS]
            for row, frames in enumerate(pool.map(lambda s: read_clip(s.path, count), part), start=start):
                yield row, frames
                report(1)


def _embed_views(teacher: Teacher, frames: list[Image.Image], views: list[Views]) -> NDArray[np.float16]:
    """Return (V, K, D) embeddings of one clip's frames, `views` holding one row each."""
    if not views:
        plain = _plain(teacher, frames)
        return np.stack([_embed(teacher, plain), _embed(teacher, plain.flip(-1))])
    size, found = teacher.preprocess.image_size, []
    for view in views:
        pixels = np.stack([cut(frame, view.boxes[0], bool(view.flips[0]), size) for frame in frames])
        found.append(_embed(teacher, retouch_clips(to_images(pixels)[None], view)[0]))
    return np.stack(found)


def _plain(teacher: Teacher, frames: list[Image.Image]) -> torch.Tensor:
    """Return frames as the teacher takes pictures: (F, 3, S, S) float32 in [0, 1]."""
    return to_images(np.stack([fit_pixels(frame, teacher.preprocess) for frame in frames]))


def _embed(teacher: Teacher, images: torch.Tensor) -> NDArray[np.float16]:
    """Return unit rows (F, D) of images (F, 3, S, S)."""
    rows = [teacher(images[at : at + _BATCH].contiguous()).cpu().numpy() for at in range(0, len(images), _BATCH)]
    return np.concatenate(rows).astype(np.float16)


def _read(path: Path, key: str, plan: ClipPlan, views: tuple[Views, ...]) -> ClipTable:
    try:
        tensors, metadata = read_safetensors(path)
        if json.loads(metadata["edgekit"])["key"] != key:
            raise LoadError("it is of another teacher, view set or data")
        train, val = tensors["train"].numpy(), tensors["val"].numpy()
        if train.shape[:3] != (len(plan.train), plan.views or 2, plan.kept) or len(val) != len(plan.val):
            raise LoadError(f"it holds {train.shape} and {val.shape}")
    except (LoadError, KeyError, TypeError, ValueError) as e:
        raise LoadError(f"the teacher store {path} is damaged ({e}); delete it, and it is made anew") from e
    return ClipTable(train, val, views)
