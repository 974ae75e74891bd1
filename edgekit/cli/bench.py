"""`edgekit bench`: latency and accuracy of teacher, student and artifacts, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from edgekit.cli.options import EXISTING, make_terminal, talk_options
from edgekit.errors import EXIT_NEGATIVE, EXIT_OK, UsageError
from edgekit.terminal import print_json

if TYPE_CHECKING:
    from edgekit.bench.run import BenchConfig

_INPUTS = ("files", "baseline", "data", "labels", "benchmark_model")


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
@click.option(
    "--val-fraction",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="As for distill.  [default: the run's]",
)
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

    from edgekit.atomic import write_json, write_text
    from edgekit.bench.devices.naming import DeviceOptions, open_device
    from edgekit.bench.store import add_run
    from edgekit.bench.table import render_markdown, render_terminal

    _refuse_idle_options()
    devices = DeviceOptions(
        terminal.say, options["benchmark_model"], options["remote_command"], options["development_team"]
    )
    device = open_device(options["device"], devices)
    output, store = options["output"], options["store"]
    table = _check_targets(output, store, [options[name] for name in _INPUTS], overwrite=options["overwrite"])
    report = device.bench(_config(options), terminal.bar)
    if not options["quiet"]:
        terminal.console.print(render_terminal(report, terminal.console.width))
    if options["as_json"]:  # first of all: what was measured is not lost where a file cannot be written
        print_json("bench", report.to_json())
    if output is not None and table is not None:
        write_json(output, report.to_json())
        write_text(table, render_markdown(report))
    if store is not None:
        terminal.say(f"run {add_run(store, report)} of {store}")
    return EXIT_OK if report.complete else EXIT_NEGATIVE


def _config(options: Mapping[str, Any]) -> BenchConfig:
    from edgekit.bench.latency import LatencyConfig
    from edgekit.bench.run import BenchConfig

    budget_s: float = options["budget_s"]
    latency = None if options["no_latency"] else LatencyConfig(max_time_s=budget_s, min_time_s=min(1.0, budget_s))
    names = ("baseline", "data", "labels", "val_fraction", "threads", "max_images", "batch_size", "duration_s")
    return BenchConfig(files=tuple(options["files"]), latency=latency, **{name: options[name] for name in names})


def _refuse_idle_options() -> None:
    """Refuse options that change nothing beside the others.

    Raises:
        UsageError: naming them.
    """
    context = click.get_current_context()

    def given(*names: str) -> str:
        said = [n for n in names if context.get_parameter_source(n) is ParameterSource.COMMANDLINE]
        return ", ".join(f"--{n.removesuffix('_s').replace('_', '-')}" for n in said)

    if context.params["data"] is None and (idle := given("val_fraction", "max_images")):
        raise UsageError(f"{idle} chooses pictures, of which there are none: add --data, or leave it out")
    if context.params["no_latency"] and (idle := given("batch_size", "budget_s")):
        raise UsageError(f"{idle} is for the timing that --no-latency leaves out; give one of them")


def _check_targets(output: Path | None, store: Path | None, inputs: Sequence[Any], *, overwrite: bool) -> Path | None:
    """Check, before anything is measured, that the result can be written; return where the table goes.

    Raises:
        UsageError: a target is there already, is an input, or is not named as what it will be.
        LoadError: the history cannot be used.
        WriteError: a file cannot be written.
    """
    from edgekit.atomic import refuse_existing, refuse_replacing, refuse_unwritable
    from edgekit.bench.store import check_store

    if store is not None:
        check_store(store)
    if output is None:
        return None
    table = output.with_suffix(".md")
    if output.suffix.lower() == ".md":
        raise UsageError(f"-o/--output {output} is the JSON, and the table goes beside it: give {table.stem}.json")
    files = [path for given in inputs for path in (given if isinstance(given, tuple) else (given,))]
    for target in (output, table):
        refuse_replacing(target, [*files, store])
        refuse_existing(target, overwrite=overwrite)
        refuse_unwritable(target)
    return table
