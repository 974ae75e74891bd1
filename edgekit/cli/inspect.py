"""`edgekit inspect`: what is really inside an artifact, whoever made it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from edgekit.cli.inspect_report import bundle_row, report_lines, roofline_lines
from edgekit.cli.options import EXISTING, make_terminal, refuse_existing_png, talk_options
from edgekit.cores import usable_cores
from edgekit.errors import EXIT_LOAD, EXIT_NEGATIVE, EXIT_OK, EdgekitError, LoadError, MissingExtraError, UsageError
from edgekit.export.audit.audit import audit_contained, audit_runtime_contained, precision_reasons
from edgekit.export.audit.record import Audit, RuntimeAudit
from edgekit.export.manifest import MANIFEST_FILE, FileRecord, read_any_manifest, resolve
from edgekit.export.parity import Precision
from edgekit.terminal import Terminal, print_json


@click.command()
@click.argument("path", metavar="FILE|BUNDLE", type=EXISTING)
@click.option("--png", type=EXISTING, metavar="FILE", help="Draw the precision of each layer into this picture.")
@click.option("--overwrite", is_flag=True, help="Replace a picture that exists.")
@click.option(
    "--roofline",
    is_flag=True,
    help="Time an .onnx or .tflite file beside large products of its runtime: how far is the limit, where is the rest?",
)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="For --roofline.")
@talk_options
def inspect(path: Path, **options: Any) -> int:
    """Show what an .onnx, .tflite or .mlpackage really is: inputs, weights and operations by dtype, what runs.

    Files of any origin; they are opened in a child process. Exit code 1 when a file of a bundle is not what its
    manifest claims, 3 when a file or its runtime fails.
    """
    terminal = make_terminal(options["quiet"], options["verbose"])
    extras = _Extras(options["png"], options["threads"] if options["roofline"] else None)
    refuse_existing_png(options["png"], overwrite=options["overwrite"])
    if not path.exists():
        raise LoadError(f"{path} is not there; give an .onnx, .tflite or .mlpackage, or a bundle")
    if not (path / MANIFEST_FILE).is_file():
        return _inspect_file(path, extras, terminal, options["as_json"])
    if extras != _Extras():
        raise UsageError(f"--png and --roofline are for one file; give one of those in {path}")
    return _inspect_bundle(path, terminal, options["as_json"])


@dataclass(frozen=True)
class _Extras:
    """What is asked for of one file besides its audit: a picture, and the roofline with so many threads."""

    png: Path | None = None
    roofline_threads: int | None = None


@dataclass(frozen=True)
class _Look:
    """One file, looked at: its audit, its runtime or why there is none, and what its name claims wrongly."""

    found: Audit
    runtime: RuntimeAudit | None
    failure: EdgekitError | None
    claimed: Precision | None
    problems: tuple[str, ...]

    @classmethod
    def at(cls, path: Path, claimed: Precision | None) -> _Look:
        """Look at a file.

        Raises:
            LoadError: it cannot be read.
        """
        found = audit_contained(path)
        runtime, failure = None, None
        try:
            runtime = audit_runtime_contained(path)
        except EdgekitError as e:
            failure = e
        problems = precision_reasons(found, runtime, claimed) if claimed else ()
        return cls(found, runtime, failure, claimed, problems)

    @property
    def exit_code(self) -> int:
        """0, 1 for a wrong claim, 3 where the runtime is here and rejects the file."""
        if self.failure is not None and not isinstance(self.failure, MissingExtraError):
            return EXIT_LOAD
        return EXIT_NEGATIVE if self.problems else EXIT_OK

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return {
            "claimed": self.claimed,
            "problems": self.problems,
            "file": self.found.to_dict(),
            "runtime": self.runtime.to_dict() if self.runtime else None,
            "runtime_error": str(self.failure) if self.failure else None,
        }


def _inspect_file(path: Path, extras: _Extras, terminal: Terminal, as_json: bool) -> int:
    look = _Look.at(path, _claim(path))
    for line in report_lines(look.found, look.runtime, verbose=terminal.verbosity > 0):
        terminal.say(line)
    _warn(terminal, path, look)
    values = look.to_dict()
    if extras.png is not None:
        from edgekit.export.audit.picture import draw_precision

        draw_precision(look.found, extras.png)
        terminal.say(f"picture     {extras.png}")
    if extras.roofline_threads is not None:
        from edgekit.export.roofline import roofline_contained

        measured = roofline_contained(path, extras.roofline_threads)
        for line in roofline_lines(measured):
            terminal.say(line)
        values["roofline"] = measured.to_dict()
    if as_json:
        print_json("inspect", values)
    return look.exit_code


def _inspect_bundle(bundle: Path, terminal: Terminal, as_json: bool) -> int:
    rows: list[tuple[str, ...]] = []
    files: list[dict[str, Any]] = []
    worst = EXIT_OK
    records = read_any_manifest(bundle).files
    with ThreadPoolExecutor(max_workers=min(4, usable_cores())) as pool:  # each waits for a child process
        looks = list(pool.map(lambda record: _attempt(bundle, record), records))
    for record, look in zip(records, looks, strict=True):
        if isinstance(look, EdgekitError):
            terminal.warn(str(look))
            rows.append((record.path, record.precision, "cannot be read", "", "", ""))
            files.append({"path": record.path, "error": str(look)})
            worst = EXIT_LOAD
            continue
        _warn(terminal, Path(record.path), look)
        worst = max(worst, look.exit_code)
        rows.append(bundle_row(record, look.found, look.runtime))
        files.append({"path": record.path, **look.to_dict()})
    terminal.table(("file", "claims", "is", "size", "work in 8 bits", "runtime"), rows)
    if as_json:
        print_json("inspect", {"bundle": str(bundle), "files": files})
    return worst


def _attempt(bundle: Path, record: FileRecord) -> _Look | EdgekitError:
    """Look at one file of a bundle, or return why that cannot be."""
    try:
        return _Look.at(resolve(bundle, record.path), record.precision)
    except EdgekitError as e:
        return e


def _warn(terminal: Terminal, path: Path, look: _Look) -> None:
    if look.failure is not None:
        terminal.warn(str(look.failure))
    for problem in look.problems:
        terminal.warn(f"{path.name}: {problem}")


def _claim(path: Path) -> Precision | None:
    """Return the precision that the manifest beside a file claims for it, None where there is none."""
    if not (path.parent / MANIFEST_FILE).is_file():
        return None
    try:
        records = read_any_manifest(path.parent).files
    except LoadError:
        return None  # not a bundle's: a folder may hold another tool's manifest.json
    return next((record.precision for record in records if record.path == path.name), None)
