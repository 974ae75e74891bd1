"""`edgekit search`: find pictures by a sentence, with an exported CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgekit.cli.options import EXISTING, make_terminal, talk_options
from edgekit.printable import printable
from edgekit.terminal import print_json


@click.command()
@click.argument("images", type=EXISTING)
@click.argument("query")
@click.option(
    "--model",
    "models",
    type=EXISTING,
    multiple=True,
    required=True,
    help="Bundle of a CLIP; or twice: a file or bundle of an image tower (or of a student that was distilled from the "
    "CLIP), and one of the text tower.",
)
@click.option("--index", type=EXISTING, help="File that keeps the embeddings.  [default: a hidden one in IMAGES]")
@click.option("--rebuild", is_flag=True, help="Embed all pictures anew.")
@click.option("-k", "--count", type=click.IntRange(1), default=10, show_default=True, help="Pictures to find.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="For the runtime and decoding.")
@talk_options
def search(images: Path, query: str, **options: Any) -> None:
    """Print the pictures in the folder IMAGES that are nearest to the sentence QUERY.

    The pictures are embedded once, and after that only new and changed ones. Needs a runtime, not torch.
    """
    terminal = make_terminal(options["quiet"], options["verbose"])

    from edgekit.export.search import search as stage

    config = stage.SearchConfig(
        images,
        query,
        tuple(options["models"]),
        options["index"],
        options["count"],
        options["threads"],
        options["rebuild"],
    )
    result = stage.search(config, terminal)
    terminal.table(
        ("", "cosine", "picture"),
        [(str(rank), f"{score:.4f}", printable(key)) for rank, (key, score) in enumerate(result.hits, start=1)],
        left=("picture",),
    )
    terminal.say(f"{result.pictures} pictures searched, {result.embedded} of them embedded now")
    if options["as_json"]:
        hits = [{"key": key, "path": str(images / key), "cosine": score} for key, score in result.hits]
        index = str(result.index) if result.index else None
        facts = {"pictures": result.pictures, "embedded": result.embedded, "broken": result.broken}
        print_json("search", {"query": query, "hits": hits, "index": index, **facts})
