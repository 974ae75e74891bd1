"""Recipes of CLIPs to train: towers, tokenizer, loss and optimisation, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from edgekit.compress.recipe import AugmentConfig, FitConfig, validate
from edgekit.compress.training.schedule import ScheduleConfig
from edgekit.errors import UsageError, did_you_mean
from edgekit.models.clip import Clip, ClipFamily, ClipSpec, ContrastiveLoss, create_clip
from edgekit.models.tokenizer import BpeTokenizer, CharacterTokenizer, Tokenizer, clip_tokenizer
from edgekit.preprocess import Preprocess


class ClipRecipe(BaseModel):
    """Towers, tokenizer, loss and optimisation of a CLIP trained here.

    Attributes:
        vision: timm name of the image tower; see `ClipSpec` for other families.
        tokenizer: CLIP's byte pairs, or single characters.
        trim_vocabulary: keep only the byte pairs that the training captions use; a small embedding table trains faster.
        chunk_size: pairs that the towers see at once; the loss sees the whole batch all the same. 0 is the batch.
        checkpoint_blocks: compute the activations inside the towers' blocks again instead of keeping them.
        freeze_vision: leave the image tower as it begins.
        select: what the best checkpoint is best in; mean_r1 is the mean of R@1 in both directions.
        augment: views of the pictures. No flip by default: captions say left and right.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    vision: str
    family: ClipFamily = "clip"
    image_size: int = Field(default=64, ge=16)
    embed_dim: int = Field(default=128, ge=1)
    text_width: int = Field(default=128, ge=1)
    text_layers: int = Field(default=2, ge=1)
    text_heads: int = Field(default=4, ge=1)
    context_length: int = Field(default=32, ge=3)
    memory_slots: int = Field(default=0, ge=0)
    patch_size: int = Field(default=0, ge=0)
    tokenizer: Literal["bpe", "characters"] = "bpe"
    trim_vocabulary: bool = True
    loss: ContrastiveLoss = "infonce"
    chunk_size: int = Field(default=0, ge=0)
    checkpoint_blocks: bool = False
    freeze_vision: bool = False
    select: Literal["mean_r1", "val_loss"] = "mean_r1"
    augment: AugmentConfig = AugmentConfig()
    fit: FitConfig = FitConfig()

    def train_size(self, epoch: int, full: int) -> int:
        """Return the side in pixels of the pictures of a 1-based epoch: always that of the tower's input, `full`."""
        return full


CLIP_DEMO = ClipRecipe(
    name="clip-demo",
    vision="test_resnet",
    augment=AugmentConfig(crop_scale=(0.9, 1.0), crop_ratio=(0.9, 1.11)),
    fit=FitConfig(
        epochs=6,
        batch_size=32,  # more steps per second beat more negatives per step at this size
        lr=2e-3,
        weight_decay=0.05,
        decay_matrices_only=True,
        schedule=ScheduleConfig(name="cosine", warmup_epochs=0.5, min_factor=0.01),
        betas=(0.9, 0.98),  # CLIP's β₂ for its ViTs (table 18)
        ema_decay=0.99,
        clip_norm=1.0,
        channels_last=True,
    ),
)

_PHOTOS = AugmentConfig(crop_scale=(0.6, 1.0), crop_ratio=(0.8, 1.25))
_FIT = FitConfig(
    epochs=15,
    batch_size=12,
    lr=3e-4,
    weight_decay=0.1,
    decay_matrices_only=True,
    schedule=ScheduleConfig(name="cosine", warmup_fraction=0.03),
    betas=(0.9, 0.98),
    clip_norm=1.0,
)

CLIP_RECIPES: Mapping[str, ClipRecipe] = {
    # 76.7 M parameters: the table of CLIP's 49,408 byte pairs alone is 25.3 M of them, so it is not trimmed
    "clip-small": ClipRecipe(
        name="clip-small",
        vision="vit_small_patch32_224",
        image_size=224,
        embed_dim=512,
        text_width=512,
        text_layers=9,
        text_heads=8,
        context_length=77,
        trim_vocabulary=False,
        augment=_PHOTOS,
        fit=_FIT,
    ),
    "clip-tiny": ClipRecipe(
        name="clip-tiny",
        vision="resnet10t",
        image_size=96,
        embed_dim=256,
        text_width=192,
        text_layers=4,
        text_heads=4,
        context_length=77,
        augment=_PHOTOS,
        fit=_FIT.model_copy(update={"batch_size": 64, "lr": 1e-3, "channels_last": True}),
    ),
    "memory": ClipRecipe(
        name="memory",
        vision="patches",
        family="memory",
        image_size=96,
        embed_dim=256,
        text_width=512,
        text_layers=4,
        text_heads=8,
        context_length=77,
        memory_slots=128,
        patch_size=16,
        augment=_PHOTOS,
        fit=_FIT.model_copy(update={"batch_size": 64}),
    ),
    "clip-demo": CLIP_DEMO,
}


def load_clip_recipe(name: str, changes: Mapping[str, Any]) -> ClipRecipe:
    """Return a recipe by name, or one for an open_clip architecture, with `changes` merged over it.

    Args:
        name: one of `CLIP_RECIPES`, or an architecture of open_clip ("RN50").
        changes: field -> value; "fit" holds those of `FitConfig`. None is "not given".

    Raises:
        UsageError: unknown name, or values that do not fit; all of them are named at once.
    """
    return with_changes(CLIP_RECIPES.get(name) or _of_open_clip(name), changes, f"--model {name}")


def with_changes(base: ClipRecipe, changes: Mapping[str, Any], what: str) -> ClipRecipe:
    """Return `base` with `changes` merged over it, as `load_clip_recipe` does.

    Raises:
        UsageError: values that do not fit; all of them are named at once.
    """
    given = {field: value for field, value in changes.items() if value is not None and field != "fit"}
    fit = {field: value for field, value in changes.get("fit", {}).items() if value is not None}
    if isinstance(schedule := fit.get("schedule"), str):
        own_warmup = {"warmup_fraction": 0.0, "warmup_epochs": 0.0} if schedule == "one-cycle" else {}
        fit["schedule"] = {**base.fit.schedule.model_dump(), **own_warmup, "name": schedule}
    return validate(ClipRecipe, {**base.model_dump(), **given, "fit": {**base.fit.model_dump(), **fit}}, what)


def _of_open_clip(arch: str) -> ClipRecipe:
    import open_clip

    from edgekit.models.open_clip_towers import open_clip_config

    if arch not in open_clip.list_models():
        names = [*CLIP_RECIPES, *open_clip.list_models()]
        hint = did_you_mean(arch, names)
        if hint.startswith("allowed"):
            hint = f"allowed: {', '.join(CLIP_RECIPES)}, or an architecture of open_clip such as ViT-B-32"
        raise UsageError(f"--model '{arch}' is not known; {hint}")
    config = open_clip_config(arch)
    vision, text = config["vision_cfg"], config["text_cfg"]
    size = vision.get("image_size", 224)
    return ClipRecipe(
        name=arch,
        vision=arch,
        family="open_clip",
        image_size=size[0] if isinstance(size, list | tuple) else size,
        embed_dim=config["embed_dim"],
        text_width=text.get("width", 512),
        text_layers=text.get("layers", 12),
        text_heads=text.get("heads", 8),
        context_length=text.get("context_length", 77),
        trim_vocabulary=False,
        augment=_PHOTOS,
        fit=_FIT,
    )


def build_tokenizer(recipe: ClipRecipe, texts: Iterable[str]) -> Tokenizer:
    """Return the recipe's tokenizer, whose vocabulary may be trimmed to `texts`.

    Raises:
        MissingExtraError: the byte pairs come with open_clip, which is absent.
    """
    if recipe.tokenizer == "characters":
        return CharacterTokenizer(recipe.context_length)
    full = clip_tokenizer(recipe.context_length)
    return full.trimmed(texts) if recipe.trim_vocabulary else BpeTokenizer(full.merges, recipe.context_length)


def build_clip(recipe: ClipRecipe, texts: Iterable[str]) -> tuple[Clip, Tokenizer]:
    """Return an untrained CLIP and its tokenizer, whose vocabulary may be trimmed to `texts`.

    Weights depend on `recipe.fit.seed` alone.

    Raises:
        UsageError: unknown image tower, or one that cannot take this image size.
        MissingExtraError: the byte pairs come with open_clip, which is absent.
    """
    tokenizer = build_tokenizer(recipe, texts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.fit.seed)
        return create_clip(clip_spec(recipe, tokenizer)), tokenizer


def clip_spec(recipe: ClipRecipe, tokenizer: Tokenizer) -> ClipSpec:
    """Return the spec of the CLIP that a recipe asks for."""
    size = recipe.image_size
    shared = ("vision", "embed_dim", "text_width", "text_layers", "text_heads", "family", "memory_slots", "patch_size")
    return ClipSpec(
        **{name: getattr(recipe, name) for name in shared},
        context_length=tokenizer.context_length,
        vocab_size=tokenizer.vocab_size,
        preprocess=Preprocess(size, size, "bicubic", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        loss=recipe.loss,
    )
