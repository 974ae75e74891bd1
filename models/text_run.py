"""Tell the run or checkpoint of a text classifier from others. Knows no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TEXT_FILE = "text.safetensors"
_MAX_HEADER_BYTES = 100_000_000
"""The limit of safetensors itself."""


def is_text_run(run: Path) -> bool:
    """Return whether `run`, a run folder or a checkpoint file, is of a text classifier; anything unreadable is not."""
    return (run / TEXT_FILE).is_file() if run.is_dir() else "text" in checkpoint_header(run)


def checkpoint_header(file: Path) -> dict[str, Any]:
    """Return what edgekit wrote into the header of a safetensors file; empty where it cannot be read."""
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size)) if size <= _MAX_HEADER_BYTES else {}
        found = json.loads(header["__metadata__"]["edgekit"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
