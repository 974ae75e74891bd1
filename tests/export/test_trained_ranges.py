"""Ranges that were trained: found again by what a tensor holds, whatever its layout, and refused where damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekit.errors import LoadError
from edgekit.export.calibration.statistics import Observe
from edgekit.export.calibration.trained import (
    SHARES,
    TrainedCodes,
    TrainedRange,
    distance,
    fingerprint,
    fingerprints,
    probes,
    read_trained,
)
from edgekit.export.session import FloatArray
from edgekit.models.checkpoint import load_student, save_student
from tests.compress.slim.students_for_tests import student


def values(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(2, 6, 5, 4)).astype(np.float32)


def test_layout_and_float16_do_not_matter() -> None:
    one = values(0)
    moved = one.transpose(0, 2, 3, 1).reshape(-1, 6)
    assert fingerprint([one]) == fingerprint([moved]) == fingerprint([one[:1], one[1:]])
    assert distance(fingerprint([one]), fingerprint([one.astype(np.float16)])) < 1e-3
    assert distance(fingerprint([one]), fingerprint([values(1)])) > 0.02
    assert distance(fingerprint([one]), fingerprint([1.05 * one])) > 0.02


def test_probes_are_pictures_that_everybody_can_make() -> None:
    pictures = probes(33)
    assert pictures.shape == (2, 3, 33, 33) and pictures.dtype == np.float32
    assert float(pictures.min()) >= 0 and float(pictures.max()) <= 1
    np.testing.assert_array_equal(np.rint(pictures * 255) / np.float32(255), pictures)
    np.testing.assert_allclose(pictures.mean(), 0.502968, rtol=1e-5)  # of this seed: it may never change


def net(images: FloatArray, observe: Observe) -> None:
    observe("first", images)
    observe("second", np.maximum(images - 0.5, 0).transpose(0, 2, 3, 1))


def test_a_tensor_takes_the_range_of_its_like() -> None:
    seen = fingerprints(net, 16)
    ranges = (TrainedRange("b", 0.0, 0.4, seen["second"]), TrainedRange("a", 0.0, 0.9, seen["first"]))
    codes = TrainedCodes("onnx", "int8", ranges, (("b", seen["second"]),))
    assert codes.ranges_in(net, 16) == {"first": (0.0, 0.9), "second": (0.0, 0.4)}
    assert codes.float_tensors_in(net, 16) == {"second"}

    def other(images: FloatArray, observe: Observe) -> None:
        observe("first", images)
        observe("new", images * images)

    assert codes.ranges_in(other, 16) == {"first": (0.0, 0.9)}
    with pytest.raises(LoadError, match="computes what 'b' of the student does"):
        codes.float_tensors_in(other, 16)


def test_a_checkpoint_carries_them(tmp_path: Path) -> None:
    made = student()
    path = tmp_path / "student.safetensors"
    save_student(path, made)
    assert read_trained(path) is None
    codes = TrainedCodes("tflite", "mixed", (TrainedRange("a", -1.0, 2.0, fingerprint([values(0)])),))
    save_student(path, made, extra={"int8": codes.to_dict()})
    assert read_trained(tmp_path) == codes
    assert load_student(path).spec == made.spec


FINE = {"name": "a", "low": -1.0, "high": 1.0, "fingerprint": [0.0] * (len(SHARES) + 2)}


@pytest.mark.parametrize(
    "entry",
    [
        {**FINE, "low": 0.5},
        {**FINE, "high": float("nan")},
        {**FINE, "low": 0.0, "high": 0.0},
        {**FINE, "fingerprint": [1.0]},
        {"name": "a"},
        "a",
    ],
)
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, entry: Any) -> None:
    path = tmp_path / "student.safetensors"
    save_student(path, student(), extra={"int8": {"runtime": "onnx", "precision": "int8", "ranges": [entry]}})
    with pytest.raises(LoadError, match=r"student\.safetensors: these are no trained ranges"):
        read_trained(path)
    save_student(path, student(), extra={"int8": "all"})
    with pytest.raises(LoadError, match="holds 'int8', which cannot be read"):
        read_trained(path)
