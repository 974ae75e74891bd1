"""What a checkpoint says of the 8 bits that its student was trained for, so that the exporters take the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.compress.slim.calibrate import unrounded
from edgekit.compress.slim.codes import ActivationCodes, LeftFloat, record_ranges
from edgekit.compress.slim.config import QatConfig
from edgekit.compress.slim.simulate import end_of
from edgekit.export.calibration.statistics import Observe
from edgekit.export.calibration.trained import TrainedCodes, TrainedRange, fingerprints
from edgekit.export.precisions import W8A8
from edgekit.export.rewrites.layers import ConvAct
from edgekit.export.session import FloatArray
from edgekit.models.student import Student


def trained_codes(model: Student, config: QatConfig, float_layers: Sequence[str] = ()) -> TrainedCodes:
    """Return the ranges of a simulated student and where they belong, and the layers that it leaves float.

    Args:
        model: a result of `edgekit.compress.slim.simulate.simulate` with its ranges set; in eval mode.
        config: what it simulates.
        float_layers: what `edgekit.compress.slim.kept_float.leave_float` has left float.
    """
    device = next(model.parameters()).device
    left = [module for module in model.modules() if isinstance(module, LeftFloat)]
    units = {} if left else {name: model.backbone.get_submodule(name) for name in float_layers}

    def run(images: FloatArray, observe: Observe) -> None:
        def look(codes: ActivationCodes, x: Tensor) -> None:
            observe(codes.name, x.cpu().numpy())

        hooks = [_told(unit, name, observe) for name, unit in units.items() if isinstance(unit, ConvAct)]
        for module in left:
            module.observer = lambda name, x: observe(_float(name), x.cpu().numpy())
        try:
            with torch.no_grad(), unrounded(model, look):
                model.from_frames(torch.from_numpy(images).to(device))
        finally:
            for hook in hooks:
                hook.remove()
            for module in left:
                module.observer = None

    seen = fingerprints(run, model.spec.image_size)
    ranges = (TrainedRange(name, *bounds, seen[name]) for name, bounds in record_ranges(model).items())
    layers = ((name, seen[_float(name)]) for name in float_layers)
    precision = W8A8 if (config.runtime, config.precision) == ("coreml", "int8") else config.precision
    return TrainedCodes(config.runtime, precision, tuple(ranges), tuple(layers))


def _float(name: str) -> str:
    return f"{name} stays float"


def _told(unit: ConvAct, name: str, observe: Observe) -> Any:
    """Observe what a file's convolution gives: after the ReLU that it ends with, if it does."""

    def told(module: nn.Module, given: Any, output: Tensor) -> None:
        observe(_float(name), output.cpu().numpy())

    return end_of(unit).register_forward_hook(told)
