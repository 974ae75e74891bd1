"""LiteRT's `mixed` int8 file in the simulation: which convolutions cost most, and a student that leaves them float."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from edgekit.compress.slim.calibrate import note_redundant, outputs, unrounded
from edgekit.compress.slim.codes import ActivationCodes, CodedSiLU, RowCodes, code_input, take_out
from edgekit.compress.slim.simulate import is_residual
from edgekit.compress.slim.weight_codes import CodedConv2d, WeightCodes, plain_layer
from edgekit.export.calibration.measured import noise_share
from edgekit.export.choice.sensitivity import worst_layers
from edgekit.export.rewrites.layers import ConvAct
from edgekit.export.rewrites.mobilevit import TokenMobileVitBlock
from edgekit.export.rewrites.mobilevitv2 import TokenMobileVitV2Block
from edgekit.models.int8_student import Residual
from edgekit.models.student import Student


def worst_convolutions(student: Student, images: Tensor) -> tuple[str, ...]:
    """Return the names of the units, convolutions with their activations, that a `mixed` file leaves float.

    As `edgekit.export.tflite.repair.worst_operators` finds them in a file: each unit alone is rounded, the noise of the
    outputs measured, and `worst_layers` says which.

    Args:
        student: simulated for LiteRT, calibrated.
        images: (N, 3, H, W) calibration pictures in [0, 1].
    """
    with unrounded(student):
        want = outputs(student, images)
    noises = {}
    for name, unit in _units(student).items():
        with unrounded(student), _rounded(unit):
            noises[name] = noise_share(want, outputs(student, images))
    return worst_layers(noises)


def leave_float(student: Student, names: Sequence[str]) -> None:
    """Take the codes out of some units of a student simulated for LiteRT, and out of what follows from them; in place.

    A sum is in 8 bits only if both that are added are, as in `edgekit.export.tflite.plan`. What reads a tensor that is
    float now rounds it itself.
    """
    units = _units(student)
    kept = {id(units[name]) for name in names}
    for unit in (units[name] for name in names):
        take_out(unit.conv)
        plain_layer(unit.conv)
        take_out(unit.act)
        if isinstance(unit.act, CodedSiLU):
            unit.act = nn.SiLU()
    _follow(student.backbone, kept, True)
    note_redundant(student, torch.zeros(1, *student.spec.input_shape))


def _units(student: Student) -> dict[str, ConvAct]:
    found = ((n, m) for n, m in student.backbone.named_modules() if isinstance(m, ConvAct))
    return {name: unit for name, unit in found if isinstance(unit.conv, CodedConv2d)}


@contextmanager
def _rounded(unit: ConvAct) -> Iterator[None]:
    """Let one unit of a student that computes in float round, as it does in the int8 file."""
    points = [module for module in unit.modules() if isinstance(module, ActivationCodes)]
    rounding = [module for module in unit.modules() if isinstance(module, WeightCodes | CodedSiLU)]
    observers, redundant = [codes.observer for codes in points], [codes.redundant for codes in points]
    try:
        for codes in points:
            codes.observer, codes.redundant = None, False
        for module in rounding:
            module.rounded = True
        yield
    finally:
        for codes, observer, before in zip(points, observers, redundant, strict=True):
            codes.observer, codes.redundant = observer, before
        for module in rounding:
            module.rounded = False


def _follow(module: nn.Module, kept: set[int], coded: bool) -> bool:
    """Return whether what a module gives is in 8 bits, `coded` saying it of what it reads; sums that are not lose their
    codes."""
    if isinstance(module, ConvAct):
        return id(module) not in kept
    if is_residual(module) or isinstance(module, Residual):
        branch = [unit for unit in module.modules() if isinstance(unit, ConvAct)]
        coded = coded and all(id(unit) not in kept for unit in branch[-1:])
        if not coded:
            take_out(module if isinstance(module, Residual) else cast(nn.Module, module.act))
        return coded
    if isinstance(module, TokenMobileVitBlock | TokenMobileVitV2Block) and id(module.conv_kxk) in kept:
        # float in, float out: the file takes a range per row
        take_out(module.project_in)
        code_input(module.project_in, RowCodes())
    if isinstance(module, TokenMobileVitBlock):
        return module.conv_fusion is None or id(module.conv_fusion) not in kept
    if isinstance(module, TokenMobileVitV2Block):
        return True  # it ends with a linear layer on tokens, and those are always in 8 bits
    for child in module.children():
        coded = _follow(child, kept, coded)
    return coded
