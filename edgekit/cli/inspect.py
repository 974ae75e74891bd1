"""`edgekit inspect`: what is really inside an artifact, whoever made it."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli.options import EXISTING, make_terminal, talk_options
from edgekit.errors import EXIT_LOAD, EXIT_NEGATIVE, EXIT_OK, EdgekitError, LoadError, MissingExtraError, UsageError
from edgekit.terminal import Terminal, print_json


@click.command()
@click.argument("path", metavar="FILE|BUNDLE", type=EXISTING)
@click.option("--png", type=EXISTING, metavar="FILE", help="Draw the precision of each layer into this picture.")
@talk_options
def inspect(path: Path, png: Path | None, as_json: bool, verbose: bool, quiet: bool) -> int:
    """Show what an .onnx, .tflite or .mlpackage really is: inputs, weights and operations by dtype, what runs.

    Files of any origin; they are opened in a child process. Exit code 1 when a file of a bundle is not what its
    manifest claims, 3 when a file or its runtime fails.
    """
    terminal = make_terminal(quiet, verbose)
    if not path.exists():
        raise LoadError(f"{path} is not there; give an .onnx, .tflite or .mlpackage, or a bundle")

    from edgekit.export.manifest import MANIFEST_FILE

    if (path / MANIFEST_FILE).is_file():
        if png is not None:
            raise UsageError(f"--png draws one file; give one of those in {path}")
        return _inspect_bundle(path, terminal, as_json)
    return _inspect_file(path, png, terminal, as_json)


def _inspect_file(path: Path, png: Path | None, terminal: Terminal, as_json: bool) -> int:
    from edgekit.cli.inspect_report import report_lines
    from edgekit.export.audit import audit_contained, precision_reasons

    found = audit_contained(path)
    runtime, failure = _runtime(path)
    claimed = _claim(path)
    problems = precision_reasons(found, runtime, claimed) if claimed else ()
    for line in report_lines(found, runtime, verbose=terminal.verbosity > 0):
        terminal.say(line)
    if runtime is None:
        terminal.say(f"runtime     {failure}")
    for problem in problems:
        terminal.warn(f"{path.name}: {problem}")
    if png is not None:
        from edgekit.export.audit_picture import draw_precision

        draw_precision(found, png)
        terminal.say(f"picture     {png}")
    if as_json:
        values = {"file": found.to_dict(), "runtime": runtime.to_dict() if runtime else None}
        print_json("inspect", values | {"runtime_error": str(failure or ""), "claimed": claimed, "problems": problems})
    if problems:
        return EXIT_NEGATIVE
    return EXIT_OK if runtime is not None or isinstance(failure, MissingExtraError) else EXIT_LOAD


def _inspect_bundle(bundle: Path, terminal: Terminal, as_json: bool) -> int:
    from edgekit.cli.inspect_report import bundle_row
    from edgekit.export.audit import audit_contained, precision_reasons
    from edgekit.export.manifest import read_manifest, resolve

    rows, files, worst = [], [], EXIT_OK
    for record in read_manifest(bundle).files:
        try:
            path = resolve(bundle, record.path)
            found = audit_contained(path)
        except EdgekitError as e:
            terminal.warn(str(e))
            rows.append((record.path, record.precision, "cannot be read", "", "", ""))
            files.append({"path": record.path, "error": str(e)})
            worst = EXIT_LOAD
            continue
        runtime, failure = _runtime(path)
        problems = precision_reasons(found, runtime, record.precision)
        for problem in problems:
            terminal.warn(f"{record.path}: {problem}")
        worst = max(worst, EXIT_NEGATIVE if problems else EXIT_OK)
        rows.append(bundle_row(record, found, runtime))
        files.append({"path": record.path, "claimed": record.precision, "problems": problems, "file": found.to_dict(),
                      "runtime": runtime.to_dict() if runtime else None,
                      "runtime_error": str(failure or "")})  # fmt: skip
        if runtime is None and not isinstance(failure, MissingExtraError):
            terminal.warn(str(failure))
            worst = EXIT_LOAD
    terminal.table(("file", "claims", "is", "size", "work in 8 bits", "runtime"), rows)
    if as_json:
        print_json("inspect", {"bundle": str(bundle), "files": files})
    return worst


def _runtime(path: Path):  # type: ignore[no-untyped-def]
    from edgekit.export.audit import audit_runtime_contained

    try:
        return audit_runtime_contained(path), None
    except EdgekitError as e:
        return None, e


def _claim(path: Path):  # type: ignore[no-untyped-def]
    """Return the precision that the manifest beside a file claims for it, None where there is none."""
    from edgekit.export.manifest import MANIFEST_FILE, read_manifest

    if not (path.parent / MANIFEST_FILE).is_file():
        return None
    try:
        records = read_manifest(path.parent).files
    except LoadError:
        return None  # not a bundle's: a folder may hold another tool's manifest.json
    return next((record.precision for record in records if record.path == path.name), None)
