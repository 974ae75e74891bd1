"""Options that several commands share, spelled alike everywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from edgekit.errors import OutputExistsError
from edgekit.terminal import Terminal

_Command = TypeVar("_Command", bound=Callable[..., Any])

EXISTING = click.Path(path_type=Path)


def picture_options(
    data: str = "DIR/{train,val}/<class>/*, DIR/<class>/*, or a CSV (path,label[,split]).",
) -> Callable[[_Command], _Command]:
    """Add --data, --val-fraction and --max-broken; `data` says which data the command takes."""

    def add(command: _Command) -> _Command:
        command = max_broken_option(command)
        command = click.option(
            "--val-fraction", type=float, help="Share of each class kept for validation, where the data has no split."
        )(command)
        return click.option("--data", type=EXISTING, required=True, help=data)(command)

    return add


def max_broken_option(command: _Command) -> _Command:
    """Add --max-broken."""
    return click.option(
        "--max-broken",
        type=click.FloatRange(0, 1),
        default=0.01,
        show_default=True,
        help="Share of unreadable pictures to tolerate.",
    )(command)


def refuse_existing_png(out: Path | None, *, overwrite: bool) -> None:
    """Raise if there is something at `out`, before anything is computed for it.

    Raises:
        OutputExistsError: naming the file and the way out.
    """
    if out is not None and out.exists() and not overwrite:
        raise OutputExistsError(f"{out} exists already. Give --png another name, or pass --overwrite to replace it.")


def given_or(options: Mapping[str, Any], otherwise: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the running command that `otherwise` names, with its values for those not given."""
    source = click.get_current_context().get_parameter_source
    return {name: v if source(name) is ParameterSource.DEFAULT else options[name] for name, v in otherwise.items()}


def output_options(default: str, what: str) -> Callable[[_Command], _Command]:
    """Add -o/--output and --overwrite."""

    def add(command: _Command) -> _Command:
        command = click.option("--overwrite", is_flag=True, help="Replace an output that exists.")(command)
        return click.option(
            "-o", "--output", type=EXISTING, default=default, show_default=True, help=f"{what} to write."
        )(command)

    return add


def talk_options(command: _Command) -> _Command:
    """Add --json, -q and -v; the command gets `as_json` and `terminal`-making `verbosity`."""
    command = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")(
        command
    )
    command = click.option("-v", "--verbose", is_flag=True, help="Show details.")(command)
    return click.option("-q", "--quiet", is_flag=True, help="Show warnings and errors only.")(command)


def make_terminal(quiet: bool, verbose: bool) -> Terminal:
    """Return the terminal that -q and -v ask for.

    Raises:
        click.UsageError: both were given.
    """
    if quiet and verbose:
        raise click.UsageError("--quiet and --verbose exclude each other")
    return Terminal(-1 if quiet else int(verbose))
