"""`edgekit train text`: train a text classifier."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from edgekit.cli.config_file import config_option
from edgekit.cli.options import EXISTING, make_terminal, output_options, talk_options
from edgekit.cli.training_options import GUARD_FIELDS, guard_options, how_to_start, resume_options, seed_options
from edgekit.errors import UsageError
from edgekit.terminal import print_json

_FIT = ("epochs", "batch_size", "lr", "weight_decay", "seed", "device", "precision", *GUARD_FIELDS)
_RECIPE = ("max_length", "vocab_size", "alpha", "beta", "gamma", "temperature", "label_smoothing", "layer_decay")


@click.command("text")
@click.option(
    "--data",
    type=EXISTING,
    required=True,
    help="CSV, TSV or JSONL: text and label; a label is a class, a JSON list, or columns p_<class>.",
)
@click.option("--val", type=EXISTING, help="Validation texts, likewise.")
@click.option("--test", type=EXISTING, help="Test texts, likewise; judged once, at the end.")
@click.option(
    "--val-fraction",
    type=float,
    default=0.1,
    show_default=True,
    help="Share of each class kept for validation, without --val.",
)
@click.option("--classes", help="Names of the classes 0, 1, … with commas.")
@click.option("--text-column", default="text", show_default=True, help="Column of the texts, in files with a header.")
@click.option("--label-column", default="label", show_default=True, help="Column of the labels.")
@click.option(
    "--encoder", help="Hugging Face encoder by name, or its local folder.  [default: a small one, from scratch]"
)
@click.option("--teacher", type=EXISTING, help="Run of a larger text classifier to learn from.")
@click.option(
    "--recipe",
    help="text-small, text-tiny, text-transformer, finetune.  [default: text-small; finetune with --encoder]",
)
@click.option("--epochs", type=int, help="Passes over the training set.")
@click.option("--batch-size", type=int, help="Texts per step.")
@click.option("--lr", type=float, help="Peak learning rate.")
@click.option("--weight-decay", type=float, help="Decoupled weight decay.")
@click.option("--max-length", type=int, help="Ids per text; longer texts lose their end.")
@click.option("--vocab-size", type=int, help="Ids at most of a tokenizer trained here.")
@click.option("--alpha", type=float, help="Weight of the feature loss, with --teacher.")
@click.option("--beta", type=float, help="Weight of the response loss, with --teacher.")
@click.option("--gamma", type=float, help="Weight of the task loss.")
@click.option("--temperature", type=float, help="Temperature of the response loss.")
@click.option("--label-smoothing", type=float, help="Of the task loss.")
@seed_options
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), help="Of the arithmetic.  [default: fp32]")
@click.option("--layer-decay", type=float, help="Each layer's rate is this factor of the next one's, e.g. 0.75.")
@click.option("--schedule", help="Learning-rate schedule by name: linear, cosine, …")
@guard_options
@config_option
@resume_options
@output_options("runs/text", "Run folder")
@talk_options
def train_text(**options: Any) -> None:
    """Train a text classifier, from scratch or from a pretrained encoder, with or without a teacher.

    The tokenizer of a small one is trained on the training texts alone. Accuracy, macro-F1, cross-entropy and KL
    divergence, each with its interval, and the confusion matrix go to the run folder.
    """
    terminal = make_terminal(options["quiet"], options["verbose"])
    start = how_to_start(options)
    _refuse_unread(options)

    from edgekit.compress.text.recipe import load_text_recipe
    from edgekit.compress.text.train import TextConfig
    from edgekit.compress.text.train import train_text as run_training
    from edgekit.text_files import TextFiles

    fit: dict[str, Any] = {name: options[name] for name in _FIT}
    fit["schedule"] = {"name": options["schedule"]}
    name = options["recipe"] or ("finetune" if options["encoder"] else "text-small")
    recipe = load_text_recipe(name, {**{key: options[key] for key in _RECIPE}, "fit": fit})
    files = TextFiles(
        train=Path(options["data"]),
        val=options["val"],
        test=options["test"],
        val_fraction=options["val_fraction"],
        classes=tuple(part.strip() for part in (options["classes"] or "").split(",") if part.strip()),
        text_column=options["text_column"],
        label_column=options["label_column"],
    )
    config = TextConfig(files, Path(options["output"]), recipe, options["encoder"], options["teacher"])
    summary = run_training(config, terminal, **start)
    if options["as_json"]:
        print_json("train-text", dict(summary.facts))


def _refuse_unread(options: Mapping[str, Any]) -> None:
    """Refuse options that would change nothing.

    Raises:
        UsageError: weights of a teacher that is not given, or a share to hold out beside --val.
    """
    if options["teacher"] is None:
        for name in ("alpha", "beta", "temperature"):
            if options[name]:
                raise UsageError(
                    f"--{name} {options[name]:g} is of learning from a teacher; give --teacher, or leave it out"
                )
    given = click.get_current_context().get_parameter_source("val_fraction") is not ParameterSource.DEFAULT
    if options["val"] is not None and given:
        raise UsageError(
            f"--val-fraction {options['val_fraction']:g} holds out training texts, while --val {options['val']} gives "
            "the validation texts; leave one of them out"
        )
