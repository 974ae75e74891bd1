"""`edgekit plot`: the curves of one run, or of several together."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import click

from edgekit.cli.options import EXISTING, make_terminal, talk_options
from edgekit.errors import EXIT_OK, UsageError
from edgekit.terminal import print_json


@click.command()
@click.argument("runs", metavar="RUN...", type=EXISTING, nargs=-1, required=True)
@click.option(
    "-o", "--output", type=EXISTING, help="PNG file to write.  [default: RUN/plots/run.png, or runs.png of several]"
)
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
@talk_options
def plot(runs: tuple[Path, ...], output: Path | None, overwrite: bool, **options: Any) -> int:
    """Draw losses, accuracy, rate, gradient norm and throughput of each RUN folder.

    Several runs share each panel. A run begun with --init-from shows its earlier phases, too. A dashed line stands
    where a phase began, a red one where the guard rolled back.
    """
    terminal = make_terminal(options["quiet"], options["verbose"])
    from edgekit.atomic import refuse_existing
    from edgekit.compress.show.run_plots import MOST_RUNS, plot_runs
    from edgekit.compress.training.history import read_history

    if len(runs) > MOST_RUNS:
        raise UsageError(f"{len(runs)} runs in one picture cannot be told apart; give {MOST_RUNS} at most")
    own = runs[0] / "plots" / "run.png"  # the run's own picture is drawn anew whenever it is asked for
    out = output or (own if len(runs) == 1 else Path("runs.png"))
    if out != own:
        refuse_existing(out, overwrite=overwrite)
    histories = [read_history(run, name) for run, name in zip(runs, _names(runs), strict=True)]
    plot_runs(histories, out, title=str(runs[0]) if len(runs) == 1 else "")
    terminal.say(f"wrote {out}")
    if options["as_json"]:
        shown = [
            {"run": str(run), "epochs": len(history.rows), "phases": 1 + len(history.phase_ends)}
            for run, history in zip(runs, histories, strict=True)
        ]
        print_json("plot", {"output": str(out), "runs": shown})
    return EXIT_OK


def _names(runs: tuple[Path, ...]) -> list[str]:
    """Return the folders' own names, with their paths where two are alike."""
    names = [run.resolve().name for run in runs]
    count = Counter(names)
    return [name if count[name] == 1 else str(run) for name, run in zip(names, runs, strict=True)]
