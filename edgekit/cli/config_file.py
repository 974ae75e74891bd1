"""`--config FILE`: the options of a command as YAML. What is given on the command line wins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from edgekit.errors import UsageError, did_you_mean

_Command = TypeVar("_Command", bound=Callable[..., Any])


def config_option(command: _Command) -> _Command:
    """Add --config: its values become the command's defaults, so click converts and checks them as it does flags."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        is_eager=True,  # read before the other options ask for their defaults
        expose_value=False,
        callback=set_defaults,
        help="YAML with any of these options; flags win.",
    )(command)


def set_defaults(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """Take the file's values as the command's defaults; a callback of click."""
    if path is None:
        return
    options = {name.lstrip("-"): p for p in ctx.command.params if p.name != "config" for name in p.opts}
    defaults = {}
    for key, value in _read(path).items():
        name = str(key).replace("_", "-")
        if name not in options:
            hint = did_you_mean(name, (known for known in options if len(known) > 1))
            raise UsageError(f"--config {path}: '{key}' is not an option of {ctx.command.name}; {hint}")
        option = options[name]
        listed = option.multiple if isinstance(option, click.Option) else False
        # click walks through what a repeatable option gets, letter by letter if it is text
        defaults[str(option.name)] = [value] if listed and not isinstance(value, list) else value
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


def _read(path: Path) -> Mapping[Any, Any]:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise UsageError(f"--config {path} cannot be read: {' '.join(str(e).split())}") from e
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"--config {path} holds no settings; expected 'option: value' lines")
    return values
