"""A picture of some drawings with their captions."""

from __future__ import annotations

import csv
import textwrap
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from edgekit import atomic

_COLUMNS, _ROWS = 6, 3


def contact_sheet(captions: Path, out: Path) -> None:
    """Draw some pictures of a captions CSV (image,caption), spread over the file, with what is said of them."""
    with captions.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    count = min(len(rows), _COLUMNS * _ROWS)
    # an odd stride over the list, in which the classes follow each other in turn, meets all of them
    chosen = [rows[(number * 7919) % len(rows)] for number in range(count)]
    figure = Figure(figsize=(2 * _COLUMNS, 2.5 * _ROWS), layout="constrained")
    for axes, row in zip(figure.subplots(_ROWS, _COLUMNS).flat, chosen, strict=True):
        with Image.open(captions.parent / row["image"]) as picture:
            axes.imshow(picture)
        axes.set_title("\n".join(textwrap.wrap(row["caption"], 28)[:3]), fontsize=7)
        axes.set_axis_off()
    with atomic.atomic_path(out) as temporary:
        figure.savefig(temporary, dpi=110)
