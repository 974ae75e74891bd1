"""Pictures with captions on which a CLIP's files are compared with PyTorch, and what each pair of files retrieves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from edgekit.captions import CaptionedSet, CaptionSplit, load_captions, split_captions
from edgekit.data import Sample
from edgekit.errors import UsageError
from edgekit.export.config import ExportConfig
from edgekit.export.export_data import known_split
from edgekit.export.export_pictures import ExportPictures, spread
from edgekit.export.session import Outputs
from edgekit.preprocess import Preprocess
from edgekit.ranking import best_ranks
from edgekit.shards import refuse_shards
from edgekit.terminal import Terminal


@dataclass(frozen=True)
class ExportPairs:
    """Pictures for ranges and comparison, and one caption of each comparison picture.

    Attributes:
        pictures: calibration pictures from the training side, comparison pictures from the validation side.
        captions: the first caption of each comparison picture, in their order.
    """

    pictures: ExportPictures
    captions: tuple[str, ...]

    @classmethod
    def choose(cls, split: CaptionSplit, contract: Preprocess, counts: tuple[int, int], seed: int) -> ExportPairs:
        """Choose and prepare `counts` = (calibration, comparison) pictures with captions."""
        val = spread(split.val.samples, counts[1], seed)
        first = {s.key: texts[0] for s, texts in zip(split.val.samples, split.val.captions, strict=True)}
        pictures = ExportPictures.of(spread(split.train.samples, counts[0], seed), val, contract)
        return cls(pictures, tuple(first[sample.key] for sample in val))


def run_captions(config: ExportConfig, terminal: Terminal) -> CaptionSplit:
    """Return the captioned pictures of the run, or those that were given, cut as training cut them.

    Raises:
        UsageError: the run does not say what it was trained on, or that is not there any more.
        DataError: they cannot be used.
    """
    if config.data is not None:
        refuse_shards(config.data, "--data names")
        captioned = load_captions(config.data)
        if captioned.splits:
            return split_captions(captioned, config.val_fraction, config.seed)
        split = known_split(config, terminal)
        return split_captions(captioned, split.val_fraction, split.seed)
    folder = config.run if config.run.is_dir() else config.run.parent
    try:
        trained = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        source, fraction, seed = Path(trained["data"]), trained["val_fraction"], int(trained["recipe"]["fit"]["seed"])
        pictures = Path(trained["pictures"]) if trained["pictures"] else None
        broken = set(json.loads((folder / "run.json").read_text(encoding="utf-8"))["data"]["broken"])
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as e:
        raise UsageError(
            f"{config.run} does not say what it was trained on; pass --data with captioned pictures"
        ) from e
    refuse_shards(source, f"{config.run} was trained on")
    if not source.exists():
        raise UsageError(f"the captions that {config.run} was trained on are not at {source.absolute()}; pass --data")
    own = split_captions(load_captions(source, pictures), fraction, seed)
    return CaptionSplit(_without(own.train, broken), _without(own.val, broken))


def _without(side: CaptionedSet, broken: set[str]) -> CaptionedSet:
    samples: Sequence[Sample] = side.samples
    return side.take({sample.key for sample in samples} - broken)


def recalls(image: Outputs, text: Outputs) -> dict[str, float]:
    """Return R@1 in both directions over N pairs, ties counted against the model; values in [0, 1]."""
    pictures, captions = (outputs["embedding"].astype(np.float64) for outputs in (image, text))
    own = np.arange(len(pictures))
    return {
        "image_to_text_r1": float((best_ranks(pictures, captions, own, own) == 1).mean()),
        "text_to_image_r1": float((best_ranks(captions, pictures, own, own) == 1).mean()),
        "pairs": float(len(own)),
    }


def retrieval(
    expected: tuple[Outputs, Outputs], found: tuple[Mapping[str, Outputs], Mapping[str, Outputs]]
) -> dict[str, dict[str, float]]:
    """Return `recalls` of PyTorch, and of the files of one name in both towers."""
    images, texts = found
    rows = {"pytorch": recalls(*expected)}
    rows |= {name: recalls(images[name], texts[name]) for name in images if name in texts}
    return rows
