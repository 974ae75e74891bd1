"""A student in the form that the runtimes get, to train in, and its weights written back to the plain student.

Quantization sees the weights after the exact rewrites of `edgekit.export.rewrites`: norms folded in, the residual
stream centred, queries, keys and values apart. So this is where they are trained; the result is a plain timm student
again, whose norms do nothing, and which the same rewrites turn into the very weights that were trained.
"""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import torch
from timm.models.mobilevit import MobileVitBlock, MobileVitV2Block
from torch import Tensor, nn

from edgekit.errors import UsageError
from edgekit.export.rewrites import Target, rewrite
from edgekit.export.rewrites.batchnorm import foldable_pairs
from edgekit.export.rewrites.mobilevit import TokenMobileVitBlock, TokenTransformer
from edgekit.export.rewrites.mobilevitv2 import TokenLinearTransformer, TokenMobileVitV2Block
from edgekit.models.student import Student


def folded(student: Student, target: Target = "tflite") -> Student:
    """Return a rewritten copy of `student` that computes the same and whose weights can be trained.

    Args:
        student: as it was trained.
        target: the runtime whose form it gets; those of LiteRT and ONNX Runtime have the same weights.

    Raises:
        UsageError: a norm or a block has a form that the rewrites do not know, so that nothing would be written back.
    """
    result, _ = rewrite(student, target)
    assert isinstance(result, Student), "a rewrite replaces what is inside a student"
    left = [name for name, module in result.named_modules() if isinstance(module, nn.BatchNorm2d)]
    if left:
        raise UsageError(
            f"{student.spec.arch} keeps {len(left)} batch norms that cannot be folded into a convolution ({left[0]}, "
            f"…): fake quantization would not match what the files do. MobileViT and most timm CNNs can be folded"
        )
    result.requires_grad_(True)
    return result


@torch.no_grad()
def write_back(source: Student, student: Student) -> Student:
    """Return a copy of the plain `student` with the weights of `source`, a trained result of `folded`.

    Norms that were folded away get γ = 1 and β = 0 (of a batch norm γ = sqrt(1 + ε) against the variance 1, which is 1
    as well, and the convolution's bias for β): the copy computes what `source` does.
    """
    result = copy.deepcopy(student)
    kept = source.state_dict()
    result.load_state_dict({n: t for n, t in kept.items() if _fits(result, n, t)}, strict=False)
    modules = dict(source.named_modules())
    for conv, norm in foldable_pairs(student):
        if conv in modules:
            _write_conv(result, conv, norm, cast(nn.Conv2d, modules[conv]))
    for name, block in student.named_modules():
        token = modules.get(name)
        if isinstance(token, TokenMobileVitBlock) and isinstance(block, MobileVitBlock):
            _write_block(cast(Any, result.get_submodule(name)), token)
        elif isinstance(token, TokenMobileVitV2Block) and isinstance(block, MobileVitV2Block):
            _write_v2_block(cast(Any, result.get_submodule(name)), token)
    return result.eval()


def _fits(student: Student, name: str, tensor: Tensor) -> bool:
    own = student.state_dict(keep_vars=True).get(name)
    return own is not None and own.shape == tensor.shape


def _write_conv(result: nn.Module, conv: str, norm: str, source: nn.Conv2d) -> None:
    target = cast(nn.Conv2d, result.get_submodule(conv))
    target.weight.copy_(source.weight)
    if target.bias is not None:
        target.bias.zero_()
    _neutral_batch_norm(cast(nn.BatchNorm2d, result.get_submodule(norm)), source.bias)


def _neutral_batch_norm(norm: nn.BatchNorm2d, shift: Tensor | None) -> None:
    """Let a batch norm with fixed statistics do nothing but add `shift`."""
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.zero_()
    norm.running_var.fill_(1.0)
    norm.weight.fill_(math.sqrt(1.0 + norm.eps))
    norm.bias.zero_() if shift is None else norm.bias.copy_(shift)


def _neutral_norm(norm: nn.Module) -> None:
    cast(Tensor, norm.weight).fill_(1.0)
    if norm.bias is not None:
        cast(Tensor, norm.bias).zero_()


def _write_linear(target: nn.Linear | nn.Conv2d, source: nn.Linear) -> None:
    target.weight.copy_(source.weight.reshape(target.weight.shape))
    if target.bias is not None:
        target.bias.zero_() if source.bias is None else target.bias.copy_(source.bias)


def _write_block(target: Any, source: TokenMobileVitBlock) -> None:
    """Write a v1 block back; its inner convolutions with batch norms have their own paths."""
    _write_linear(target.conv_1x1, source.project_in)
    for layer, token in zip(target.transformer, source.transformer, strict=True):
        assert isinstance(token, TokenTransformer)
        attention, scale = token.attention, layer.attn.scale  # it was folded into the queries
        weights = [attention.q.weight / scale, attention.k.weight, attention.v.weight]
        layer.attn.qkv.weight.copy_(torch.cat(weights))
        if layer.attn.qkv.bias is not None:
            layer.attn.qkv.bias.zero_()
            layer.attn.qkv.bias[: len(weights[0])] = attention.q.bias / scale
        _write_linear(layer.attn.proj, attention.proj)
        _write_linear(layer.mlp.fc1, token.fc1)
        _write_linear(layer.mlp.fc2, token.fc2)
        _neutral_norm(layer.norm1)
        _neutral_norm(layer.norm2)
    _neutral_norm(target.norm)
    target.conv_proj.conv.weight.copy_(source.project_out.weight.reshape(target.conv_proj.conv.weight.shape))
    _neutral_batch_norm(target.conv_proj.bn, source.project_out.bias)


def _write_v2_block(target: Any, source: TokenMobileVitV2Block) -> None:
    _write_linear(target.conv_1x1, source.project_in)
    for layer, token in zip(target.transformer, source.transformer, strict=True):
        assert isinstance(token, TokenLinearTransformer)
        parts = (token.attention.q, token.attention.context.k, token.attention.v)
        weight = torch.cat([part.weight for part in parts])
        layer.attn.qkv_proj.weight.copy_(weight.reshape(layer.attn.qkv_proj.weight.shape))
        if layer.attn.qkv_proj.bias is not None:
            layer.attn.qkv_proj.bias.copy_(torch.cat([part.bias for part in parts]))
        _write_linear(layer.attn.out_proj, token.attention.proj)
        _write_linear(layer.mlp.fc1, token.fc1)
        _write_linear(layer.mlp.fc2, token.fc2)
        _neutral_norm(layer.norm1)
        _neutral_norm(layer.norm2)
    _neutral_norm(target.norm)
    target.conv_proj.conv.weight.copy_(source.project_out.weight.reshape(target.conv_proj.conv.weight.shape))
    _neutral_batch_norm(target.conv_proj.bn, source.project_out.bias)
