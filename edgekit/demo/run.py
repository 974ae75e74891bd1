"""The whole path on one machine, offline: draw, train a CLIP, distill, export, verify, bench."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit import atomic
from edgekit.bench.latency import LatencyConfig
from edgekit.bench.results import BenchReport
from edgekit.bench.run import BenchConfig, run_bench
from edgekit.bench.table import render_markdown, render_terminal
from edgekit.captions import load_captions
from edgekit.compress.clip.task import CLIP_DEMO, ClipData, ClipTask, build_clip
from edgekit.compress.distill.config import DistillConfig
from edgekit.compress.distill.report import DistillSummary
from edgekit.compress.distill.run import distill
from edgekit.compress.pictures.decoding import STORE_SCALE
from edgekit.compress.pictures.pixels import decode_eval, decode_train
from edgekit.compress.recipe import load_recipe
from edgekit.compress.show.plots import plot_run
from edgekit.compress.show.progress import TrainingDisplay
from edgekit.compress.training.loop import fit
from edgekit.compress.training.run_folder import RunFolder
from edgekit.data import load_dataset
from edgekit.demo.clock import Clock
from edgekit.demo.drawings import DrawnSet, write_drawings
from edgekit.demo.sheet import contact_sheet
from edgekit.errors import VerificationError
from edgekit.export.attempt import Attempt
from edgekit.export.config import ExportConfig
from edgekit.export.export import export_run
from edgekit.export.runtimes import FORMATS
from edgekit.export.verify.bundle import verify_bundle
from edgekit.interval import wilson
from edgekit.terminal import Terminal, percent

DRAWING_TEMPLATES = ("a {}.", "a drawing of a {}.", "a large {}.", "a small {}.", "a striped {}.")
"""Prompts in the words of the captions that the teacher learned from."""


@dataclass(frozen=True)
class DemoConfig:
    """How large the demo is; the defaults take a few minutes on two cores.

    Attributes:
        labelled, unlabelled, val: drawings. Few labels, many captions: that is where a teacher matters.
        image_size: of teacher and student, in pixels.
        teacher_epochs: of the CLIP's training.
        student_epochs: of the distillation; the student without a teacher sees as many pictures.
        student: timm name.
        views: augmented views per drawing that the teacher embeds.
        formats_precisions: of the export.
        seed: of everything.
    """

    labelled: int = 120
    unlabelled: int = 5880
    val: int = 600
    image_size: int = 64
    teacher_epochs: int = 6
    student_epochs: int = 5
    student: str = "mobilevit_xxs"
    views: int = 3
    bench_budget_s: float = 15.0
    seed: int = 0


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        teacher, student, alone: validation accuracies of the CLIP teacher, of the student distilled from it, and of
            the same student trained on the labels alone; shares of 1.
        files: artifacts proven.
        report: the bench.
        seconds: wall time by step.
    """

    teacher: float
    student: float
    alone: float
    files: int
    report: BenchReport
    seconds: dict[str, float]


def run_demo(out: Path, config: DemoConfig, terminal: Terminal, *, overwrite: bool = False) -> DemoResult:
    """Run every step and leave its files in `out`.

    Raises:
        VerificationError: an exported file failed its checks.
        OutputExistsError: `out` holds something and `overwrite` is false.
    """
    atomic.refuse_existing(out, overwrite=overwrite)
    clock = Clock(terminal)
    with clock.step("1/6  Draw", "few labels and many captions: drawings of shapes, in code, so nothing is downloaded"):
        drawn = write_drawings(
            out / "drawings",
            labelled=config.labelled,
            unlabelled=config.unlabelled,
            val=config.val,
            size=round(config.image_size * 1.5),
            seed=config.seed,
            overwrite=True,
        )
        contact_sheet(drawn.folder / "captions.csv", out / "drawings.png")
        terminal.say(
            f"{drawn.labelled} labelled, {drawn.unlabelled} unlabelled and {drawn.val} held-out drawings of "
            f"{len(drawn.classes)} shapes; {out / 'drawings.png'} shows some"
        )
    with clock.step("2/6  Train the teacher", "a small CLIP learns from picture-caption pairs; it never sees a label"):
        train_teacher(drawn, out / "teacher", config, terminal)
    with clock.step(
        "3/6  Distill", "MobileViT learns from what the teacher says of all drawings, and from the few labels"
    ):
        student = distill(_distill_config(drawn, out, config), terminal, overwrite=True)
    with clock.step("     Without the teacher", "the same student, the labels alone, as many pictures seen"):
        alone = distill(_alone_config(drawn, out, config), terminal, overwrite=True)
    attempts, bad = _export_and_verify(out, config, clock, terminal)
    report = _bench(drawn, out, config, clock, terminal)
    result = _result(student, alone, attempts, report, clock.seconds)
    atomic.write_text(out / "RESULTS.md", results_page(result, config))
    _conclude(result, config, out, terminal)
    if bad or any(attempt.problems for attempt in attempts) or report.failed:
        raise VerificationError("the demo ran, but not every file passed; see the lines above")
    return result


def _export_and_verify(out: Path, config: DemoConfig, clock: Clock, terminal: Terminal) -> tuple[list[Attempt], int]:
    """Return what became of each file, and the number of failed checks."""
    with clock.step(
        "4/6  Export", "three formats, two precisions; each file is opened again and compared with PyTorch"
    ):
        export = ExportConfig(
            out / "student",
            out / "bundle",
            FORMATS,
            ("fp32", "int8"),
            calibration_images=96,  # drawings are alike: more change no range
            comparison_images=128,
            seed=config.seed,
        )
        attempts = export_run(export, terminal, overwrite=True)
        for attempt in attempts:
            state = "proven" if not attempt.problems else f"FAILED: {'; '.join(attempt.problems)}"
            terminal.say(f"{attempt.name:<22}{state}")
    with clock.step(
        "5/6  Verify", "as anyone can who gets the bundle: hashes, contract, golden vectors; no torch needed"
    ):
        checks = verify_bundle(out / "bundle")
        bad = [check for check in checks if not check.passed]
        terminal.say(f"{len(checks) - len(bad)} of {len(checks)} checks passed")
    return attempts, len(bad)


def _bench(drawn: DrawnSet, out: Path, config: DemoConfig, clock: Clock, terminal: Terminal) -> BenchReport:
    with clock.step("6/6  Bench", "every file beside the student in PyTorch and the teacher, interleaved, one thread"):
        report = run_bench(
            BenchConfig(
                (out / "bundle",),
                baseline=out / "student",
                data=drawn.folder,
                latency=LatencyConfig(max_time_s=config.bench_budget_s),
            ),
            terminal.bar,
        )
        terminal.console.print(render_terminal(report, terminal.console.width))
        atomic.write_json(out / "bench.json", report.to_json())
    return report


def train_teacher(drawn: DrawnSet, out: Path, config: DemoConfig, terminal: Terminal) -> None:
    """Train the CLIP on the captions of all training drawings; leave a run folder that `--teacher` takes."""
    recipe = CLIP_DEMO.model_copy(
        update={
            "image_size": config.image_size,
            "fit": CLIP_DEMO.fit.model_copy(update={"epochs": config.teacher_epochs, "seed": config.seed}),
        }
    )
    captioned = load_captions(drawn.folder / "captions.csv")
    clip, tokenizer = build_clip(recipe, captioned.texts())
    dataset = load_dataset(drawn.folder)
    train = decode_train(captioned.samples, round(config.image_size * STORE_SCALE))
    val = decode_eval(dataset.val, clip.spec.preprocess)
    data = ClipData(train, captioned.captions, val, dataset.classes, DRAWING_TEMPLATES)
    run = RunFolder(out)
    run.create({"recipe": recipe.model_dump(mode="json")}, {"seed": config.seed})
    result = fit(ClipTask(clip, tokenizer, recipe, data), recipe.fit, run, display=TrainingDisplay(terminal))
    plot_run(result.rows, run.plots / "training.png", title="CLIP teacher")
    terminal.say(f"zero-shot accuracy by prompts: {percent(result.best)} on held-out drawings")


def _distill_config(drawn: DrawnSet, out: Path, config: DemoConfig) -> DistillConfig:
    # the default recipe, shortened for five epochs of drawings, which lose little when a crop cuts their edge
    changes: dict[str, Any] = {
        "gamma": 0.5,
        "views": config.views,
        "augment": {
            "crop_scale": [0.6, 1.0],
            "crop_ratio": [0.85, 1.18],
            "brightness": 0.2,
            "contrast": 0.2,
            "saturation": 0.2,
        },
        "fit": {
            "epochs": config.student_epochs,
            "batch_size": 32,
            "lr": 3e-3,
            "seed": config.seed,
            "ema_decay": 0.99,
            "schedule": {"warmup_fraction": 0.1},
        },
    }
    return DistillConfig(
        data=drawn.folder,
        output=out / "student",
        recipe=load_recipe("edge", changes),
        student=config.student,
        image_size=config.image_size,
        teachers=(str(out / "teacher"),),
        templates=DRAWING_TEMPLATES,
        teacher_cache=out / "teacher-store",
    )


def _alone_config(drawn: DrawnSet, out: Path, config: DemoConfig) -> DistillConfig:
    """Return the same training without a teacher: only the labelled drawings, for as many pictures in total."""
    table = out / "labelled.csv"
    dataset = load_dataset(drawn.folder)
    rows = [("train", sample) for sample in dataset.train if sample.label is not None]
    rows += [("val", sample) for sample in dataset.val]
    with atomic.atomic_path(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split"))
        for split, sample in rows:
            assert sample.label is not None
            writer.writerow((sample.path.relative_to(out).as_posix(), dataset.classes[sample.label], split))
    with_teacher = _distill_config(drawn, out, config)
    recipe = with_teacher.recipe
    repeats = round((config.labelled + config.unlabelled) / config.labelled)
    fit_config = recipe.fit.model_copy(
        update={"epochs": recipe.fit.epochs * repeats, "evaluate_every": repeats},
    )
    return DistillConfig(
        data=table,
        output=out / "student-alone",
        recipe=recipe.without_teacher().model_copy(update={"gamma": 1.0, "fit": fit_config}),
        student=config.student,
        image_size=config.image_size,
        embed_dim=CLIP_DEMO.embed_dim,
    )


def _result(
    student: DistillSummary, alone: DistillSummary, attempts: Any, report: BenchReport, seconds: dict[str, float]
) -> DemoResult:
    return DemoResult(
        teacher=student.facts["teacher"]["val_acc"],
        student=student.facts["summary"]["val_acc"],
        alone=alone.facts["summary"]["val_acc"],
        files=sum(not attempt.problems for attempt in attempts),
        report=report,
        seconds=seconds,
    )


def results_page(result: DemoResult, config: DemoConfig) -> str:
    """Return RESULTS.md."""
    rows = (
        ("CLIP teacher, zero-shot", result.teacher),
        (f"{config.student} distilled from it", result.student),
        (f"{config.student} on the {config.labelled} labels alone, same budget", result.alone),
    )
    lines = ["# edgekit demo", "", "| model | accuracy on held-out drawings | 95 % interval |", "|---|---|---|"]
    for name, accuracy in rows:
        interval = wilson(round(accuracy * config.val), config.val)
        lines.append(f"| {name} | {percent(accuracy)} | {100 * interval.low:.1f}–{100 * interval.high:.1f} |")
    lines += ["", f"n = {config.val}, seed {config.seed}. The same drawings chose the checkpoints.", ""]
    lines += [render_markdown(result.report), ""]
    lines += [f"- {name}: {value:.0f} s" for name, value in result.seconds.items()]
    return "\n".join(lines) + "\n"


def _conclude(result: DemoResult, config: DemoConfig, out: Path, terminal: Terminal) -> None:
    terminal.heading("Result")
    terminal.say(f"teacher                 {percent(result.teacher)} on {config.val} held-out drawings")
    terminal.say(
        f"student, distilled      {percent(result.student)}  ({100 * (result.student - result.teacher):+.1f} points)"
    )
    terminal.say(
        f"student, labels alone   {percent(result.alone)}  ({100 * (result.alone - result.teacher):+.1f} points)"
    )
    total = sum(result.seconds.values())
    terminal.say(f"{result.files} files proven; all of it took {total:.0f} s; see {out / 'RESULTS.md'}")
