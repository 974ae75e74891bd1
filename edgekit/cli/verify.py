"""`edgekit verify`: check artifacts against their manifest and golden vectors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.options import EXISTING, make_terminal, talk_options
from edgekit.errors import EXIT_NEGATIVE, EXIT_OK, LoadError, UsageError
from edgekit.terminal import print_json

if TYPE_CHECKING:
    from edgekit.export.verify.check import Check
    from edgekit.terminal import Terminal


@click.command()
@click.argument("path", type=EXISTING)
@click.option(
    "--reference", type=EXISTING, help="Run folder: compare with eager PyTorch on --data instead (needs torch)."
)
@click.option("--data", type=EXISTING, help="Pictures (their validation split) or texts for --reference.")
@click.option(
    "--runtime",
    type=click.Choice(["own", "tensorflow"]),
    default="own",
    show_default=True,
    help="Each format's own, or TensorFlow as a second opinion on TFLite files.",
)
@click.option("--tensorflow-python", type=EXISTING, help="Python of an environment with TensorFlow.  [default: this]")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of the runtimes.")
@talk_options
def verify(path: Path, **options: Any) -> int:
    """Check PATH, a bundle or one file of a bundle: hashes, input contract, preprocessing, golden vectors.

    Needs each format's runtime, not torch. Exit code 1 when anything fails.
    """
    terminal = make_terminal(options["quiet"], options["verbose"])

    from edgekit.export.verify.check import summary

    checks = _checks(path, options, terminal)
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
    if options["as_json"]:
        print_json("verify", summary(checks))
    return EXIT_OK if not failed else EXIT_NEGATIVE


def _checks(path: Path, options: Mapping[str, Any], terminal: Terminal) -> list[Check]:
    """Do what was asked for: against a run in PyTorch, or against the manifest and golden vectors of a bundle."""
    from edgekit.export.clip.bundle import is_clip_bundle
    from edgekit.export.manifest import MANIFEST_FILE
    from edgekit.export.tflite.tensorflow import tensorflow_python
    from edgekit.export.verify.bundle import verify_bundle
    from edgekit.export.verify.clip import verify_clip

    threads, tensorflow = options["threads"], None
    if options["runtime"] == "tensorflow":
        tensorflow = tensorflow_python(options["tensorflow_python"])
    elif options["tensorflow_python"] is not None:
        raise UsageError("--tensorflow-python is for --runtime tensorflow; give both or neither")
    if options["reference"] is not None:
        if tensorflow is not None:
            raise UsageError("--reference and --runtime tensorflow exclude each other; give one")
        from edgekit.export.verify.reference import verify_against

        return verify_against(path, options["reference"], options["data"], threads, terminal)
    if options["data"] is not None:
        raise UsageError("--data is for --reference; without a run, files are checked by the bundle's own pictures")
    if is_clip_bundle(path):
        if tensorflow is not None:
            raise UsageError("--runtime tensorflow takes one tower of a CLIP; give its image/ folder")
        return verify_clip(path, threads)
    if (path / MANIFEST_FILE).is_file():
        return verify_bundle(path, (), threads, tensorflow)
    if (path.parent / MANIFEST_FILE).is_file():
        return verify_bundle(path.parent, [path.name], threads, tensorflow)
    if not path.exists():
        raise LoadError(f"{path} is not there; give a bundle folder or a file inside one")
    raise LoadError(f"{path} has no {MANIFEST_FILE}: give a bundle, or --reference RUN --data DIR to compare with")
