"""Ranges that were trained with a student's weights, carried in its checkpoint and found again in any file made of it.

A file's tensors have other names and layouts than the student's, but hold the same numbers. So each range travels with
a fingerprint of its tensor, what the float student computes there for pictures that everybody can make: quantiles, mean
and power, which no transposition or reshape changes. The tensor of a file with that fingerprint gets the range.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import LoadError
from edgekit.export.calibration.statistics import Run
from edgekit.export.session import FloatArray

TRAINED = "int8"
"""Name of this in a checkpoint's header."""

PROBES = 2
SHARES = np.linspace(0.0, 1.0, 15)
"""Quantiles of a fingerprint, the smallest and the largest value among them."""

FAR = 0.02
"""Fingerprints of one tensor are nearer than this share of its root mean square, in float16 as well; of the known ones
the nearest is taken."""

SAME = 1e-4
"""Fingerprints of the same numbers in another order, within one file, are nearer than that."""

Fingerprint = tuple[float, ...]


@dataclass(frozen=True)
class TrainedRange:
    """What the codes of one activation span.

    Attributes:
        name: of the activation, in the student.
        low, high: the ends, low ≤ 0 ≤ high.
        fingerprint: of the float tensor.
    """

    name: str
    low: float
    high: float
    fingerprint: Fingerprint


@dataclass(frozen=True)
class TrainedCodes:
    """How a student was trained for 8 bits.

    Attributes:
        runtime: whose file was simulated: "tflite", "onnx" or "coreml".
        precision: of that file, by edgekit's name.
        ranges: of its activations.
        float_layers: name and fingerprint of what the file leaves float: the outputs of convolutions, in Core ML single
            activations.
    """

    runtime: str
    precision: str
    ranges: tuple[TrainedRange, ...]
    float_layers: tuple[tuple[str, Fingerprint], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping that `from_dict` reads back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainedCodes:
        """Build from what `to_dict` made.

        Raises:
            LoadError: something else; checkpoints come from strangers, too.
        """
        try:
            ranges = tuple(
                TrainedRange(str(v["name"]), *_range(v["low"], v["high"]), _numbers(v["fingerprint"]))
                for v in values["ranges"]
            )
            layers = tuple((str(name), _numbers(fingerprint)) for name, fingerprint in values["float_layers"])
            return cls(str(values["runtime"]), str(values["precision"]), ranges, layers)
        except (KeyError, TypeError, ValueError) as e:
            raise LoadError(f"these are no trained ranges: {e!r:.200}") from e

    def ranges_in(self, run: Run, image_size: int) -> dict[str, tuple[float, float]]:
        """Return the trained ranges of the tensors that a file's float net hands out, by the net's own names.

        Args:
            run: the float net; see `edgekit.export.calibration.statistics.Run`.
            image_size: side of the square picture.
        """
        found = {}
        for name, fingerprint in fingerprints(run, image_size).items():
            nearest = min(self.ranges, key=lambda known: distance(known.fingerprint, fingerprint))
            if distance(nearest.fingerprint, fingerprint) < FAR:
                found[name] = (nearest.low, nearest.high)
        return found

    def float_tensors_in(self, run: Run, image_size: int) -> set[str]:
        """Return the tensors that stay float, by the net's own names.

        Raises:
            LoadError: one of them is not there; the weights are not those of these ranges.
        """
        seen = fingerprints(run, image_size)
        found: set[str] = set()
        for layer, fingerprint in self.float_layers:
            nearest = min(seen, key=lambda name: distance(seen[name], fingerprint))
            if distance(seen[nearest], fingerprint) > FAR:
                raise LoadError(f"nothing in the file computes what '{layer}' of the student does")
            found.update(name for name in seen if distance(seen[name], seen[nearest]) < SAME)
        return found


def read_trained(run: Path) -> TrainedCodes | None:
    """Return how the student of a run folder or checkpoint was trained for 8 bits; None if it was not.

    Raises:
        LoadError: no checkpoint, or a damaged one.
    """
    from edgekit.models.checkpoint import read_extra  # torch, which those who only quantize files do without

    values = read_extra(run, TRAINED)
    if values is None:
        return None
    try:
        return TrainedCodes.from_dict(values)
    except LoadError as e:
        raise LoadError(f"{run}: {e}") from e


def fingerprint(values: Iterable[NDArray[Any]]) -> Fingerprint:
    """Return quantiles, mean and root of the mean square of one tensor, given in pieces of any shape."""
    every = np.concatenate([np.asarray(value, np.float64).ravel() for value in values])
    moments = (float(every.mean()), float(np.sqrt(np.square(every).mean())))
    return tuple(float(f"{v:.6g}") for v in (*np.quantile(every, SHARES, method="nearest"), *moments))


def distance(one: Fingerprint, other: Fingerprint) -> float:
    """Return the largest difference over the root of the mean square."""
    return float(np.abs(np.subtract(one, other)).max() / max(one[-1], other[-1], 1e-12))


def fingerprints(run: Run, image_size: int) -> dict[str, Fingerprint]:
    """Return the fingerprint of every tensor that a net hands out for the probes, by its names."""
    pieces: dict[str, list[NDArray[Any]]] = {}
    for image in probes(image_size):
        run(image[None], lambda name, values: pieces.setdefault(name, []).append(np.array(values)))
    return {name: fingerprint(values) for name, values in pieces.items()}


@lru_cache
def probes(image_size: int) -> FloatArray:
    """Return the pictures of fingerprints, (PROBES, 3, S, S) in multiples of 1/255: coarse and fine noise."""
    random = np.random.default_rng(20260101)
    coarse = random.random((PROBES, 3, 8, 8), np.float32)
    places = np.arange(image_size) * 8 // image_size
    fine = random.random((PROBES, 3, image_size, image_size), np.float32)
    mixed = 0.7 * coarse[:, :, places][:, :, :, places] + 0.3 * fine
    return np.asarray(np.rint(mixed * 255) / 255, np.float32)


def _range(low: Any, high: Any) -> tuple[float, float]:
    low, high = float(low), float(high)
    if not (np.isfinite([low, high]).all() and low <= 0 <= high and low < high):
        raise ValueError(f"range {low} to {high}")
    return low, high


def _numbers(values: Sequence[Any]) -> Fingerprint:
    found = tuple(float(value) for value in values)
    if len(found) != len(SHARES) + 2 or not np.isfinite(found).all():
        raise ValueError(f"a fingerprint of {len(found)} numbers")
    return found
