"""Processes that train one model must have the same code, data and settings, or they are refused."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

import edgekit.compress
import edgekit.errors
import edgekit.models
from edgekit.compress.nested import flat
from edgekit.compress.parallel.processes import Processes
from edgekit.errors import UsageError


def refuse_disagreement(processes: Processes, facts: Mapping[str, Any], what: str) -> None:
    """Raise in all processes if `facts` are not the same in all of them.

    Args:
        processes: to compare.
        facts: nested names → values.
        what: the facts are, for the message.

    Raises:
        UsageError: naming the first that differs, and who has it otherwise.
    """
    if processes.world == 1:
        return
    everyone = processes.gather({name: str(value) for name, value in flat(facts).items()})
    for rank, theirs in enumerate(everyone):
        for name in sorted((everyone[0].keys() | theirs.keys()) - {"data.root"}):
            ours, other = everyone[0].get(name), theirs.get(name)
            if ours != other:
                raise UsageError(
                    f"the processes disagree on {what}: {name} is {ours} in process 0 and {other} in process {rank}. "
                    f"Start all of them with the same command, the same data and the same edgekit"
                )


def refuse_other_training(processes: Processes, settings: Mapping[str, Any], model: nn.Module) -> None:
    """Refuse processes that would train on different things, before they exchange a number.

    Raises:
        UsageError: as `refuse_disagreement`.
    """
    if processes.world == 1:
        return
    shapes = [(name, *tensor.shape) for name, tensor in model.state_dict().items()]
    facts = {**settings, "shapes of the weights": hashlib.sha256(repr(shapes).encode()).hexdigest()[:16]}
    refuse_disagreement(processes, facts, "the training")
    refuse_disagreement(processes, code_facts(), "the code")


def code_facts() -> dict[str, str]:
    """Return what says which code runs here: versions, and a hash of edgekit's training code itself."""
    digest = hashlib.sha256()
    for name, path in sorted(source_files().items()):
        digest.update(name.encode() + path.read_bytes())
    return {
        "version": metadata.version("edgekit"),
        "source code": digest.hexdigest()[:16],
        "version of torch": torch.__version__,
    }


def source_files() -> dict[str, Path]:
    """Return the files, by name, that decide what training does: those of `compress`, `models`, and what all share."""
    places = (
        ("compress", edgekit.compress, "**/*.py"),
        ("models", edgekit.models, "**/*.py"),
        ("edgekit", edgekit.errors, "*.py"),  # where edgekit is installed, the other stages lie below
    )
    found: dict[str, Path] = {}
    for name, module, pattern in places:
        folder = Path(str(module.__file__)).parent
        found |= {f"{name}/{path.relative_to(folder).as_posix()}": path for path in folder.glob(pattern)}
    return found


def without_places(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's settings without the paths, which may differ between machines; what lies there is compared."""
    places = ("data", "output", "teacher_cache")
    return {name: value for name, value in settings.items() if name not in places}
