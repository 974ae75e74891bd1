"""`edgekit doctor`: which formats and runtimes work here, and what to install for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import click

from edgekit.cli.options import make_terminal, talk_options
from edgekit.cores import usable_cores
from edgekit.environment import (
    PARTS,
    Finding,
    all_versions,
    int8_features,
    interpreter,
    known_conflicts,
    try_part,
)
from edgekit.errors import EXIT_NEGATIVE, EXIT_OK
from edgekit.terminal import Terminal, print_json

PROBE_TIMEOUT_S = 180.0


@click.command()
@talk_options
def doctor(as_json: bool, verbose: bool, quiet: bool) -> int:
    """Try every part of edgekit in a child process; say what works, what is broken and what to install.

    Exit code 1 when something that is installed does not work.
    """
    terminal = make_terminal(quiet, verbose)

    from edgekit.bench.machine import describe_machine

    machine, features = describe_machine(), int8_features()
    conflicts = known_conflicts(all_versions())
    with terminal.bar("trying each part", len(PARTS)) as advance:
        findings = _try_all(advance)
    terminal.say(f"{interpreter()} on {machine.os}")
    terminal.say(f"{machine.cpu or 'unknown processor'}, {machine.logical_cores} cores; {_describe(features)}")
    _show(terminal, findings)
    for conflict in conflicts:
        terminal.warn(conflict)
    broken = [finding.part for finding in findings if finding.status == "broken"]
    works = [finding.part for finding in findings if finding.status == "works"]
    terminal.say(f"{len(works)} of {len(findings)} parts work" + (f"; broken: {', '.join(broken)}" if broken else ""))
    if as_json:
        values = {
            "interpreter": interpreter(),
            "machine": machine.to_dict(),
            "int8_features": features,
            "parts": [finding.to_dict() for finding in findings],
            "conflicts": conflicts,
        }
        print_json("doctor", values)
    return EXIT_NEGATIVE if broken or "core" not in works else EXIT_OK


def _try_all(advance: object) -> list[Finding]:
    """Try every part, a few at a time: each child spends its time on importing."""
    from edgekit.export.contained import call_contained

    def run_probe(part: str) -> str:
        return str(call_contained("edgekit.probes:run_probe", part, timeout_s=PROBE_TIMEOUT_S))

    def attempt(part: str) -> Finding:
        finding = try_part(part, run_probe)
        assert callable(advance)
        advance(1)
        return finding

    with ThreadPoolExecutor(max_workers=min(4, usable_cores())) as pool:
        return list(pool.map(attempt, PARTS))


def _show(terminal: Terminal, findings: Sequence[Finding]) -> None:
    for finding in findings:
        missing = finding.status == "not installed"
        said = f"{finding.fix}  (for: {finding.purpose})" if missing else finding.detail
        terminal.say(f"  {finding.status:<14}{finding.part:<15}{said}")
        versions = ", ".join(f"{name} {found}" for name, found in finding.versions.items() if found)
        if versions:
            terminal.detail(f"  {'':<29}{versions}")
    for finding in findings:
        if finding.status == "broken":
            terminal.warn(f"{finding.part} is installed but does not work; try: {finding.fix}")


def _describe(features: tuple[str, ...] | None) -> str:
    if features is None:
        return "INT8 instructions unknown"
    return f"INT8 instructions: {', '.join(features) or 'none: INT8 will hardly be faster here'}"
