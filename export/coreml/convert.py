"""Convert a student to Core ML: an ML Program that takes an RGB picture, converted and quantized on any machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.atomic import atomic_folder
from edgekit.errors import MissingExtraError
from edgekit.export.calibration.weight_rounding import LEAST_WEIGHTS
from edgekit.export.coreml.fp16 import prepared_for_fp16
from edgekit.export.quiet import quiet

Precision = Literal["fp32", "fp16"]


LABEL, PROBABILITIES = "classLabel", "classLabel_probs"
"""Outputs of a classifier, by the names that Xcode and Vision know."""


class _WithProbabilities(nn.Module):
    """Give a model's outputs and, after them, softmax of its logits, which Core ML turns into labels."""

    def __init__(self, model: nn.Module, output_names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.logits = list(output_names).index("logits")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map images (B, 3, H, W) to (outputs…, probabilities (B, num_classes))."""
        outputs = tuple(self.model(images))
        return (*outputs, outputs[self.logits].softmax(dim=1))


def export_coreml(
    model: nn.Module,
    image_size: int,
    out: Path,
    *,
    precision: Precision = "fp16",
    rows: int = 1,
    output_names: Sequence[str] = ("logits", "embedding"),
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write `out`, an `.mlpackage` that takes an ImageType "image" (RGB, image_size × image_size).

    The plain timm graph is converted: the rewrites that help other runtimes only add transposes here (30 → 78).
    The batch is fixed to 1: a flexible one drops the Neural Engine to the CPU (apple/coremltools#2022).

    Where the class names are known and the logits are among the outputs, the package is a classifier: it also gives
    `classLabel`, the best class, and `classLabel_probs`, a dictionary of softmax probabilities.

    Args:
        model: takes images (B, 3, H, W) float32 RGB in [0, 1], returns a tuple in the order of `output_names`.
        image_size: side of the square picture.
        out: the package, written whole or not at all.
        precision: of the arithmetic and the weights.
        rows: pictures that the package takes at once: the frames of one clip. Core ML's picture type holds one, so
            those are an array "image" (rows, 3, image_size, image_size) float32 RGB in [0, 1].
        output_names: names of the outputs.
        metadata: texts kept in the package's user-defined metadata under "edgekit.<key>"; "classes" is a JSON list.

    Raises:
        MissingExtraError: coremltools is not installed.
    """
    coremltools = coremltools_module()
    texts = dict(metadata or {})
    classes = json.loads(texts.get("classes", "[]")) if "logits" in output_names else []
    names = [*output_names, PROBABILITIES] if classes else list(output_names)
    labels = coremltools.ClassifierConfig(classes, LABEL, PROBABILITIES) if classes else None
    target = {
        "minimum_deployment_target": coremltools.target.iOS17,
        "compute_precision": getattr(coremltools.precision, {"fp32": "FLOAT32", "fp16": "FLOAT16"}[precision]),
    }
    sample = torch.rand(rows, 3, image_size, image_size)
    if rows == 1:
        colours = {"scale": 1 / 255.0, "color_layout": coremltools.colorlayout.RGB}
        taken = coremltools.ImageType(name="image", shape=tuple(sample.shape), **colours)
    else:
        taken = coremltools.TensorType(name="image", shape=tuple(sample.shape), dtype=np.float32)
    with quiet(), torch.no_grad():
        safe = model if precision == "fp32" else prepared_for_fp16(model)
        converted = _WithProbabilities(safe, output_names) if classes else safe
        exported = torch.export.export(converted.eval(), (sample,)).run_decompositions({})
        outputs = [coremltools.TensorType(name=name) for name in names]
        program = coremltools.convert(exported, convert_to="milinternal", inputs=[taken], outputs=outputs, **target)
        # The outputs have their names now. A classifier has one output more than the list that named them, and
        # coremltools 9.0 looks each up in that list: IndexError. Without the list it asks the program itself.
        program.functions["main"].output_types = None
        package = coremltools.convert(
            program, source="milinternal", convert_to="mlprogram", classifier_config=labels, skip_model_load=True,
            **target,
        )  # fmt: skip
    for key, text in texts.items():
        package.user_defined_metadata[f"edgekit.{key}"] = text
    package.short_description = "Image classifier and embedding, made by edgekit"
    save_package(package, out)


def quantize_weights(float_package: Path, out: Path, least: int = LEAST_WEIGHTS) -> None:
    """Write `out`, the same program with 8-bit weights: symmetric, one scale per output channel; arithmetic stays.

    Weights that lie on that grid already (`edgekit.export.calibration.weight_rounding`) stay as they are. Layers of
    fewer weights than `least` stay float16.
    """
    coremltools = coremltools_module()
    from coremltools.optimize import coreml as optimize

    eight_bits = optimize.OpLinearQuantizerConfig(
        mode="linear_symmetric", dtype="int8", granularity="per_channel", weight_threshold=least - 1
    )
    config = optimize.OptimizationConfig(global_config=eight_bits)
    with quiet(), np.errstate(divide="ignore", invalid="ignore"):  # a channel of zeros has the scale 0, and stays 0
        package = coremltools.models.MLModel(str(float_package), skip_model_load=True)
        quantized = optimize.linear_quantize_weights(package, config)
    save_package(quantized, out)


def palettize_weights(float_package: Path, out: Path, bits: int, least: int = LEAST_WEIGHTS) -> None:
    """Write `out`, the same program whose weights are numbers of 2^bits values per layer (k-means); arithmetic stays.

    Han et al. 2016 (arXiv 1510.00149, §3). k-means takes some 10 s for 4 bits of a million weights, and several
    times that for 8.

    Args:
        float_package: a package of `export_coreml`; it is not changed.
        out: the package, written whole or not at all.
        bits: 8, 6 or 4.
        least: layers of fewer weights stay float16.
    """
    coremltools = coremltools_module()
    from coremltools.optimize import coreml as optimize

    palettes = optimize.OpPalettizerConfig(mode="kmeans", nbits=bits, weight_threshold=least - 1)
    config = optimize.OptimizationConfig(global_config=palettes)
    with quiet():
        package = coremltools.models.MLModel(str(float_package), skip_model_load=True)
        palettized = optimize.palettize_weights(package, config)
    save_package(palettized, out)


def coremltools_module() -> Any:
    """Import coremltools in silence.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import torchvision  # noqa: F401  before coremltools: with TensorFlow installed the other order segfaults

        with quiet():
            import coremltools
    except ImportError as e:
        raise MissingExtraError("coremltools", "coreml", "Core ML export") from e
    return coremltools


def save_package(package: Any, out: Path) -> None:
    """Write a coremltools MLModel as the folder `out`, whole or not at all."""
    with atomic_folder(out, overwrite=True) as fresh, quiet():
        # coremltools insists on the suffix, which the temporary folder has not
        inner = fresh / "model.mlpackage"
        package.save(str(inner))
        for entry in inner.iterdir():
            shutil.move(str(entry), fresh / entry.name)
        inner.rmdir()
