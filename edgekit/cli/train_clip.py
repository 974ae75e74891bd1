"""`edgekit train clip`: train a CLIP on pictures and captions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from edgekit.cli.config_file import config_option
from edgekit.cli.options import EXISTING, make_terminal, max_broken_option, output_options, talk_options
from edgekit.cli.training_options import GUARD_FIELDS, guard_options, how_to_start, resume_options, seed_options
from edgekit.terminal import print_json

if TYPE_CHECKING:
    from edgekit.compress.clip.recipe import ClipRecipe

_FIT = ("epochs", "batch_size", "lr", "weight_decay", "seed", "device", "precision", "schedule", *GUARD_FIELDS)
_RECIPE = ("image_size", "vision", "loss", "chunk_size", "checkpoint_blocks", "freeze_vision", "select")


@click.command("clip")
@click.option(
    "--data",
    type=EXISTING,
    required=True,
    help="CSV (image,caption[,split]), a folder with captions.csv, one with a text file beside each picture, or tar "
    "shards with a .txt beside each picture.",
)
@click.option("--pictures", type=EXISTING, help="Folder of the CSV's pictures.  [default: the CSV's own, or images/]")
@click.option(
    "--val-fraction", type=float, help="Share of the pictures to hold out where no split is given.  [default: 0.1]"
)
@max_broken_option
@click.option(
    "--model",
    default="clip-small",
    show_default=True,
    help="clip-small, clip-tiny, memory, clip-demo, or an architecture of open_clip (RN50).",
)
@click.option("--vision", help="Another timm image tower.")
@click.option("--vision-weights", type=EXISTING, help="Local weights that the image tower starts from.")
@click.option("--freeze-vision", is_flag=True, default=None, help="Leave the image tower as it begins.")
@click.option("--image-size", "--imgsz", type=int, help="Side of the input in pixels.")
@click.option(
    "--tokenizer", type=click.Choice(["bpe", "chars"]), help="CLIP's byte pairs, or 33 characters.  [default: bpe]"
)
@click.option("--context-length", type=int, help="Tokens per caption; longer ones are cut.")
@click.option("--full-vocabulary", is_flag=True, help="Keep the byte pairs that the captions do not use.")
@click.option("--loss", type=click.Choice(["infonce", "sigmoid"]), help="CLIP's or SigLIP's.  [default: infonce]")
@click.option("--epochs", type=int, help="Passes over the training set.")
@click.option("--batch-size", type=int, help="Pairs per step, all of which the loss compares.")
@click.option("--chunk-size", type=int, help="Pairs that the towers see at once; less memory, the same gradients.")
@click.option(
    "--checkpoint-blocks", is_flag=True, default=None, help="Compute activations twice instead of keeping them."
)
@click.option("--lr", type=float, help="Peak learning rate.")
@click.option("--weight-decay", type=float, help="Of the matrices.")
@click.option("--schedule", help="Learning-rate schedule by name.")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), help="bf16 runs under autocast.")
@click.option("--select", type=click.Choice(["mean_r1", "val_loss"]), help="What the best checkpoint is best in.")
@click.option(
    "--init-from",
    type=EXISTING,
    help="Run folder or clip.safetensors that this run trains on; a run folder tells all other settings.",
)
@seed_options
@guard_options
@config_option
@resume_options
@output_options("runs/clip", "Run folder")
@talk_options
def train_clip(**options: Any) -> None:
    """Train a CLIP on pictures and captions, from scratch or from a pretrained image tower.

    The best checkpoint by retrieval of held-out pairs, the metrics and the plots go to the run folder, which
    `distill --teacher` and `eval` take.
    """
    terminal = make_terminal(options["quiet"], options["verbose"])
    start = how_to_start(options)

    from edgekit.compress.clip.train import TrainClipConfig
    from edgekit.compress.clip.train import train_clip as run_training
    from edgekit.compress.training.run_folder import RunFolder

    output = Path(options["output"])
    config = TrainClipConfig(
        data=options["data"],
        output=output,
        recipe=_recipe(options),
        pictures=options["pictures"],
        val_fraction=options["val_fraction"],
        max_broken=options["max_broken"],
        vision_weights=options["vision_weights"],
        init_from=options["init_from"],
    )
    run_training(config, terminal, **start)
    if options["as_json"]:
        print_json("train-clip", RunFolder(output).facts())


def _recipe(options: Mapping[str, Any]) -> ClipRecipe:
    """Return the recipe that the options ask for: by name, or that of the run that this one begins from."""
    from edgekit.compress.clip.recipe import load_clip_recipe, with_changes
    from edgekit.compress.clip.train import recipe_of_run

    changes = {name: options[name] for name in (*_RECIPE, "context_length")}
    changes["tokenizer"] = "characters" if options["tokenizer"] == "chars" else options["tokenizer"]
    changes["trim_vocabulary"] = False if options["full_vocabulary"] else None
    changes["fit"] = {name: options[name] for name in _FIT}
    named = click.get_current_context().get_parameter_source("model") is not ParameterSource.DEFAULT
    earlier: Path | None = options["init_from"]
    if earlier is not None and earlier.is_dir() and not named:
        return with_changes(recipe_of_run(earlier), changes, f"--init-from {earlier}")
    return load_clip_recipe(options["model"], changes)
