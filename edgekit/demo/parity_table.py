"""One command that trains students for a few minutes, exports each to every format, and tables how exact the files are.

`python -m edgekit.demo.parity_table --data DIR -o parity.md`
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from edgekit import atomic
from edgekit.compress.distill.config import DistillConfig
from edgekit.compress.distill.run import distill
from edgekit.compress.recipe import load_recipe
from edgekit.data import Sample, load_dataset
from edgekit.demo.drawings import write_drawings
from edgekit.errors import EXIT_NEGATIVE
from edgekit.exits import run_command
from edgekit.export.config import ExportConfig
from edgekit.export.export import export_run
from edgekit.export.parity import Gate, Parity, Precision, failures
from edgekit.export.precisions import PRECISIONS
from edgekit.export.runtimes import FORMATS, Format
from edgekit.interval import Interval
from edgekit.models.checkpoint import STUDENT_FILE, load_student, save_student
from edgekit.models.student import Student, student_preprocess
from edgekit.terminal import Terminal, human_bytes

STUDENTS = ("mobilevit_xxs", "mobilevit_xs", "mobilevit_s", "mobilevitv2_050", "mobilevitv2_075", "mobilevitv2_100")
EXACT = Gate(1e-3, None, 1.0, "the same arithmetic in another order")
REQUIRED: Mapping[tuple[str, str], Gate] = {
    ("onnx", "fp32"): EXACT,
    ("coreml", "fp32"): EXACT,
    ("tflite", "fp32"): EXACT,
    ("coreml", "fp16"): Gate(None, 50.0, 0.0, "11 significant bits"),
    ("coreml", "int8"): Gate(None, None, 0.99, "8-bit weights alone"),
}
"""What the table must show; the other rows are for information."""


@dataclass(frozen=True)
class TableConfig:
    """What to put into the table.

    Attributes:
        work: folder for data, runs and bundles. What is finished there is not done again.
        data: pictures (`edgekit.data.load_dataset`); None draws some.
        teacher_embeddings: to distill from; None trains on the labels alone.
        students: timm names.
        image_sizes: in pixels. Training is at the first; the others run the same weights, which fit any size.
        train_images, epochs: of the training.
        images: validation pictures compared.
        required_only: leave out the files that are for information; their INT8 ranges take most of the time.
        seed: of everything.
    """

    work: Path
    data: Path | None = None
    teacher_embeddings: Path | None = None
    students: tuple[str, ...] = STUDENTS
    image_sizes: tuple[int, ...] = (128, 256)
    train_images: int = 1500
    epochs: int = 2
    images: int = 500
    required_only: bool = False
    seed: int = 0


@dataclass(frozen=True)
class TableRow:
    """One file: how close to PyTorch, and what of `REQUIRED` it misses."""

    student: str
    image_size: int
    format: Format
    precision: str
    size_bytes: int
    parity: Parity | None
    problems: tuple[str, ...]

    @property
    def missed(self) -> tuple[str, ...]:
        """What does not hold, in words; empty where all does."""
        gate = REQUIRED.get((self.format, self.precision))
        if self.parity is None:
            return self.problems or ("not made",)
        return failures(self.parity, gate) if gate is not None else ()


def parity_rows(config: TableConfig, terminal: Terminal) -> Iterator[TableRow]:
    """Train, export and compare; yield the rows, student by student.

    Raises:
        EdgekitError: the data, a student or the output are not usable.
    """
    data = _subset(config) if config.data is not None else _drawings(config)
    for name in config.students:
        trained = config.work / name
        if not (trained / STUDENT_FILE).is_file():
            terminal.heading(f"{name}: training at {config.image_sizes[0]} px")
            distill(_training(config, data, name, trained), terminal, overwrite=True)
        for size in config.image_sizes:
            yield from _measured(config, data, trained, size, terminal)


def _measured(config: TableConfig, data: Path, trained: Path, size: int, terminal: Terminal) -> list[TableRow]:
    """Return the rows of one student at one size, out of the work folder if they are there."""
    kept = config.work / f"{trained.name}-{size}-{config.images}.json"
    if kept.is_file():
        return [_row_of(values) for values in json.loads(kept.read_text(encoding="utf-8"))]
    terminal.heading(f"{trained.name} at {size} px")
    checkpoint = trained / f"student-{size}.safetensors"
    save_student(checkpoint, _resized(load_student(trained), size))
    rows = []
    for precisions, forms in _wanted(config).items():  # PyTorch's own outputs are computed once a call
        export = ExportConfig(
            checkpoint,
            config.work / f"{trained.name}-{size}-{'-'.join(forms)}",
            forms,
            precisions,
            data=data,
            comparison_images=config.images,
            seed=config.seed,
        )
        attempts = export_run(export, terminal, overwrite=True)
        rows += [
            TableRow(trained.name, size, a.format, a.precision, a.size_bytes, a.parity, a.problems) for a in attempts
        ]
    rows.sort(key=lambda row: FORMATS.index(row.format))
    atomic.write_json(kept, [vars(row) | {"parity": row.parity.to_dict() if row.parity else None} for row in rows])
    return rows


def _wanted(config: TableConfig) -> dict[tuple[Precision, ...], tuple[Format, ...]]:
    """Return the formats to export together: those of which the same precisions are wanted."""
    found: dict[tuple[Precision, ...], tuple[Format, ...]] = {}
    for form in FORMATS:
        precisions = tuple(p for p in PRECISIONS if not config.required_only or (form, p) in REQUIRED)
        found[precisions] = (*found.get(precisions, ()), form)
    return found


def render(rows: Sequence[TableRow], config: TableConfig) -> str:
    """Return the table as Markdown, with what it was made from above it and what failed below."""
    source = "photos" if config.data is not None else "drawings"
    lines = [
        f"Students trained for {config.epochs} epochs on {config.train_images} {source} at {config.image_sizes[0]} px; "
        f"other sizes run the same weights. Logits compared with eager PyTorch on {config.images} validation pictures; "
        "Core ML files are interpreted, not run on Apple hardware.",
        "",
        "| student | px | format | precision | size | max abs | SNR dB | top-1 agreement % (95 %) | required |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_line(row) for row in rows),
        "",
    ]
    missed = [row for row in rows if row.missed]
    lines += [f"- {r.student} {r.image_size} px {r.format} {r.precision}: {'; '.join(r.missed)}" for r in missed]
    lines.append(f"{len(rows) - len(missed)} of {len(rows)} files hold what they must.")
    return "\n".join(lines) + "\n"


def _line(row: TableRow) -> str:
    head = f"| {row.student} | {row.image_size} | {row.format} | {row.precision} |"
    if row.parity is None:
        return f"{head} – | – | – | – | FAILED |"
    parity, same = row.parity, row.parity.agreement
    assert same is not None  # exported with logits
    agreement = f"{100 * same.value:.1f} ({100 * same.low:.1f}–{100 * same.high:.1f})"
    needed = (row.format, row.precision) in REQUIRED
    verdict = "FAILED" if row.missed else "holds" if needed else "–"
    return (
        f"{head} {human_bytes(row.size_bytes)} | {parity.max_abs:.1e} | {parity.snr_db:.1f} | {agreement} | {verdict} |"
    )


def _training(config: TableConfig, data: Path, student: str, out: Path) -> DistillConfig:
    taught = config.teacher_embeddings is not None
    changes: dict[str, Any] = {
        "fit": {"epochs": config.epochs, "batch_size": 32, "seed": config.seed, "ema_decay": 0.99}
    }
    if not taught:
        changes |= {"alpha": 0.0, "beta": 0.0}
    return DistillConfig(
        data=data,
        output=out,
        recipe=load_recipe("edge", changes),
        student=student,
        image_size=config.image_sizes[0],
        teacher_embeddings=config.teacher_embeddings,
    )


def _resized(student: Student, size: int) -> Student:
    """Return the same weights for pictures of another size."""
    spec = replace(student.spec, preprocess=student_preprocess(student.spec.arch, size))
    resized = Student(spec)
    resized.load_state_dict(student.state_dict())
    return resized.eval()


def _subset(config: TableConfig) -> Path:
    """Return a folder of links to the first training pictures, round the classes, and to all validation pictures."""
    assert config.data is not None
    target = config.work / "data"
    if not target.is_dir():
        dataset = load_dataset(config.data, seed=config.seed)
        chosen = {"train": _first(dataset.train, config.train_images), "val": dataset.val}
        with atomic.atomic_folder(target) as fresh:
            for split, samples in chosen.items():
                for sample in samples:
                    if sample.label is not None:
                        link = fresh / split / dataset.classes[sample.label] / sample.path.name
                        link.parent.mkdir(parents=True, exist_ok=True)
                        link.symlink_to(sample.path.resolve())
    return target


def _first(samples: Iterable[Sample], count: int) -> list[Sample]:
    """Return `count` samples that go round the classes."""
    place: dict[int | None, int] = {}
    ranked = []
    for sample in samples:
        place[sample.label] = place.get(sample.label, 0) + 1
        ranked.append((place[sample.label], sample))
    return [sample for _, sample in sorted(ranked, key=lambda pair: pair[0])[:count]]


def _drawings(config: TableConfig) -> Path:
    target = config.work / "data"
    if not target.is_dir():
        size = round(1.25 * max(config.image_sizes))
        write_drawings(
            target, labelled=config.train_images, unlabelled=0, val=config.images, size=size, seed=config.seed
        )
    return target


def _row_of(values: dict[str, Any]) -> TableRow:
    parity = values["parity"]
    if parity is not None:
        snr = float("inf") if parity["snr_db"] is None else parity["snr_db"]
        parity = Parity(**parity | {"snr_db": snr, "agreement": Interval(**parity["agreement"])})
    return TableRow(**values | {"parity": parity, "problems": tuple(values["problems"])})


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Pictures, as for distill.  [default: drawings]")
@click.option("--teacher-embeddings", type=click.Path(path_type=Path), help="As for distill.")
@click.option("--students", default=",".join(STUDENTS), show_default=True)
@click.option("--image-sizes", default="128,256", show_default=True)
@click.option("--train-images", type=click.IntRange(32), default=1500, show_default=True)
@click.option("--epochs", type=click.IntRange(1), default=2, show_default=True)
@click.option("--images", type=click.IntRange(8), default=500, show_default=True, help="Validation pictures compared.")
@click.option("--required-only", is_flag=True, help="Only the files that must hold something.")
@click.option("--work", type=click.Path(path_type=Path), default="parity", show_default=True, help="Work folder.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default="parity.md", show_default=True)
def main(**options: Any) -> None:
    """Train students briefly, export them to every format and precision, and write the parity table."""
    terminal = Terminal()
    try:
        sizes = tuple(int(part) for part in _names(options["image_sizes"]))
    except ValueError as e:
        raise click.UsageError(f"--image-sizes '{options['image_sizes']}': give numbers with commas") from e
    config = TableConfig(
        work=options["work"],
        data=options["data"],
        teacher_embeddings=options["teacher_embeddings"],
        students=_names(options["students"]),
        image_sizes=sizes,
        train_images=options["train_images"],
        epochs=options["epochs"],
        images=options["images"],
        required_only=options["required_only"],
    )
    if not config.students or not sizes:
        raise click.UsageError("--students and --image-sizes must each name something")
    rows: list[TableRow] = []
    for row in parity_rows(config, terminal):
        rows.append(row)
        atomic.write_text(options["output"], render(rows, config))  # a long table is readable while it grows
    terminal.say(f"table: {options['output']}")
    if any(row.missed for row in rows):
        raise SystemExit(EXIT_NEGATIVE)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], "python -m edgekit.demo.parity_table"))
