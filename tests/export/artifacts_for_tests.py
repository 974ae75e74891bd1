"""One small net as files of every format and precision that an audit must tell apart. Made once for all tests."""

from __future__ import annotations

import atexit
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.export.session import FloatArray
from tests.export.nets_for_tests import pictures

SIZE = 32
CLASSES = ("cat", "dog", "\x1b[31mred")
METADATA = {"classes": json.dumps(CLASSES), "preprocess": json.dumps({"image_size": SIZE})}


class SmallNet(nn.Module):
    """Every kind of product: convolution, pointwise, depthwise, linear, attention. Random weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(32, 32, 3, stride=2, padding=1, groups=32)
        self.pointwise = nn.Conv2d(32, 128, 1)
        self.qkv = nn.Linear(128, 192)
        self.mix = nn.Linear(64, 128)
        self.head = nn.Linear(128, len(CLASSES))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, 3, 32, 32) to logits (B, 3) and unit embeddings (B, 128)."""
        x = F.silu(self.pointwise(F.silu(self.depthwise(F.silu(self.stem(images))))))
        rows = x.permute(0, 2, 3, 1).reshape(-1, 128)  # 64 tokens of each image
        query, key, value = self.qkv(rows).view(-1, 64, 3, 2, 32).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (query @ key.transpose(2, 3) * 32**-0.5).softmax(3) @ value
        rows = rows + self.mix(mixed.transpose(1, 2).reshape(-1, 64))
        pooled = rows.view(-1, 64, 128).mean(1)
        return self.head(pooled), F.normalize(pooled, dim=1)

    @staticmethod
    def macs() -> int:
        """Multiply-accumulates of one picture, by hand."""
        stem, depthwise, pointwise = 16 * 16 * 32 * 27, 8 * 8 * 32 * 9, 8 * 8 * 128 * 32
        attention = 64 * 128 * 192 + 2 * 2 * 64 * 64 * 32 + 64 * 64 * 128
        return stem + depthwise + pointwise + attention + 128 * len(CLASSES)


@dataclass(frozen=True)
class Artifacts:
    """Where the files are, by "format precision"."""

    folder: Path
    paths: dict[str, Path]

    def __getitem__(self, name: str) -> Path:
        return self.paths[name]


def batches() -> Iterator[FloatArray]:
    """Calibration pictures, one at a time."""
    return iter(np.split(pictures(12, SIZE, seed=1).numpy(), 12))


@functools.cache
def small_net() -> SmallNet:
    """Return the net, the same each time."""
    torch.manual_seed(0)
    return SmallNet().eval().requires_grad_(False)


@functools.cache
def artifacts() -> Artifacts:
    """Make the files in a temporary folder that lives as long as the test run."""
    folder = TemporaryDirectory(prefix="edgekit-artifacts-")
    atexit.register(folder.cleanup)
    root = Path(folder.name)
    paths = _onnx(root) | _tflite(root) | _coreml(root)
    return Artifacts(root, paths)


def _onnx(root: Path) -> dict[str, Path]:
    import onnx

    from edgekit.export.onnx.convert import export_onnx
    from edgekit.export.onnx.fp16 import halve_onnx
    from edgekit.export.onnx.int8 import quantize_onnx
    from edgekit.export.onnx.weights import quantize_onnx_dynamic, quantize_onnx_weights

    names = ("fp32", "free batch", "fp16", "fp16 arithmetic", "int8", "int8-dynamic", "int8-weights", "external")
    paths = {f"onnx {name}": root / f"{name.replace(' ', '-')}.onnx" for name in names}
    base = paths["onnx fp32"]
    export_onnx(small_net(), SIZE, base, metadata=METADATA)
    export_onnx(small_net(), SIZE, paths["onnx free batch"], dynamic_batch=True)
    halve_onnx(base, paths["onnx fp16"])
    halve_onnx(base, paths["onnx fp16 arithmetic"], arithmetic="float16")
    quantize_onnx(base, paths["onnx int8"], batches)
    quantize_onnx_dynamic(base, paths["onnx int8-dynamic"])
    quantize_onnx_weights(base, paths["onnx int8-weights"])
    model = onnx.load(base)
    onnx.save(model, paths["onnx external"], save_as_external_data=True, location="weights.bin")
    return paths


def _tflite(root: Path) -> dict[str, Path]:
    from edgekit.export.tflite.convert import export_tflite
    from edgekit.export.tflite.fp16 import halve_tflite
    from edgekit.export.tflite.int8 import TfliteQuantConfig, quantize_tflite

    paths = {f"tflite {name}": root / f"{name}.tflite" for name in ("fp32", "fp16", "int8", "int8-dynamic")}
    base = paths["tflite fp32"]
    export_tflite(small_net(), SIZE, base, metadata=METADATA)
    halve_tflite(base, paths["tflite fp16"])
    quantize_tflite(base, paths["tflite int8"], batches)
    quantize_tflite(base, paths["tflite int8-dynamic"], batches, TfliteQuantConfig(mode="dynamic"))
    return paths


def _coreml(root: Path) -> dict[str, Path]:
    from coremltools.optimize import coreml as optimize

    from edgekit.export.coreml.convert import coremltools_module, export_coreml, quantize_weights
    from edgekit.export.quiet import quiet

    names = ("fp32", "fp16", "int8-weights", "palette")
    paths = {f"coreml {name}": root / f"{name}.mlpackage" for name in names}
    export_coreml(small_net(), SIZE, paths["coreml fp32"], precision="fp32", metadata=METADATA)
    export_coreml(small_net(), SIZE, paths["coreml fp16"], precision="fp16")
    quantize_weights(paths["coreml fp16"], paths["coreml int8-weights"])
    with quiet():
        package = coremltools_module().models.MLModel(str(paths["coreml fp16"]), skip_model_load=True)
        config = optimize.OptimizationConfig(optimize.OpPalettizerConfig(mode="uniform", nbits=4, weight_threshold=100))
        optimize.palettize_weights(package, config).save(str(paths["coreml palette"]))
    return paths
