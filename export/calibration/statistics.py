"""The one calibration engine of all formats: activation statistics in two bounded passes, and ranges from them.

The first pass takes the minimum and maximum of every tensor, the second a histogram of 2048 bins between them, so
that memory does not grow with the number of images and no range is a moving average that forgets. Numpy only.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.atomic import atomic_path
from edgekit.errors import DataError, LoadError
from edgekit.export.calibration.ranges import RANGE_METHODS, Distribution, RangeConfig
from edgekit.export.session import FloatArray

BINS = 2048
MIN_IMAGES = 8
"""Fewer pictures than this do not show an activation's range."""

ZERO_RANGE = (0.0, 1e-3)
"""Range of an activation that was never anything but zero: small, yet no requantization factor overflows with it."""

Observe = Callable[[str, NDArray[Any]], None]
Run = Callable[[FloatArray, Observe], None]
"""Run images (B, 3, H, W) through a net and hand every activation to the observer by name."""


@dataclass
class _Statistics:
    """What is kept of one tensor: its bounds and, between them, how many values fell in each bin."""

    low: float
    high: float
    counts: NDArray[np.int64] | None = None


class Histograms:
    """Activation statistics of a net, by tensor name.

    Attributes:
        images: number of images that the ranges were observed on.
    """

    def __init__(self) -> None:
        self._tensors: dict[str, _Statistics] = {}
        self.images = 0

    def observe_range(self, name: str, values: NDArray[Any]) -> None:
        """First pass: widen the bounds of `name` by `values` of any shape.

        Raises:
            DataError: NaN or infinity among the values; the tensor is named.
        """
        if values.size == 0:
            return
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise DataError(
                f"activation '{name}' is not finite on the calibration images (from {low} to {high}): the float model "
                "itself overflows there, and no range can be given. Check the checkpoint and the images."
            )
        known = self._tensors.get(name)
        if known is None:
            self._tensors[name] = _Statistics(low, high)
        else:
            known.low, known.high = min(known.low, low), max(known.high, high)

    def observe_histogram(self, name: str, values: NDArray[Any]) -> None:
        """Second pass: count `values` of any shape into the bins of `name`. Call after all `observe_range`.

        Raises:
            DataError: `name` was not seen in the first pass.
        """
        if values.size == 0:
            return
        if name not in self._tensors:
            raise DataError(f"activation '{name}' appeared only in the second pass over the calibration images.")
        known = self._tensors[name]
        if known.counts is None:
            known.counts = np.zeros(BINS, np.int64)
        width = known.high - known.low
        if width <= 0:
            known.counts[0] += values.size
            return
        # numpy's own histogram is several times slower than this for bins of one width
        bins = ((values.ravel().astype(np.float64) - known.low) * (BINS / width)).astype(np.int64)
        np.clip(bins, 0, BINS - 1, out=bins)
        known.counts += np.bincount(bins, minlength=BINS)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors seen, in order of first sight."""
        return tuple(self._tensors)

    @property
    def always_zero(self) -> tuple[str, ...]:
        """Names of tensors that held nothing but zeros: dead activations, worth a line in a report."""
        return tuple(name for name, seen in self._tensors.items() if seen.low == 0 == seen.high)

    def bounds(self, name: str) -> tuple[float, float]:
        """Return the smallest and the largest value seen of one tensor."""
        return self._tensors[name].low, self._tensors[name].high

    def ranges(self, config: RangeConfig | None = None) -> dict[str, tuple[float, float]]:
        """Return for every tensor the range (low ≤ 0, high ≥ 0, low < high) that its codes should span.

        Zero is always inside, because padding and dead units must stay exactly zero. Tensors that were always zero
        get `ZERO_RANGE`.
        """
        config = config or RangeConfig()
        method = RANGE_METHODS[config.method]
        result = {}
        for name, seen in self._tensors.items():
            low, high = seen.low, seen.high
            if seen.counts is not None and high > low:
                low, high = method(Distribution(low, high, seen.counts), config)
            low, high = min(low, 0.0), max(high, 0.0)
            result[name] = (low, high) if high > low else ZERO_RANGE
        return result

    def save(self, path: Path) -> None:
        """Write the statistics to a .npz file, whole or not at all."""
        names = list(self._tensors)
        empty = np.zeros(BINS, np.int64)
        counts = [seen.counts if seen.counts is not None else empty for seen in self._tensors.values()]
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                names=np.array(names, dtype=np.str_),
                bounds=np.array([[seen.low, seen.high] for seen in self._tensors.values()]).reshape(-1, 2),
                counts=np.stack(counts) if counts else np.zeros((0, BINS), np.int64),
                images=np.array(self.images),
            )

    @classmethod
    def load(cls, path: Path) -> Histograms:
        """Read what `save` wrote.

        Raises:
            LoadError: the file is missing, damaged, or something else.
        """
        loaded = cls()
        try:
            # np.load leaves a torn file open when it is given a path
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                loaded.images = int(file["images"])
                for name, (low, high), counts in zip(file["names"], file["bounds"], file["counts"], strict=True):
                    kept = counts.astype(np.int64) if counts.any() else None
                    loaded._tensors[str(name)] = _Statistics(float(low), float(high), kept)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
            raise LoadError(f"{path} holds no calibration statistics that can be read: {e}") from e
        return loaded


def collect(run: Run, batches: Callable[[], Iterable[FloatArray]]) -> Histograms:
    """Run the calibration images through a net twice and return the statistics of its activations.

    Args:
        run: the net; see `Run`.
        batches: gives the same images (B, 3, H, W) float32 in [0, 1] each time it is called.

    Raises:
        DataError: fewer than 8 usable images (one-coloured ones are not), images of several sizes, other images in
            the second pass, or an activation that is not finite.
    """
    histograms = Histograms()
    histograms.images = _pass(run, batches(), histograms.observe_range, check=True)
    again = _pass(run, batches(), histograms.observe_histogram, check=False)
    if again != histograms.images:
        raise DataError(
            f"the calibration images changed between the passes: {histograms.images} first, then {again}. "
            "Give a source that starts anew each time it is called."
        )
    return histograms


def _pass(run: Run, batches: Iterable[FloatArray], observe: Observe, *, check: bool) -> int:
    """Run one pass; return the number of images."""
    images, constant = 0, 0
    size: tuple[int, ...] | None = None
    for batch in batches:
        if size is not None and batch.shape[1:] != size:
            raise DataError(f"calibration images have several sizes: {size} and {batch.shape[1:]}; use one.")
        size = batch.shape[1:]
        images += len(batch)
        flat = batch.reshape(len(batch), -1)
        constant += int(np.count_nonzero(flat.max(axis=1) == flat.min(axis=1)))
        run(batch, observe)
    if check and images - constant < MIN_IMAGES:
        hint = f" ({constant} of {images} are of one colour)" if constant else ""
        raise DataError(
            f"{images - constant} usable calibration images are too few{hint}; at least {MIN_IMAGES} are needed, and "
            "64 or more of the training split are advised."
        )
    return images


def check_no_overlap(calibration_hashes: Mapping[str, str], evaluation_hashes: Mapping[str, str]) -> None:
    """Refuse calibration images that are also evaluated on: their accuracy would flatter the quantized model.

    Args:
        calibration_hashes: file → sha256 of its content.
        evaluation_hashes: the same for the evaluation split. Content counts, not names.

    Raises:
        DataError: naming the files of both splits that hold the same picture.
    """
    evaluated = {digest: name for name, digest in evaluation_hashes.items()}
    shared = [(name, evaluated[digest]) for name, digest in calibration_hashes.items() if digest in evaluated]
    if shared:
        shown = "; ".join(f"{name} = {other}" for name, other in shared[:5])
        more = f" and {len(shared) - 5} more" if len(shared) > 5 else ""
        raise DataError(
            f"{len(shared)} calibration images are also in the evaluation split: {shown}{more}. "
            "Take calibration images from the training split only."
        )
