"""Every file of one student that `make bench` compares: edgekit's, and what the exporters give by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import nn

from edgekit.export.deploy import DeployModel
from edgekit.export.exporters import Conversion, write_file
from edgekit.export.quiet import quiet
from edgekit.export.runtimes import SUFFIX_OF
from edgekit.export.session import FloatArray
from edgekit.models.spec import StudentSpec
from edgekit.models.student import Student, build_student, student_preprocess

Variant = Literal[
    "onnx fp32 naive",
    "onnx fp32",
    "onnx int8 naive",
    "onnx int8",
    "tflite fp32 naive",
    "tflite fp32",
    "tflite int8 naive",
    "tflite int8",
    "coreml fp16 naive",
    "coreml fp16",
    "coreml int8 naive",
    "coreml int8",
]


@dataclass(frozen=True)
class Pictures:
    """Pictures (N, 3, H, W) float32 in [0, 1] for ranges, and others to compare outputs on.

    Attributes:
        kind: what they are, for the table.
    """

    calibration: FloatArray
    comparison: FloatArray
    kind: str


def smooth_pictures(image_size: int) -> Pictures:
    """Return random smooth pictures, which do for timing, and for the noise of random nets."""
    return Pictures(_smooth(16, image_size, 0), _smooth(16, image_size, 1), "random smooth pictures")


def lively_student(arch: str, image_size: int) -> Student:
    """Return a student whose every block counts: timm starts some norms at 0, and converters delete those blocks."""
    torch.manual_seed(0)
    classes = tuple(f"class {n}" for n in range(15))
    student = build_student(StudentSpec(arch, 512, classes, student_preprocess(arch, image_size)))
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return student.eval()


def without_edgekit(student: Student) -> Student:
    """Return what there is without edgekit: for a student made for 8 bits the plain one that it stands in for."""
    arch = student.spec.arch
    plain = arch.removesuffix("_int8")
    return student if plain == arch else lively_student(plain, student.spec.image_size)


def make_files(student: Student, naive_student: Student, pictures: Pictures, folder: Path) -> Mapping[Variant, Path]:
    """Write every variant to `folder`: edgekit's of `student`, the exporters' own of `naive_student`."""
    from edgekit.export.onnx.convert import export_naive, export_onnx
    from edgekit.export.onnx.int8 import quantize_onnx
    from edgekit.export.tflite.convert import convert_float, export_tflite
    from edgekit.export.tflite.int8 import TfliteQuantConfig, quantize_tflite

    model, size = DeployModel(student).eval(), student.spec.image_size
    naive = DeployModel(naive_student).eval()
    files: dict[Variant, Path] = {
        variant: folder / f"{variant.replace(' ', '-')}{SUFFIX_OF[variant.split()[0]]}" for variant in get_args(Variant)
    }

    conversion = Conversion(model, pictures.calibration, folder)
    batches = conversion.batches
    export_naive(naive, size, files["onnx fp32 naive"])
    export_onnx(model, size, files["onnx fp32"])
    quantize_onnx(files["onnx fp32"], files["onnx int8"], batches)
    _quantize_static_defaults(files["onnx fp32 naive"], files["onnx int8 naive"], pictures.calibration)
    convert_float(naive, size, files["tflite fp32 naive"])
    export_tflite(model, size, files["tflite fp32"])
    quantize_tflite(files["tflite fp32"], files["tflite int8"], batches)
    quantize_tflite(files["tflite fp32 naive"], files["tflite int8 naive"], batches, TfliteQuantConfig(mode="naive"))
    _coreml_defaults(naive, size, files["coreml fp16 naive"], files["coreml int8 naive"])
    write_file(conversion, "coreml", "fp16", files["coreml fp16"])
    write_file(conversion, "coreml", "int8", files["coreml int8"])
    return files


def _quantize_static_defaults(float_path: Path, out: Path, pictures: FloatArray) -> None:
    """Quantize as ONNX Runtime's documentation shows first: pre-process, then `quantize_static` with its defaults."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows = iter([{"image": pictures[row : row + 1]} for row in range(len(pictures))])

        def get_next(self) -> dict[str, FloatArray] | None:
            return next(self.rows, None)

    prepared = out.with_suffix(".prepared.onnx")
    quant_pre_process(str(float_path), str(prepared), skip_symbolic_shape=True)
    quantize_static(str(prepared), str(out), Reader())
    prepared.unlink()


def _coreml_defaults(model: nn.Module, size: int, out: Path, out_8_bits: Path) -> None:
    """Convert as coremltools' guide shows first, and quantize with `linear_quantize_weights` as it comes."""
    from edgekit.export.coreml.convert import coremltools_module

    coremltools = coremltools_module()
    from coremltools.optimize import coreml as optimize

    sample = torch.rand(1, 3, size, size)
    names = [coremltools.TensorType(name=name) for name in ("logits", "embedding")]
    with quiet(), torch.no_grad(), np.errstate(divide="ignore", invalid="ignore"):
        package = coremltools.convert(
            torch.export.export(model, (sample,)).run_decompositions({}),
            inputs=[coremltools.TensorType(name="image", shape=tuple(sample.shape), dtype=np.float32)],
            outputs=names,
            minimum_deployment_target=coremltools.target.iOS17,
            skip_model_load=True,
        )
        package.save(str(out))
        config = optimize.OptimizationConfig(global_config=optimize.OpLinearQuantizerConfig(mode="linear_symmetric"))
        optimize.linear_quantize_weights(package, config).save(str(out_8_bits))


def _smooth(count: int, size: int, seed: int) -> FloatArray:
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    smooth = nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    return np.ascontiguousarray(smooth.clamp(0, 1).numpy())
