"""Layer-wise learning rates: each layer trains slower than the one after it, as a pretrained net's early ones are good.

Howard & Ruder 2018 (arXiv 1801.06146, §3.1); one factor for all layers as in Clark et al. 2020 (arXiv 2003.10555, §A).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

_NUMBERED = re.compile(r"(?:^|\.)(?:layers?|blocks?|h)\.(\d+)(?:\.|$)")
"""A transformer's blocks, by the names that Hugging Face's encoders and ours give them."""


def rate_factors(model: nn.Module, decay: float) -> dict[str, float]:
    """Return the factor on the rate of each parameter by name: decay^(layers after it); 1 for the last.

    A timm backbone tells its layers itself (`group_matcher`); in other nets they are the numbered blocks, what comes
    before them is one layer, and what comes after is the last.
    """
    depths = _depths(model)
    top = max(depths.values(), default=0)
    return {name: decay ** (top - depth) for name, depth in depths.items()}


def split_by_factor(
    model: nn.Module, groups: list[dict[str, Any]], factors: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Return an optimizer's groups split so that each has one factor, "lr_scale", which the loop multiplies by."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found: list[dict[str, Any]] = []
    for group in groups:
        by_factor: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_factor.setdefault(factors[names[parameter]], []).append(parameter)
        found += [{**group, "params": by_factor[factor], "lr_scale": factor} for factor in sorted(by_factor)]
    return found


def _depths(model: nn.Module) -> dict[str, int]:
    timm_net = next(((n, m) for n, m in model.named_modules() if callable(getattr(m, "group_matcher", None))), None)
    return _numbered(model) if timm_net is None else _of_timm(model, *timm_net)


def _of_timm(model: nn.Module, prefix: str, net: nn.Module) -> dict[str, int]:
    from timm.models import group_parameters

    matcher: Any = net.group_matcher
    inside = group_parameters(net, matcher(coarse=False), reverse=True)
    start, top = f"{prefix}." if prefix else "", max(inside.values()) + 1
    return {
        name: inside.get(name.removeprefix(start), top) if name.startswith(start) else top
        for name, _ in model.named_parameters()
    }


def _numbered(model: nn.Module) -> dict[str, int]:
    numbers = {name: _NUMBERED.search(name) for name, _ in model.named_parameters()}
    top = max((int(match[1]) for match in numbers.values() if match), default=-1) + 2
    depths: dict[str, int] = {}
    seen = top == 1  # without numbered blocks there are two layers: the embeddings, and the rest
    for name, match in numbers.items():
        if match:
            seen = True
            depths[name] = int(match[1]) + 1
        else:
            depths[name] = 0 if not seen or "embedding" in name else top
    return depths
