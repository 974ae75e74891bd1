"""The `edgekit` command. Each subcommand lives in its own module, imported only when it runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import click

from edgekit.cli.lazy import LazyGroup
from edgekit.exits import run_command

COMMANDS: Mapping[str, tuple[str, str]] = {
    "distill": ("edgekit.cli.distill:distill", "Train a student from a frozen teacher."),
    "train": ("edgekit.cli.train:train", "Train a CLIP or a classifier from scratch, in the same loop."),
    "teach": ("edgekit.cli.teach:teach", "Run a teacher once over views of every picture, and keep what it says."),
    "compress": ("edgekit.cli.compress:compress", "Train a student for 8 bits, or prune it, and distil to recover."),
    "data": ("edgekit.cli.data:data", "Write a data set as tar shards, which training streams."),
    "export": ("edgekit.cli.export:export", "Convert a student to ONNX, Core ML and TFLite, and prove the files."),
    "verify": (
        "edgekit.cli.verify:verify",
        "Check artifacts against their manifest and golden vectors; needs no torch.",
    ),
    "bench": (
        "edgekit.cli.bench:bench",
        "Measure latency and accuracy of teacher, student and artifacts, side by side.",
    ),
    "compare": ("edgekit.cli.compare:compare", "Say what two bench results differ in, and what of it is sure."),
    "report": ("edgekit.cli.report:report", "Make one page of a run, its files and their bench, or a Markdown table."),
    "eval": ("edgekit.cli.evaluate:evaluate", "Judge a model: retrieval, zero-shot classes, classification."),
    "search": ("edgekit.cli.search:search", "Find pictures by a sentence, with an exported CLIP; needs no torch."),
    "inspect": ("edgekit.cli.inspect:inspect", "Show what is really inside an artifact: inputs, dtypes, ops."),
    "doctor": (
        "edgekit.cli.doctor:doctor",
        "Say which formats and runtimes work here, and what to install for the rest.",
    ),
    "demo": ("edgekit.cli.demo:demo", "Run the whole path offline on drawings made in code."),
    "forecast": ("edgekit.cli.forecast:forecast", "Predict where a training run will end, from its metrics so far."),
    "plot": ("edgekit.cli.plot:plot", "Draw the curves of one training run, or of several together."),
    "schedule": ("edgekit.cli.schedule:schedule", "Draw a learning-rate schedule before training with it."),
}


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    kind="command",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 good; 1 a valid negative result; 2 usage; 3 something could not be loaded; 130 interrupted.",
)
@click.version_option(package_name="edgekit", prog_name="edgekit")
def edgekit() -> None:
    """From a frozen CLIP teacher to a verified INT8 model on a phone."""


def main() -> None:
    """Run the command line; every error of the user's ends in one clear line and the right exit code."""
    sys.exit(run(sys.argv[1:]))


def run(args: list[str]) -> int:
    """Run the command line with `args` and return the exit code."""
    return run_command(edgekit, args, "edgekit")
