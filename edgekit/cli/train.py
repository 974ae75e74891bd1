"""`edgekit train`: the trainings beside distillation. Each lives in its own module, imported only when it runs."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import click

from edgekit.errors import did_you_mean

TRAININGS: Mapping[str, tuple[str, str]] = {
    "clip": ("edgekit.cli.train_clip:train_clip", "Train a CLIP on pictures and captions; a teacher comes out."),
    "image": ("edgekit.cli.train_image:train_image", "Train an image classifier from labels alone."),
    "text": ("edgekit.cli.train_text:train_text", "Train a text classifier, from scratch or from an encoder."),
}


class _LazyTrainings(click.Group):
    """Knows its trainings by name and one-line help; `edgekit train --help` imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(TRAININGS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in TRAININGS:
            return None
        module, _, attribute = TRAININGS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in TRAININGS and not args[0].startswith("-"):
            raise click.UsageError(f"there is no training '{args[0]}'; {did_you_mean(args[0], TRAININGS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Trainings"):
            formatter.write_dl([(name, text) for name, (_, text) in TRAININGS.items()])


@click.group(cls=_LazyTrainings)
def train() -> None:
    """Train something else than a distilled student, in the same loop: a CLIP, or a classifier."""
