"""`edgekit report`: one self-contained page of runs, bundles and bench results; or a Markdown table."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.compare import read_result
from edgekit.cli.options import EXISTING, make_terminal, talk_options
from edgekit.errors import EXIT_OK, EdgekitError, LoadError, UsageError
from edgekit.printable import printable
from edgekit.terminal import Terminal, human_bytes, print_json

if TYPE_CHECKING:
    from edgekit.bench.report import Training
    from edgekit.bench.report_bundle import Bundle
    from edgekit.bench.results import BenchReport

_MAX_FACTS_BYTES = 16 * 2**20


@dataclass
class _Found:
    """What the inputs turned out to be."""

    benches: list[BenchReport] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)
    bundles: list[Bundle] = field(default_factory=list)


@click.command()
@click.argument("inputs", metavar="RUN|BUNDLE|BENCH.JSON...", nargs=-1, required=True)
@click.option("-o", "--output", type=EXISTING, default="report.html", show_default=True, help="Page to write.")
@click.option("--title", help="Title of the page.  [default: of the first input]")
@click.option("--plots", type=EXISTING, help="Folder to write the figures to, too, as PNG and SVG.")
@click.option("--no-audit", is_flag=True, help="Do not open the bundles' files to read what they really are.")
@click.option("--markdown", is_flag=True, help="Print the table of the bench results as Markdown, for a README.")
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
@talk_options
def report(inputs: tuple[str, ...], output: Path, **options: Any) -> int:
    """Make one HTML page of any run folders, bundles and bench results (JSON, or results.sqlite#RUN).

    The page holds the table from the teacher to every artifact, accuracy against latency, latency distributions,
    training curves, what the files really are, parity and the device. It asks for nothing from the network.
    """
    terminal = make_terminal(options["quiet"], options["verbose"])
    if options["markdown"]:
        return _print_markdown(inputs, as_json=options["as_json"])

    from edgekit.atomic import refuse_existing, refuse_replacing, write_text
    from edgekit.bench.figures import save_figures
    from edgekit.bench.page import render_page
    from edgekit.bench.report import build_page

    refuse_replacing(output, [name.partition("#")[0] for name in inputs])
    refuse_existing(output, overwrite=options["overwrite"])
    plots: Path | None = options["plots"]
    if plots is not None:
        refuse_existing(plots, overwrite=options["overwrite"])
    found = _read(inputs, terminal, audit=not options["no_audit"])
    title = options["title"] or f"edgekit: {Path(inputs[0]).resolve().stem}"
    page = build_page(title, found.benches, found.trainings, found.bundles)
    write_text(output, render_page(page))
    files = save_figures(page.figures, plots) if plots is not None else []
    terminal.say(f"wrote {output} ({human_bytes(output.stat().st_size)})")
    if options["as_json"]:
        sections = [section.title for section in page.sections]
        print_json("report", {"output": str(output), "sections": sections, "plots": [str(file) for file in files]})
    return EXIT_OK


def _print_markdown(inputs: Sequence[str], *, as_json: bool) -> int:
    from edgekit.bench.table import render_markdown

    if as_json:
        raise UsageError("--markdown and --json both write to standard output; give one")
    results = [name for name in inputs if not Path(name).is_dir()]
    if not results:
        raise UsageError("--markdown needs a bench result: a JSON file of `edgekit bench -o`, or results.sqlite#RUN")
    sys.stdout.write("\n".join(render_markdown(read_result(name)) for name in results))
    return EXIT_OK


def _read(inputs: Sequence[str], terminal: Terminal, *, audit: bool) -> _Found:
    """Tell run folders, bundles and results apart, and read them.

    Raises:
        LoadError: one cannot be read.
        UsageError: a folder that is neither a run nor a bundle.
    """
    from edgekit.export.manifest import MANIFEST_FILE

    found = _Found()
    for name in inputs:
        path = Path(name)
        if (path / MANIFEST_FILE).is_file():
            found.bundles.append(_bundle(path, terminal, audit=audit))
        elif (path / "run.json").is_file():
            found.trainings.append(read_training(path))
        elif path.is_dir():
            raise UsageError(f"{path} is neither a run folder (no run.json) nor a bundle (no {MANIFEST_FILE})")
        else:
            found.benches.append(read_result(name))
    return found


def read_training(run: Path) -> Training:
    """Read a run's facts and curves, those of the phases before it included.

    Raises:
        LoadError: its facts cannot be read.
    """
    from edgekit.bench.report import Training
    from edgekit.compress.forecast.metrics_reader import read_metrics
    from edgekit.compress.training.history import read_history
    from edgekit.compress.training.run_folder import RunFolder

    file = run / "run.json"
    try:
        if file.stat().st_size > _MAX_FACTS_BYTES:
            raise LoadError(f"{file} is larger than the facts of any run")
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise LoadError(f"{file} cannot be read: {e}") from e
    if not isinstance(facts, dict):
        raise LoadError(f"{file} does not hold a mapping")
    table = read_metrics(run)
    columns = {name: values.tolist() for name, values in table.columns.items()}
    name = run.resolve().name
    if not RunFolder(run).read_history():
        return Training(name, facts, table.epochs.tolist(), columns, table.notes)
    whole = read_history(run)  # begun with --init-from: its earlier phases stand before it
    joined = {column: [_value(row.get(column)) for row in whole.rows] for column in columns}
    epochs = [float(row["epoch"]) for row in whole.rows]
    return Training(name, facts, epochs, joined, table.notes, tuple(whole.phase_ends))


def _value(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _bundle(path: Path, terminal: Terminal, *, audit: bool) -> Bundle:
    """Read a bundle's manifest, and in a process of its own each file."""
    from edgekit.bench.report_bundle import Bundle
    from edgekit.export.audit.audit import audit_contained
    from edgekit.export.audit.record import Audit
    from edgekit.export.manifest import read_any_manifest, resolve

    manifest = read_any_manifest(path)
    audits: dict[str, Audit | str] = {}
    if audit:
        with terminal.bar(f"auditing the files of {path.resolve().name}", len(manifest.files)) as advance:
            for record in manifest.files:
                try:
                    audits[record.path] = audit_contained(resolve(path, record.path))
                except EdgekitError as e:
                    audits[record.path] = printable(str(e))
                advance(1)
    return Bundle(path.resolve().name, manifest, audits)
