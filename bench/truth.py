"""The labelled pictures that models are scored on: those that none of them was trained on, as far as that is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.bench.trained_on import TrainedOn
from edgekit.data import ImageDataset, Sample, load_dataset
from edgekit.errors import DataError
from edgekit.export.session import Outputs
from edgekit.listing import LAYOUTS, Kind, Listed, list_csv, list_folder, name_some
from edgekit.models.teacher_record import read_record
from edgekit.shards import refuse_shards


@dataclass(frozen=True)
class Truth:
    """Labelled pictures, and what the teacher says of them.

    Attributes:
        name: of the data, for the report.
        classes: in the order of the labels.
        samples: the pictures.
        labels: (n,) int64.
        teacher: the teacher's recorded outputs; None where they are not known for all pictures.
        frames: of each sample; with more than one the samples are clips.
        notes: whether they are of those that models were trained on.
    """

    name: str
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    labels: NDArray[np.int64]
    teacher: Outputs | None
    frames: int = 1
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        """What the samples are."""
        return "clips" if self.frames > 1 else "pictures"


@dataclass(frozen=True)
class Judged:
    """A model that will be scored.

    Attributes:
        name: for the notes.
        trained: what is recorded of its training; None where nothing is.
    """

    name: str
    trained: TrainedOn | None


def load_truth(
    data: Path,
    run: Path | None,
    judged: Sequence[Judged],
    *,
    val_fraction: float | None,
    max_images: int | None,
    frames: int = 1,
) -> Truth:
    """Read the pictures of `data` that `judged` held out, and what the teacher of `run` said of them.

    Args:
        data: folder or CSV.
        run: run folder, or None.
        judged: the models; the first whose training is recorded says how data that come unsplit are split.
        val_fraction: as for distill; None takes the recorded one.
        max_images: most pictures, spread evenly over the classes; None takes all.
        frames: that the models take; with more than one, `data` holds clips.

    Raises:
        DataError: the data cannot be used.
        LoadError: the run's teacher record is damaged.
    """
    refuse_shards(data, "--data names")
    dataset, notes = held_out(data, judged, val_fraction, "clips" if frames > 1 else "pictures")
    samples = dataset.val
    if max_images is not None and max_images < len(samples):
        rows = np.linspace(0, len(samples) - 1, max_images).round().astype(int)  # the list is sorted by class
        samples = tuple(samples[row] for row in rows)
    record = read_record(run) if run is not None and run.is_dir() else None
    said = record.select([sample.key for sample in samples]) if record is not None else None
    if record is not None and said is None:
        notes = (*notes, "The run does not hold what its teacher says of all of these: nothing is compared with it.")
    labels = np.array([sample.label for sample in samples], np.int64)
    teacher = {"embedding": said[0], "logits": said[1]} if said is not None else None
    if said is not None and not all(np.isfinite(values).all() for values in said):
        teacher, notes = None, (*notes, "What the run holds of its teacher is not finite: nothing is compared with it.")
    return Truth(dataset.root.name, dataset.classes, samples, labels, teacher, frames, notes)


def held_out(
    data: Path, judged: Sequence[Judged], val_fraction: float | None, kind: Kind
) -> tuple[ImageDataset, tuple[str, ...]]:
    """Return the data whose `val` is to be scored, all of a source that nothing splits; and what is known of that.

    Raises:
        DataError: the data cannot be used.
    """
    known = [one.trained for one in judged if one.trained is not None]
    splits = any(picture.split for picture in _listed(data, kind))
    lead = known[0] if known and not splits else None
    seed = lead.seed if lead is not None else 0
    dataset: ImageDataset | None = None
    if splits or val_fraction is not None:
        dataset = load_dataset(data, val_fraction=val_fraction, seed=seed, kind=kind)
    elif lead is not None and lead.val_fraction is not None:
        val_fraction = lead.val_fraction
        dataset = _split_as_recorded(data, lead, kind)
    whole = dataset is None
    dataset = dataset or _whole_source(data, kind)
    broken = frozenset[str]().union(*(one.broken for one in known))
    left = tuple(sample for sample in dataset.val if sample.key not in broken)
    if not left:
        raise DataError(f"{data}: training could read none of the {len(dataset.val)} {kind} that would be scored")
    how = "" if splits or whole else f" (a share of {val_fraction:g} by seed {seed})"
    notes = _notes(dataset, judged, _Asked(splits, whole, how, len(dataset.val) - len(left)))
    return replace(dataset, val=left), notes


def _listed(data: Path, kind: Kind) -> list[Listed]:
    return list_folder(data, kind) if data.is_dir() else list_csv(data, kind)


def _split_as_recorded(data: Path, trained: TrainedOn, kind: Kind) -> ImageDataset | None:
    """Split as the training did; None for data that it cannot have been trained on, such as one class alone."""
    try:
        return load_dataset(data, val_fraction=trained.val_fraction, seed=trained.seed, kind=kind)
    except DataError:
        return None


def _whole_source(data: Path, kind: Kind) -> ImageDataset:
    """Return all labelled pictures of a source that does not split them.

    Raises:
        DataError: no labelled picture.
    """
    listed = _listed(data, kind)
    classes = tuple(sorted({picture.label for picture in listed if picture.label is not None}))
    if not classes:
        raise DataError(f"{data} has no labelled {kind}. {LAYOUTS}")
    number = {name: at for at, name in enumerate(classes)}
    samples = tuple(Sample(p.key, p.path, number[p.label]) for p in listed if p.label is not None)
    root = data if data.is_dir() else data.parent
    return ImageDataset(root, classes, (), tuple(sorted(samples, key=lambda s: s.key)), kind)


@dataclass(frozen=True)
class _Asked:
    """How the pictures were chosen.

    Attributes:
        splits: the source splits them by itself.
        whole: nothing splits them, all are scored.
        how: they were split, in brackets.
        broken: pictures of `val` left out, since trainings could not read them.
    """

    splits: bool
    whole: bool
    how: str
    broken: int


def _notes(dataset: ImageDataset, judged: Sequence[Judged], asked: _Asked) -> tuple[str, ...]:
    """Say which models were not trained on the pictures that are scored, and of which that is not known."""
    kind, notes = dataset.kind, []
    apart = {one.trained: one.trained.is_of(dataset) for one in judged if one.trained is not None}
    sure = [one.name for one in judged if one.trained is not None and apart[one.trained]]
    other = [one.name for one in judged if one.trained is not None and not apart[one.trained]]
    unknown = [one.name for one in judged if one.trained is None]
    if sure:
        notes.append(f"Held out of training{asked.how}, as recorded: {name_some(sure)}.")
    if other:
        why = "all of the source was scored" if asked.whole else f"they are not the data and split{asked.how} recorded"
        notes.append(f"May include training {kind} of {name_some(other)}: {why}.{_advice(asked)}")
    if unknown and not asked.splits:  # who names a split val has held it out, as far as anyone can tell
        why = "nothing records what it was trained on"
        notes.append(f"May include training {kind} of {name_some(unknown)}: {why}.")
    if asked.broken:
        notes.append(f"{asked.broken} {kind} that training could not read are left out.")
    return tuple(notes)


def _advice(asked: _Asked) -> str:
    return " Give --val-fraction as for the training, or the run as --baseline." if asked.whole else ""
