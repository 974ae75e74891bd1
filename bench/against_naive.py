"""How edgekit's files compare with what the exporters give by default: `make bench`.

Every variant of one student runs in one process, interleaved; ratios are of paired rounds with their intervals. Core ML
packages are compared by size and by what they compute.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import click

from edgekit.atomic import refuse_existing, refuse_unwritable, write_json, write_text
from edgekit.bench.latency import LatencyConfig, measure_latency, paired_s
from edgekit.bench.machine import describe_machine
from edgekit.bench.naive_files import Pictures, Variant, lively_student, make_files, smooth_pictures, without_edgekit
from edgekit.bench.statistics import Speedup, paired_speedup, summarize
from edgekit.errors import UsageError
from edgekit.exits import run_command
from edgekit.export.config import ExportConfig
from edgekit.export.deploy import DeployModel, TorchSession
from edgekit.export.export_data import run_dataset
from edgekit.export.export_pictures import ExportPictures
from edgekit.export.parity import Parity, compare_outputs
from edgekit.export.runtimes import open_session, size_bytes
from edgekit.export.session import run_batched
from edgekit.models.checkpoint import load_student
from edgekit.models.student import Student
from edgekit.terminal import Terminal, human_bytes

RATIOS: tuple[tuple[Variant, Variant], ...] = (
    ("tflite int8", "tflite fp32 naive"),
    ("tflite int8", "tflite int8 naive"),
    ("tflite fp32", "tflite fp32 naive"),
    ("onnx int8", "onnx fp32 naive"),
    ("onnx int8", "onnx int8 naive"),
    ("onnx fp32", "onnx fp32 naive"),
)
"""(faster, than what): the claims of the README."""

SHARES: tuple[tuple[Variant, Variant], ...] = (
    ("onnx int8", "onnx fp32"),
    ("tflite int8", "tflite fp32"),
    ("coreml int8", "coreml fp16"),
)
"""(file, of what) whose sizes are divided."""

CALIBRATION_IMAGES, COMPARISON_IMAGES = 256, 256
"""Of a run's own pictures: as many as `edgekit export` takes for ranges by default, and enough to tell a wrong file."""

STUDENTS = ("mobilevit_xxs", "mobilevit_s", "mobilevit_xxs_int8", "mobilevit_s_int8")


@dataclass(frozen=True)
class NaiveComparison:
    """What was found for one student.

    Attributes:
        name: of the student.
        p50_s: median latency in seconds, by number of threads and by variant that is timed.
        size_bytes: by variant.
        speedups: by number of threads, "a / b" → how many times faster a is than b.
        parity: by variant, with the student in PyTorch.
    """

    name: str
    p50_s: Mapping[int, Mapping[Variant, float]]
    size_bytes: Mapping[Variant, int]
    speedups: Mapping[int, Mapping[str, Speedup]]
    parity: Mapping[Variant, Parity]


def compare_with_naive(
    student: Student, name: str, *, threads: Sequence[int], config: LatencyConfig, pictures: Pictures, folder: Path
) -> NaiveComparison:
    """Export all variants into `folder`, compare what they compute with PyTorch, and time them one picture per call.

    Args:
        student: whose files.
        name: for the table.
        threads: each number of them in turn.
        config: of timing.
        pictures: of the student's size.
        folder: for the files.

    Raises:
        UsageError: a variant does not run.
    """
    naive = without_edgekit(student)
    files = make_files(student, naive, pictures, folder)
    own, plain = (run_batched(TorchSession(DeployModel(s).eval(), 1), pictures.comparison) for s in (student, naive))
    parity = {}
    for variant, path in files.items():
        expected = plain if variant.endswith("naive") else own
        parity[variant] = compare_outputs(expected, run_batched(open_session(path, 1), pictures.comparison))
    timed = tuple(variant for variant in files if not variant.startswith("coreml"))
    p50_s, speedups = {}, {}
    for count in threads:
        sessions = {variant: open_session(files[variant], count) for variant in timed}
        picture = pictures.comparison[:1]
        calls: dict[str, Callable[[], object]] = {v: partial(session, picture) for v, session in sessions.items()}
        samples = measure_latency(calls, config)
        failed = [f"{found.name}: {found.failure}" for found in samples.values() if found.failure]
        if failed:
            raise UsageError("not every variant ran: " + "; ".join(failed))
        p50_s[count] = {variant: summarize(samples[variant].seconds).p50_s for variant in timed}
        speedups[count] = {f"{a} / {b}": paired_speedup(*paired_s(samples[b], samples[a])) for a, b in RATIOS}
    sizes = {variant: size_bytes(path) for variant, path in files.items()}
    return NaiveComparison(name, p50_s, sizes, speedups, parity)


def render(found: Sequence[NaiveComparison], machine: str, pictures: str) -> str:
    """Return the comparison as Markdown: a table for each number of threads, then sizes and noise."""
    lines = []
    for threads in found[0].p50_s:
        lines += _head(f"{threads} thread{'s' if threads > 1 else ''}", found)
        for variant in found[0].p50_s[threads]:
            lines.append(_row(variant, [f"{1e3 * c.p50_s[threads][variant]:.2f} ms" for c in found]))
        for a, b in RATIOS:
            intervals = [c.speedups[threads][f"{a} / {b}"].interval for c in found]
            cells = [f"**{i.value:.2f}×** ({i.low:.2f}–{i.high:.2f})" for i in intervals]
            lines.append(_row(f"{a} is faster than {b} by", cells))
        lines.append("")
    lines += _head("size, noise", found)
    for variant in found[0].size_bytes:
        lines.append(
            _row(variant, [f"{human_bytes(c.size_bytes[variant])}, {_noise(c.parity[variant])}" for c in found])
        )
    for small, whole in SHARES:
        cells = [f"{c.size_bytes[small] / c.size_bytes[whole]:.3f}" for c in found]
        lines.append(_row(f"{small} file / {whole} file", cells))
    count = next(iter(found[0].parity.values())).images
    noise = f"Noise of the outputs against PyTorch's, and the same best class, on {count} {pictures}."
    return "\n".join([*lines, "", noise, "Core ML packages are interpreted and not timed.", machine]) + "\n"


def _head(title: str, found: Sequence[NaiveComparison]) -> list[str]:
    return [_row(title, [comparison.name for comparison in found]), "|---" * (len(found) + 1) + "|"]


def _row(title: str, cells: Sequence[str]) -> str:
    return f"| {title} | {' | '.join(cells)} |"


def _noise(parity: Parity) -> str:
    agreement = "" if parity.agreement is None else f", {100 * parity.agreement.value:.1f} %"
    return f"{parity.snr_db:.1f} dB{agreement}"


@click.command()
@click.option("--student", "students", multiple=True, default=STUDENTS, show_default=True)
@click.option("--run", type=click.Path(path_type=Path), help="A run folder: its trained student instead.")
@click.option("--data", type=click.Path(path_type=Path), help="The pictures of --run.  [default: its own]")
@click.option("--image-size", type=int, default=256, show_default=True, help="Of --student; --run has its own.")
@click.option("--threads", type=click.IntRange(1), multiple=True, default=(1, 2), show_default=True)
@click.option("--budget", type=float, default=60.0, show_default=True, help="Most seconds per student and --threads.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write Markdown (.md), and JSON beside it.")
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
def main(
    students: tuple[str, ...],
    run: Path | None,
    data: Path | None,
    image_size: int,
    threads: tuple[int, ...],
    budget: float,
    output: Path | None,
    overwrite: bool,
) -> None:
    """Compare edgekit's files with what the exporters give by default: time, size, and what they compute."""
    terminal = Terminal()
    targets = _targets(output, overwrite)
    machine = describe_machine()
    for warning in machine.warnings:
        terminal.warn(warning)
    found = []
    for student, name, pictures in _students(students, run, data, image_size):
        terminal.say(f"{name}: exporting, comparing and timing {len(get_args(Variant))} files")
        with tempfile.TemporaryDirectory(prefix="edgekit-bench-") as folder:
            config = LatencyConfig(max_time_s=budget, target_halfwidth=0.005)
            found.append(
                compare_with_naive(
                    student, name, threads=threads, config=config, pictures=pictures, folder=Path(folder)
                )
            )
    about = f"{machine.cpu}, {machine.logical_cores} cores; {machine.os}; batch 1, paired rounds"
    text = render(found, about, pictures.kind)
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


def _students(
    names: tuple[str, ...], run: Path | None, data: Path | None, image_size: int
) -> Iterator[tuple[Student, str, Pictures]]:
    if run is None:
        for name in names:
            yield lively_student(name, image_size), f"{name}, {image_size} px", smooth_pictures(image_size)
        return
    student = load_student(run)
    dataset = run_dataset(ExportConfig(run, run, (), (), data=data), Terminal(-1))
    counts = (CALIBRATION_IMAGES, COMPARISON_IMAGES)
    chosen = ExportPictures.choose(dataset, student.spec.preprocess, counts, seed=0)
    pictures = Pictures(chosen.calibration, chosen.comparison, "of the run's validation pictures")
    yield student, f"{student.spec.arch} of {run.name}, {student.spec.image_size} px", pictures


def _plain(comparison: NaiveComparison) -> dict[str, Any]:
    speedups = {
        threads: {name: vars(found.interval) for name, found in by_name.items()}
        for threads, by_name in comparison.speedups.items()
    }
    parity = {variant: found.to_dict() for variant, found in comparison.parity.items()}
    return {**vars(comparison), "speedups": speedups, "parity": parity}


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], "python -m edgekit.bench.against_naive"))
