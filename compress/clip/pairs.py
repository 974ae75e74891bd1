"""Embed captioned pictures with any teacher that reads texts, on the part of the data that it did not train on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from edgekit.captions import CaptionedSet, CaptionSplit, load_captions, split_captions
from edgekit.compress.clip.batches import captioned_only
from edgekit.compress.pictures.pixels import PixelStore, decode_eval, image_batches
from edgekit.compress.pictures.stream_val import decode_val
from edgekit.compress.training.run_folder import RunFolder
from edgekit.data import check_broken
from edgekit.errors import DataError, LoadError, UsageError
from edgekit.models.teacher import TextTeacher, load_teacher
from edgekit.preprocess import Preprocess
from edgekit.shards import is_shards, load_shards
from edgekit.terminal import Terminal

_BATCH = 64
_OTHER = ", which are not the data that the run was trained on"


@dataclass(frozen=True)
class CaptionPairs:
    """Embedded pictures and captions.

    Attributes:
        images: (N, D) float32 unit rows.
        texts: (M, D) float32 unit rows.
        owner: (M,) int64, the row of `images` that each text describes.
        subset: which part of the data they are.
    """

    images: NDArray[np.float32]
    texts: NDArray[np.float32]
    owner: NDArray[np.int64]
    subset: str


def held_out_part(
    model: Path, captioned: CaptionedSet, val_fraction: float | None, *, everything: bool
) -> tuple[CaptionedSet, str]:
    """Return the pictures that a model is to be judged on, and what they are.

    Of the data that a run was trained on, its held-out part; of other data the validation split or `val_fraction` of
    it, else all.

    Args:
        model: a run folder, or anything else.
        captioned: the data.
        val_fraction: share to hold out, for data that the run does not know.
        everything: take all pictures, whatever the model has seen.

    Raises:
        DataError: the split is impossible, or `val_fraction` is not that of the run.
    """
    total = len(captioned.samples)
    if everything:
        return captioned, f"all {total} pictures"
    trained = _trained_on(model)
    own = None if trained is None else _split_of_run(trained, captioned)
    if trained is not None and own is not None:
        if val_fraction not in (None, trained["val_fraction"]):
            raise DataError(
                f"--val-fraction {val_fraction}: {model} held out another part of these pictures, and would be "
                "judged on what it was trained on. Leave the option out"
            )
        return own.val, f"the {len(own.val.samples)} of {total} pictures that the run held out"
    other = _OTHER if trained is not None else ""
    if captioned.splits or val_fraction is not None:
        val = split_captions(captioned, val_fraction, 0).val
        return val, f"{len(val.samples)} held-out pictures of {total}{other}"
    return captioned, f"all {total} pictures{other}"


def _test_part(model: Path, captioned: CaptionedSet) -> tuple[CaptionedSet, str]:
    """Return the pictures of a test split beside the validation split, and what they are.

    Raises:
        DataError: there are none.
    """
    if captioned.test is None:
        raise DataError(
            "--split test: the captions have no test split beside a validation split. Leave the option out: a test "
            "split alone is judged on as the validation split"
        )
    trained = _trained_on(model)
    other = _OTHER if trained is not None and _split_of_run(trained, captioned) is None else ""
    return captioned.test, f"the {len(captioned.test.samples)} test pictures{other}"


def _split_of_run(trained: Mapping[str, Any], captioned: CaptionedSet) -> CaptionSplit | None:
    """Cut the data as a run cut its own; None where these are other data."""
    try:
        split = split_captions(captioned, trained["val_fraction"], trained["seed"])
    except DataError:  # the run's own data could be cut so
        return None
    return split if split.fingerprint() == trained["fingerprint"] else None


def _trained_on(model: Path) -> dict[str, Any] | None:
    """Return how a run split which data; None where it is no run of a CLIP."""
    if not (model / "clip.safetensors").is_file() or not (model / "config.yaml").is_file():
        return None
    run = RunFolder(model)
    try:
        config = yaml.safe_load(run.config_path.read_text(encoding="utf-8"))
        seed, fraction = config["recipe"]["fit"]["seed"], config.get("val_fraction")
        return {"seed": seed, "val_fraction": fraction, "fingerprint": run.facts()["data"]["fingerprint"]}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, LoadError):
        return None  # such as the demo's teacher, which says less of its data


@dataclass(frozen=True)
class PairsConfig:
    """What to embed.

    Attributes:
        model: as for `edgekit.models.teacher.load_teacher`.
        data, pictures: see `load_captions`.
        val_fraction, everything: see `held_out_part`.
        split: "test" judges on the pictures of a test split beside the validation split instead.
        device: where the towers run.
        max_broken: share of unreadable pictures to tolerate.
    """

    model: str
    data: Path
    pictures: Path | None = None
    val_fraction: float | None = None
    everything: bool = False
    split: Literal["val", "test"] = "val"
    device: str = "cpu"
    max_broken: float = 0.01


def embed_captions(config: PairsConfig, terminal: Terminal) -> CaptionPairs:
    """Embed pictures and captions with a CLIP.

    Raises:
        UsageError: the model reads no texts.
        DataError: the captions cannot be used.
    """
    teacher = load_teacher(config.model, torch.device(config.device))
    if not isinstance(teacher, TextTeacher):
        raise UsageError(f"{config.model} reads no texts, so it cannot retrieve; give a CLIP")
    found = _of_shards if is_shards(config.data) else _of_files
    store, texts, subset = found(config, teacher.preprocess, terminal)
    images = [teacher(batch) for batch in image_batches(store.pixels, _BATCH)]
    flat = [text for group in texts for text in group]
    rows = [teacher.encode_texts(flat[at : at + _BATCH]) for at in range(0, len(flat), _BATCH)]
    return CaptionPairs(
        torch.cat(images).float().cpu().numpy(),
        torch.cat(rows).float().cpu().numpy(),
        np.repeat(np.arange(len(texts)), [len(group) for group in texts]),
        subset,
    )


_Found = tuple[PixelStore, list[tuple[str, ...]], str]
"""Decoded pictures, the captions of each, and what they are."""


def _of_files(config: PairsConfig, contract: Preprocess, terminal: Terminal) -> _Found:
    model, captioned = Path(config.model), load_captions(config.data, config.pictures)
    if config.split == "test":
        if config.everything or config.val_fraction is not None:
            raise UsageError("--split test judges on the test split; leave --all and --val-fraction out")
        captioned, subset = _test_part(model, captioned)
    else:
        captioned, subset = held_out_part(model, captioned, config.val_fraction, everything=config.everything)
    if subset.endswith(_OTHER):
        terminal.warn(
            f"{config.model} was trained on other captions, or on another part of these: pictures that it has seen "
            f"flatter it"
        )
    with terminal.bar("reading pictures", len(captioned.samples)) as advance:
        store = decode_eval(captioned.samples, contract, advance=advance)
    check_broken(store.broken, len(captioned.samples), config.max_broken)
    by_key = {sample.key: texts for sample, texts in zip(captioned.samples, captioned.captions, strict=True)}
    return store, [by_key[sample.key] for sample in store.samples], subset


def _of_shards(config: PairsConfig, contract: Preprocess, terminal: Terminal) -> _Found:
    chosen = config.everything or config.val_fraction is not None or config.split != "val"
    if chosen or config.pictures is not None:
        raise UsageError(
            f"--data {config.data}: of tar shards those of validation are judged on; leave --all, --val-fraction, "
            "--split and --pictures out"
        )
    with TemporaryDirectory() as scratch:
        decoded = decode_val(
            load_shards(config.data, labels=False), contract, Path(scratch), terminal, max_broken=config.max_broken
        )
        store = captioned_only(decoded)
    if not store.samples:
        raise DataError(f"--data {config.data}: no validation picture has a caption; each needs a .txt of its name")
    texts = [decoded.pictures[sample.path].captions for sample in store.samples]
    return store, texts, f"the {len(texts)} validation pictures of the shards"
