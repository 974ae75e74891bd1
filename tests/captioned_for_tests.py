"""A CLIP that was really trained, in seconds, on a few drawings."""

from __future__ import annotations

from pathlib import Path

from edgekit.compress.clip.recipe import load_clip_recipe
from edgekit.compress.clip.train import TrainClipConfig, train_clip
from edgekit.demo.drawings import write_drawings
from edgekit.terminal import Terminal


def train_small_clip(folder: Path, **changes: object) -> Path:
    """Train on 48 drawings in `folder`/drawings and return the run folder."""
    drawings = write_drawings(folder / "drawings", labelled=36, unlabelled=28, val=24, size=40, seed=0).folder
    fit = {"epochs": 1, "batch_size": 16, "device": "cpu"}
    small = {"image_size": 32, "text_width": 32, "text_layers": 1, "embed_dim": 32, "context_length": 24}
    recipe = load_clip_recipe("clip-demo", {**small, "fit": fit, **changes})
    train_clip(TrainClipConfig(drawings / "captions.csv", folder / "clip", recipe, val_fraction=0.25), Terminal(-1))
    return folder / "clip"
