"""How an image classifier is trained from labels alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from edgekit.compress.recipe import AugmentConfig, FitConfig, validate
from edgekit.compress.training.schedule import ScheduleConfig


class ImageRecipe(BaseModel):
    """Loss, augmentation and optimisation of a classifier.

    Attributes:
        label_smoothing: share of the target spread over all classes (arXiv 1512.00567, §7).
        mixup: α of the Beta distribution that the share of the second picture is drawn from (arXiv 1710.09412);
            0 mixes nothing.
        layer_decay: factor on the rate from each layer to the one below it (`edgekit.compress.training.layer_decay`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    mixup: float = Field(default=0.0, ge=0)
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    augment: AugmentConfig = AugmentConfig()
    fit: FitConfig = FitConfig()

    def train_size(self, epoch: int, full: int) -> int:
        """Return the side in pixels of the pictures of a 1-based epoch: always that of the net's input, `full`."""
        return full


# The usual ImageNet recipe of ResNets (arXiv 1706.02677 §5.1, 1812.01187 §5): a warm-up, one cosine, no restart.
# 0.1 per 256 pictures is 0.025 at 64.
IMAGE_SGD = ImageRecipe(
    name="sgd",
    augment=AugmentConfig(crop_scale=(0.25, 1.0), crop_ratio=(0.75, 4 / 3), flip=0.5),
    fit=FitConfig(
        epochs=90,
        batch_size=64,
        lr=0.025,
        optimizer="sgd",
        momentum=0.9,
        nesterov=True,
        weight_decay=5e-5,
        decay_matrices_only=True,
        schedule=ScheduleConfig(name="cosine", warmup_fraction=0.05),
        channels_last=True,
    ),
)


def image_recipe(
    changes: Mapping[str, Any], *, base: ImageRecipe = IMAGE_SGD, min_lr: float | None = None
) -> ImageRecipe:
    """Return `base` with `changes` merged over it.

    Args:
        changes: field -> value; "fit" holds those of `FitConfig`, in it "schedule" those of `ScheduleConfig`. None is
            "not given".
        base: what is changed.
        min_lr: the schedule's lowest rate; becomes a factor on the peak.

    Raises:
        UsageError: values that do not fit; all of them are named at once.
    """
    given = {field: value for field, value in changes.items() if value is not None and field != "fit"}
    fit = {f: value for f, value in changes.get("fit", {}).items() if value is not None and f != "schedule"}
    schedule = {f: value for f, value in changes.get("fit", {}).get("schedule", {}).items() if value is not None}
    if fit.get("optimizer") == "adamw" and "nesterov" not in fit:
        fit["nesterov"] = False
    merged = {**base.fit.model_dump(), **fit}
    if min_lr is not None and isinstance(peak := merged["lr"], float | int) and peak > 0:
        schedule["min_factor"] = min_lr / peak
    if schedule.get("name") == "one-cycle":
        schedule.setdefault("warmup_fraction", 0.0)  # it has its own
    merged["schedule"] = {**merged["schedule"], **schedule}
    return validate(ImageRecipe, {**base.model_dump(), **given, "fit": merged}, "the training")
