"""`edgekit train`: the trainings beside distillation. Each lives in its own module, imported only when it runs."""

from __future__ import annotations

from collections.abc import Mapping

import click

from edgekit.cli.lazy import LazyGroup

TRAININGS: Mapping[str, tuple[str, str]] = {
    "clip": ("edgekit.cli.train_clip:train_clip", "Train a CLIP on pictures and captions; a teacher comes out."),
    "image": ("edgekit.cli.train_image:train_image", "Train an image classifier from labels alone."),
    "text": ("edgekit.cli.train_text:train_text", "Train a text classifier, from scratch or from an encoder."),
}


@click.group(cls=LazyGroup, lazy=TRAININGS, kind="training")
def train() -> None:
    """Train something else than a distilled student, in the same loop: a CLIP, or a classifier."""
