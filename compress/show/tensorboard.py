"""The metrics as TensorBoard events beside metrics.jsonl, for those who watch runs there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.errors import MissingExtraError

_NO_SCALARS = frozenset({"kind", "step", "steps", "evaluated", "best"})


class Board:
    """Writes rows of metrics as scalars over the global step; the scalar "epoch" says which epoch a step is in.

    Args:
        folder: of the event files; a resumed run adds one.
        done_steps: global steps that a resumed run keeps: TensorBoard hides what an earlier file says of later ones.

    Raises:
        MissingExtraError: without the `tensorboard` extra.
    """

    def __init__(self, folder: Path, done_steps: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as e:
            raise MissingExtraError("tensorboard", "tensorboard", "--tensorboard") from e
        self._writer = SummaryWriter(str(folder), purge_step=done_steps + 1)

    def add(self, row: Mapping[str, Any], global_step: int) -> None:
        """Write the numbers of a row."""
        prefix = "step/" if row["kind"] == "step" else ""
        for name, value in row.items():
            if name in _NO_SCALARS or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            if name == "epoch" and prefix:
                continue
            self._writer.add_scalar(prefix + name, value, global_step)
        self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()
