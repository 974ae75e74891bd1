"""The validation pictures of tar shards, decoded before training: they are few, and judged in every epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.compress.pictures.decoding import tolerate
from edgekit.compress.pictures.pixels import Decoded, PixelStore, decode_rows
from edgekit.data import Sample, check_broken
from edgekit.errors import DataError
from edgekit.images import rgb_of
from edgekit.preprocess import Preprocess, fit_pixels
from edgekit.shards import ShardDataset, ShardSplit
from edgekit.tars import TarPicture, list_tar
from edgekit.terminal import Terminal


@dataclass(frozen=True)
class ShardVal:
    """Decoded validation pictures.

    Attributes:
        store: their pixels through the net's contract.
        pictures: each by the path that stands for it in the store's samples (tar/key).
        facts: of the whole data set, for run.json.
    """

    store: PixelStore
    pictures: Mapping[Path, TarPicture]
    facts: dict[str, Any]


def listed(split: ShardSplit) -> Iterator[TarPicture]:
    """Yield the pictures of a split, one tar listed after the other."""
    for shard in split.shards:
        yield from list_tar(shard.path).pictures


def decode_val(
    dataset: ShardDataset, contract: Preprocess, scratch: Path, terminal: Terminal, *, max_broken: float
) -> ShardVal:
    """Decode the validation shards; pictures that cannot be read are left out with a warning.

    Args:
        dataset: its validation shards, and what was found damaged.
        contract: the net's preprocessing.
        scratch: folder for memory maps, where they are needed.
        terminal: shows progress.
        max_broken: share of damaged and unreadable pictures that is tolerated.

    Raises:
        DataError: more than that are; one has no label where the data set has classes.
    """
    total = len(dataset.train) + len(dataset.val) + len(dataset.broken)
    check_broken(dataset.broken, total, max_broken)
    found = list(listed(dataset.val))
    samples = [Sample(picture.key, picture.tar / picture.key, _label(dataset, picture)) for picture in found]
    pictures = {sample.path: picture for sample, picture in zip(samples, found, strict=True)}

    def fitted(path: Path) -> Decoded:
        decoded = rgb_of(pictures[path].read(), str(path))
        return fit_pixels(decoded, contract), decoded.width / decoded.height

    side = contract.image_size
    with terminal.bar("reading validation pictures", len(samples)) as advance:
        store = decode_rows(samples, (side, side, 3), fitted, scratch=scratch, advance=advance)
    broken = {**dataset.broken, **store.broken}
    tolerate(broken, total, max_broken, terminal)
    return ShardVal(store, pictures, _facts(dataset, store, broken))


def _label(dataset: ShardDataset, picture: TarPicture) -> int | None:
    if not dataset.classes:
        return None
    label = dataset.label_of(picture.label)
    if label is None:
        raise DataError(f"{picture.tar}: the validation picture {picture.key} has no label (.cls)")
    return label


def _facts(dataset: ShardDataset, val: PixelStore, broken: Mapping[str, str]) -> dict[str, Any]:
    return {
        "root": str(dataset.root),
        "fingerprint": dataset.fingerprint(),
        "classes": list(dataset.classes),
        "train": len(dataset.train),
        "labelled": sum(shard.labelled for shard in dataset.train.shards),
        "val": len(val.samples),
        "shards": len(dataset.train.shards),
        "broken": sorted(broken),
    }
