"""How a run starts: a new one in an empty or replaced folder, or one that is there and goes on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.atomic import refuse_existing, refuse_replacing
from edgekit.compress.training.changed_settings import Allowed, refuse_changes, refuse_other_data
from edgekit.compress.training.phases import EarlierEpochs
from edgekit.compress.training.run_folder import RunFolder
from edgekit.compress.training.run_lock import refuse_locked
from edgekit.terminal import Terminal


@dataclass(frozen=True)
class Start:
    """What was found in the run folder.

    Attributes:
        resume: whether there is a run to go on with.
        changes: its settings that are others now, as text.
    """

    resume: bool
    changes: tuple[str, ...] = ()


def look(
    run: RunFolder, settings: Mapping[str, Any], *, overwrite: bool, resume: bool, allow_change: Collection[Allowed]
) -> Start:
    """Look whether there is a run to go on with, before any work is done; change nothing.

    Args:
        run: the folder.
        settings: of this call, as in config.yaml.
        overwrite: replace a run that is there.
        resume: go on with a run that is there; begin one where none is.
        allow_change: what may differ from the settings that the run was begun with.

    Raises:
        LockedError: another process trains into it.
        OutputExistsError: a run is there, and neither `overwrite` nor `resume` is given.
        UsageError: the run was begun with other settings.
        LoadError: its settings cannot be read.
    """
    refuse_locked(run.path)
    if resume and run.facts_path.is_file():
        return Start(True, tuple(refuse_changes(run, settings, allow_change)))
    refuse_replacing(run.path, [settings.get("init_from")])
    refuse_existing(run.path, overwrite=overwrite)
    return Start(False)


def begin(
    run: RunFolder,
    settings: Mapping[str, Any],
    facts: Mapping[str, Any],
    *,
    earlier: EarlierEpochs | None = None,
    left: Iterable[Path] = (),
) -> None:
    """Write what a new run knows before its first step, in place of what a replaced one left.

    Args:
        run: the folder.
        settings: for config.yaml.
        facts: for run.json.
        earlier: the run whose next phase this one is.
        left: files of a replaced run, beside those of every run, that could be mistaken for this one's.
    """
    every = (run.metrics_path, run.history_path, run.facts_path, *run.path.glob("tensorboard/events*"))
    for path in (*every, *left):
        path.unlink(missing_ok=True)
    # the states go in `fit`
    run.create(settings, facts if earlier is None else {**facts, "init_from": earlier.facts})
    if earlier is not None and earlier.history:
        run.write_history(earlier.history)


def go_on(
    run: RunFolder, settings: Mapping[str, Any], data: Mapping[str, Any], changes: Iterable[str], terminal: Terminal
) -> None:
    """Take up a run that is there: refuse other data, and say and write which settings are others now.

    Args:
        run: the folder.
        settings: for config.yaml.
        data: what run.json says of data, as they are now.
        changes: as `look` found them.
        terminal: shows them.

    Raises:
        UsageError: the run was begun with other data.
        LoadError: run.json cannot be read.
    """
    refuse_other_data(run, data)
    for change in changes:
        terminal.warn(f"resumed with another setting: {change}")
    run.write_config(settings)
