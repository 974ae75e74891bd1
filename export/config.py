"""What `edgekit export` is asked for; without torch, so that what cannot be is refused at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import UsageError, did_you_mean
from edgekit.export.parity import Precision
from edgekit.export.runtimes import Format

OUTPUTS = ("logits", "embedding")


@dataclass(frozen=True)
class ExportConfig:
    """What to export.

    Attributes:
        run: run folder or checkpoint.
        output: the bundle folder.
        formats, precisions: every combination is made.
        auto: choose one quantized file for each format, by measurement.
        max_drop: points of accuracy (0 to 100) that the chosen one may lose against fp32.
        data: pictures for calibration and comparison; None takes the data that the run was trained on.
        val_fraction: as for distill, of `data` that do not come split; None takes the run's.
        outputs: of the files, in order.
        calibration_images: training pictures that set the INT8 ranges.
        comparison_images: validation pictures on which every file is compared with PyTorch.
        dynamic_batch: take any batch size, in the formats that can.
        seed: of the choice of pictures; of the split, too, where the run does not tell its own.
    """

    run: Path
    output: Path
    formats: tuple[Format, ...]
    precisions: tuple[Precision, ...]
    data: Path | None = None
    val_fraction: float | None = None
    outputs: tuple[str, ...] = OUTPUTS
    calibration_images: int = 256
    comparison_images: int = 256
    dynamic_batch: bool = False
    seed: int = 0
    auto: bool = False
    max_drop: float = 1.0


def chosen_outputs(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the outputs of a classifier's file.

    Raises:
        UsageError: an output that is not known, or none.
    """
    for name in names:
        if name not in OUTPUTS:
            raise UsageError(f"--outputs '{name}' is not known; {did_you_mean(name, OUTPUTS)}")
    if not names or len(set(names)) != len(names):
        raise UsageError(f"--outputs needs one or both of {', '.join(OUTPUTS)}, each once")
    return tuple(names)
