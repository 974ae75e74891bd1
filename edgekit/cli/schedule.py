"""`edgekit schedule`: draw a learning-rate schedule before training with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgekit.chart import Line, canvas_for, chart
from edgekit.cli.options import EXISTING, make_terminal, refuse_existing_png, talk_options
from edgekit.cli.schedule_options import SCHEDULE_NAMES, schedule_config, schedule_parameters
from edgekit.compress.forecast.plot import plot_schedule
from edgekit.compress.training.schedule import ScheduleName, factor, planned_jumps
from edgekit.errors import EXIT_OK
from edgekit.terminal import print_json


@click.command()
@click.argument("name", type=SCHEDULE_NAMES)
@click.option("--epochs", type=click.FloatRange(0, min_open=True), default=20.0, show_default=True, help="Run length.")
@click.option("--lr", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True, help="Base rate.")
@click.option("--steps-per-epoch", type=click.IntRange(1, 100_000), default=100, show_default=True)
@schedule_parameters
@click.option("--png", type=EXISTING, help="Write the drawing to this PNG file.")
@click.option("--overwrite", is_flag=True, help="Replace a PNG file that exists.")
@talk_options
def schedule(
    name: ScheduleName, epochs: float, lr: float, steps_per_epoch: int, png: Path | None, **options: Any
) -> int:
    """Draw the schedule NAME over a run, and name every planned jump of the rate."""
    terminal = make_terminal(options.pop("quiet"), options.pop("verbose"))
    as_json = options.pop("as_json")
    refuse_existing_png(png, overwrite=options.pop("overwrite"))
    config = schedule_config(name, options)
    points = 400
    at = [epochs * point / points for point in range(points)]
    rates = [lr * factor(config, epoch, epochs) for epoch in at]
    jumps = planned_jumps(config, epochs, steps_per_epoch=steps_per_epoch)
    for line in chart([Line([*at, epochs], [*rates, rates[-1]])], canvas_for(terminal.console), x_label="epochs"):
        terminal.say(line)
    for jump in jumps:
        terminal.warn(f"{jump}. A run with such a restart lost 20.5 points of accuracy and took epochs to recover.")
    if name == "plateau":
        terminal.say("plateau follows the validation metric while training; planned is its base rate")
    if png is not None:
        plot_schedule(config, epochs, lr, png)
        terminal.say(f"wrote {png}")
    if as_json:
        by_epoch = [lr * factor(config, float(epoch), epochs) for epoch in range(int(epochs) + 1)]
        found = [
            {"epoch": j.epoch_number, "step": j.step, "before": lr * j.before, "after": lr * j.after} for j in jumps
        ]
        print_json("schedule", {"config": config.model_dump(), "epochs": epochs, "rate": by_epoch, "jumps": found})
    return EXIT_OK
