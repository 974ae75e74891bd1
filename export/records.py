"""What a manifest says of a file, of the run behind it, and of the libraries that made it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.export.manifest import FileRecord, sha256_of

if TYPE_CHECKING:
    from edgekit.export.attempt import Attempt

LIBRARIES = ("edgekit", "torch", "timm", "onnx", "onnxruntime", "coremltools", "litert-torch", "ai-edge-quantizer")
"""Whose versions the manifest of a picture's files tells."""


def record_of(bundle: Path, attempt: Attempt) -> FileRecord:
    """Return the record of a file that passed and lies in the bundle."""
    assert attempt.parity is not None and attempt.runtime is not None
    return FileRecord(
        path=attempt.name,
        format=attempt.format,
        precision=attempt.precision,
        recipe=attempt.recipe,
        sha256=sha256_of(bundle / attempt.name),
        size_bytes=attempt.size_bytes,
        inputs=attempt.inputs,
        outputs=attempt.outputs,
        parity=attempt.parity.to_dict(),
        runtime=dict(attempt.runtime),
    )


def run_facts(run: Path) -> dict[str, Any]:
    """Return run.json of a run folder, or of the one that a checkpoint lies in."""
    path = (run if run.is_dir() else run.parent) / "run.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # a bare checkpoint: the card then says that nothing is known of its training
    return facts if isinstance(facts, dict) else {}


def versions_of(libraries: Iterable[str]) -> dict[str, str | None]:
    """Return the version of each library, None where it is not installed."""
    return {name: _version(name) for name in libraries}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
