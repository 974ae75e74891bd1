"""Both splits of a data set decoded before training, and what a user must know of those that cannot be read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.compress.pictures.pixels import PixelStore, decode_eval, decode_train
from edgekit.data import ImageDataset, Sample, check_broken
from edgekit.listing import Kind
from edgekit.preprocess import Preprocess
from edgekit.terminal import Terminal

STORE_SCALE = 1.25
"""Training pictures are kept a little larger than the net's input, so that crops need not be blown up much."""


def stored_size(contract: Preprocess) -> int:
    """Return the side in pixels of the square that a training picture is squeezed to."""
    return math.ceil(contract.image_size * STORE_SCALE)


def decode_both(
    sides: tuple[Sequence[Sample], Sequence[Sample]],
    contract: Preprocess,
    scratch: Path,
    terminal: Terminal,
    *,
    max_broken: float,
) -> tuple[PixelStore, PixelStore]:
    """Decode training and validation pictures; those that cannot be read are left out with a warning.

    Args:
        sides: training and validation pictures.
        contract: the net's preprocessing.
        scratch: folder for memory maps, where they are needed.
        terminal: shows progress.
        max_broken: share of unreadable pictures that is tolerated.

    Raises:
        DataError: more than that are broken.
    """
    total = sum(map(len, sides))
    with terminal.bar("reading pictures", total) as advance:
        train = decode_train(sides[0], stored_size(contract), scratch=scratch, advance=advance)
        val = decode_eval(sides[1], contract, scratch=scratch, advance=advance)
    tolerate(train.broken | val.broken, total, max_broken, terminal)
    return train, val


def tolerate(
    broken: Mapping[str, str], total: int, max_broken: float, terminal: Terminal, kind: Kind = "pictures"
) -> None:
    """Warn of each broken picture. Arguments and errors as `edgekit.data.check_broken`."""
    check_broken(broken, total, max_broken, kind)
    for reason in broken.values():
        terminal.warn(f"skipped: {reason}")


def data_facts(dataset: ImageDataset, train: PixelStore, val: PixelStore) -> dict[str, Any]:
    """Return what run.json says of decoded data."""
    return {
        "root": str(dataset.root),
        "fingerprint": dataset.fingerprint(),
        "classes": list(dataset.classes),
        "train": len(train.samples),
        "labelled": sum(s.label is not None for s in train.samples),
        "val": len(val.samples),
        "broken": sorted({*train.broken, *val.broken}),
    }
