"""Labelled pictures to judge a model by, whatever the folder's layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.bench.truth import Judged, held_out
from edgekit.errors import DataError
from edgekit.listing import LAYOUTS, list_csv, list_folder, name_some


@dataclass(frozen=True)
class LabelledPictures:
    """Pictures and what they show.

    Attributes:
        classes: in the order of the labels.
        paths: the pictures, sorted.
        labels: (N,) int64.
        part: which of the source they are, for the report.
        notes: whether they are of those that the model was trained on.
    """

    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: NDArray[np.int64]
    part: str
    notes: tuple[str, ...] = ()

    @property
    def subset(self) -> str:
        """Return how many they are, and which."""
        return f"{len(self.paths)} {self.part}"


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
    kept = [(p.path, p.label) for p in listed if p.label is not None and (not split or p.split == "val")]
    if not kept:
        raise DataError(f"{source} has no labelled {'validation ' if split else ''}pictures. {LAYOUTS}")
    return _numbered(source, classes, kept, "validation pictures" if split else "pictures, the whole source")


def unseen_pictures(
    source: Path, classes: Sequence[str], model: Judged, val_fraction: float | None
) -> LabelledPictures:
    """List the pictures that a model held out of its training, as far as that is known; else as `labelled_pictures`.

    Args:
        source, classes: as there.
        model: what is recorded of its training.
        val_fraction: share to hold out of a source that is not split; None takes the recorded one.

    Raises:
        DataError: no labelled pictures, classes that the model does not know, or they cannot be split.
    """
    try:
        dataset, notes = held_out(source, (model,), val_fraction, "pictures")
    except DataError:
        if val_fraction is not None:
            raise
        # a class without training pictures, say, is no hindrance here, but then nothing is known of the split
        note = f"May include training pictures of {model.name}: these are not the data and split that it records."
        return replace(labelled_pictures(source, classes), notes=(note,))
    kept = [(sample.path, dataset.classes[sample.label]) for sample in dataset.val if sample.label is not None]
    return _numbered(
        source, classes, kept, "validation pictures" if dataset.train else "pictures, the whole source", notes
    )


def _numbered(
    source: Path,
    classes: Sequence[str] | None,
    kept: Sequence[tuple[Path, str]],
    part: str,
    notes: tuple[str, ...] = (),
) -> LabelledPictures:
    found = sorted({label for _, label in kept})
    known = tuple(classes) if classes is not None else tuple(found)
    unknown = [name for name in found if name not in known]
    if unknown:
        raise DataError(
            f"{source} has {len(unknown)} classes that the model does not know: {name_some(unknown)}. It knows: "
            f"{name_some(known)}"
        )
    number = {name: at for at, name in enumerate(known)}
    labels = np.array([number[label] for _, label in kept], np.int64)
    return LabelledPictures(known, tuple(path for path, _ in kept), labels, part, notes)
