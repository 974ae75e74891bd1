"""`edgekit verify`: check artifacts against their manifest and golden vectors."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli.options import EXISTING, make_terminal, talk_options
from edgekit.errors import EXIT_NEGATIVE, EXIT_OK, LoadError
from edgekit.terminal import print_json


@click.command()
@click.argument("path", type=EXISTING)
@click.option(
    "--reference", type=EXISTING, help="Run folder: compare with eager PyTorch on --data instead (needs torch)."
)
@click.option("--data", type=EXISTING, help="Pictures for --reference; their validation split is used.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of the runtimes.")
@talk_options
def verify(
    path: Path, reference: Path | None, data: Path | None, threads: int, as_json: bool, verbose: bool, quiet: bool
) -> int:
    """Check PATH, a bundle or one file of a bundle: hashes, input contract, preprocessing, golden vectors.

    Needs each format's runtime, not torch. Exit code 1 when anything fails.
    """
    terminal = make_terminal(quiet, verbose)

    from edgekit.export.manifest import MANIFEST_FILE
    from edgekit.export.verify import summary, verify_bundle

    if reference is not None:
        from edgekit.export.verify_reference import verify_against

        checks = verify_against(path, reference, data, threads)
    elif (path / MANIFEST_FILE).is_file():
        checks = verify_bundle(path, threads=threads)
    elif (path.parent / MANIFEST_FILE).is_file():
        checks = verify_bundle(path.parent, only=[path.name], threads=threads)
    elif not path.exists():
        raise LoadError(f"{path} is not there; give a bundle folder or a file inside one")
    else:
        raise LoadError(f"{path} has no {MANIFEST_FILE}: give a bundle, or --reference RUN --data DIR to compare with")
    terminal.table(
        ("file", "check", "result", "detail"),
        [
            (c.subject, c.check, "ok" if c.passed else "not here" if c.unavailable else "FAILED", c.detail)
            for c in checks
        ],
        left=("check", "result", "detail"),
    )
    failed = [check for check in checks if not check.passed]
    terminal.say(f"{path}: " + ("verified" if not failed else f"{len(failed)} of {len(checks)} checks failed"))
    if as_json:
        print_json("verify", summary(checks))
    return EXIT_OK if not failed else EXIT_NEGATIVE
