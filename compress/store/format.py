"""The teacher store on disk: a manifest, and shards that are written whole, one after the other.

    STORE/manifest.json             what the rows depend on, and the shards with their sizes and sha256
    STORE/train-00000.safetensors   ids (n, 2) uint64, embeddings (n, V, D) float16, view.* (n, V, …)
    STORE/val-00000.safetensors     the same of the evaluation pictures' plain view, V = 1
    STORE/classes-….safetensors     class weights (C, D) from prompts, where the teacher has a text encoder

A row belongs to a picture's name and content, not to a data set: pictures that are added are taught alone, and one
whose content changed is another picture.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edgekit import atomic
from edgekit.compress.nested import flat
from edgekit.compress.recipe import AugmentConfig
from edgekit.compress.training.randomness import sample_ids
from edgekit.errors import LoadError, UsageError
from edgekit.listing import name_some
from edgekit.preprocess import Preprocess

KIND = "edgekit teacher store"
SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
LOCK = "lock"

Split = Literal["train", "val"]


class StoreMismatchError(UsageError):
    """A store was made by another teacher, with other preprocessing or other views (exit 2)."""


@dataclass(frozen=True)
class ViewPlan:
    """Which views of each training picture are stored.

    Attributes:
        augment: what a view may vary.
        count: views per picture; 0 stores the plain picture and its flip.
        seed: of the views.
    """

    augment: AugmentConfig
    count: int
    seed: int

    @property
    def stored(self) -> int:
        """Embeddings per picture."""
        return self.count or 2


@dataclass(frozen=True)
class StoreKey:
    """Everything that a stored row depends on, but the picture itself.

    Attributes:
        teacher: fingerprint of its weights.
        preprocess: its contract, as a mapping.
        views: count, seed, what is augmented, and the central square's share where views are not cropped.
    """

    teacher: str
    preprocess: Mapping[str, Any]
    views: Mapping[str, Any]

    @classmethod
    def of(cls, teacher: str, preprocess: Preprocess, plan: ViewPlan, centre: Preprocess) -> StoreKey:
        """Return the key of a teacher and a plan; `centre` tells the square of views that are not cropped."""
        views: dict[str, Any] = {"count": plan.count}
        if plan.count:
            # settings at their defaults are left out: those that a later edgekit adds change no key
            views |= {"seed": plan.seed, "augment": plan.augment.model_dump(mode="json", exclude_defaults=True)}
            if plan.augment.crop_scale == plan.augment.crop_ratio == (1.0, 1.0):
                views["centre"] = [centre.image_size, centre.resize]
        return cls(teacher, json.loads(json.dumps(preprocess.to_dict())), views)

    def folder_name(self) -> str:
        """Return the name of its store in a folder of stores."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def differences(self, wanted: StoreKey, *, teacher: bool = True) -> list[str]:
        """Return what differs from `wanted`, a text for each thing; fewer views than are stored are no difference.

        Args:
            wanted: what is asked for.
            teacher: compare teacher and preprocessing, too.
        """
        found = []
        if teacher and self.teacher != wanted.teacher:
            found.append(f"another teacher ({self.teacher[:12]}, wanted {wanted.teacher[:12]})")
        if teacher and self.preprocess != wanted.preprocess:
            found.append(f"other preprocessing ({_changes(self.preprocess, wanted.preprocess)})")
        mine, theirs = dict(self.views), dict(wanted.views)
        stored, asked = mine.pop("count"), theirs.pop("count")
        if stored < asked or bool(stored) != bool(asked):
            found.append(f"{stored} views of each picture, wanted {asked}")
        elif mine != theirs:
            found.append(f"other views ({_changes(mine, theirs)})")
        return found


@dataclass(frozen=True)
class Shard:
    """One file of rows.

    Attributes:
        file: its name in the store.
        split: of its pictures.
        count: pictures in it.
        size_bytes, sha256: of the file.
    """

    file: str
    split: Split
    count: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class ClassScores:
    """Class weights from prompts.

    Attributes:
        file: its name in the store.
        classes, templates: what the weights are for.
        sha256: of the file.
    """

    file: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a store holds.

    Attributes:
        key: what its rows depend on.
        teacher: name and parameters, for tables and records.
        embed_dim: D.
        shards: in the order in which they were written.
        class_scores: one for each set of classes and templates that was asked for.
        has_text: whether the teacher has a text encoder; without one, class scores come from a linear probe.
    """

    key: StoreKey
    teacher: Mapping[str, Any]
    embed_dim: int
    shards: tuple[Shard, ...] = ()
    class_scores: tuple[ClassScores, ...] = ()
    has_text: bool = False

    def write(self, store: Path) -> None:
        """Write manifest.json."""
        atomic.write_json(store / MANIFEST, {"kind": KIND, "schema_version": SCHEMA_VERSION, **asdict(self)})


def is_store(path: Path) -> bool:
    """Return whether a folder is a teacher store (and not a folder of stores)."""
    return (path / MANIFEST).is_file()


def read_manifest(store: Path) -> Manifest:
    """Read a store's manifest.

    Raises:
        LoadError: it is not there, damaged, or of another version of edgekit.
    """
    path = store / MANIFEST
    try:
        values = json.loads(path.read_bytes())
        if values["kind"] != KIND or values["schema_version"] != SCHEMA_VERSION:
            raise LoadError(f"kind {values['kind']!r}, version {values['schema_version']!r}")
        return Manifest(
            StoreKey(**values["key"]),
            dict(values["teacher"]),
            int(values["embed_dim"]),
            tuple(_shard(**shard) for shard in values["shards"]),
            tuple(_class_scores(**scores) for scores in values["class_scores"]),
            bool(values["has_text"]),
        )
    except (OSError, LoadError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise LoadError(
            f"{path} is not the manifest of a teacher store of this edgekit ({' '.join(str(e).split())[:120]}). "
            f"Delete {store} and run `edgekit teach` again"
        ) from e


def picture_ids(keys: Sequence[str], digests: Sequence[bytes]) -> NDArray[np.uint64]:
    """Return (N, 2): the identity of each picture's name, and of its name with its content.

    Args:
        keys: (N,) names.
        digests: (N,) of `content_digest`.
    """
    named = sample_ids(keys)
    whole = sample_ids([f"{key}\0{digest.hex()}" for key, digest in zip(keys, digests, strict=True)])
    return np.stack([named, whole], axis=1)


def content_digest(content: bytes) -> bytes:
    """Return 16 bytes that tell a file's content."""
    return hashlib.blake2b(content, digest_size=16).digest()


def _shard(file: str, split: Split, count: int, size_bytes: int, sha256: str) -> Shard:
    if split not in get_args(Split):
        raise ValueError(f"split {split!r}")
    return Shard(_plain_name(file), split, int(count), int(size_bytes), str(sha256))


def _class_scores(file: str, classes: Sequence[str], templates: Sequence[str], sha256: str) -> ClassScores:
    return ClassScores(_plain_name(file), tuple(classes), tuple(templates), str(sha256))


def _plain_name(file: str) -> str:
    """Return a file's name; a manifest of a stranger must not lead out of its folder."""
    if Path(file).name != file or "\\" in file:
        raise ValueError(f"file {file!r}")
    return file


def _changes(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return each value that differs, then and now, nested mappings by their dotted names."""
    one, other = flat(stored), flat(wanted)
    names = [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]
    return name_some([f"{name} {one.get(name, 'default')}, wanted {other.get(name, 'default')}" for name in names])
