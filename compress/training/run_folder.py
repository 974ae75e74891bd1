"""The run folder: what training leaves behind, and what everything after it reads.

config.yaml           the resolved settings
student.safetensors   the best checkpoint by the validation metric (clip.safetensors for a CLIP)
last/                 everything that resuming needs: the last two training states (`.checkpointing`)
metrics.jsonl         one row per group of steps, per epoch, and per finding of the guard
history.jsonl         the epochs of earlier phases, where the run began from another one
run.json              versions, seed, git commit, data fingerprint, hardware, teacher, final summary
plots/*.png
"""

from __future__ import annotations

import json
import math
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel

from edgekit import atomic
from edgekit.environment import version_of
from edgekit.errors import LoadError

SCHEMA_VERSION = 1
_LIBRARIES = ("edgekit", "torch", "timm", "open_clip_torch", "numpy", "accelerate")


class RunFolder:
    """Paths and writers of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_path = path / "config.yaml"
        self.facts_path = path / "run.json"
        self.metrics_path = path / "metrics.jsonl"
        self.history_path = path / "history.jsonl"
        self.last = path / "last"
        self.plots = path / "plots"

    def create(self, config: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Write config.yaml and run.json."""
        self.write_config(config)
        self.update_facts(facts)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write config.yaml."""
        atomic.write_text(self.config_path, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))

    def update_facts(self, facts: Mapping[str, Any]) -> None:
        """Merge `facts` into run.json."""
        known = self.facts() if self.facts_path.is_file() else environment()
        atomic.write_json(self.facts_path, {**known, **facts})

    def facts(self) -> dict[str, Any]:
        """Read run.json.

        Raises:
            LoadError: not there, not JSON, or of a newer edgekit.
        """
        path = self.facts_path
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            raise LoadError(f"{self.path} is not a run folder: {path.name} cannot be read ({e})") from e
        if not isinstance(content, dict):
            raise LoadError(f"{path} does not hold a mapping")
        version = content.get("schema_version", SCHEMA_VERSION)
        if not isinstance(version, int) or version > SCHEMA_VERSION:
            raise LoadError(
                f"{path} was written by a newer edgekit (schema {version} > {SCHEMA_VERSION}); update edgekit"
            )
        return content

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one row to metrics.jsonl, flushed at once.

        Raises:
            WriteError: the disk is full, or the folder is gone.
        """
        try:
            with self.metrics_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dict(row)) + "\n")
        except OSError as e:
            raise atomic.WriteError(
                f"cannot write {self.metrics_path}: {e.strerror or e}. Make room, then continue with --resume"
            ) from e

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read metrics.jsonl; a half-written last line (the process was killed) is left out."""
        return [{"kind": "epoch", **row} for row in _read_rows(self.metrics_path)]

    def read_history(self) -> list[dict[str, Any]]:
        """Read the epoch rows of earlier phases, each with its "phase" number from 1 on; none in most runs."""
        return [row for row in _read_rows(self.history_path) if isinstance(row.get("phase"), int)]

    def write_history(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the epoch rows of earlier phases."""
        atomic.write_text(self.history_path, "".join(json.dumps(row) + "\n" for row in rows))

    def keep_metrics(self, epoch: int, step: int = 0) -> None:
        """Drop rows from after `step` steps of `epoch` (in progress): a resumed run writes them again."""
        rows = [
            row
            for row in self.read_metrics()
            if row["epoch"] < epoch or (row["epoch"] == epoch and row.get("step", math.inf) <= step)
        ]
        atomic.write_text(self.metrics_path, "".join(json.dumps(row) + "\n" for row in rows))


class MutedRunFolder(RunFolder):
    """The run folder of a process that is not the main one: it writes nothing."""

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Leave it to the main process."""

    def update_facts(self, facts: Mapping[str, Any]) -> None:
        """Leave it to the main process."""

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Leave it to the main process."""

    def write_history(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Leave it to the main process."""

    def keep_metrics(self, epoch: int, step: int = 0) -> None:
        """Leave it to the main process."""


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows that belong to an epoch; what is torn, or was never a row, is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("epoch"), int):
                rows.append(row)
    return rows


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as config.yaml holds them: paths as text, tuples as lists, recipes as mappings."""
    return {name: _plain(value) for name, value in settings.items()}


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def environment() -> dict[str, Any]:
    """Return the facts of this environment that a result depends on."""
    return {
        "schema_version": SCHEMA_VERSION,
        "versions": {"python": platform.python_version(), **{name: version_of(name) for name in _LIBRARIES}},
        "platform": platform.platform(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git": _git_commit(),
        "cpu_threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def _git_commit() -> str | None:
    """Return the commit of the working folder, where it is a checkout."""
    try:
        result = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
