"""Fold BatchNorm into the convolution before it, wherever the order of the two is proven."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
import torch.fx
from timm.layers import BatchNormAct2d, ConvNormAct
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from edgekit.export.rewrites.folding import scale_outputs
from edgekit.export.rewrites.layers import ConvAct

# Exact types: a subclass may standardise its weights or statistics in forward (timm's StdConv2d, ScaledStdConv2d).
_CONVS = (nn.Conv2d, Conv2dSame)
_NORMS = (nn.BatchNorm2d, BatchNormAct2d)


def fold_batch_norms(model: nn.Module) -> int:
    """Fold each BatchNorm2d into the convolution that it alone reads; return how many.

    BN(Wx + b) = γ (Wx + b - μ) / sqrt(σ² + ε) + β is linear in x for fixed statistics (Ioffe & Szegedy 2015, §3.1):
    with s = γ / sqrt(σ² + ε), W' = s W and b' = s (b - μ) + β. timm's ConvNormAct has a fixed order; elsewhere a
    symbolic trace of the parent's forward must show that the norm is the only reader of the convolution.
    """
    shared = _shared_modules(model)
    count = 0
    for name, parent in list(model.named_modules()):
        if isinstance(parent, ConvNormAct):
            count += _fold_conv_norm_act(model, name, parent, shared)
            continue
        for conv_name, norm_name in list(_proven_pairs(parent)):
            conv, norm = parent.get_submodule(conv_name), parent.get_submodule(norm_name)
            if _foldable(conv, norm, shared):
                _fold(conv, norm)
                setattr(parent, norm_name, _after(norm))
                count += 1
    return count


def foldable_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Return the paths (convolution, norm) of all pairs that `fold_batch_norms` would fold; change nothing."""
    shared = _shared_modules(model)
    found = []
    for name, parent in model.named_modules():
        if isinstance(parent, ConvNormAct):
            pairs = [("conv", "bn")] if parent not in shared else []
        else:
            pairs = list(_proven_pairs(parent))
        for conv, norm in pairs:
            if _foldable(parent.get_submodule(conv), parent.get_submodule(norm), shared):
                found.append((f"{name}.{conv}".lstrip("."), f"{name}.{norm}".lstrip(".")))
    return found


def _fold_conv_norm_act(model: nn.Module, name: str, unit: ConvNormAct, shared: set[nn.Module]) -> int:
    conv, norm = unit.conv, unit.bn
    if not _foldable(conv, norm, shared) or unit in shared:
        return 0
    _fold(conv, norm)
    antialias = getattr(unit, "aa", None)
    if name and type(unit) is ConvNormAct and (antialias is None or isinstance(antialias, nn.Identity)):
        model.set_submodule(name, ConvAct(conv, _after(norm)))
    else:  # the net itself, or a subclass with its own forward: keep the shell
        unit.bn = _after(norm)
    return 1


def _foldable(conv: nn.Module, norm: nn.Module, shared: set[nn.Module]) -> bool:
    """Return whether the pair is plain, has fixed statistics, and neither is used elsewhere too."""
    plain = type(conv) in _CONVS and type(norm) in _NORMS
    return plain and norm.running_mean is not None and conv not in shared and norm not in shared


def _fold(conv: nn.Module, norm: nn.Module) -> None:
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None and norm.running_var is not None
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    scale_outputs(conv, scale, shift)


def _after(norm: nn.Module) -> nn.Module:
    """Return what stays of a norm once its affine is folded: timm's BatchNormAct2d carries dropout and activation."""
    if not isinstance(norm, BatchNormAct2d):
        return nn.Identity()
    if isinstance(norm.drop, nn.Identity):
        act: nn.Module = norm.act
        return act
    return nn.Sequential(norm.drop, norm.act)


def _shared_modules(model: nn.Module) -> set[nn.Module]:
    """Return the modules that stand at two places of the net: a change at one would change the other."""
    places = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    return {module for module, count in places.items() if count > 1}


class _ChildrenAsLeaves(torch.fx.Tracer):
    """Trace one forward with every child module as an opaque call."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _proven_pairs(parent: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield (convolution, norm) names of children where forward feeds the first to the second and nowhere else."""
    children = dict(parent.named_children())
    if not (any(type(c) in _CONVS for c in children.values()) and any(type(c) in _NORMS for c in children.values())):
        return
    try:
        graph = _ChildrenAsLeaves().trace(parent)
    except Exception:  # data-dependent control flow fails in as many ways as there are nets: no proof, no folding
        return
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, torch.fx.Node) or source.op != "call_module" or len(source.users) != 1:
            continue
        conv_name, norm_name = str(source.target), str(node.target)
        if {conv_name, norm_name} <= children.keys() and calls[conv_name] == calls[norm_name] == 1:
            yield conv_name, norm_name
