"""Tell the run or checkpoint of a CLIP from others. Knows no torch."""

from __future__ import annotations

from pathlib import Path

from edgekit.models.text_run import checkpoint_header

CLIP_FILE = "clip.safetensors"


def is_clip_run(run: Path) -> bool:
    """Return whether `run`, a run folder or a checkpoint file, is of a CLIP; anything unreadable is not."""
    return (run / CLIP_FILE).is_file() if run.is_dir() else "clip" in checkpoint_header(run)


def clip_file(run: Path) -> Path:
    """Return the checkpoint that `run`, a run folder or that file itself, stands for."""
    return run / CLIP_FILE if run.is_dir() else run
