"""The options that describe a learning-rate schedule, for every command that takes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args

import click
from pydantic import ValidationError

from edgekit.compress.training.schedule import ScheduleConfig, ScheduleName, reads
from edgekit.errors import UsageError

_Command = TypeVar("_Command", bound=Callable[..., Any])

SCHEDULE_NAMES = click.Choice(get_args(ScheduleName))
_SPELLING = {"t_0": "--t0"}


def option_name(field: str) -> str:
    """Return the option that sets a field of `ScheduleConfig`."""
    return _SPELLING.get(field, "--" + field.replace("_", "-"))


def schedule_parameters(command: _Command) -> _Command:
    """Add one option for each parameter of `ScheduleConfig`; the command gets None for those not given."""
    for field, info in reversed(ScheduleConfig.model_fields.items()):
        if field == "name":
            continue
        kind: Any = click.FLOAT
        if field == "patience":
            kind = click.INT
        elif field == "decay_shape":
            kind = click.Choice(["linear", "sqrt"])
        text = f"{info.description}  [default: {info.default}]"
        command = click.option(option_name(field), field, type=kind, default=None, help=text)(command)
    return command


def schedule_config(name: ScheduleName, given: Mapping[str, Any]) -> ScheduleConfig:
    """Return the schedule that the options describe.

    Args:
        name: the schedule.
        given: field -> value, None where the option was not given.

    Raises:
        UsageError: a value is out of range, or the schedule does not read an option that was given.
    """
    fields = {field: value for field, value in given.items() if value is not None}
    unread = [option_name(field) for field in fields if field not in reads(name)]
    if unread:
        known = ", ".join(option_name(field) for field in reads(name))
        raise UsageError(f"the schedule {name} does not read {', '.join(unread)}. It reads {known}.")
    try:
        return ScheduleConfig.model_validate({"name": name, **fields})
    except ValidationError as e:
        wrong = (f"{option_name(str(error['loc'][0]))}: {error['msg']}" for error in e.errors())
        raise UsageError(f"the schedule {name} cannot be made. {'; '.join(wrong)}.") from e
