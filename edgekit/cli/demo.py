"""`edgekit demo`: the whole path, offline."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli.options import make_terminal, output_options, talk_options
from edgekit.terminal import print_json


@click.command()
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything random.")
@output_options("demo", "Folder")
@talk_options
def demo(seed: int, output: Path, overwrite: bool, as_json: bool, verbose: bool, quiet: bool) -> None:
    """Run the whole path offline: draw pictures, train a small CLIP, distill, export, verify, bench.

    Takes a few minutes on two cores and leaves the table, plots and files in a folder.
    """
    terminal = make_terminal(quiet, verbose)

    from edgekit.demo.run import DemoConfig, run_demo

    result = run_demo(output, DemoConfig(seed=seed), terminal, overwrite=overwrite)
    if as_json:
        values = {name: getattr(result, name) for name in ("teacher", "student", "alone", "files", "seconds")}
        print_json("demo", {**values, "bench": result.report.to_json()})
