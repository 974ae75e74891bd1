"""`edgekit teach` from start to end: a data set, one or several teachers, a store for each."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.compress.distill.config import DistillConfig
from edgekit.compress.distill.data import load_data
from edgekit.compress.pictures.decoding import tolerate
from edgekit.compress.pictures.stream_data import pictures_of_shards
from edgekit.compress.store.format import is_store
from edgekit.compress.store.teach import Taught, pictures_of
from edgekit.compress.store.teachers import Pictures, lessons, taught_store, try_teachers
from edgekit.compress.training.training_state import pick_device
from edgekit.errors import UsageError
from edgekit.shards import ShardDataset
from edgekit.terminal import Terminal, human_bytes


@dataclass(frozen=True)
class TeachSummary:
    """What is in the stores now, for --json."""

    facts: dict[str, Any]


def teach_data(config: DistillConfig, terminal: Terminal, *, overwrite: bool = False) -> TeachSummary:
    """Make the teacher store at `config.output`, or go on with it; of several teachers, one for each in that folder.

    Args:
        config: data, teachers, recipe (views and augmentation); `output` is the store.
        terminal: shows progress.
        overwrite: replace a store that does not fit.

    Raises:
        EdgekitError: data, a teacher or a store that cannot be used.
    """
    if not config.teachers:
        raise UsageError("no teacher given: pass --teacher ARCH:TAG or --teacher FILE.onnx")
    pictures, device = _pictures(config), pick_device(config.recipe.fit)
    if len(config.teachers) > 1:  # the second is not missed when the first has taught everything
        try_teachers(config, device)
    stores = []
    for teacher, plan in lessons(config, pictures, device):
        path = config.output if len(config.teachers) == 1 else config.output / plan.key(teacher).folder_name()
        if overwrite and is_store(path):
            shutil.rmtree(path)
        taught = taught_store(teacher, plan, path, pictures.count, terminal)
        tolerate(taught.broken, pictures.count, config.max_broken, terminal)
        stores.append(_describe(path, taught))
        _show(terminal, stores[-1])
    return TeachSummary({"stores": stores})


def _pictures(config: DistillConfig) -> Pictures:
    dataset = load_data(config)
    if isinstance(dataset, ShardDataset):
        return pictures_of_shards(dataset)
    return Pictures(
        lambda: pictures_of(dataset.train),
        lambda: pictures_of(dataset.val),
        len(dataset.train) + len(dataset.val),
        dataset.classes,
    )


def _describe(path: Path, taught: Taught) -> dict[str, Any]:
    store = taught.store
    return {
        "path": str(path),
        "teacher": store.manifest.teacher["name"],
        "pictures": len(store),
        "taught_now": taught.pictures,
        "views": store.num_views,
        "embed_dim": store.embed_dim,
        "shards": len(store.manifest.shards),
        "size_bytes": sum(shard.size_bytes for shard in store.manifest.shards),
        "broken": sorted(taught.broken),
    }


def _show(terminal: Terminal, facts: dict[str, Any]) -> None:
    kept = facts["pictures"] - facts["taught_now"]
    before = f" ({kept} were there already)" if kept else ""
    terminal.say(
        f"store    {facts['path']}: {facts['pictures']} pictures{before}, {facts['views']} views, "
        f"{facts['embed_dim']}-d, {human_bytes(facts['size_bytes'])} in {facts['shards']} shards"
    )
