"""`--config FILE`: the options of a command as YAML. What is given on the command line wins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import yaml
from click.core import ParameterSource

from edgekit.errors import UsageError, did_you_mean


def merge_config(ctx: click.Context, options: dict[str, Any]) -> dict[str, Any]:
    """Return `options` with the values of the file that `config_file` names, converted as the command line would.

    Args:
        ctx: of the command, tells which options were really given.
        options: the command's parameters.

    Raises:
        UsageError: the file cannot be read, or it names options that the command does not have.
    """
    path: Path | None = options.pop("config_file")
    if path is None:
        return options
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise UsageError(f"--config {path} cannot be read: {' '.join(str(e).split())}") from e
    if not isinstance(values, dict):
        raise UsageError(f"--config {path} holds no settings; expected 'option: value' lines")
    parameters = {p.name: p for p in ctx.command.params if p.name != "config_file"}
    merged = dict(options)
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in parameters:
            known = [str(n).replace("_", "-") for n in parameters]
            raise UsageError(
                f"--config {path}: '{key}' is not an option of {ctx.command.name}; {did_you_mean(str(key), known)}"
            )
        if ctx.get_parameter_source(name) != ParameterSource.COMMANDLINE:
            merged[name] = parameters[name].type_cast_value(ctx, value)
    return merged
