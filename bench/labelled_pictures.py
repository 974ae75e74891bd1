"""Labelled pictures to judge a model by, whatever the folder's layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError
from edgekit.listing import LAYOUTS, list_csv, list_folder, name_some


@dataclass(frozen=True)
class LabelledPictures:
    """Pictures and what they show.

    Attributes:
        classes: in the order of the labels.
        paths: the pictures, sorted.
        labels: (N,) int64.
        subset: what part of the source they are, for the report.
    """

    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: NDArray[np.int64]
    subset: str


def labelled_pictures(source: Path, classes: Sequence[str] | None = None) -> LabelledPictures:
    """List the validation pictures of a source that is split, all of one that is not; those without label stay out.

    Args:
        source: folder or CSV, see `edgekit.listing.LAYOUTS`.
        classes: the model's, in the order of its logits; the source may have fewer. None takes the source's own.

    Raises:
        DataError: no labelled pictures, or classes that the model does not know.
    """
    if not source.exists():
        raise DataError(f"{source} is not there. {LAYOUTS}")
    listed = list_folder(source) if source.is_dir() else list_csv(source)
    split = any(picture.split for picture in listed)
    kept = [p for p in listed if p.label is not None and (not split or p.split == "val")]
    if not kept:
        raise DataError(f"{source} has no labelled {'validation ' if split else ''}pictures. {LAYOUTS}")
    found = sorted({str(picture.label) for picture in kept})
    known = tuple(classes) if classes is not None else tuple(found)
    unknown = [name for name in found if name not in known]
    if unknown:
        raise DataError(
            f"{source} has {len(unknown)} classes that the model does not know: {name_some(unknown)}. It knows: "
            f"{name_some(known)}"
        )
    number = {name: at for at, name in enumerate(known)}
    labels = np.array([number[str(picture.label)] for picture in kept], np.int64)
    part = "validation pictures" if split else "pictures, the whole source"
    return LabelledPictures(known, tuple(p.path for p in kept), labels, f"{len(kept)} {part}")
