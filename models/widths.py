"""Nets with fewer hidden channels than timm builds: which widths can change, and how a net is cut to them.

Three kinds of places have a width of their own, which nothing outside sees:
- a bottleneck of convolutions (timm's BottleneckBlock with a depthwise one): its hidden channels;
- the MLP of a transformer block: its hidden units;
- its attention: the heads, each as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from timm.layers import Attention, ConvMlp, Mlp
from timm.models.byobnet import BottleneckBlock
from torch import Tensor, nn

from edgekit.errors import LoadError

Kind = Literal["channels", "units", "heads"]


@dataclass(frozen=True)
class Place:
    """Somewhere in a net whose width can change.

    Attributes:
        path: of the module in the backbone.
        kind: what is counted.
        width: how many there are.
    """

    path: str
    kind: Kind
    width: int


def places(backbone: nn.Module) -> list[Place]:
    """Return every place of a timm net whose width can change, in order; none for nets without such blocks."""
    return list(_places(backbone))


def _places(backbone: nn.Module) -> Iterator[Place]:
    for path, module in backbone.named_modules():
        if type(module) is BottleneckBlock and _is_depthwise(module):
            yield Place(path, "channels", module.conv1_1x1.conv.out_channels)
        elif type(module) is Mlp and type(module.fc1) is nn.Linear and isinstance(module.norm, nn.Identity):
            yield Place(path, "units", module.fc1.out_features)
        elif type(module) is ConvMlp and isinstance(module.norm, nn.Identity):
            yield Place(path, "units", module.fc1.out_channels)
        elif type(module) is Attention and _is_plain(module):
            yield Place(path, "heads", module.num_heads)


def _is_depthwise(block: BottleneckBlock) -> bool:
    """Return whether each hidden channel goes its own way from the first convolution to the last."""
    convs = (block.conv1_1x1, block.conv2_kxk, block.conv3_1x1)
    if not all(hasattr(conv, "conv") and hasattr(conv, "bn") for conv in convs):
        return False
    depthwise = block.conv2_kxk.conv
    between = (block.conv2b_kxk, block.attn)
    return (
        depthwise.groups == depthwise.in_channels == depthwise.out_channels
        and block.conv1_1x1.conv.groups == block.conv3_1x1.conv.groups == 1
        and all(isinstance(part, nn.Identity) for part in between)
    )


def _is_plain(attention: Attention) -> bool:
    absent = (attention.q_norm, attention.k_norm, attention.norm)
    return all(isinstance(part, nn.Identity) for part in absent) and getattr(attention, "gate", None) is None


@torch.no_grad()
def cut(backbone: nn.Module, kept: Mapping[str, Sequence[int]]) -> None:
    """Keep of each place named by path only the channels, units or heads numbered in `kept`; in place.

    Raises:
        LoadError: the net has no such place, or not that many.
    """
    known = {place.path: place for place in places(backbone)}
    for path, numbers in kept.items():
        place = known.get(path)
        if place is None or not numbers or max(numbers) >= place.width or min(numbers) < 0:
            had = f"{place.width} {place.kind}" if place is not None else "nothing"
            raise LoadError(f"this net cannot keep {len(numbers)} at '{path}': it has {had} there to choose from")
        index = torch.tensor(sorted(set(numbers)))
        _CUTS[place.kind](cast(Any, backbone.get_submodule(path)), index)


def narrow(backbone: nn.Module, widths: Mapping[str, int]) -> None:
    """Give a freshly built net the widths of a cut one, so that its weights can be loaded; in place.

    Raises:
        LoadError: the net has no such places, or is not that wide.
    """
    cut(backbone, {path: range(width) for path, width in widths.items()})


def _cut_channels(block: Any, index: Tensor) -> None:
    _outputs(block.conv1_1x1.conv, index)
    _norm(block.conv1_1x1.bn, index)
    _outputs(block.conv2_kxk.conv, index)
    block.conv2_kxk.conv.groups = block.conv2_kxk.conv.in_channels = len(index)
    _norm(block.conv2_kxk.bn, index)
    _inputs(block.conv3_1x1.conv, index)


def _cut_units(mlp: Any, index: Tensor) -> None:
    _outputs(mlp.fc1, index)
    _inputs(mlp.fc2, index)


def _cut_heads(attention: Any, index: Tensor) -> None:
    size, width = attention.head_dim, attention.attn_dim
    columns = (index[:, None] * size + torch.arange(size)).flatten()
    _outputs(attention.qkv, torch.cat([columns + part * width for part in range(3)]))
    _inputs(attention.proj, columns)
    attention.num_heads, attention.attn_dim = len(index), len(columns)


_CUTS: Mapping[Kind, Any] = {"channels": _cut_channels, "units": _cut_units, "heads": _cut_heads}


def _outputs(layer: nn.Linear | nn.Conv2d, index: Tensor) -> None:
    layer.weight = nn.Parameter(layer.weight[index].clone())
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias[index].clone())
    setattr(layer, "out_features" if isinstance(layer, nn.Linear) else "out_channels", len(index))


def _inputs(layer: nn.Linear | nn.Conv2d, index: Tensor) -> None:
    layer.weight = nn.Parameter(layer.weight[:, index].clone())
    setattr(layer, "in_features" if isinstance(layer, nn.Linear) else "in_channels", len(index))


def _norm(norm: nn.BatchNorm2d, index: Tensor) -> None:
    norm.weight, norm.bias = nn.Parameter(norm.weight[index].clone()), nn.Parameter(norm.bias[index].clone())
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean, norm.running_var = norm.running_mean[index].clone(), norm.running_var[index].clone()
    norm.num_features = len(index)
