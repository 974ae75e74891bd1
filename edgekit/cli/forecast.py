"""`edgekit forecast`: where a training run will end, from its metrics so far."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import click
import yaml
from pydantic import ValidationError

from edgekit.chart import Line, canvas_for, chart
from edgekit.cli.options import EXISTING, make_terminal, refuse_existing_png, talk_options
from edgekit.cli.schedule_options import SCHEDULE_NAMES, schedule_config, schedule_parameters
from edgekit.compress.forecast.forecast import Estimate, Forecast, Reached, percent
from edgekit.compress.forecast.forecast import forecast as make_forecast
from edgekit.compress.forecast.metrics_reader import FloatSeries, MetricsTable, read_metrics
from edgekit.compress.forecast.plot import plot_forecast
from edgekit.compress.forecast.timeline import Question
from edgekit.compress.training.schedule import ScheduleConfig, ScheduleName
from edgekit.errors import EXIT_OK, DataError, UsageError, did_you_mean
from edgekit.terminal import Terminal, print_json

USUAL_METRICS = (
    "val_acc",
    "test_acc",
    "eval_accuracy",
    "val_accuracy",
    "val_top1",
    "accuracy",
    "acc",
    "mean_r1",  # of a CLIP, as `train clip` chooses its best epoch
    "zeroshot_acc",
    "val_loss",
)


@click.command()
@click.argument("metrics", type=EXISTING)
@click.option("--metric", help="Column to forecast.  [default: the first known of the usual names]")
@click.option("--target", type=float, help="Value to reach, in the metric's unit; of fractions, percent will do.")
@click.option("--total-epochs", type=float, help="Length of the run.  [default: twice what is logged]")
@click.option("--until", type=float, help="Look only at the log up to this epoch.")
@click.option("--best", type=float, help="Best possible value.  [default: 0 for losses, 1 or 100 for rates]")
@click.option("--direction", type=click.Choice(["max", "min"]), help="What is better.  [default: from the name]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the drawn futures.")
@click.option("--schedule", "schedule_name", type=SCHEDULE_NAMES, help="Learning-rate schedule of the run.")
@schedule_parameters
@click.option("--png", type=EXISTING, help="Write the drawing to this PNG file.")
@click.option("--overwrite", is_flag=True, help="Replace a PNG file that exists.")
@talk_options
def forecast(
    metrics: Path,
    metric: str | None,
    target: float | None,
    until: float | None,
    total_epochs: float | None,
    **options: Any,
) -> int:
    """Forecast a run from METRICS: metrics.jsonl, CSV, TensorBoard events, trainer_state.json or a run folder.

    Several learning-curve models are weighted by how well each forecasts this very log from its earlier epochs.
    With the schedule given, the forecast knows that accuracy follows the rate, and prices planned restarts. An edgekit
    run folder tells its schedule and length itself.
    """
    terminal = make_terminal(options["quiet"], options["verbose"])
    refuse_existing_png(options["png"], overwrite=options["overwrite"])
    table = read_metrics(metrics)
    if until is not None:
        table = table.until(until)
    schedule, planned_epochs = _schedule(metrics, options, total_epochs)
    question = _question(
        metric=metric or _usual_metric(table),
        target=target,
        total_epochs=planned_epochs if total_epochs is None else total_epochs,
        schedule=schedule,
        direction=options["direction"],
        best=options["best"],
        seed=options["seed"],
    )
    answer = make_forecast(table, question)
    epochs, values = table.series(question.metric)
    _show(terminal, answer, epochs, values)
    if options["png"] is not None:
        plot_forecast(answer, epochs, values, options["png"])
        terminal.say(f"wrote {options['png']}")
    if options["as_json"]:
        print_json("forecast", {"source": str(table.source), **asdict(answer)})
    return EXIT_OK


def _usual_metric(table: MetricsTable) -> str:
    """Return the column that is probably meant; ask where none is."""
    for name in USUAL_METRICS:
        if name in table.columns:
            return name
    raise UsageError(f"{table.source}: give --metric; {did_you_mean('', table.columns)}")


def _question(**fields: Any) -> Question:
    """Check the question, naming wrong options."""
    try:
        return Question(**fields)
    except ValidationError as e:
        wrong = (f"--{str(error['loc'][0]).replace('_', '-')}: {error['msg']}" for error in e.errors())
        raise UsageError("; ".join(wrong)) from e


def _schedule(
    metrics: Path, options: dict[str, Any], total_epochs: float | None
) -> tuple[ScheduleConfig | None, float | None]:
    """Return the schedule and length of the run: as the options say, else as an edgekit run folder recorded them."""
    given = {field: options[field] for field in ScheduleConfig.model_fields if field != "name"}
    name: ScheduleName | None = options["schedule_name"]
    if name is None and any(value is not None for value in given.values()):
        raise UsageError("parameters of a schedule were given without --schedule NAME.")
    if name is not None:
        return schedule_config(name, given), None
    config = (metrics if metrics.is_dir() else metrics.parent) / "config.yaml"
    if not config.is_file():
        return None, None
    try:
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))
        fit = settings["recipe"]["fit"]
        recorded = ScheduleConfig.model_validate(fit["schedule"])
        return recorded, float(fit["epochs"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError) as e:
        if total_epochs is not None:
            return None, None
        raise DataError(
            f"{config} is no configuration of a run of this version ({' '.join(str(e).split())[:200]}). "
            "Give --schedule and --total-epochs, or --total-epochs alone to go on without the schedule."
        ) from e


def _show(terminal: Terminal, answer: Forecast, epochs: FloatSeries, values: FloatSeries) -> None:
    """Show the chart and the numbers."""
    for note in answer.notes:
        terminal.warn(note)
    terminal.heading(f"{answer.metric}: epoch {answer.last_epoch:g} of {answer.total_epochs:g}")
    canvas = canvas_for(terminal.console)
    for line in chart(_lines(answer, epochs, values), canvas, x_label="epoch"):
        terminal.say(line)
    symbols = ("solid", "then solid", "dotted", "level dots") if canvas.braille else ("*", "o", ".", "-")
    meanings = (
        "logged",
        "median forecast",
        "80 % interval",
        f"target {answer.target.value:g}" if answer.target else "",
    )
    terminal.say("  " + "   ".join(f"{s} {meant}" for s, meant in zip(symbols, meanings, strict=True) if meant) + "\n")
    until = f"before the restart at epoch {answer.restarts[0].epoch:g}" if answer.restarts else "of the run"
    terminal.say(f"best {until:<36} {_spread(answer.peak_before_restart)}")
    if answer.restarts:
        if answer.target is not None:
            early = percent(answer.probability_by(answer.restarts[0].epoch - 1e-6))
            terminal.say(f"  {f'P({answer.target.value:g}) by then':<39} {early}")
        terminal.say(f"best {'of the run':<36} {_spread(answer.peak)}")
    terminal.say(f"{f'at the end, epoch {answer.total_epochs:g}':<41} {_spread(answer.final)}")
    if answer.peak_without_schedule is not None:
        blind = answer.peak_without_schedule
        wider = blind.width / max(answer.peak_before_restart.width, 1e-3 * blind.width)
        said = f"{wider:.1f} times as wide" + ("" if wider >= 1 else ", but blind to the plan")
        terminal.say(f"  without the schedule it would read      {_spread(blind)}, {said}")
    for restart in answer.restarts:
        _show_restart(terminal, restart.epoch, restart.drop, restart.recovered_epoch)
    _show_tables(terminal, answer)


def _show_tables(terminal: Terminal, answer: Forecast) -> None:
    """Show when values are reached and, under -v, what each model is worth."""
    rows = [_milestone(m, "target") for m in (answer.target,) if m] + [
        _milestone(m, "") for m in answer.milestones if answer.target is None or m.value != answer.target.value
    ]
    terminal.table(("value", "P(reached)", "10 % by epoch", "50 %", "90 %"), rows)
    scores = [(score.name, f"{score.weight:.0%}", f"{score.backtest_mae:.3g}") for score in answer.models]
    if terminal.verbosity > 0:
        terminal.table(("model", "weight", "backtest error"), scores)


def _show_restart(terminal: Terminal, epoch: float, drop: Estimate, recovered: float | None) -> None:
    back = f"back at epoch {recovered:g}" if recovered is not None else "not back by the end of the run"
    terminal.warn(f"planned restart at epoch {epoch:g}: expect to lose {_spread(drop)}; {back} (median)")


def _spread(estimate: Estimate) -> str:
    return f"{estimate.median:.4g} (80 %: {estimate.low:.4g} to {estimate.high:.4g})"


def _milestone(reached: Reached, kind: Literal["target", ""]) -> tuple[str, str, str, str, str]:
    epochs = (reached.epoch_low, reached.epoch_median, reached.epoch_high)
    low, median, high = ("-" if epoch is None else f"{epoch:g}" for epoch in epochs)
    return f"{reached.value:g} {kind}".strip(), percent(reached.probability), low, median, high


def _lines(answer: Forecast, epochs: FloatSeries, values: FloatSeries) -> list[Line]:
    """Return the curves of the chart, the log on top."""
    ahead = [answer.last_epoch, *answer.epochs]
    lines = [
        Line(epochs.tolist(), values.tolist(), "*"),
        Line(ahead, [answer.last_value, *answer.median], "o"),
        Line(ahead, [answer.last_value, *answer.low], ".", spacing=2),
        Line(ahead, [answer.last_value, *answer.high], ".", spacing=2),
    ]
    if answer.target is not None:
        span = [float(epochs[0]), answer.total_epochs]
        lines.append(Line(span, [answer.target.value] * 2, "-", spacing=3))
    return lines
