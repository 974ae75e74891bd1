"""Which weights are the early stages of a timm backbone, so that a small data set need not train them."""

from __future__ import annotations

from typing import Any

from timm.models import group_parameters
from torch import nn

from edgekit.errors import UsageError


def early_weights(backbone: nn.Module, stages: int, arch: str) -> list[str]:
    """Return the names of the weights of the first `stages` stages, the stem being the first.

    What a stage is, timm says itself, model by model (`group_matcher`, coarse).

    Args:
        backbone: a timm net.
        stages: how many; 0 gives none.
        arch: its name, for the error.

    Raises:
        UsageError: the net has no more than so many stages, or timm does not know them.
    """
    if stages == 0:
        return []
    matcher: Any = getattr(backbone, "group_matcher", None)
    if matcher is None:
        raise UsageError(f"--freeze {stages}: timm does not say what the stages of {arch} are; leave --freeze out")
    groups = group_parameters(backbone, matcher(coarse=True))
    if stages >= len(groups):
        raise UsageError(
            f"--freeze {stages}: {arch} has {len(groups)} stages with its end; give {len(groups) - 1} or fewer"
        )
    return [name for number in sorted(groups)[:stages] for name in groups[number]]
