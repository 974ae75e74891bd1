"""Labelled pictures as an image classifier is trained on them: decoded once, or streamed from tar shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekit.compress.image.recipe import ImageRecipe
from edgekit.compress.pictures.decoding import data_facts, decode_both, stored_size
from edgekit.compress.pictures.pixels import PixelStore
from edgekit.compress.pictures.source import Source, StoredSource
from edgekit.compress.pictures.stream_source import StreamSource
from edgekit.compress.pictures.stream_val import decode_val
from edgekit.data import ImageDataset, load_dataset
from edgekit.errors import DataError, UsageError
from edgekit.preprocess import Preprocess
from edgekit.shards import ShardDataset, is_shards, load_shards
from edgekit.terminal import Terminal

Labelled = ImageDataset | ShardDataset


@dataclass(frozen=True)
class PreparedPictures:
    """What the task reads.

    Attributes:
        train: batches.
        val: decoded validation pictures.
        facts: for run.json.
    """

    train: Source
    val: PixelStore
    facts: Mapping[str, Any]


def load_labelled(source: Path, val_fraction: float | None, seed: int, terminal: Terminal) -> Labelled:
    """Return the labelled pictures of a folder, a CSV or tar shards, with a warning of those without label.

    Raises:
        DataError: no such data; shards with training pictures without label.
        UsageError: shards are to be split.
    """
    if is_shards(source):
        if val_fraction is not None:
            raise UsageError(f"--val-fraction {val_fraction}: shards are split already; leave it out")
        shards = load_shards(source)
        if left := sum(shard.pictures - shard.labelled for shard in shards.train.shards):
            raise DataError(
                f"--data {source}: {left} of {len(shards.train)} training pictures have no label, from which a "
                "classifier cannot learn. Write the shards without them, or use distill, which learns from them"
            )
        return shards
    dataset = load_dataset(source, val_fraction=val_fraction, seed=seed)
    kept = tuple(sample for sample in dataset.train if sample.label is not None)
    if left := len(dataset.train) - len(kept):
        terminal.warn(f"{left} training pictures have no label and are left out; distill would learn from them")
    return replace(dataset, train=kept)


def prepare_pictures(
    dataset: Labelled, recipe: ImageRecipe, contract: Preprocess, scratch: Path, terminal: Terminal, max_broken: float
) -> PreparedPictures:
    """Decode the pictures of a data set; of tar shards those of validation, and stream the others.

    Args:
        dataset: labelled pictures, unread so far.
        recipe: decides the batches.
        contract: the net's preprocessing.
        scratch: folder for memory maps, where they are needed.
        terminal: shows progress.
        max_broken: share of unreadable pictures that is tolerated.

    Raises:
        DataError: more than that are broken.
    """
    if isinstance(dataset, ShardDataset):
        side = stored_size(contract)
        streamed = StreamSource(dataset, None, recipe, contract, size=side, max_broken=max_broken)
        decoded = decode_val(dataset, contract, scratch, terminal, max_broken=max_broken)
        return PreparedPictures(streamed, decoded.store, decoded.facts)
    train, val = decode_both((dataset.train, dataset.val), contract, scratch, terminal, max_broken=max_broken)
    readable = dataset.without((train.broken | val.broken).keys())
    return PreparedPictures(StoredSource(train, None, recipe, contract), val, data_facts(readable, train, val))
