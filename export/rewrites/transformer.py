"""Rewrites of token transformers: what can be folded away, and the form of attention each runtime likes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from edgekit.export.rewrites.folding import absorb_input_affine, centre_outputs, scale_outputs
from edgekit.export.rewrites.layers import (
    BmmCore,
    MeanByLinear,
    OnnxAttentionCore,
    OnnxRMSNorm,
    RMSNorm,
    SampleNorm,
    SdpaCore,
    SiLU,
)
from edgekit.export.rewrites.mobilevit import TokenAttention, TokenMobileVitBlock, TokenTransformer
from edgekit.export.rewrites.mobilevitv2 import TokenLinearTransformer, TokenMobileVitV2Block
from edgekit.export.rewrites.pooled_attention import TokenPooledAttention

Norm = nn.LayerNorm | SampleNorm


def _norms_and_readers(model: nn.Module) -> Iterator[tuple[nn.Module, list[nn.Linear]]]:
    """Yield each norm of the token blocks with every linear layer that reads it."""
    for module in model.modules():
        if isinstance(module, TokenTransformer):
            yield module.norm1, [module.attention.q, module.attention.k, module.attention.v]
            yield module.norm2, [module.fc1]
        elif isinstance(module, TokenLinearTransformer):
            yield module.norm1, [module.attention.q, module.attention.context.k, module.attention.v]
            yield module.norm2, [module.fc1]
        elif isinstance(module, (TokenMobileVitBlock, TokenMobileVitV2Block)):
            yield module.norm, [module.project_out]


def fold_norm_affine(model: nn.Module) -> int:
    """Fold the affine part of each norm into the linear layers that read it; return how many norms.

    W (γ ⊙ x̂ + β) + b = (W diag(γ)) x̂ + (b + W β), for LayerNorm and for GroupNorm with one group alike: both have γ
    and β per channel, and the reader sees each token alone.
    """
    count = 0
    for norm, readers in _norms_and_readers(model):
        assert isinstance(norm, Norm)
        if norm.weight is None:
            continue
        shift = norm.bias if norm.bias is not None else torch.zeros_like(norm.weight)
        for reader in readers:
            absorb_input_affine(reader, norm.weight, shift)
        norm.register_parameter("weight", None)
        norm.register_parameter("bias", None)
        if isinstance(norm, nn.LayerNorm):
            norm.elementwise_affine = False
        count += 1
    return count


def fold_attention_scale(model: nn.Module) -> int:
    """Fold the 1/sqrt(d) of attention into the query projection; return how many.

    softmax(s · (Wq x + bq) kᵀ) = softmax(((s Wq) x + s bq) kᵀ): one multiplication per query less.
    """
    found = [m for m in model.modules() if isinstance(m, TokenAttention) and m.core.scale != 1.0]
    for attention in found:
        scale_outputs(attention.q, attention.core.scale)
        attention.core.scale = 1.0
    return len(found)


def fold_attention_biases(model: nn.Module) -> int:
    """Drop the key bias and move the value bias behind the attention; return how many.

    With q = Wq x + bq, a score is qᵀ(Wk x' + bk) = qᵀ Wk x' + qᵀ bk. The last term is the same for every key x', and
    softmax(s + c·1) = softmax(s): bk has no effect. The rows of the attention matrix A sum to 1, so
    A (V + 1 bvᵀ) = A V + 1 bvᵀ, and proj takes it up: b' = b + W bv. Two passes over the tokens less.
    """
    found = [m for m in model.modules() if isinstance(m, TokenAttention) and m.v.bias is not None]
    for attention in found:
        absorb_input_affine(attention.proj, torch.ones_like(attention.v.bias), attention.v.bias)
        for linear in (attention.k, attention.v):
            linear.register_parameter("bias", None)
    return len(found)


def centre_residual_stream(model: nn.Module) -> int:
    """Turn LayerNorm into RMSNorm by centring what is written to the residual stream; return how many blocks.

    Every reader of the stream is a LayerNorm, and LN(x + c·1) = LN(x): the mean over channels of the stream is never
    seen. So let every writer (project_in, each attention's proj, each fc2) subtract its own mean, W' = (I - 11ᵀ/d) W,
    b' = b - mean(b). Then mean(x) = 0 always, var(x) = mean(x²), and LN(x) = x / sqrt(mean(x²) + ε): RMSNorm, exactly.
    Not for v2: its GroupNorm subtracts one mean per image, and the mean of a single token is seen. Needs
    `fold_norm_affine` first.
    """
    found = [module for module in model.modules() if isinstance(module, TokenMobileVitBlock) and _is_centrable(module)]
    for block in found:
        layers = [layer for layer in block.transformer if isinstance(layer, TokenTransformer)]
        for writer in (block.project_in, *(layer.attention.proj for layer in layers), *(lay.fc2 for lay in layers)):
            centre_outputs(writer)
        for owner, name in [(block, "norm"), *((lay, n) for lay in layers for n in ("norm1", "norm2"))]:
            setattr(owner, name, RMSNorm(getattr(owner, name).eps))
    return len(found)


def _is_centrable(block: TokenMobileVitBlock) -> bool:
    norms = [block.norm, *(norm for layer in block.transformer for norm in (layer.norm1, layer.norm2))]
    return all(isinstance(norm, nn.LayerNorm) and norm.weight is None for norm in norms)


def _set_cores(model: nn.Module, core: type[SdpaCore]) -> int:
    found = [module for module in model.modules() if isinstance(module, TokenAttention | TokenPooledAttention)]
    for attention in found:
        attention.core = core(attention.core.heads, attention.core.scale)
    return len(found)


def attention_as_onnx_node(model: nn.Module) -> int:
    """Write each attention as one `Attention` node of ONNX opset 23; return how many. Same function, no algebra."""
    return _set_cores(model, OnnxAttentionCore)


def attention_as_bmm(model: nn.Module) -> int:
    """Write each attention as two 3-D batched products around a softmax; return how many.

    (B, heads, N, d) and (B · heads, N, d) are the same numbers: heads are only more independent products.
    """
    return _set_cores(model, BmmCore)


def silu_as_one_node(model: nn.Module) -> int:
    """Write each SiLU as one node of ONNX Runtime, QuickGelu(x; α = 1) = x · sigmoid(1 · x); return how many."""
    found = [name for name, module in model.named_modules(remove_duplicate=False) if type(module) is nn.SiLU]
    for name in found:
        model.set_submodule(name, SiLU())
    return len(found)


def _replace_rms_norms(model: nn.Module, form: type[OnnxRMSNorm] | type[MeanByLinear]) -> int:
    places: list[tuple[nn.Module, str, nn.Linear]] = []
    for module in model.modules():
        if isinstance(module, TokenTransformer):
            places += [(module, "norm1", module.fc1), (module, "norm2", module.fc1)]
        elif isinstance(module, TokenMobileVitBlock):
            places.append((module, "norm", module.project_out))
    places = [place for place in places if type(getattr(place[0], place[1])) is RMSNorm]
    for owner, name, reader in places:
        setattr(owner, name, form(getattr(owner, name).eps, reader.in_features, reader.weight))
    return len(places)


def rms_norm_as_onnx_node(model: nn.Module) -> int:
    """Write each RMSNorm as one `RMSNormalization` node of ONNX opset 23; return how many.

    Same function, no algebra. Needs `centre_residual_stream` first.
    """
    return _replace_rms_norms(model, OnnxRMSNorm)


def mean_as_linear(model: nn.Module) -> int:
    """Write the mean of each RMSNorm as a linear layer; return how many.

    mean(x²) = (1/d, …, 1/d) · x². ExecuTorch's XNNPACK delegate takes a linear layer but no mean over the last axis,
    which would cut the net in 49 pieces. Needs `centre_residual_stream` first.
    """
    return _replace_rms_norms(model, MeanByLinear)
