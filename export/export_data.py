"""Which data a run's export takes, cut as training cut them: its files are not judged on what it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from edgekit.data import ImageDataset, load_dataset
from edgekit.errors import UsageError
from edgekit.export.records import run_facts
from edgekit.listing import Kind, list_csv, list_folder
from edgekit.shards import refuse_shards
from edgekit.terminal import Terminal

if TYPE_CHECKING:
    from edgekit.export.config import ExportConfig

_UNREADABLE = (OSError, KeyError, TypeError, ValueError, yaml.YAMLError)


@dataclass(frozen=True)
class RunSplit:
    """How a run held out its validation pictures, where its data did not come split.

    Attributes:
        seed: of the run; the side of a picture depends on it and on the picture's name.
        val_fraction: None where its data came split, or the training took its default.
    """

    seed: int
    val_fraction: float | None


def split_of_run(run: Path) -> RunSplit | None:
    """Return how a run folder, or that of a checkpoint, held out pictures; None where it does not say."""
    try:
        trained = _settings(run)
        fraction = trained["val_fraction"]
        return RunSplit(_split_seed(trained), None if fraction is None else float(fraction))
    except _UNREADABLE:
        return None


def known_split(config: ExportConfig, terminal: Terminal) -> RunSplit:
    """Return how to cut data that were given and do not come split: as the run cut its own, unless told otherwise.

    Where the run does not say, it is warned that it may have been trained on what it will be compared on.
    """
    own = split_of_run(config.run)
    if own is None:
        terminal.warn(
            f"{config.run} does not say how its data were split: pictures that it was trained on may be among those "
            f"that its files are compared on. Give its run folder, or --data with a train and a val split"
        )
        return RunSplit(config.seed, config.val_fraction)
    return RunSplit(own.seed, own.val_fraction if config.val_fraction is None else config.val_fraction)


def run_dataset(config: ExportConfig, terminal: Terminal, frames: int = 1) -> ImageDataset:
    """Return the data set of the run, or the one that was given; with `frames` > 1 one of clips.

    Raises:
        UsageError: the run does not say what it was trained on, that is not there any more, or nothing says how the
            given data are to be split.
        DataError: they cannot be used.
    """
    kind: Kind = "clips" if frames > 1 else "pictures"
    if config.data is not None:
        refuse_shards(config.data, "--data names")
        return _given_dataset(config, config.data, kind, terminal)
    try:
        trained = _settings(config.run)
        source, fraction = Path(trained["data"]), trained["val_fraction"]
        seed, broken = _split_seed(trained), run_facts(config.run)["data"]["broken"]
    except _UNREADABLE as e:
        raise UsageError(f"{config.run} does not say what it was trained on; pass --data DIR with its pictures") from e
    refuse_shards(source, f"{config.run} was trained on")
    if not source.exists():
        raise UsageError(f"the data that {config.run} was trained on is not at {source.absolute()}; pass --data DIR")
    return load_dataset(source, val_fraction=fraction, seed=seed, kind=kind).without(broken)


def _given_dataset(config: ExportConfig, data: Path, kind: Kind, terminal: Terminal) -> ImageDataset:
    if not data.is_dir() and data.suffix.lower() != ".csv":
        return load_dataset(data, kind=kind)  # says what data sets there are
    listed = list_folder(data, kind) if data.is_dir() else list_csv(data, kind)
    if any(picture.split for picture in listed):
        return load_dataset(data, val_fraction=config.val_fraction, kind=kind)
    split = known_split(config, terminal)
    if split.val_fraction is None:
        raise UsageError(
            f"{data} is not split, and {config.run} does not say which share of it was held out: give pictures in "
            "train/ and val/ folders, or, to export, --val-fraction 0.1"
        )
    return load_dataset(data, val_fraction=split.val_fraction, seed=split.seed, kind=kind)


def _split_seed(trained: Any) -> int:
    own = trained.get("split_seed")  # of a run that goes on from another with another seed, and holds out the same
    return int(trained["recipe"]["fit"]["seed"] if own is None else own)


def _settings(run: Path) -> Any:
    folder = run if run.is_dir() else run.parent
    return yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
