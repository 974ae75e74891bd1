"""What a run or a bundle records of the data that its model was trained on, so that it is not judged on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekit.data import ImageDataset, Sample
from edgekit.export.export_data import split_of_run
from edgekit.export.manifest import MANIFEST_FILE, Manifest, read_any_manifest
from edgekit.export.records import run_facts
from edgekit.export.runtimes import is_package


@dataclass(frozen=True)
class TrainedOn:
    """How a model's training split its data.

    Attributes:
        fingerprint: of the data and their split, without what could not be read.
        seed: of the split.
        val_fraction: held out; None where the data came split, or where it is not told.
        broken: keys of the pictures that could not be read.
    """

    fingerprint: str
    seed: int
    val_fraction: float | None
    broken: frozenset[str]

    def is_of(self, dataset: ImageDataset) -> bool:
        """Return whether these are the data, split as they were: no picture of `dataset.val` was trained on."""
        train, val = (self.readable(samples) for samples in (dataset.train, dataset.val))
        labelled = tuple(sample for sample in train if sample.label is not None)  # `train image` takes no others
        splits = {train, labelled}
        return any(replace(dataset, train=one, val=val).fingerprint() == self.fingerprint for one in splits)

    def readable(self, samples: Iterable[Sample]) -> tuple[Sample, ...]:
        """Return the samples that the training could read."""
        return tuple(sample for sample in samples if sample.key not in self.broken)


def trained_on_of_run(run: Path) -> TrainedOn | None:
    """Return what a run folder, or the one that a checkpoint lies in, records; None where it does not."""
    split = split_of_run(run)
    return _read(run_facts(run), None if split is None else split.val_fraction)


def trained_on_of_bundle(manifest: Manifest) -> TrainedOn | None:
    """Return what a manifest records; None where it records nothing."""
    return _read(manifest.training, None)


def trained_on_of_file(path: Path) -> TrainedOn | None:
    """Return what a checkpoint's run, a run folder, or the manifest beside an artifact records."""
    if (path.is_dir() and not is_package(path)) or not (path.parent / MANIFEST_FILE).is_file():
        return trained_on_of_run(path)
    manifest = read_any_manifest(path.parent)
    return trained_on_of_bundle(manifest) if isinstance(manifest, Manifest) else None


def _read(facts: Mapping[str, Any], fraction: float | None) -> TrainedOn | None:
    """Read facts that others may have written: what is not of its type is not known."""
    data, seed = facts.get("data"), facts.get("seed")
    if isinstance(data, Mapping) and "split_seed" in data:
        seed = data["split_seed"]
    if not isinstance(data, Mapping) or not isinstance(data.get("fingerprint"), str) or not isinstance(seed, int):
        return None
    broken = data.get("broken")
    keys = frozenset(key for key in broken if isinstance(key, str)) if isinstance(broken, list) else frozenset()
    fraction = data.get("val_fraction") if fraction is None else fraction
    share = float(fraction) if isinstance(fraction, int | float) and 0 < fraction < 1 else None
    return TrainedOn(data["fingerprint"], seed, share, keys)
