"""How edgekit's files compare with what the exporters give by default: `make bench`.

Every variant of one student runs in one process, interleaved; ratios are of paired rounds with their intervals.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np
import torch
from torch import nn

from edgekit.atomic import refuse_existing, refuse_unwritable, write_json, write_text
from edgekit.bench.latency import LatencyConfig, measure_latency, paired_s
from edgekit.bench.machine import describe_machine
from edgekit.bench.statistics import Speedup, paired_speedup, summarize
from edgekit.errors import EdgekitError, UsageError
from edgekit.export.deploy import DeployModel
from edgekit.export.runtimes import open_session, size_bytes
from edgekit.export.session import FloatArray
from edgekit.models.checkpoint import load_student
from edgekit.models.spec import StudentSpec
from edgekit.models.student import Student, build_student, student_preprocess
from edgekit.terminal import Terminal, human_bytes

Variant = Literal[
    "onnx fp32 naive",
    "onnx fp32",
    "onnx int8 naive",
    "onnx int8",
    "tflite fp32 naive",
    "tflite fp32",
    "tflite int8 naive",
    "tflite int8",
]
RATIOS: tuple[tuple[Variant, Variant], ...] = (
    ("tflite int8", "tflite fp32 naive"),
    ("tflite int8", "tflite int8 naive"),
    ("tflite fp32", "tflite fp32 naive"),
    ("onnx int8", "onnx fp32 naive"),
    ("onnx int8", "onnx int8 naive"),
    ("onnx fp32", "onnx fp32 naive"),
)
"""(faster, than what): the claims of the README."""

STUDENTS = ("mobilevit_xxs", "mobilevit_s", "mobilevit_xxs_int8", "mobilevit_s_int8")


@dataclass(frozen=True)
class NaiveComparison:
    """What was found for one student.

    Attributes:
        name: of the student.
        p50_s: median latency by variant, in seconds.
        size_bytes: by variant.
        speedups: "a / b" → how many times faster a is than b.
    """

    name: str
    p50_s: Mapping[Variant, float]
    size_bytes: Mapping[Variant, int]
    speedups: Mapping[str, Speedup]


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


def make_files(student: Student, folder: Path) -> dict[Variant, Path]:
    """Write every variant; INT8 is calibrated on random smooth pictures, which do for timing."""
    from edgekit.export.onnx.convert import export_naive, export_onnx
    from edgekit.export.onnx.int8 import quantize_onnx
    from edgekit.export.tflite.convert import convert_float, export_tflite
    from edgekit.export.tflite.int8 import TfliteQuantConfig, quantize_tflite

    model, size = DeployModel(student).eval(), student.spec.image_size
    naive = DeployModel(_without_edgekit(student)).eval()
    files: dict[Variant, Path] = {
        variant: folder / f"{variant.replace(' ', '-')}.{variant.split()[0]}"
        for variant in Variant.__args__  # type: ignore[attr-defined]
    }
    pictures = _smooth_pictures(16, size)

    def batches() -> Iterator[FloatArray]:
        for row in range(len(pictures)):
            yield pictures[row : row + 1]

    export_naive(naive, size, files["onnx fp32 naive"])
    export_onnx(model, size, files["onnx fp32"])
    quantize_onnx(files["onnx fp32"], files["onnx int8"], batches)
    _quantize_static_defaults(files["onnx fp32 naive"], files["onnx int8 naive"], pictures)
    convert_float(naive, size, files["tflite fp32 naive"])
    export_tflite(model, size, files["tflite fp32"])
    quantize_tflite(files["tflite fp32"], files["tflite int8"], batches)
    quantize_tflite(files["tflite fp32 naive"], files["tflite int8 naive"], batches, TfliteQuantConfig(mode="naive"))
    return files


def _without_edgekit(student: Student) -> Student:
    """Return what there is without edgekit: for a student made for 8 bits the plain one that it stands in for."""
    arch = student.spec.arch
    plain = arch.removesuffix("_int8")
    return student if plain == arch else lively_student(plain, student.spec.image_size)


def compare_with_naive(
    student: Student, name: str, *, threads: int, config: LatencyConfig, folder: Path
) -> NaiveComparison:
    """Export all variants into `folder` and time them, interleaved, one picture per call."""
    files = make_files(student, folder)
    size = student.spec.image_size
    picture = _smooth_pictures(1, size)
    sessions = {variant: open_session(path, threads) for variant, path in files.items()}
    calls: dict[str, Callable[[], object]] = {v: partial(session, picture) for v, session in sessions.items()}
    samples = measure_latency(calls, config)
    failed = [f"{found.name}: {found.failure}" for found in samples.values() if found.failure]
    if failed:
        raise UsageError("not every variant ran: " + "; ".join(failed))
    return NaiveComparison(
        name,
        {variant: summarize(samples[variant].seconds).p50_s for variant in files},
        {variant: size_bytes(path) for variant, path in files.items()},
        {f"{a} / {b}": paired_speedup(*paired_s(samples[b], samples[a])) for a, b in RATIOS},
    )


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


def _smooth_pictures(count: int, size: int) -> FloatArray:
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    smooth = nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    return np.ascontiguousarray(smooth.clamp(0, 1).numpy())


def render(found: list[NaiveComparison], threads: int, machine: str) -> str:
    """Return the comparison as Markdown."""
    names = [comparison.name for comparison in found]
    lines = [
        f"| {threads} thread{'s' if threads > 1 else ''} | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for variant in found[0].p50_s:
        cells = [f"{1e3 * c.p50_s[variant]:.2f} ms, {human_bytes(c.size_bytes[variant])}" for c in found]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    for a, b in RATIOS:
        cells = []
        for comparison in found:
            interval = comparison.speedups[f"{a} / {b}"].interval
            cells.append(f"**{interval.value:.2f}×** ({interval.low:.2f}–{interval.high:.2f})")
        lines.append(f"| {a} is faster than {b} by | " + " | ".join(cells) + " |")
    for form in ("onnx", "tflite"):
        cells = [f"{c.size_bytes[f'{form} int8'] / c.size_bytes[f'{form} fp32']:.3f}" for c in found]  # type: ignore[index]
        lines.append(f"| {form} int8 file / fp32 file | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", machine]) + "\n"


@click.command()
@click.option("--student", "students", multiple=True, default=STUDENTS, show_default=True)
@click.option("--run", type=click.Path(path_type=Path), help="A run folder: time its trained student instead.")
@click.option("--image-size", type=int, default=256, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--budget", type=float, default=60.0, show_default=True, help="Most seconds of timing per student.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write Markdown (.md), and JSON beside it.")
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
def main(
    students: tuple[str, ...],
    run: Path | None,
    image_size: int,
    threads: int,
    budget: float,
    output: Path | None,
    overwrite: bool,
) -> None:
    """Time edgekit's ONNX and TFLite files against what the exporters give by default."""
    terminal = Terminal()
    try:
        targets = _targets(output, overwrite)
    except EdgekitError as e:
        raise SystemExit(f"error: {e}") from None
    machine = describe_machine()
    for warning in machine.warnings:
        terminal.warn(warning)
    found = []
    for student, name in _students(students, run, image_size):
        terminal.say(f"{name}: exporting and timing eight files")
        with tempfile.TemporaryDirectory(prefix="edgekit-bench-") as folder:
            config = LatencyConfig(max_time_s=budget, target_halfwidth=0.005)
            found.append(compare_with_naive(student, name, threads=threads, config=config, folder=Path(folder)))
    text = render(found, threads, f"{machine.cpu}, {machine.logical_cores} cores; {machine.os}; batch 1, paired rounds")
    click.echo(text)
    if targets is not None:
        write_text(targets[0], text)
        write_json(targets[1], [_plain(comparison) for comparison in found])


def _targets(output: Path | None, overwrite: bool) -> tuple[Path, Path] | None:
    """Return the Markdown and the JSON to write, before anything is timed; None where nothing is.

    Raises:
        EdgekitError: one is there already, cannot be written, or is not named as what it will be.
    """
    if output is None:
        return None
    if output.suffix.lower() != ".md":
        raise UsageError(f"-o/--output {output} is the Markdown, and the JSON goes beside it: give {output.stem}.md")
    targets = (output, output.with_suffix(".json"))
    for target in targets:
        refuse_existing(target, overwrite=overwrite)
        refuse_unwritable(target)
    return targets


def _students(names: tuple[str, ...], run: Path | None, image_size: int) -> Iterator[tuple[Student, str]]:
    if run is not None:
        student = load_student(run)
        yield student, f"{student.spec.arch} of {run.name}, {student.spec.image_size} px"
        return
    for name in names:
        yield lively_student(name, image_size), f"{name}, {image_size} px"


def _plain(comparison: NaiveComparison) -> dict[str, Any]:
    speedups = {name: vars(found.interval) for name, found in comparison.speedups.items()}
    return {**vars(comparison), "speedups": speedups}


if __name__ == "__main__":
    main()
