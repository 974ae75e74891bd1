"""Everything that decides how a text classifier is trained; recipes by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from edgekit.compress.recipe import FeatureLoss, FitConfig, validate
from edgekit.compress.training.schedule import ScheduleConfig
from edgekit.errors import UsageError, did_you_mean


class TextRecipe(BaseModel):
    """Encoder, tokenizer, loss weights, regularisation, optimisation.

    The loss is α·feature + β·response + γ·task; without a teacher only the task's.

    Attributes:
        vocab_size: ids at most of a tokenizer trained here.
        max_length: ids per text; longer texts lose their end.
        width, layers, heads, kernels, buckets, dropout: `edgekit.models.text_encoder.EncoderConfig`.
        merge_dropout, word_dropout: `edgekit.compress.text.pieces.PieceStore`.
        temperature: T of the response loss.
        label_smoothing: of the task loss.
        layer_decay: factor on the rate from each layer to the one below it (`edgekit.compress.training.layer_decay`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str
    vocab_size: int = Field(default=13_000, ge=258)
    max_length: int = Field(default=64, ge=2)
    lowercase: bool = True
    width: int = Field(default=128, ge=1)
    layers: int = Field(default=0, ge=0)
    heads: int = Field(default=4, ge=1)
    kernels: tuple[int, ...] = (1, 3, 5)
    buckets: int = Field(default=1 << 15, ge=0)
    dropout: float = Field(default=0.5, ge=0, lt=1)
    merge_dropout: float = Field(default=0.0, ge=0, lt=1)
    word_dropout: float = Field(default=0.2, ge=0, lt=1)
    alpha: float = Field(default=0.0, ge=0)
    beta: float = Field(default=1.0, ge=0)
    gamma: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=2.0, gt=0)
    feature_loss: FeatureLoss = "cosine"
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    fit: FitConfig = FitConfig()


_FIT = FitConfig(
    epochs=5,
    batch_size=64,
    lr=2e-3,
    weight_decay=0.5,
    decay_matrices_only=True,
    schedule=ScheduleConfig(name="cosine", warmup_fraction=0.05, min_factor=0.01),
    ema_decay=0.99,
    clip_norm=1.0,
)

TEXT_RECIPES: Mapping[str, TextRecipe] = {
    # why each number is here stands in LOG.md with its measurement
    "text-small": TextRecipe(name="text-small", fit=_FIT),
    "text-tiny": TextRecipe(name="text-tiny", vocab_size=4000, width=32, buckets=1 << 13, kernels=(3,), fit=_FIT),
    "text-transformer": TextRecipe(
        name="text-transformer", layers=1, kernels=(), fit=_FIT.model_copy(update={"lr": 1e-3})
    ),
    # the usual rates for a pretrained encoder (Devlin et al. 2019, §A.3)
    "finetune": TextRecipe(
        name="finetune",
        max_length=128,
        word_dropout=0.0,
        label_smoothing=0.0,
        fit=FitConfig(
            epochs=3,
            batch_size=32,
            lr=3e-5,
            weight_decay=0.01,
            decay_matrices_only=True,
            schedule=ScheduleConfig(name="linear", warmup_fraction=0.1),
            clip_norm=1.0,
        ),
    ),
}


def load_text_recipe(name: str, changes: Mapping[str, Any]) -> TextRecipe:
    """Return a recipe by name with `changes` over it; None means "not given".

    Raises:
        UsageError: an unknown name, or values that do not fit; all are named at once.
    """
    if name not in TEXT_RECIPES:
        raise UsageError(f"--recipe '{name}' is not known; {did_you_mean(name, TEXT_RECIPES)}")
    values = TEXT_RECIPES[name].model_dump()
    for key, value in changes.items():
        if isinstance(value, Mapping):
            inner = {k: v for k, v in value.items() if v is not None}
            below = dict(values[key])
            if "schedule" in inner:
                named = {k: v for k, v in inner.pop("schedule").items() if v is not None}
                below["schedule"] = {**below["schedule"], **named}
            values[key] = {**below, **inner}
        elif value is not None:
            values[key] = value
    return validate(TextRecipe, values, f"recipe {name}")
