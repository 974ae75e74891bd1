"""`edgekit compress`: train a finished student for 8 bits, or take channels away, and distil it to recover."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from edgekit.cli.options import EXISTING, make_terminal, output_options, talk_options
from edgekit.cli.training_options import GUARD_FIELDS, guard_options, how_to_start, resume_options
from edgekit.errors import UsageError
from edgekit.terminal import print_json

if TYPE_CHECKING:
    from edgekit.compress.slim.config import CompressConfig, QatConfig

_FIT_FIELDS = ("epochs", "batch_size", "lr", "seed", "device")
_OF_QAT = ("runtime", "precision", "hold_ranges", "calibration_images")


@click.command()
@click.argument("run", type=EXISTING)
@click.option("--qat", is_flag=True, help="Train with fake quantization, so that int8 files lose less.")
@click.option(
    "--prune",
    type=float,
    metavar="SHARE",
    help="Take away hidden channels and attention heads with this share of their multiply-accumulates, then recover.",
)
@click.option(
    "--runtime",
    default="tflite",
    show_default=True,
    help="With --qat: whose 8-bit file is simulated: tflite, onnx, coreml (w8a8); others' files gain less, or nothing.",
)
@click.option(
    "--precision",
    default="int8",
    show_default=True,
    help="With --qat: of the file that is simulated, to be exported with the same: int8 (Core ML: w8a8), or mixed "
    "(tflite, coreml: what costs most accuracy stays float).",
)
@click.option(
    "--hold-ranges",
    is_flag=True,
    help="With --qat: keep the ranges of activations as calibration sets them, in place of training them, too.",
)
@click.option(
    "--guide",
    help="Who teaches: self (the student as it was), teacher (the run's own, and its labels) or both.  [default: self "
    "with --qat, both with --prune]",
)
@click.option("--data", type=EXISTING, help="Pictures to train on.  [default: the run's own]")
@click.option("--epochs", type=int, help="Passes over the training set.  [default: 2 with --qat, 5 with --prune]")
@click.option("--batch-size", type=int, help="Pictures per step.  [default: the run's]")
@click.option("--lr", type=float, help="Peak learning rate.  [default: 3e-5 with --qat, a quarter of the run's else]")
@click.option(
    "--calibration-images",
    type=click.IntRange(8),
    default=256,
    show_default=True,
    help="With --qat: training pictures that set the ranges.",
)
@click.option("--seed", type=int, help="Seed of everything random.  [default: the run's]")
@click.option("--device", help="auto, cpu, mps or cuda.")
@guard_options
@resume_options
@output_options("runs/compress", "Run folder")
@talk_options
def compress(**options: Any) -> None:
    """Compress the student of RUN, the run folder of a finished `edgekit distill`.

    --qat trains it for a few epochs with the rounding that the int8 files will do; `edgekit export` of the result makes
    int8 files that are closer to the float student. --prune makes the net itself smaller. Both leave a run folder like
    any other.
    """
    terminal = make_terminal(options["quiet"], options["verbose"])
    start = how_to_start(options)

    from edgekit.compress.slim.run import compress as run_compress

    facts = run_compress(_config(options), terminal, **start)
    if options["as_json"]:
        print_json("compress", facts)


def _config(options: dict[str, Any]) -> CompressConfig:
    """Return what the options ask for."""
    from edgekit.compress.slim.config import CompressConfig, guide_named, recovery, refuse_tasks, training_of

    qat = _qat(options) if options["qat"] else None
    refuse_tasks(qat, options["prune"])
    if qat is None:
        _refuse_options_of_qat()
    run, output = Path(options["run"]), Path(options["output"])
    given = {name: options[name] for name in (*_FIT_FIELDS, *GUARD_FIELDS) if options[name] is not None}
    guide = guide_named(options["guide"] or ("self" if qat is not None else "both"))
    training = training_of(run, options["data"], output, recovery(run, given, qat=qat is not None), guide)
    return CompressConfig(run, output, training, guide, qat, options["prune"])


def _refuse_options_of_qat() -> None:
    source = click.get_current_context().get_parameter_source
    given = [f"--{name.replace('_', '-')}" for name in _OF_QAT if source(name) is ParameterSource.COMMANDLINE]
    if given:
        raise UsageError(f"{', '.join(given)} belongs to --qat, which trains for 8 bits; leave it out with --prune")


def _qat(options: dict[str, Any]) -> QatConfig:
    from edgekit.compress.slim.config import QatConfig

    asked = QatConfig(
        options["runtime"], options["precision"], options["calibration_images"], learn_ranges=not options["hold_ranges"]
    )
    asked.check()
    return asked
