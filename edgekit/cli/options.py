"""Options that several commands share, spelled alike everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from edgekit.terminal import Terminal

_Command = TypeVar("_Command", bound=Callable[..., Any])

EXISTING = click.Path(path_type=Path)


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
