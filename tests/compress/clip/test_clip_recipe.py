"""CLIP recipes by name: the origin's size, changes from flags, and names that are not known."""

from __future__ import annotations

import pytest
import torch

from edgekit.compress.clip.recipe import CLIP_RECIPES, build_tokenizer, clip_spec, load_clip_recipe
from edgekit.errors import UsageError
from edgekit.models.clip import create_clip


def test_clip_small_has_the_size_of_its_origin() -> None:
    recipe = CLIP_RECIPES["clip-small"]
    with torch.device("meta"):  # counted, not filled
        clip = create_clip(clip_spec(recipe, build_tokenizer(recipe, [])))
    parameters = sum(p.numel() for p in clip.parameters())
    assert abs(parameters / 76.7e6 - 1) < 0.02
    assert (recipe.fit.batch_size, recipe.fit.lr, recipe.fit.epochs) == (12, 3e-4, 15)
    assert (recipe.fit.optimizer, recipe.fit.schedule.name, recipe.image_size) == ("adamw", "cosine", 224)


def test_memory_is_what_its_origin_was() -> None:
    recipe = CLIP_RECIPES["memory"]
    assert (recipe.text_width, recipe.text_layers, recipe.memory_slots) == (512, 4, 128)


def test_changes_are_merged_and_none_is_not_given() -> None:
    recipe = load_clip_recipe(
        "clip-tiny",
        {"image_size": None, "loss": "sigmoid", "fit": {"lr": 1e-5, "epochs": None, "schedule": "one-cycle"}},
    )
    assert (recipe.loss, recipe.fit.lr, recipe.fit.epochs, recipe.image_size) == ("sigmoid", 1e-5, 15, 96)
    assert recipe.fit.schedule.name == "one-cycle"
    assert load_clip_recipe("RN50", {}).embed_dim == 1024


def test_unknown_names_and_values_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'clip-small'"):
        load_clip_recipe("clip-smal", {})
    with pytest.raises(UsageError, match="allowed: clip-small, clip-tiny, memory"):
        load_clip_recipe("xyzzy", {})
    with pytest.raises(UsageError, match=r"fit.lr: .*greater than 0"):
        load_clip_recipe("memory", {"fit": {"lr": -1.0}})
