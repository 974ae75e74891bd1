"""`edgekit data`: prepare data sets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from edgekit.cli.options import EXISTING, make_terminal, max_broken_option, output_options, talk_options
from edgekit.terminal import human_bytes, print_json

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


class _Bytes(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4 only
    """A number of bytes: 500000, 100MB, 1G."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?)B?\s*", str(value).upper())
        if match is None or float(match[1]) * _UNITS[match[2]] < 1:
            self.fail(f"'{value}' is no size; give e.g. 100MB or 1GB", param, ctx)
        return int(float(match[1]) * _UNITS[match[2]])


@click.group()
def data() -> None:
    """Prepare data sets."""


@data.command()
@click.option(
    "--data",
    "source",
    type=EXISTING,
    required=True,
    help="DIR/{train,val}/<class>/*, DIR/<class>/*, or a CSV (path,label[,split]).",
)
@click.option(
    "--val-fraction", type=float, help="Share of each class kept for validation, where the data has no split."
)
@click.option("--shard-size", type=_Bytes(), default="100MB", show_default=True, help="Pictures' bytes per shard.")
@max_broken_option
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the order, and of the split.")
@output_options("shards", "Folder")
@talk_options
def shard(**options: Any) -> None:
    """Write a data set as WebDataset tar shards, which `distill` and `train image` stream.

    Each sample is a picture as it is, its class number (.cls) and its name (.json); index.json beside the shards has
    the classes and counts. Memory in training then does not grow with the number of pictures.
    """
    terminal = make_terminal(options["quiet"], options["verbose"])

    from edgekit.data import load_dataset
    from edgekit.shard_writer import write_shards

    output = Path(options["output"])
    dataset = load_dataset(Path(options["source"]), val_fraction=options["val_fraction"], seed=options["seed"])
    total = len(dataset.train) + len(dataset.val)
    with terminal.bar("writing shards", total) as advance:
        written = write_shards(
            dataset,
            output,
            shard_bytes=options["shard_size"],
            seed=options["seed"],
            max_broken=options["max_broken"],
            overwrite=options["overwrite"],
            advance=advance,
        )
    for reason in written.broken.values():
        terminal.warn(f"left out: {reason}")
    shards = written.shards
    counts = {split: sum(s["pictures"] for s in shards if s["split"] == split) for split in ("train", "val")}
    terminal.say(
        f"shards   {output}: {len(shards)} of {human_bytes(sum(s['size_bytes'] for s in shards))}, "
        f"{counts['train']} train, {counts['val']} val, {len(dataset.classes)} classes"
    )
    if options["as_json"]:
        facts = {"path": str(output), "classes": list(dataset.classes), **counts, "shards": shards}
        print_json("shards", {**facts, "broken": sorted(written.broken)})
