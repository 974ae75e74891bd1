"""Options of every command that trains: how it is watched, saved and continued."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from edgekit.atomic import refuse_existing, refuse_replacing
from edgekit.compress.parallel.launcher import world_size
from edgekit.compress.training.run_lock import refuse_locked

_Command = TypeVar("_Command", bound=Callable[..., Any])

GUARD_FIELDS = ("checkpoint_every", "guard", "patience", "tensorboard", "allow_restarts")
"""Fields of `FitConfig` that `guard_options` sets."""


class _Resume(click.Choice[str]):
    """The value of --resume: "auto", or `true` in a settings file; `false` there means not to."""

    def __init__(self) -> None:
        super().__init__(["auto"])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in (False, "False", "false"):
            return ""
        return super().convert("auto" if value in (True, "True", "true") else value, param, ctx)


def resume_options(command: _Command) -> _Command:
    """Add --resume [auto] and --allow-change."""
    command = click.option(
        "--allow-change",
        type=click.Choice(["schedule"]),
        multiple=True,
        help="Resume although this differs from what the run was begun with.",
    )(command)
    return click.option(
        "--resume",
        is_flag=False,
        flag_value="auto",
        type=_Resume(),
        help="Continue the run in --output from its last saved step; begin it where there is none.",
    )(command)


def how_to_start(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what --overwrite, --resume and --allow-change say, as every training takes it.

    A run that is there is refused here, before torch is loaded, which takes seconds. The training looks again.

    Raises:
        LockedError: another process trains into it.
        OutputExistsError: a run is there, and neither --overwrite nor --resume is given; or it is what is begun from.
    """
    output = Path(options["output"])
    if world_size() == 1:  # of several, the first may have begun the run
        refuse_locked(output)
        if not options["resume"]:
            refuse_replacing(output, [options.get("run"), options.get("init_from")])
            refuse_existing(output, overwrite=options["overwrite"])
    return {
        "overwrite": options["overwrite"],
        "resume": bool(options["resume"]),
        "allow_change": options["allow_change"],
    }


def seed_options(command: _Command) -> _Command:
    """Add --seed and --device; the command gets None for those not given."""
    command = click.option("--device", help="auto, cpu, mps or cuda.")(command)
    return click.option("--seed", type=int, help="Seed of everything random.")(command)


def guard_options(command: _Command) -> _Command:
    """Add the options that set `GUARD_FIELDS`; the command gets None for those not given."""
    command = click.option(
        "--allow-restarts", is_flag=True, default=None, help="Train although the planned rate jumps up after warm-up."
    )(command)
    command = click.option("--tensorboard", is_flag=True, default=None, help="Write TensorBoard events, too.")(command)
    command = click.option(
        "--patience", type=int, help="End after so many evaluations without a better metric; 0 is off."
    )(command)
    command = click.option(
        "--guard",
        type=click.Choice(["warn", "rollback", "stop"]),
        help="At serious trouble: say so, go back to the last good state with half the rate, or end.  [default: warn]",
    )(command)
    return click.option(
        "--checkpoint-every",
        metavar="N|Ns|Nm",
        help="Save within epochs, too: every N steps, seconds (60s) or minutes (5m).",
    )(command)
