"""`edgekit teach`: run a frozen teacher once over views of every picture, and keep what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgekit.cli.config_file import config_option
from edgekit.cli.options import make_terminal, output_options, picture_options, talk_options
from edgekit.terminal import print_json


@click.command()
@picture_options(
    "DIR/{train,val}/<class>/*, DIR/<class>/*, a CSV (path,label[,split]), or shards by `edgekit data shard`."
)
@click.option(
    "--teacher",
    "teachers",
    multiple=True,
    required=True,
    help="open_clip ARCH:TAG, ARCH:FILE or ARCH:random; an edgekit CLIP run; or FILE.onnx. Of several, a store each.",
)
@click.option(
    "--template", "templates", multiple=True, help="Prompt for class scores, with {} for the class; repeatable."
)
@click.option("--recipe", default="edge", show_default=True, help="What views vary: edge, v2, v3, or a YAML file.")
@click.option("--views", type=int, help="Augmented views per picture; 0 is the plain picture and its flip.")
@click.option("--seed", type=int, help="Seed of the views.")
@click.option("--device", help="auto, cpu, mps or cuda.")
@config_option
@output_options("teacher-store", "Teacher store")
@talk_options
def teach(**options: Any) -> None:
    """Run a frozen teacher once over views of every picture, and keep what it says.

    `edgekit distill --teacher-store STORE` then trains from the store, with the teacher or without its weights. Stopped
    at any moment, the same command goes on where it was; pictures that are added later are taught alone. More views
    than a store has need a new one.
    """
    terminal = make_terminal(options["quiet"], options["verbose"])

    from edgekit.compress.distill.config import DistillConfig
    from edgekit.compress.recipe import load_recipe
    from edgekit.compress.store.command import teach_data
    from edgekit.models.prompts import TEMPLATES

    changes = {"views": options["views"], "fit": {"seed": options["seed"], "device": options["device"]}}
    config = DistillConfig(
        data=Path(options["data"]),
        output=Path(options["output"]),
        recipe=load_recipe(options["recipe"], changes),
        teachers=tuple(options["teachers"]),
        templates=tuple(options["templates"]) or TEMPLATES,
        val_fraction=options["val_fraction"],
        max_broken=options["max_broken"],
    )
    summary = teach_data(config, terminal, overwrite=options["overwrite"])
    if options["as_json"]:
        print_json("teach", summary.facts)
