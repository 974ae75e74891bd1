"""Write a teacher store shard by shard, so that a killed teacher goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit import atomic
from edgekit.compress.store.format import (
    LOCK,
    ClassScores,
    Manifest,
    Shard,
    Split,
    StoreKey,
    StoreMismatchError,
    is_store,
    read_manifest,
)
from edgekit.compress.store.reader import TeacherStore
from edgekit.compress.training.run_lock import locked
from edgekit.models.teacher import Teacher


@contextmanager
def writing(path: Path, note: Callable[[str], None]) -> Iterator[None]:
    """Hold a store for this process; one on a read-only disk can only be read, so that needs no lock.

    Another process that teaches into it is waited for, which `note` tells: what it writes need not be taught again.
    """
    if is_store(path) and not os.access(path, os.W_OK):
        yield
        return
    with locked(path, LOCK, waiting_for=lambda holder: note(f"{holder} is teaching into {path}: waiting for it")):
        yield


class StoreWriter:
    """A store that is being taught: new, or one of the same key that is gone on with.

    Args:
        path: the store's folder.
        key: what its rows depend on.
        teacher: its name and size go into the manifest.

    Raises:
        StoreMismatchError: another store is there; what differs is named.
        LoadError: the store that is there is damaged.
        WriteError: the folder cannot be written.
    """

    def __init__(self, path: Path, key: StoreKey, teacher: Teacher) -> None:
        self.path = path
        if is_store(path):
            manifest = read_manifest(path)
            refuse_other(path, manifest.key, key)
            # a shard that was deleted because it was damaged: its pictures are taught again
            kept = tuple(shard for shard in manifest.shards if (path / shard.file).exists())
            gone = len(kept) < len(manifest.shards)
            self._manifest = replace(manifest, shards=kept)
            self._begun = not gone
        else:
            _refuse_foreign(path)
            facts = {"name": teacher.name, "parameters": teacher.parameters}
            self._manifest, self._begun = Manifest(key, facts, teacher.embed_dim), False
        self._store = TeacherStore(path, self._manifest)

    @property
    def manifest(self) -> Manifest:
        """What is in the store so far."""
        return self._manifest

    @property
    def store(self) -> TeacherStore:
        """The store as it is now."""
        return self._store

    def begin(self) -> None:
        """Write the manifest of a store without rows, so that its key is known from the first moment."""
        if not self._begun:
            self._write(self._manifest)

    def add(self, split: Split, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write one shard and list it in the manifest.

        A kill between the two leaves a file that the manifest does not know; it is written anew, bit for bit.
        """
        from safetensors.numpy import save

        used = {shard.file for shard in self._manifest.shards}
        names = (f"{split}-{number:05d}.safetensors" for number in range(len(used) + 1))
        name = next(name for name in names if name not in used)
        content = save({key: np.ascontiguousarray(array) for key, array in arrays.items()})
        atomic.write_bytes(self.path / name, content)
        digest = hashlib.sha256(content).hexdigest()
        shard = Shard(name, split, len(arrays["ids"]), len(content), digest)
        self._write(replace(self._manifest, shards=(*self._manifest.shards, shard)))

    def add_class_scores(self, classes: Sequence[str], templates: Sequence[str], weights: NDArray[np.float32]) -> None:
        """Keep class weights (C, D) from prompts, and with them that the teacher has a text encoder."""
        from safetensors.numpy import save

        manifest = self._manifest
        content = save({"weight": np.ascontiguousarray(weights, np.float32)})
        wanted = json.dumps([list(classes), list(templates)])
        name = f"classes-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}.safetensors"
        atomic.write_bytes(self.path / name, content)
        scores = ClassScores(name, tuple(classes), tuple(templates), hashlib.sha256(content).hexdigest())
        self._write(replace(manifest, class_scores=(*manifest.class_scores, scores), has_text=True))

    def _write(self, manifest: Manifest) -> None:
        manifest.write(self.path)
        self._manifest, self._begun = manifest, True
        self._store = TeacherStore(self.path, manifest)


def find_scores(manifest: Manifest, classes: Sequence[str], templates: Sequence[str]) -> ClassScores | None:
    """Return the stored class scores of these classes and templates."""
    wanted = (tuple(classes), tuple(templates))
    return next((s for s in manifest.class_scores if (s.classes, s.templates) == wanted), None)


def refuse_other(path: Path, stored: StoreKey, wanted: StoreKey, *, teacher: bool = True) -> None:
    """Raise if a store's rows are not those that are wanted.

    Raises:
        StoreMismatchError: everything that differs is named.
    """
    differences = stored.differences(wanted, teacher=teacher)
    if differences:
        raise StoreMismatchError(
            f"the teacher store {path} does not fit: it is of {'; of '.join(differences)}. Ask for what it holds, or "
            f"make another one (`edgekit teach -o`); a folder of stores keeps several apart"
        )


def _refuse_foreign(path: Path) -> None:
    """Raise if the folder holds something that is no store; a lock and what a killed write left do not count."""
    if path.is_dir() and any(entry.name != LOCK and not entry.name.startswith(".") for entry in path.iterdir()):
        atomic.refuse_existing(path, overwrite=False)
