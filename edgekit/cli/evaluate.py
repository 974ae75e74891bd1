"""`edgekit eval`: what a model is worth, with intervals and the protocol beside the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.options import EXISTING, make_terminal, talk_options
from edgekit.terminal import Terminal, print_json

if TYPE_CHECKING:
    from edgekit.bench.classification_report import ClassificationReport
    from edgekit.bench.retrieval import RetrievalScores
    from edgekit.interval import Interval


@click.group("eval")
def evaluate() -> None:
    """Judge a model on held-out data: retrieval, zero-shot classes, or classification."""


@evaluate.command()
@click.argument("model")
@click.option(
    "--data", type=EXISTING, help="Captions: CSV, folder or tar shards, as for train clip; not with embeddings."
)
@click.option("--pictures", type=EXISTING, help="Folder of the CSV's pictures.")
@click.option("--val-fraction", type=float, help="Judge on this share of data that the run does not know.")
@click.option("--all", "everything", is_flag=True, help="Judge on all pictures, also those that were trained on.")
@click.option(
    "--split",
    type=click.Choice(["val", "test"]),
    default="val",
    show_default=True,
    help="test judges on the CSV's test split, where it stands beside a validation split.",
)
@click.option("--device", default="cpu", show_default=True, help="cpu, mps or cuda.")
@talk_options
def retrieval(**options: Any) -> None:
    """Rank captions for each picture and pictures for each caption: R@1, R@5, R@10, median rank.

    MODEL is a CLIP (a run folder, or open_clip's ARCH:TAG) with --data; or a folder of embeddings made elsewhere
    (image_embeddings.npy, text_embeddings.npy). A run is judged on the pictures that it held out. Ties count against
    the model.
    """
    terminal = make_terminal(options["quiet"], options["verbose"])

    from edgekit.bench.retrieval import retrieval_scores

    images, texts, owner, source = _pairs(options, terminal)
    scores = retrieval_scores(images, texts, owner)
    _show_retrieval(terminal, scores, source)
    if options["as_json"]:
        print_json("retrieval", {"model": options["model"], "source": source, **scores.to_json()})


@evaluate.command()
@click.argument("model")
@click.option("--data", type=EXISTING, required=True, help="Labelled pictures: folders of classes, or a CSV.")
@click.option("--template", "templates", multiple=True, help="Prompt with {} for the class; repeatable.")
@click.option("--device", default="cpu", show_default=True, help="cpu, mps or cuda.")
@talk_options
def zeroshot(**options: Any) -> None:
    """Classify pictures by prompts alone: MODEL is a CLIP, a run folder or open_clip's ARCH:TAG."""
    terminal = make_terminal(options["quiet"], options["verbose"])

    from edgekit.bench.classification_report import judge_zeroshot
    from edgekit.models.prompts import TEMPLATES

    templates = tuple(options["templates"]) or TEMPLATES
    report = judge_zeroshot(options["model"], options["data"], templates, options["device"], terminal.bar)
    _show_classification(terminal, report)
    if options["as_json"]:
        print_json("zeroshot", {"templates": list(templates), **report.to_json()})


@evaluate.command()
@click.argument("model", type=EXISTING)
@click.option("--data", type=EXISTING, required=True, help="Labelled pictures: folders of classes, or a CSV.")
@click.option("--val-fraction", type=float, help="Share to judge on, of data that is not split.  [default: the run's]")
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of an artifact's runtime."
)
@talk_options
def classify(**options: Any) -> None:
    """Classify pictures with a distilled or trained run, or with an exported artifact of a bundle.

    A run is judged on the pictures that it held out. Where that is not known, the last line says so.
    """
    terminal = make_terminal(options["quiet"], options["verbose"])

    from edgekit.bench.classification_report import judge_classifier

    report = judge_classifier(
        options["model"], options["data"], options["threads"], terminal.bar, options["val_fraction"]
    )
    _show_classification(terminal, report)
    if options["as_json"]:
        print_json("classification", report.to_json())


def _pairs(options: Mapping[str, Any], terminal: Terminal) -> tuple[Any, Any, Any, str]:
    """Return images, texts, owners and what they are."""
    from edgekit.bench.embedding_pairs import IMAGE_FILE, read_pairs

    folder = Path(options["model"])
    if options["data"] is None:
        if folder.is_dir() and not (folder / IMAGE_FILE).is_file() and (folder / "run.json").is_file():
            raise click.UsageError(f"{folder} is a run: say with --data which captions to judge it on")
        if not folder.is_dir():
            raise click.UsageError(f"{folder} is no folder of embeddings; for a CLIP, say with --data what to judge on")
        stored = read_pairs(folder)
        return stored.images, stored.texts, stored.owner, stored.source

    from edgekit.compress.clip.pairs import PairsConfig, embed_captions

    names = ("data", "pictures", "val_fraction", "everything", "split", "device")
    found = embed_captions(PairsConfig(options["model"], **{name: options[name] for name in names}), terminal)
    return found.images, found.texts, found.owner, f"{options['data']}: {found.subset}"


def _show_retrieval(terminal: Terminal, scores: RetrievalScores, source: str) -> None:
    ks = sorted({*scores.image_to_text.recall, *scores.text_to_image.recall})
    directions = (("image to text", scores.image_to_text), ("text to image", scores.text_to_image))
    rows = [
        [
            name,
            *(_range(direction.recall[k]) if k in direction.recall else "-" for k in ks),
            f"{direction.median_rank:g}",
            f"{direction.queries} in {direction.gallery}",
        ]
        for name, direction in directions
    ]
    terminal.table(["", *(f"R@{k} % (95 %)" for k in ks), "median rank", "queries in gallery"], rows)
    terminal.say(f"{source}.")
    terminal.say(f"Protocol: {scores.protocol}.")


def _show_classification(terminal: Terminal, report: ClassificationReport) -> None:
    scores, more = report.scores, report.intervals
    rows = [["top-1 %", _range(scores.top1)]]
    if scores.top5 is not None:
        rows.append(["top-5 %", _range(scores.top5)])
    rows.append(["macro-F1 %", _range(more.macro_f1)])
    rows.append(["cross-entropy, nats", _plain(more.cross_entropy)])
    rows.append(["calibration error %", _range(more.calibration_error)])
    terminal.table([report.model, "value (95 % interval)"], rows)
    terminal.say(f"{report.source}: {report.subset}, {len(report.classes)} classes.")
    for note in report.notes:
        terminal.say(note)


def _range(value: Interval) -> str:
    return f"{100 * value.value:.1f} ({100 * value.low:.1f}-{100 * value.high:.1f})"


def _plain(value: Interval) -> str:
    return f"{value.value:.3f} ({value.low:.3f}-{value.high:.3f})"
