"""The inputs and outputs of an artifact, read back from the file."""

from __future__ import annotations

from dataclasses import asdict

from edgekit.export.audit.record import Audit
from edgekit.export.manifest import PortRecord

Ports = tuple[PortRecord, ...]


def ports_of(found: Audit) -> tuple[Ports, Ports]:
    """Return what an audited file takes and gives, in its own names, shapes, types and order."""
    inputs, outputs = (tuple(PortRecord(**asdict(port)) for port in side) for side in (found.inputs, found.outputs))
    return inputs, outputs


def differences(found: tuple[Ports, Ports], wanted: tuple[Ports, Ports]) -> str:
    """Say where a file's inputs or outputs are not those of its record; empty where all agree."""
    for side, ours, theirs in zip(("inputs", "outputs"), found, wanted, strict=True):
        if ours != theirs:
            return f"{side} are {describe_ports(ours)}, the manifest says {describe_ports(theirs)}"
    return ""


def describe_ports(ports: Ports) -> str:
    """Return names with shapes and types in a line."""
    return ", ".join(f"{port.name} {port.dtype} {list(port.shape)}" for port in ports) or "none"
