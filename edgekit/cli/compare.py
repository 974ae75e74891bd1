"""`edgekit compare`: two bench results side by side, with significance; or the history of a store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.options import make_terminal, talk_options
from edgekit.errors import EXIT_NEGATIVE, EXIT_OK, LoadError, UsageError
from edgekit.printable import printable
from edgekit.terminal import Terminal, print_json

if TYPE_CHECKING:
    from edgekit.bench.results import BenchReport

_MAX_JSON_BYTES = 512 * 2**20


@click.command()
@click.argument("results", metavar="A [B]", nargs=-1, required=True)
@click.option("--fail-on-regression", is_flag=True, help="Exit code 1 when a model of B is slower, worse or failed.")
@talk_options
def compare(results: tuple[str, ...], fail_on_regression: bool, **options: Any) -> int:
    """Compare bench results A and B: is B faster, slower, better or worse, and what else differs?

    Each is a JSON file of `edgekit bench`, or a run of a history: results.sqlite (the latest), results.sqlite#7,
    results.sqlite#latest~1, results.sqlite#device=EPYC,version=0.1.0,artifact=model.int8.onnx,before=2026-11-20.
    A history alone is listed.
    """
    terminal = make_terminal(options["quiet"], options["verbose"])
    if len(results) == 1:
        return _list(results[0], terminal, as_json=options["as_json"])
    if len(results) != 2:
        raise UsageError(f"{len(results)} results were given; give two to compare, or one history to list")

    from edgekit.bench.compare import compare_reports
    from edgekit.bench.compare_table import COLUMNS, comparison_json, comparison_notes, comparison_rows

    comparison = compare_reports(*(read_result(name) for name in results))
    terminal.say(f"{results[0]} → {results[1]}")
    terminal.table(
        COLUMNS,
        [[printable(cell) for cell in row] for row in comparison_rows(comparison)],
        left=("second is", "second is "),
    )
    for line in comparison_notes(comparison):
        terminal.say(printable(line))
    if not comparison.rows:
        terminal.warn("the two results have no model in common")
    if options["as_json"]:
        print_json("compare", {"first": results[0], "second": results[1], **comparison_json(comparison)})
    regressed = any(row.regressed for row in comparison.rows)
    return EXIT_NEGATIVE if fail_on_regression and regressed else EXIT_OK


def read_result(name: str) -> BenchReport:
    """Read a bench result from a JSON file, or from a history: "STORE" or "STORE#SELECTOR".

    Raises:
        LoadError: it is not there or damaged.
        UsageError: it is no bench result, or the selector names none.
    """
    from edgekit.bench.results import BenchReport
    from edgekit.bench.store import SUFFIXES, select_run

    path, _, selector = name.partition("#") if not Path(name).exists() else (name, "", "")
    if Path(path).suffix in SUFFIXES:
        return select_run(Path(path), selector or "latest")
    file = Path(name)
    try:
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise LoadError(f"{file} is larger than any bench result")
        return BenchReport.from_json(json.loads(file.read_text(encoding="utf-8")))
    except OSError as e:
        raise LoadError(f"{file} cannot be read: {e.strerror}") from e
    except (ValueError, RecursionError) as e:
        raise LoadError(f"{file} is not JSON: {e}") from e


def _list(name: str, terminal: Terminal, *, as_json: bool) -> int:
    """Show what a history holds."""
    from edgekit.bench.store import SUFFIXES, history

    if Path(name).suffix not in SUFFIXES:
        raise UsageError(f"there is nothing to compare {name} with; give two results, or one history to list")
    runs = history(Path(name))
    terminal.table(
        ("run", "created", "device", "edgekit", "data", "models"),
        [
            [printable(cell) for cell in (str(run.id), run.created, run.device, run.edgekit_version, run.data or "–")]
            + [printable(", ".join(run.models))]
            for run in runs
        ],
        left=("created", "device", "edgekit", "data", "models"),
    )
    if as_json:
        print_json("history", {"store": name, "runs": [vars(run) | {"models": list(run.models)} for run in runs]})
    return EXIT_OK
