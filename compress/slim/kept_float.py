"""`mixed` int8 files in the simulation: what costs most accuracy, and a student that leaves it float.

LiteRT's leave convolutions float, with their activations and weights; Core ML's leave single activations in float16.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from edgekit.compress.slim.calibrate import note_redundant, outputs, unrounded
from edgekit.compress.slim.codes import (
    ActivationCodes,
    CodedSiLU,
    LeftFloat,
    RowCodes,
    activation_points,
    code_input,
    take_out,
)
from edgekit.compress.slim.simulate import Runtime, ends_of, is_residual
from edgekit.compress.slim.weight_codes import CodedConv2d, WeightCodes, plain_layer
from edgekit.export.calibration.measured import noise_share
from edgekit.export.choice.sensitivity import MOST, worst_layers
from edgekit.export.coreml.sensitivity import TENSORS
from edgekit.export.rewrites.layers import ConvAct
from edgekit.export.rewrites.mobilevit import TokenMobileVitBlock
from edgekit.export.rewrites.mobilevitv2 import TokenMobileVitV2Block
from edgekit.models.int8_student import Residual
from edgekit.models.student import Student

Unit = tuple[nn.Module, ...]
"""What of the net rounds one tensor, or one convolution with its activation."""


def worst_units(student: Student, runtime: Runtime, images: Tensor) -> tuple[str, ...]:
    """Return the names of what a `mixed` file of a runtime leaves float: in LiteRT units of a convolution and its
    activation, in Core ML tensors.

    They are found as in a file (`edgekit.export.tflite.repair.worst_operators`,
    `edgekit.export.coreml.sensitivity.worst_tensors`): each alone is rounded, the noise of the outputs measured, and
    `worst_layers` says which.

    Args:
        student: simulated for the runtime, calibrated.
        runtime: "tflite" or "coreml".
        images: (N, 3, H, W) calibration pictures in [0, 1].
    """
    with unrounded(student):
        want = outputs(student, images)
    noises = {}
    for name, unit in _units(student, runtime).items():
        with unrounded(student), _rounded(unit):
            noises[name] = noise_share(want, outputs(student, images))
    return worst_layers(noises, most=TENSORS if runtime == "coreml" else MOST)


def leave_float(student: Student, runtime: Runtime, names: Sequence[str]) -> None:
    """Take the codes out of some units of a simulated student, and out of what follows from them; in place.

    For Core ML the student is calibrated: codes of one range hold one tensor. In LiteRT a sum is in 8 bits only if both
    that are added are, as in `edgekit.export.tflite.plan`. What reads a tensor that is float now rounds it itself.
    """
    units = _units(student, runtime)
    if runtime == "coreml":
        _leave_tensors(student, {codes for name in names for codes in units[name]})
    else:
        kept = [student.backbone.get_submodule(name) for name in names]
        for unit in kept:
            assert isinstance(unit, ConvAct)
            _leave_convolution(unit)
        _follow(student.backbone, {id(unit) for unit in kept}, True)
    note_redundant(student, torch.zeros(1, *student.spec.input_shape))


def _leave_tensors(student: Student, left: Collection[nn.Module]) -> None:
    """Let tensors pass as they are; what reads one gives float, too (`edgekit.export.coreml.activations.Coded`)."""
    ends = ends_of(student)
    for module in list(student.modules()):
        for kind, codes in list(module._modules.items()):
            if codes in left:
                assert isinstance(codes, ActivationCodes)
                module._modules[kind] = LeftFloat(codes.name)
        if isinstance(module._modules.get("input_codes"), LeftFloat):
            end = ends[module]
            if not isinstance(end._modules.get("output_codes"), LeftFloat):
                take_out(end, "output_codes")


def _leave_convolution(unit: ConvAct) -> None:
    take_out(unit.conv)
    plain_layer(unit.conv)
    take_out(unit.act)
    if isinstance(unit.act, CodedSiLU):
        unit.act = nn.SiLU()


def _units(student: Student, runtime: Runtime) -> dict[str, Unit]:
    """Return what is rounded together, by name: in Core ML the codes of one tensor, which have one range."""
    if runtime == "tflite":
        units = ((n, m) for n, m in student.backbone.named_modules() if isinstance(m, ConvAct))
        return {name: (unit,) for name, unit in units if isinstance(unit.conv, CodedConv2d)}
    alike: dict[tuple[float, float], list[ActivationCodes]] = {}
    for codes in activation_points(student):
        alike.setdefault((codes.low, codes.high), []).append(codes)
    return {points[0].name: tuple(points) for points in alike.values()}


@contextmanager
def _rounded(unit: Unit) -> Iterator[None]:
    """Let one unit of a student that computes in float round, as it does in the int8 file."""
    modules = [module for part in unit for module in part.modules()]
    points = [module for module in modules if isinstance(module, ActivationCodes)]
    rounding = [module for module in modules if isinstance(module, WeightCodes | CodedSiLU)]
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
