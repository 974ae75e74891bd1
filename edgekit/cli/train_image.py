"""`edgekit train image`: train an image classifier from labels alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from edgekit.cli.config_file import set_defaults
from edgekit.cli.options import EXISTING, given_or, make_terminal, output_options, picture_options, talk_options
from edgekit.cli.training_options import GUARD_FIELDS, guard_options, how_to_start, resume_options, seed_options
from edgekit.errors import UsageError
from edgekit.terminal import print_json

if TYPE_CHECKING:
    from edgekit.compress.image.recipe import ImageRecipe

_NOTES = "edgekit.origin-config"
_FIT = (
    *("epochs", "batch_size", "lr", "optimizer", "momentum", "nesterov", "weight_decay", "clip_norm", "seed", "device"),
    *("precision", "ema_decay", *GUARD_FIELDS),
)
_OF_SOME_SCHEDULES = {"t_0": "--t0", "t_mult": "--t-mult", "min_lr": "--min-lr"}
_SCHEDULE = {"schedule": "name", "t_0": "t_0", "t_mult": "t_mult", "warmup_epochs": "warmup_epochs"}


def _read_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """Take the options of a YAML file, or of another trainer's config.json, as defaults."""
    if path is None or path.suffix != ".json":
        set_defaults(ctx, param, path)
        return
    from edgekit.compress.image.origin_config import read_origin_config

    origin = read_origin_config(path)
    ctx.meta[_NOTES] = [f"{path}: {note}" for note in origin.notes()]
    ctx.default_map = {**(ctx.default_map or {}), **origin.options}


@click.command("image")
@picture_options("DIR/{train,val}/<class>/*, DIR/<class>/*, a CSV (path,label[,split]), or tar shards.")
@click.option(
    "--model",
    default="resnet50",
    show_default=True,
    help="Any timm image model; NAME.TAG starts from timm's weights.",
)
@click.option("--weights", type=EXISTING, help="Local backbone weights to start from (.safetensors, .pt).")
@click.option("--init-from", type=EXISTING, help="Run folder or checkpoint whose classifier this run trains on.")
@click.option("--image-size", "--imgsz", type=int, default=224, show_default=True, help="Side of the input in pixels.")
@click.option("--embed-dim", type=int, default=512, show_default=True, help="Width of the embedding under the classes.")
@click.option("--epochs", type=int, help="Passes over the training set.  [default: 90]")
@click.option("--batch-size", type=int, help="Pictures per step.  [default: 64]")
@click.option("--lr", type=float, help="Peak learning rate.  [default: 0.025]")
@click.option("--optimizer", type=click.Choice(["sgd", "adamw"], case_sensitive=False), help="[default: sgd]")
@click.option("--momentum", type=float, help="Of SGD.  [default: 0.9]")
@click.option("--nesterov/--no-nesterov", default=None, help="Nesterov's momentum.  [default: nesterov]")
@click.option("--weight-decay", type=float, help="Of the matrices.  [default: 5e-5]")
@click.option("--clip-norm", type=float, help="Largest gradient norm; 0 is off.")
@click.option("--ema-decay", type=float, help="Moving average of the weights; 0 is off.")
@click.option("--label-smoothing", type=float, help="[default: 0.1]")
@click.option("--mixup", type=float, help="Mix pairs of pictures, shares drawn from Beta(α, α); 0 is off.")
@click.option("--layer-decay", type=float, help="Each layer's rate is this factor of the next one's, e.g. 0.75.")
@click.option("--schedule", help="Learning-rate schedule by name.  [default: cosine]")
@click.option("--t0", "t_0", type=float, help="cosine-restarts: epochs of the first cycle.")
@click.option("--t-mult", type=float, help="cosine-restarts: each cycle is this much longer.")
@click.option("--min-lr", type=float, help="Lowest learning rate.")
@click.option("--warmup-epochs", type=float, help="Epochs in which the rate rises.  [default: a twentieth of all]")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), help="bf16 runs under autocast.")
@seed_options
@guard_options
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=_read_config,
    help="YAML with any of these options, or another trainer's config.json (T_0, eta_min, initial_lr, …); flags win.",
)
@resume_options
@output_options("runs/image", "Run folder")
@talk_options
def train_image(**options: Any) -> None:
    """Train a classifier on labelled pictures: any timm backbone, SGD or AdamW, one cosine by default.

    The run folder is a student's: export, verify, bench and eval take it, and so does distill as a teacher.
    """
    terminal = make_terminal(options["quiet"], options["verbose"])
    start = how_to_start(options)
    for note in (*click.get_current_context().meta.get(_NOTES, []), *_unread_by_schedule(options)):
        terminal.warn(note)

    from edgekit.compress.image.train import TrainImageConfig
    from edgekit.compress.image.train import train_image as run_training
    from edgekit.compress.training.run_folder import RunFolder

    names = ("data", "weights", "init_from", "val_fraction", "max_broken", "embed_dim")
    config = TrainImageConfig(
        **{name: options[name] for name in names},
        **_net(options),
        output=Path(options["output"]),
        recipe=_recipe(options),
    )
    run_training(config, terminal, **start)
    if options["as_json"]:
        print_json("train-image", RunFolder(config.output).facts())


def _unread_by_schedule(options: Mapping[str, Any]) -> list[str]:
    """Refuse options that the schedule does not read; of another trainer's settings return a note of them.

    Raises:
        UsageError: naming the options, and the schedules that read them.
    """
    from edgekit.compress.image.recipe import IMAGE_SGD
    from edgekit.compress.training.schedule import PARAMETERS, reads

    context = click.get_current_context()
    name = options["schedule"] or IMAGE_SGD.fit.schedule.name
    if name not in PARAMETERS:
        return []  # the recipe names those that there are
    notes = []
    for option, spelling in _OF_SOME_SCHEDULES.items():
        field = _SCHEDULE.get(option, "min_factor")  # a lowest rate is a factor on the peak
        if options[option] is None or field in reads(name):
            continue
        readers = ", ".join(known for known in PARAMETERS if field in reads(known))
        said = f"the schedule {name} does not read {spelling}; read by {readers}"
        theirs = _NOTES in context.meta and context.get_parameter_source(option) is ParameterSource.DEFAULT_MAP
        if not theirs:
            raise UsageError(f"{said}. Leave it out, or give another --schedule")
        notes.append(said)
    return notes


def _recipe(options: Mapping[str, Any]) -> ImageRecipe:
    from edgekit.compress.image.recipe import image_recipe

    fit: dict[str, Any] = {name: options[name] for name in _FIT}
    fit["schedule"] = {field: options[option] for option, field in _SCHEDULE.items()}
    if options["warmup_epochs"] is not None:
        fit["schedule"]["warmup_fraction"] = 0.0
    changes = {**{name: options[name] for name in ("label_smoothing", "mixup", "layer_decay")}, "fit": fit}
    return image_recipe(changes, min_lr=options["min_lr"])


def _net(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model's name and size: those given, else those of the run that this one begins from."""
    if options["init_from"] is None:
        return {"model": options["model"], "image_size": options["image_size"]}
    from edgekit.models.checkpoint import load_student

    spec = load_student(options["init_from"]).spec
    return given_or(options, {"model": spec.arch, "image_size": spec.image_size})
