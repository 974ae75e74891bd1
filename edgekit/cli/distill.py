"""`edgekit distill`: train a student from a frozen teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from edgekit.cli.config_file import config_option
from edgekit.cli.options import EXISTING, given_or, make_terminal, output_options, picture_options, talk_options
from edgekit.cli.training_options import GUARD_FIELDS, guard_options, how_to_start, resume_options, seed_options
from edgekit.terminal import print_json

_FIT_FIELDS = ("epochs", "batch_size", "accumulate", "lr", "weight_decay", "seed", "device")
_RECIPE_FIELDS = ("alpha", "beta", "gamma", "temperature", "views", "freeze", "dropout")
"""Settings of a recipe that have an option of their own name."""


@click.command()
@picture_options()
@click.option(
    "--teacher",
    "teachers",
    multiple=True,
    help="open_clip ARCH:TAG, ARCH:FILE or ARCH:random; an edgekit CLIP run; or FILE.onnx. Several are joined.",
)
@click.option(
    "--teacher-weight", "teacher_weights", type=float, multiple=True, help="One for each --teacher.  [default: equal]"
)
@click.option(
    "--teacher-mode",
    type=click.Choice(["store", "online"]),
    default="store",
    show_default=True,
    help="Ask the teacher once and train from its store, or run it in the loop on the very view the student sees.",
)
@click.option("--teacher-embeddings", type=EXISTING, help="Precomputed embeddings (.npz: files, embeddings).")
@click.option(
    "--template", "templates", multiple=True, help="Prompt for class scores, with {} for the class; repeatable."
)
@click.option(
    "--student",
    default="mobilevit_xxs",
    show_default=True,
    help="Any timm image model; NAME.TAG starts from timm's weights.",
)
@click.option("--student-weights", type=EXISTING, help="Local backbone weights to start from (.safetensors, .pt).")
@click.option(
    "--init-from",
    type=EXISTING,
    help="Run folder or checkpoint whose student this run trains on; tells --student, --image-size and --frames. With "
    "--frames, clips start from a student of pictures.",
)
@click.option(
    "--image-size", "--imgsz", type=int, default=256, show_default=True, help="Side of the student's input in pixels."
)
@click.option(
    "--frames",
    type=int,
    default=1,
    show_default=True,
    help="Frames of a clip, for data of videos or <class>/<clip>/ folders of frames; 1 trains on pictures.",
)
@click.option("--positions", is_flag=True, help="Let the order of a clip's frames count.")
@click.option("--recipe", default="edge", show_default=True, help="edge, ego4d, v2, v3, or a YAML file.")
@click.option("--epochs", type=int, help="Passes over the training set.")
@click.option("--batch-size", type=int, help="Pictures per step.")
@click.option("--accumulate", type=int, help="Compute each step in so many parts, one after the other: less memory.")
@click.option("--lr", type=float, help="Peak learning rate.")
@click.option("--weight-decay", type=float, help="Decay of the weights.")
@click.option(
    "--freeze", type=int, help="Early stages of the backbone that stay as they come, the stem being the first."
)
@click.option("--dropout", type=float, help="Share of the embedding that the classifier does not see in a step.")
@click.option("--alpha", type=float, help="Weight of the feature loss.")
@click.option("--beta", type=float, help="Weight of the response loss.")
@click.option("--gamma", type=float, help="Weight of the task loss.")
@click.option("--temperature", type=float, help="Temperature of the response loss.")
@click.option("--views", type=int, help="Augmented views per picture that the teacher embeds.")
@seed_options
@click.option("--teacher-store", type=EXISTING, help="A store by `edgekit teach`, or a folder of stores.")
@click.option("--schedule", help="Learning-rate schedule by name; its parameters come from the recipe.")
@guard_options
@config_option
@resume_options
@output_options("runs/distill", "Run folder")
@talk_options
def distill(**options: Any) -> None:
    """Train a student from a frozen teacher.

    The loss is α·feature + β·response + γ·task. The teacher embeds every picture once; the student trains from that.
    The best checkpoint by validation accuracy, the metrics and the plots go to the run folder.
    """
    terminal = make_terminal(options["quiet"], options["verbose"])
    start = how_to_start(options)

    from edgekit.compress.distill.config import DistillConfig
    from edgekit.compress.distill.run import distill as run_distill
    from edgekit.compress.parallel.processes import joined
    from edgekit.compress.recipe import load_recipe
    from edgekit.models.prompts import TEMPLATES

    fit = {name: options[name] for name in (*_FIT_FIELDS, *GUARD_FIELDS)}
    fit["schedule"] = {"name": options["schedule"]}
    loss = {name: options[name] for name in _RECIPE_FIELDS}
    config = DistillConfig(
        data=Path(options["data"]),
        output=Path(options["output"]),
        recipe=load_recipe(options["recipe"], {**loss, "fit": fit}),
        student_weights=options["student_weights"],
        init_from=options["init_from"],
        **_student(options),
        teachers=tuple(options["teachers"]),
        teacher_weights=tuple(options["teacher_weights"]),
        teacher_mode=options["teacher_mode"],
        teacher_embeddings=options["teacher_embeddings"],
        templates=tuple(options["templates"]) or TEMPLATES,
        val_fraction=options["val_fraction"],
        max_broken=options["max_broken"],
        teacher_cache=options["teacher_store"],
    )
    summary = run_distill(config, terminal, **start)
    if options["as_json"] and joined().is_main:
        print_json("distill", dict(summary.facts))


def _student(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the student's name and input: those given, else those of the run that this one begins from."""
    if options["init_from"] is None:
        return {name: options[name] for name in ("student", "image_size", "frames", "positions")}
    from edgekit.models.checkpoint import load_student

    spec = load_student(options["init_from"]).spec
    kept = {
        "student": spec.arch,
        "image_size": spec.image_size,
        "frames": spec.frames,
        "positions": spec.positions,
    }
    return given_or(options, kept)
