"""Quantization-aware distillation: from a float student to one whose weights have learned to live with 8 bits."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from edgekit.compress.slim.calibrate import calibrate
from edgekit.compress.slim.codes import learn_ranges, record_ranges, without_codes
from edgekit.compress.slim.config import QatConfig
from edgekit.compress.slim.folding import folded, write_back
from edgekit.compress.slim.kept_float import leave_float, worst_units
from edgekit.compress.slim.simulate import simulate
from edgekit.data import ImageDataset
from edgekit.errors import UsageError
from edgekit.export.choice.sensitivity import SENSITIVITY_IMAGES
from edgekit.export.export_pictures import spread
from edgekit.export.session import FloatArray
from edgekit.models.student import Student
from edgekit.preprocess import load_batch
from edgekit.shards import ShardDataset

BATCH = 32


@dataclass(frozen=True)
class Prepared8Bit:
    """A student ready for quantization-aware training.

    Attributes:
        student: folded, with fake quantization, its ranges set.
        facts: what was done, for run.json.
        float_layers: what stays float, by name.
    """

    student: Student
    facts: Mapping[str, Any]
    float_layers: tuple[str, ...] = ()


def with_fake_quantization(student: Student, dataset: ImageDataset | ShardDataset, config: QatConfig) -> Prepared8Bit:
    """Fold a student, put a runtime's fake quantization in, and set its ranges on pictures of the training split.

    Raises:
        DataError: too few or unusable calibration pictures.
        UsageError: a student that cannot be folded, or data in shards.
    """
    if isinstance(dataset, ShardDataset):
        raise UsageError("--qat chooses calibration pictures by their files; give --data as a folder or a CSV")
    model = simulate(folded(student, config.runtime), config.runtime).eval()
    chosen = spread(dataset.train, config.calibration_images, seed=0)
    pictures = load_batch([sample.path for sample in chosen], student.spec.preprocess)

    def batches() -> Iterator[FloatArray]:
        for at in range(0, len(pictures), BATCH):
            yield pictures[at : at + BATCH]

    calibrate(model, batches)
    float_layers: tuple[str, ...] = ()
    if config.precision == "mixed":
        float_layers = worst_units(model, config.runtime, torch.from_numpy(pictures[:SENSITIVITY_IMAGES]))
        leave_float(model, config.runtime, float_layers)
    ranges = {name: [round(low, 6), round(high, 6)] for name, (low, high) in record_ranges(model).items()}
    if config.learn_ranges:
        learn_ranges(model)
    facts = {
        "runtime": config.runtime,
        "precision": config.precision,
        "calibration": [sample.key for sample in chosen],
        "ranges": ranges,
        "ranges_learned": config.learn_ranges,
        "float_layers": float_layers,
    }
    return Prepared8Bit(model, facts, float_layers)


def finished(model: Student, student: Student) -> Student:
    """Return the plain student with the exact weights that `model` trained; `model` keeps its fake quantization."""
    exact = copy.deepcopy(model)
    without_codes(exact)
    return write_back(exact, student)
