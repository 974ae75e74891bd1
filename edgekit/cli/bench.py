"""`edgekit bench`: latency and accuracy of teacher, student and artifacts, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgekit.cli.options import EXISTING, make_terminal, talk_options
from edgekit.errors import EXIT_NEGATIVE, EXIT_OK
from edgekit.terminal import print_json


@click.command()
@click.argument("files", nargs=-1, type=EXISTING)
@click.option(
    "--baseline",
    type=EXISTING,
    help="Run folder: its PyTorch student is what speed-ups refer to, its teacher is shown.",
)
@click.option(
    "--device",
    default="local",
    show_default=True,
    metavar="DEVICE",
    help="What measures: local; web, any phone's browser; ssh:USER@HOST[:PORT]; adb[:SERIAL]; apple:DEVICE.",
)
@click.option(
    "--benchmark-model",
    type=EXISTING,
    help="For --device adb: TensorFlow Lite's benchmark_model, built for the phone's processor.",
)
@click.option("--remote-command", help="For --device ssh: how edgekit is called there.  [default: edgekit]")
@click.option("--development-team", help="For --device apple: the Apple team that signs the app which runs the models.")
@click.option("--data", type=EXISTING, help="Labelled pictures; without them only latency is measured.")
@click.option(
    "--labels",
    type=EXISTING,
    help="Text file, one label a line: which class each score is, of files that no manifest tells of.",
)
@click.option("--val-fraction", type=float, help="As for distill.  [default: the run's]")
@click.option("--max-images", type=click.IntRange(1), help="Most validation pictures.  [default: all]")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of every runtime.")
@click.option(
    "--budget",
    "budget_s",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    show_default=True,
    help="Most seconds of timing.",
)
@click.option("--batch-size", type=click.IntRange(2), help="Time batches of this size, too, for images per second.")
@click.option(
    "--duration",
    "duration_s",
    type=click.FloatRange(0, min_open=True),
    help="Then call each model for so many seconds without a pause: does it slow down as it grows warm?",
)
@click.option("--no-latency", is_flag=True, help="Measure accuracy alone.")
@click.option("-o", "--output", type=EXISTING, help="Write the result as JSON, and the table as Markdown beside it.")
@click.option("--store", type=EXISTING, help="Add the result to a history, e.g. results.sqlite, for `edgekit compare`.")
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
@talk_options
def bench(**options: Any) -> int:
    """Measure FILES (artifacts or bundles) beside the teacher and the PyTorch student of a run.

    Each model runs in a process of its own: one that crashes ends itself alone. Latency is of one picture, interleaved
    over all models in random order; speed-ups are paired, with intervals and a verdict. Exit code 1 when a model could
    not be measured.
    """
    terminal = make_terminal(options["quiet"], options["verbose"])

    from edgekit.atomic import refuse_existing, write_json, write_text
    from edgekit.bench.devices.naming import DeviceOptions, open_device
    from edgekit.bench.latency import LatencyConfig
    from edgekit.bench.run import BenchConfig
    from edgekit.bench.store import add_run
    from edgekit.bench.table import render_markdown, render_terminal

    devices = DeviceOptions(
        terminal.say, options["benchmark_model"], options["remote_command"], options["development_team"]
    )
    device = open_device(options["device"], devices)
    output: Path | None = options["output"]
    if output is not None:
        refuse_existing(output, overwrite=options["overwrite"])
    budget_s: float = options["budget_s"]
    latency = None if options["no_latency"] else LatencyConfig(max_time_s=budget_s, min_time_s=min(1.0, budget_s))
    config = BenchConfig(
        files=tuple(options["files"]),
        baseline=options["baseline"],
        data=options["data"],
        labels=options["labels"],
        val_fraction=options["val_fraction"],
        threads=options["threads"],
        max_images=options["max_images"],
        latency=latency,
        batch_size=options["batch_size"],
        duration_s=options["duration_s"],
    )
    report = device.bench(config, terminal.bar)
    if not options["quiet"]:
        terminal.console.print(render_terminal(report, terminal.console.width))
    if output is not None:
        write_json(output, report.to_json())
        write_text(output.with_suffix(".md"), render_markdown(report))
    if options["store"] is not None:
        number = add_run(options["store"], report)
        terminal.say(f"run {number} of {options['store']}")
    if options["as_json"]:
        print_json("bench", report.to_json())
    return EXIT_OK if report.complete else EXIT_NEGATIVE
