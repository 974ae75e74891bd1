"""Resuming with other settings than a run was begun with: what changed, and whether that may be."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Literal

import yaml

from edgekit.compress.nested import flat
from edgekit.compress.training.run_folder import RunFolder
from edgekit.compress.training.schedule import ScheduleConfig, factor
from edgekit.errors import LoadError, UsageError

Allowed = Literal["schedule"]

_FIT = "recipe.fit."
_SCHEDULE = (f"{_FIT}epochs", f"{_FIT}lr", f"{_FIT}schedule.")
# where things lie and how a run is watched changes no weight; the data are told by their fingerprint, not their path
_FREE = frozenset(
    {"output", "data", "teacher_cache", "recipe.name"}
    | {f"{_FIT}{name}" for name in ("device", "checkpoint_every", "guard", "patience", "tensorboard", "allow_restarts")}
)
_SHOWN = 6


def changed_settings(run: RunFolder, settings: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return name -> (then, now) of all settings that decide the weights and differ from the run's config.yaml.

    Settings that the run's edgekit did not know yet are left out.

    Raises:
        LoadError: config.yaml cannot be read.
    """
    try:
        then = yaml.safe_load(run.config_path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise LoadError(f"{run.config_path} cannot be read: {' '.join(str(e).split())}") from e
    if not isinstance(then, dict):
        raise LoadError(f"{run.config_path} holds no settings")
    old, new = flat(then), flat(yaml.safe_load(yaml.safe_dump(dict(settings))))
    different = {name: (old[name], new[name]) for name in new if name in old and old[name] != new[name]}
    epochs = different.get(f"{_FIT}epochs")
    if epochs is not None and not any(name.startswith(_SCHEDULE[1:]) for name in different):
        schedule = ScheduleConfig(**settings["recipe"]["fit"]["schedule"])
        grows = settings["recipe"].get("grow_from", 1.0) != 1.0  # pictures then have other sizes in the same epochs
        if not grows and _same_rate(schedule, then=epochs[0], now=epochs[1]):
            del different[f"{_FIT}epochs"]
    return {name: pair for name, pair in different.items() if name not in _FREE}


def refuse_changes(run: RunFolder, settings: Mapping[str, Any], allowed: Collection[Allowed]) -> list[str]:
    """Raise if settings differ that may not; return the allowed differences as text.

    Raises:
        UsageError: with each setting, then and now.
        LoadError: config.yaml cannot be read.
    """
    changed = changed_settings(run, settings)
    schedule = {name for name in changed if name.startswith(_SCHEDULE)}
    refused = [name for name in changed if name not in schedule or "schedule" not in allowed]
    if refused:
        shown = "; ".join(_shown(name, *changed[name]) for name in refused[:_SHOWN])
        more = f"; and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
        way = (
            "pass --allow-change schedule to go on with the new ones"
            if schedule.issuperset(refused)
            else "start a new run (-o), which may begin from this one's weights (--init-from)"
        )
        raise UsageError(f"{run.path} was begun with other settings: {shown}{more}. Resume with the old ones, or {way}")
    return [_shown(name, *pair) for name, pair in changed.items()]


def refuse_other_data(run: RunFolder, facts: Mapping[str, Any]) -> None:
    """Raise if the data are not those that the run was begun with; `facts` is what run.json says of data.

    Raises:
        UsageError: with the numbers, then and now.
        LoadError: run.json cannot be read.
    """
    then = run.facts().get("data", {})
    if then.get("fingerprint") in (None, facts["fingerprint"]):
        return
    names = [name for name in ("classes", "train", "labelled", "val", "broken") if then.get(name) != facts[name]]
    shown = "; ".join(_shown(name, _count(then.get(name)), _count(facts[name])) for name in names)
    raise UsageError(
        f"{run.path} was begun with other data: {shown or 'the same numbers of pictures, but not the same pictures'}. "
        f"Give the old data, or start a new run (-o), which may begin from this one's weights (--init-from)"
    )


def _shown(name: str, then: object, now: object) -> str:
    return f"{name.removeprefix('recipe.')} was {then}, now {now}"


def _count(value: object) -> object:
    return len(value) if isinstance(value, list) else value


def _same_rate(schedule: ScheduleConfig, *, then: int, now: int) -> bool:
    """Return whether more or fewer epochs leave the rate of the shared ones as it was, as under a constant rate."""
    shared = min(then, now)
    places = [shared * part / 200 for part in range(200)]
    try:
        return all(math.isclose(factor(schedule, at, then), factor(schedule, at, now)) for at in places)
    except UsageError:  # one of them is not longer than its warm-up
        return False
