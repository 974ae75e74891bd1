"""Groups of commands that live in their own modules, each imported only when it runs."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click

from edgekit.errors import did_you_mean


class LazyGroup(click.Group):
    """Knows its commands by name and one-line help; its own help imports none of them.

    Args:
        lazy: name -> (module:attribute, one-line help).
        kind: what they are called, in the singular.
    """

    def __init__(self, *args: Any, lazy: Mapping[str, tuple[str, str]], kind: str, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self._lazy, self._kind = lazy, kind

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order given."""
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in self._lazy:
            return None
        module, _, attribute = self._lazy[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that `args` begin with.

        Raises:
            click.UsageError: there is none; names the nearest.
        """
        if args and args[0] not in self._lazy and not args[0].startswith("-"):
            raise click.UsageError(f"there is no {self._kind} '{args[0]}'; {did_you_mean(args[0], self._lazy)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the one-line helps."""
        with formatter.section(f"{self._kind.capitalize()}s"):
            formatter.write_dl([(name, text) for name, (_, text) in self._lazy.items()])
