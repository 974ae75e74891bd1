"""Tell the run or checkpoint of a text classifier from that of a student. Knows no torch."""

from __future__ import annotations

import json
from pathlib import Path

TEXT_FILE = "text.safetensors"
_MAX_HEADER_BYTES = 100_000_000
"""The limit of safetensors itself."""


def is_text_run(run: Path) -> bool:
    """Return whether `run`, a run folder or a checkpoint file, is of a text classifier; anything unreadable is not."""
    if run.is_dir():
        return (run / TEXT_FILE).is_file()
    try:
        with run.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if size <= _MAX_HEADER_BYTES else {}
        return "text" in json.loads(header["__metadata__"]["edgekit"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
