"""Convert PyTorch modules to Core ML packages and compare what runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from mil_for_tests import ct, floats
from torch import nn

from edgekit.export.mil.interpreter import MilProgram
from edgekit.export.quiet import quiet

FP32_MAX_ABS = 1e-3  # the product's own limit on logits; what is seen is 1e-6
SIDE = 64


def exported(module: nn.Module, examples: tuple[torch.Tensor, ...], dynamic: Any = None) -> Any:
    """Return the torch program that coremltools converts."""
    with quiet(), torch.no_grad():
        return torch.export.export(module.eval(), examples, dynamic_shapes=dynamic).run_decompositions({})


def converted(program: Any, target: Any = ct.target.iOS17, **how: Any) -> Any:
    """Return a Core ML model of an exported program; fp32 unless told otherwise."""
    how.setdefault("compute_precision", ct.precision.FLOAT32)
    with quiet():
        return ct.convert(
            program, convert_to="mlprogram", minimum_deployment_target=target, skip_model_load=True, **how
        )


def snr_db(reference: np.ndarray, got: np.ndarray) -> float:
    noise = ((reference - got.astype(np.float64)) ** 2).sum()
    return float(10 * np.log10((reference.astype(np.float64) ** 2).sum() / noise)) if noise else np.inf


def pictures(count: int = 1, side: int = SIDE, seed: int = 0) -> np.ndarray:
    return floats((count, 3, side, side), seed, 0.0, 1.0)


def run(module: nn.Module, *inputs: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return module.eval()(*[torch.from_numpy(array) for array in inputs]).numpy()


def stored(folder: Path, model: Any, name: str = "net") -> Path:
    """Store a Core ML model; return the package."""
    with quiet():
        model.save(str(folder / f"{name}.mlpackage"))
    return folder / f"{name}.mlpackage"


def only_output(path: Path, x: np.ndarray) -> np.ndarray:
    """Run a package of one input and one output."""
    program = MilProgram.load(path)
    (array,) = program.run({next(iter(program.inputs)): x}).values()
    return array


def student(architecture: str) -> nn.Module:
    """Return a student with random weights; random BN too, as timm's zero gammas would let converters drop blocks."""
    torch.manual_seed(0)
    net = timm.create_model(architecture, num_classes=10)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.1)
            nn.init.normal_(module.running_mean, 0.0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval()
