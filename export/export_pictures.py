"""Which pictures set the INT8 ranges of an export, and which ones its files are compared on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.data import ImageDataset, Sample, content_hashes
from edgekit.export.calibration.statistics import check_no_overlap
from edgekit.export.golden import INPUTS, RAW, Golden, choose_raw, reduced
from edgekit.export.session import FloatArray, Session, run_batched
from edgekit.images import read_rgb, rgb_of
from edgekit.preprocess import Preprocess, fit_pixels, load_batch, to_input


@dataclass(frozen=True)
class ExportPictures:
    """Calibration pictures from the training split, comparison pictures from the validation split.

    Attributes:
        calibration, comparison: (N, 3, S, S) float32 RGB in [0, 1].
        calibration_hashes, comparison_hashes: key of each picture to the sha256 of its file.
        comparison_paths: the files, in the order of `comparison`.
        contract: how a picture became its pixels.
    """

    calibration: FloatArray
    comparison: FloatArray
    calibration_hashes: dict[str, str]
    comparison_hashes: dict[str, str]
    comparison_paths: tuple[Path, ...]
    contract: Preprocess

    @classmethod
    def choose(cls, dataset: ImageDataset, contract: Preprocess, counts: tuple[int, int], seed: int) -> ExportPictures:
        """Choose and prepare `counts` = (calibration, comparison) pictures.

        Raises:
            DataError: a picture is in both splits, by content.
        """
        return cls.of(spread(dataset.train, counts[0], seed), spread(dataset.val, counts[1], seed), contract)

    @classmethod
    def of(cls, calibration: Sequence[Sample], comparison: Sequence[Sample], contract: Preprocess) -> ExportPictures:
        """Prepare chosen pictures.

        Raises:
            DataError: a picture is in both, by content.
        """
        calibration_hashes, comparison_hashes = content_hashes(calibration), content_hashes(comparison)
        check_no_overlap(calibration_hashes, comparison_hashes)
        paths = tuple(sample.path for sample in comparison)
        return cls(
            load_batch([sample.path for sample in calibration], contract),
            load_batch(paths, contract),
            calibration_hashes,
            comparison_hashes,
            paths,
            contract,
        )

    def golden(self, reference: Session) -> Golden:
        """Return pictures with the outputs of `reference`, those first whose files are small enough to travel.

        Where none is, as among photos of a phone, the first pictures are made smaller, and everything of them, pixels
        and outputs, comes from what travels.
        """
        rows = choose_raw(self.comparison_paths)
        raw = tuple(self.comparison_paths[row].read_bytes() for row in rows)
        if not raw:
            rows = list(range(min(RAW, len(self.comparison_paths))))
            raw = tuple(reduced(read_rgb(self.comparison_paths[row]), self.contract) for row in rows)
        others = [row for row in range(len(self.comparison)) if row not in rows][: INPUTS - len(rows)]
        prepared = [fit_pixels(rgb_of(file, f"golden picture {row}"), self.contract) for row, file in enumerate(raw)]
        pixels = np.concatenate([np.stack(prepared), self._pixels(others)])
        return Golden(pixels, run_batched(reference, to_input(pixels)), raw)

    def _pixels(self, rows: Sequence[int]) -> NDArray[np.uint8]:
        """Return comparison pictures as (N, S, S, 3) uint8."""
        return np.rint(self.comparison[list(rows)].transpose(0, 2, 3, 1) * 255).astype(np.uint8)


def spread(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """Return `count` samples, a function of (seed, key), that go round the classes so that each is met."""
    ranked = sorted(samples, key=lambda s: hashlib.blake2b(f"{seed}/{s.key}".encode(), digest_size=8).digest())
    place: dict[int | None, int] = {}
    rounds = []
    for sample in ranked:
        place[sample.label] = place.get(sample.label, 0) + 1
        rounds.append(place[sample.label])
    order = sorted(range(len(ranked)), key=rounds.__getitem__)
    return [ranked[row] for row in order[:count]]
